"""predict --cluster: an archive of scenes on Ray."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfd_edge.cli.common import show

if TYPE_CHECKING:
    from hfd_edge.runtime.archive import ArchiveReport, Existing


def predict_archive(
    bundle: Path,
    scenes: list[Path],
    out: Path,
    *,
    engine: dict[str, Any],
    cluster: dict[str, Any],
    existing: Existing,
    as_json: bool,
) -> None:
    """Segment an archive and print what became of it; exit with 1 where a scene failed.

    Args:
        bundle: Bundle folder.
        scenes: Scenes, folders or lists.
        out: Folder of masks.
        engine: Fields of `runtime.archive.Engine`.
        cluster: Fields of `runtime.archive.Cluster`.
        existing: As in `segment_archive`.
        as_json: Print one JSON object.
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.report.console import bars
    from hfd_edge.runtime.archive import Cluster, Engine, find_scenes, segment_archive

    if out.suffix.lower() in {".tif", ".tiff"}:
        raise typer.BadParameter(f"with --cluster masks go into a folder, but --out is the file {out.name}")
    found = find_scenes(scenes, out=out)
    try:
        with bars() as progress, redirect_stdout(sys.stderr):  # Ray prints what it thinks matters
            report = segment_archive(
                Bundle.open(bundle),
                found,
                out,
                engine=Engine(**engine),
                cluster=Cluster(**cluster),
                existing=existing,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo(f"stopped; go on with --resume, {out} knows what is done", err=True)
        raise
    _show(report, out, as_json=as_json)
    if report.failed:
        raise typer.Exit(1)


def _show(report: ArchiveReport, out: Path, *, as_json: bool) -> None:
    for entry in report.done:
        for finding in (entry.result.get("drift") or {}).get("findings", ()):
            typer.echo(f"warning: {entry.scene}: {finding['message']}", err=True)
    failed = [{"scene": entry.scene, "error": entry.error} for entry in report.failed]
    counts = {
        "masks": len(report.done),
        "done_before": len(report.kept),
        "megapixels": report.megapixels,
        "seconds": report.seconds,
        "workers": report.workers,
        "lost_workers": report.lost_workers,
    }
    if as_json:
        done = [
            {"scene": entry.scene, "mask": str(out / entry.mask), **entry.result} for entry in report.done
        ]
        show({**counts, "scenes": done, "failed": failed}, as_json=True, title="")
        return
    show({"failed": len(failed), **counts}, as_json=False, title=f"Archive {out}")
    for entry in report.failed:
        about = "" if entry.scene in str(entry.error) else f"{entry.scene}: "
        typer.echo(f"failed: {about}{entry.error}", err=True)
