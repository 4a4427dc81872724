"""simulate, data convert, data check, data inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Json, Scheme, show
from hfd_edge.datasets.public import PUBLIC

if TYPE_CHECKING:
    from hfd_edge.datasets.folder import PairFolder

folder_app = typer.Typer(
    no_args_is_help=True, help="Bring data into the project's folder layout and check it."
)
app.add_typer(folder_app, name="data")


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DIR")],
    train: Annotated[int, typer.Option(min=1, help="Training pairs.")] = 64,
    val: Annotated[int, typer.Option(min=1, help="Validation pairs.")] = 16,
    test: Annotated[int, typer.Option(min=1, help="Test pairs.")] = 16,
    size_px: Annotated[int, typer.Option("--size", min=32, help="Side of a tile, pixels.")] = 256,
    looks: Annotated[float, typer.Option(min=0.5, help="Looks of the speckle; 1 is single-look.")] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pixels.")] = 0,
    scene_px: Annotated[
        int, typer.Option("--scene", min=0, help="Also write DIR/scene.tif of this side; 0 for none.")
    ] = 0,
    json: Json = False,
) -> None:
    """Simulate paired EO/SAR/label scenes whose truth is known.

    SAR is sigma0 (linear, VV and VH) with gamma speckle, layover and shadow at buildings and a noise
    floor; EO has haze and clouds. Use it to try the whole road, or to test your own code.

    Example: `hfd-edge simulate data/sim --train 200 --scene 4096`
    """
    from hfd_edge.datasets.simulated import write_dataset, write_scene
    from hfd_edge.report.console import bars

    pairs = {"train": train, "val": val, "test": test}
    with bars() as progress:
        write_dataset(out, **pairs, size_px=size_px, seed=seed, looks=looks, progress=progress)
        if scene_px:
            write_scene(
                out / "scene.tif", rows=scene_px, cols=scene_px, seed=seed + 1, looks=looks, progress=progress
            )
    result = {"folder": str(out), "pairs": pairs, "scene": str(out / "scene.tif") if scene_px else None}
    show(result, as_json=json, title="Simulated")


_CONVERT_HELP = """Convert a public data set into the project's data folder.

Nothing is downloaded: fetch the data from their authors, under their terms.

Example: `hfd-edge data convert ombria ~/OMBRIA data/ombria`

""" + "\n\n".join(
    f"{name}: {one.title}. {one.content}; {one.size}. Licence: {one.licence}." for name, one in PUBLIC.items()
)


@folder_app.command(help=_CONVERT_HELP)
def convert(
    name: Annotated[str, typer.Argument(help=f"Data set: {', '.join(PUBLIC)}.", metavar="NAME")],
    source: Annotated[Path, typer.Argument(help="The data as their authors distribute them.", metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DST")],
    json: Json = False,
) -> None:
    """See `_CONVERT_HELP`."""
    from hfd_edge.datasets.convert import convert as convert_data
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.report.console import bars

    with bars() as progress:
        convert_data(name, source, destination, progress=progress)
    folder = PairFolder.open(destination)
    result = {"folder": str(destination), "classes": list(folder.config.classes), "pairs": _pairs(folder)}
    show(result, as_json=json, title="Data folder")


@folder_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Data folder.", metavar="DIR")], json: Json = False
) -> None:
    """Read every file of a data folder and list what is wrong with it, one finding a line.

    A fault stops or spoils a training or a score, and the exit code is 1; a warning is legal, but rarely
    meant. Beside unreadable and mismatching files it finds copies of one image in two splits, EO and labels
    that lie elsewhere than their SAR image or are missing for some pairs, classes that no training label
    shows, and linear power declared as decibels.

    Example: `hfd-edge data check data/mine --json`
    """
    from dataclasses import asdict

    from hfd_edge.datasets.check import check_folder
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.report.console import bars

    opened = PairFolder.open(folder)
    with bars() as progress:
        found = check_folder(opened, progress=progress)
    faults, warnings = found.of("fault"), found.of("warning")
    result: dict[str, Any] = {"folder": str(folder), "classes": list(opened.config.classes)}
    result["pairs"] = dict(found.pairs)
    if json:
        lists = {"faults": faults, "warnings": warnings}
        result |= {name: [asdict(finding) for finding in findings] for name, findings in lists.items()}
        show(result, as_json=True, title="Data folder")
    else:
        counts = {"faults": len(faults), "warnings": len(warnings)}
        show({**result, **counts}, as_json=False, title="Data folder")
        for finding in found.findings:
            typer.echo(f"{finding.level}: {finding.text}")
    if faults:
        raise typer.Exit(1)


@folder_app.command("inspect")
def inspect_data(
    folder: Annotated[Path, typer.Argument(help="Data folder.", metavar="DIR")],
    split: Annotated[str | None, typer.Option(help="Read this split alone.")] = None,
    scheme: Scheme = None,
    tiles: Annotated[
        int, typer.Option(min=0, help="Read at most so many evenly spaced pairs of each split; 0 for all.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Also write a page with pictures, and charts, to this folder."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a data folder holds, and show it.

    For each split, and for the list unlabelled.txt: class shares, values of every band, number of looks,
    no-data, and the shift of EO against SAR (phase correlation of edges). Unless only some pairs are read,
    everything that `data check` finds stands in the result too, leaks between splits among it; here it does
    not change the exit code.

    Example: `hfd-edge data inspect data/ombria --scheme spatial --out inspect`
    """
    from dataclasses import asdict

    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.datasets.inspect import inspect_folder
    from hfd_edge.report.console import bars
    from hfd_edge.report.inspect import print_inspection, write_inspection

    opened = PairFolder.open(folder, scheme=scheme)
    with bars() as progress:
        found = inspect_folder(opened, split, tiles=tiles or None, progress=progress)
    result: dict[str, Any] = {"folder": str(folder), "scheme": opened.scheme, **asdict(found)}
    if out is not None:
        result["page"] = str(write_inspection(opened, found, out))
    if json:
        show(result, as_json=True, title="Data folder")
        return
    print_inspection(found, opened.config)
    if out is not None:
        typer.echo(f"page: {result['page']}")


def _pairs(folder: PairFolder) -> dict[str, int]:
    """Pairs in every list of every scheme. Raises DatasetError when names or lists are faulty."""
    from hfd_edge.datasets.folder import PairFolder

    if not folder.schemes:
        return {name: len(pairs) for name, pairs in folder.lists.items()}
    schemes = {scheme: PairFolder.open(folder.root, scheme=scheme) for scheme in folder.schemes}
    counts: dict[str, int] = {}
    for name, one in schemes.items():
        counts |= {f"{name}/{listed}": len(pairs) for listed, pairs in one.lists.items()}
    return counts
