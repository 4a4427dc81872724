"""compare: every variant of a bundle side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Data, Json, Scheme


@app.command()
def compare(
    bundle: BundleFolder,
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    scheme: Scheme = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for comparison.json and comparison.html.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend to run; may be repeated. Default: all that are here.")
    ] = None,
    tiles: Annotated[
        int | None, typer.Option(min=1, help="Score only so many tiles, evenly spread; default: all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    pictures: Annotated[int, typer.Option(min=0, max=12, help="Tiles to show in comparison.html.")] = 4,
    json: Json = False,
) -> None:
    """Compare the variants of a bundle: accuracy, pixels that flip against FP32, size and CPU latency.

    Every precision in the bundle runs on every backend of this machine, over the whole labelled split. The
    page shows the tiles on which they disagree most. Engines are listed; those for other machines do not run.

    Example: `hfd-edge compare flood.hfd --data data/ombria --out runs/compare`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.comparison import compare as run
    from hfd_edge.evaluation import open_folder
    from hfd_edge.files import storage_errors, write_json
    from hfd_edge.report.comparison import print_tables, render
    from hfd_edge.report.console import bars, print_json
    from hfd_edge.report.demo import machine_text
    from hfd_edge.report.disagreement import draw_disagreements
    from hfd_edge.report.page import require_templates

    opened, folder = Bundle.open(bundle), open_folder(bundle, data, scheme=scheme)
    if out is not None:  # now rather than after minutes of measuring
        require_templates()
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
    with bars() as progress:
        result = run(
            opened,
            folder,
            split=split,
            backends=tuple(backend or ()),
            tiles=tiles,
            threads=threads,
            progress=progress,
        )
        content = {**result.content(), "machine": machine_text(), "created": _now()}
        files: dict[str, str] = {}
        if out is not None:
            # The numbers first: they are there even if drawing fails.
            files = {"json": str(out / "comparison.json"), "html": str(out / "comparison.html")}
            write_json(Path(files["json"]), content)
            drawn = draw_disagreements(opened, folder, result, count=pictures, progress=progress)
            facts = {"machine": content["machine"], "created": content["created"]}
            render(result, Path(files["html"]), palette=folder.config.palette, pictures=drawn, **facts)
    if json:
        print_json({**content, **files})
        return
    print_tables(result)
    for path in files.values():
        typer.echo(path)


def _now() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
