"""predict, demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.archive import predict_archive
from hfd_edge.cli.common import Json, show

if TYPE_CHECKING:
    from hfd_edge.runtime.archive import Existing


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")],
    scenes: Annotated[
        list[Path],
        typer.Argument(
            help="GeoTIFF or PNG scenes; with --cluster also folders, and .txt files with a scene a line.",
            metavar="SCENE...",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Mask to write; with several scenes a folder.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 or auto.")] = "auto",
    backend: Annotated[
        str, typer.Option(help="onnxruntime, openvino, tensorrt, tensorrt_rtx, torch_tensorrt or auto.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads, on a cluster of each worker; default: all cores, or 2."),
    ] = None,
    overlap_px: Annotated[
        int | None,
        typer.Option(
            "--overlap",
            help="Overlap of tiles, pixels, a multiple of 32; less is faster, more hides tile borders.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks that exist.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Segment an archive with many workers, by Ray, on this machine.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use: auto, host:port or ray://host:port. [--cluster]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Scenes at a time; default: what there is room for. [--cluster]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do what an earlier run left. [--cluster]")
    ] = False,
    json: Json = False,
) -> None:
    """Segment scenes of any size in bounded memory.

    The mask keeps the scene's CRS, transform or GCPs, and gets a colour table, no-data 255 and overviews.
    When a scene is unlike what the network was trained on, stderr says so, and "drift" in --json.

    With --cluster each scene is done once, also when a worker dies; failed scenes are listed at the end (exit
    code 1), and what is done stands in OUT/archive.jsonl, from which --resume goes on. Bundle, scenes and OUT
    need the same paths on all nodes.

    Example: `hfd-edge predict flood.hfd S1A_IW_GRDH.tif --out water.tif`

    Example: `hfd-edge predict flood.hfd archive/ --out masks --cluster --workers 4`
    """
    given = [name for name, value in (("--workers", workers), ("--resume", resume)) if value]
    if given and not (cluster or address):
        raise typer.BadParameter(f"{given[0]} works with --cluster only. Give both.")
    options: dict[str, Any] = {"backend": backend, "precision": precision, "overlap_px": overlap_px}
    if cluster or address:
        where = {"address": address or "local", "workers": workers, "threads": threads}
        existing = _existing(overwrite=overwrite, resume=resume)
        predict_archive(bundle, scenes, out, engine=options, cluster=where, existing=existing, as_json=json)
    else:
        _predict_here(bundle, scenes, out, {**options, "threads": threads}, overwrite=overwrite, as_json=json)


def _existing(*, overwrite: bool, resume: bool) -> Existing:
    """What happens to masks that are there already."""
    if overwrite and resume:
        raise typer.BadParameter("--resume keeps masks and --overwrite replaces them. Give one of them.")
    return "resume" if resume else "replace" if overwrite else "refuse"


def _predict_here(
    bundle: Path, scenes: list[Path], out: Path, options: dict[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    """Segment one scene after the other in this process."""
    from hfd_edge.bundle import Bundle
    from hfd_edge.errors import StorageError
    from hfd_edge.report.console import bars
    from hfd_edge.runtime.segmenter import Segmenter

    targets = _destinations(scenes, out)
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise StorageError(f"{existing[0]} already exists. Pass --overwrite, or choose another --out.")
    rows: list[dict[str, Any]] = []
    with (
        bars() as progress,
        Segmenter(Bundle.open(bundle), **options) as segment,
    ):
        for scene, target in zip(scenes, targets, strict=True):
            report = segment.scene(scene, target, progress=progress)
            rows.append({"scene": str(scene), "mask": str(target), **asdict(report)})
            for finding in report.drift.findings if report.drift else ():
                typer.echo(f"warning: {scene}: {finding.message}", err=True)
        used = {"backend": segment.backend, "precision": segment.precision}
    if as_json:
        show({**used, "scenes": rows}, as_json=True, title="")
        return
    for row in rows:
        row.pop("drift")  # said already
        show({**row, **used}, as_json=False, title=Path(row["scene"]).name)


def _destinations(scenes: list[Path], out: Path) -> list[Path]:
    """One file for one scene (unless `out` is a folder), else a file per scene in the folder `out`."""
    ending = "" if out.is_dir() else out.suffix.lower()
    if ending in {".tif", ".tiff"}:
        if len(scenes) > 1:
            raise typer.BadParameter(f"several scenes need a folder, but --out is the file {out.name}")
        return [out]
    if ending in {".png", ".jpg", ".jpeg", ".jp2", ".img", ".vrt"}:
        raise typer.BadParameter(f"masks are GeoTIFF, so --out {out.name} must end in .tif")
    names = [scene.with_suffix(".tif").name for scene in scenes]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise typer.BadParameter(
            f"several scenes are called {doubled[0]}; segment them into different folders"
        )
    return [out / name for name in names]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path(
        "runs/demo"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again: remove what an earlier demo made.")
    ] = False,
    json: Json = False,
) -> None:
    """Take the whole road once, on simulated pairs: ten to fifteen minutes on two cores.

    Simulates pairs, trains the teacher, a SAR-only student and a distilled student, exports, quantises,
    builds two engines, segments a 4096 x 4096 scene and writes report.html and summary.json. Stages that
    are finished are not done again, so an interrupted demo goes on where it stopped.
    """
    from hfd_edge.demo import run_demo
    from hfd_edge.report.console import bars

    with bars() as progress:
        summary = run_demo(out, fresh=fresh, progress=progress)
    show({**summary, "report": str(out / "report.html")}, as_json=json, title="Demo")
