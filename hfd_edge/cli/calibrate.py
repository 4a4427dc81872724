"""calibrate select: which tiles an INT8 calibration runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Data, Json, show

calibrate_app = typer.Typer(no_args_is_help=True, help="Choose calibration tiles; write and read caches.")
app.add_typer(calibrate_app, name="calibrate")


@calibrate_app.command()
def select(
    bundle: BundleFolder,
    data: Data,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles to choose.")] = 64,
    method: Annotated[
        str, typer.Option(help="k-centre (cover the extremes), random, or even (spread over the split).")
    ] = "k-centre",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same tiles.")] = 0,
    split: Annotated[str, typer.Option(help="Split to choose from.")] = "train",
    plot: Annotated[
        Path | None, typer.Option(help="PNG to draw: the chosen tiles against the whole split.")
    ] = None,
    json: Json = False,
) -> None:
    """Choose calibration tiles that cover backscatter, looks, classes and no-data of the training split.

    The choice is stored in the bundle with the hash of every tile; **quantize** calibrates on it. Distances
    say how far the chosen tiles are from the split: in standardised units for backscatter, in powers of ten
    of the looks, in shares for no-data; 0 is best.

    Example: `hfd-edge calibrate select flood.hfd --data data/ombria --tiles 64 --plot coverage.png`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.deploy.selection import select as select_tiles
    from hfd_edge.deploy.selection import store_selection
    from hfd_edge.report.console import bars
    from hfd_edge.report.coverage import plot_coverage

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    folder = PairFolder.open(data, scheme=manifest.provenance.recipe.get("split"))
    folder.require_fit("the bundle", sar=manifest.sar)
    with bars() as progress:
        selection = select_tiles(
            folder,
            manifest.preprocessing,
            tile_px=manifest.tile_px,
            count=tiles,
            method=method,
            seed=seed,
            split=split,
            progress=progress,
        )
    if plot is not None:
        plot_coverage(selection, plot, title=f"Calibration tiles of {manifest.name}")
    store_selection(opened, selection)
    result = {
        "bundle": str(bundle),
        "method": method,
        "seed": seed,
        "split": split,
        "tiles": len(selection.tiles),
        "candidates": selection.candidates,
        "left_out": selection.left_out,
        **selection.coverage.figures(),
        **({} if plot is None else {"plot": str(plot)}),
    }
    show(result, as_json=json, title="Calibration tiles")
