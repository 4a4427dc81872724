"""export, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Data, Json, OptionalData, show


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Student's run folder.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", help="Bundle folder to make, for example flood.hfd.")],
    data: OptionalData = None,
    head: Annotated[
        str | None,
        typer.Option(help="quarter (stride 4, the runtime upsamples) or full; default: the recipe's."),
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option("--tile", min=32, help="Side of the tile; default: the recipe's.")
    ] = None,
    json: Json = False,
) -> None:
    """Export a trained student as a bundle with an FP32 ONNX model.

    The ONNX model is compared with the weights before the bundle is written. With --data the bundle gets
    golden tiles, by which a device can check itself.

    Example: `hfd-edge export runs/student --data data/ombria --out flood.hfd`
    """
    from hfd_edge.config import DeployRecipe, parse
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.deploy.export import export_run
    from hfd_edge.hfdnet.run import Run
    from hfd_edge.report.console import bars

    recipe = Run.open(run).recipe
    options = {name: value for name, value in (("head", head), ("tile_px", tile_px)) if value is not None}
    deploy = parse({**recipe.deploy.model_dump(), **options}, DeployRecipe, source="export options")
    folder = PairFolder.open(data, scheme=recipe.split) if data else None
    with bars() as progress:
        bundle = export_run(
            run, out, folder=folder, head=deploy.head, tile_px=deploy.tile_px, progress=progress
        )
    _show_bundle(bundle.path, as_json=json, title="Exported")


@app.command()
def quantize(
    bundle: BundleFolder,
    data: Data,
    method: Annotated[
        str, typer.Option(help="How activations are clipped: entropy, mse or max.")
    ] = "entropy",
    tiles: Annotated[int, typer.Option(min=1, help="Tiles of the training split to calibrate on.")] = 64,
    json: Json = False,
) -> None:
    """Add FP16 and INT8 variants, calibrated on tiles of the training split.

    INT8 is explicit Q/DQ, symmetric, with per-channel weights, as TensorRT wants it. Alignment arithmetic
    and the classifier stay in high precision.

    Example: `hfd-edge quantize flood.hfd --data data/ombria`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.deploy.quantize import quantize as quantize_bundle
    from hfd_edge.report.console import bars

    opened = Bundle.open(bundle)
    folder = PairFolder.open(data, scheme=opened.manifest.provenance.recipe.get("split"))
    with bars() as progress:
        quantize_bundle(opened, folder, method=method, tiles=tiles, progress=progress)
    _show_bundle(bundle, as_json=json, title="Quantized")


def _show_bundle(path: Path, *, as_json: bool, title: str) -> None:
    from hfd_edge.cli.inspect import describe_bundle

    show(describe_bundle(path), as_json=as_json, title=title)
