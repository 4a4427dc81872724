"""export (and export triton), quantize, sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Data, DefaultGroup, Json, OptionalData, show

if TYPE_CHECKING:
    from hfd_edge.bundle import Bundle


export_app = typer.Typer(
    cls=DefaultGroup, no_args_is_help=True, help="Export a trained student as a bundle; a bundle to Triton."
)
app.add_typer(export_app, name="export")


@export_app.command("run")
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
    warp: Annotated[
        str,
        typer.Option(help="gather or grid_sample: the same numbers; GridSample is slow in ONNX Runtime."),
    ] = "gather",
    json: Json = False,
) -> None:
    """Export a trained student as a bundle with an FP32 ONNX model.

    The ONNX model is compared with the weights before the bundle is written. With --data the bundle gets
    golden tiles, by which a device can check itself.

    Example: `hfd-edge export runs/student --data data/ombria --out flood.hfd`

    Bundles go on from here: `hfd-edge export triton BUNDLE DIR` writes a model for Triton Inference Server.
    """
    from hfd_edge.config import DeployRecipe, NetworkRecipe, parse
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.deploy.export import export_run
    from hfd_edge.hfdnet.run import Run
    from hfd_edge.report.console import bars

    recipe = Run.open(run).recipe
    options = {name: value for name, value in (("head", head), ("tile_px", tile_px)) if value is not None}
    deploy = parse({**recipe.deploy.model_dump(), **options}, DeployRecipe, source="export options")
    network = parse({**recipe.network.model_dump(), "warp": warp}, NetworkRecipe, source="export options")
    folder = PairFolder.open(data, scheme=recipe.split) if data else None
    with bars() as progress:
        bundle = export_run(
            run,
            out,
            folder=folder,
            head=deploy.head,
            tile_px=deploy.tile_px,
            warp=network.warp,
            progress=progress,
        )
    _show_bundle(bundle.path, as_json=json, title="Exported")


@export_app.command("triton")
def triton(
    bundle: BundleFolder,
    repository: Annotated[
        Path, typer.Argument(help="Triton's model repository; may hold other models.", metavar="DIR")
    ],
    precision: Annotated[
        str | None,
        typer.Option(help="Variant whose ONNX model is served: fp32, fp16 or int8; default: fp32."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="TensorRT engine to serve instead: <target>-<precision>.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="By which clients call the model; default: the bundle's name.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for NVIDIA Triton Inference Server.

    DIR/<name> gets the model (ONNX, or a TensorRT plan), config.pbtxt with dynamic batching and warm-up,
    labels.txt, and a README.md that says what the input is. Preprocessing stays with the client. An engine
    runs only on the kind of GPU and in the TensorRT version that it was built for: the server's must be the
    same.

    Example: `hfd-edge export triton flood.hfd models && tritonserver --model-repository=models`
    """
    from dataclasses import asdict

    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.triton import export_triton

    made = export_triton(Bundle.open(bundle), repository, precision=precision, engine=engine, name=name)
    show({**asdict(made), "path": str(made.path)}, as_json=json, title="Exported")


@app.command()
def quantize(
    bundle: BundleFolder,
    data: Data,
    method: Annotated[
        str | None,
        typer.Option(
            help="How activations are clipped: entropy, max, mse or percentile. Default: the ranges that "
            "training with --qat learnt, otherwise entropy."
        ),
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tiles to calibrate on, spread over the training split. Default: those that `calibrate "
            "select` chose, otherwise 64.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, help="Most mIoU points that INT8 may lose on the val split; layers go back until it does."
        ),
    ] = None,
    max_class_drop: Annotated[
        float | None,
        typer.Option(min=0, help="With --max-drop: most IoU points that any class may lose; default 1.5."),
    ] = None,
    json: Json = False,
) -> None:
    """Add FP16, INT8 and INT8+FP16 variants, calibrated on tiles of the training split.

    INT8 is explicit Q/DQ, symmetric, with per-channel weights, as TensorRT wants it. Alignment arithmetic
    and the classifier stay in FP32; the rest is FP32 in *int8*, FP16 in *int8_fp16*. With --max-drop the
    layers that harm the segmentation most go back to high precision, as few as will do; this takes minutes.

    Example: `hfd-edge quantize flood.hfd --data data/ombria --max-drop 0.5`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.cli.inspect import describe_bundle
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.deploy.gate import Bound
    from hfd_edge.deploy.quantize import quantize as quantize_bundle
    from hfd_edge.report.console import bars

    if max_drop is None and max_class_drop is not None:
        raise typer.BadParameter("--max-class-drop works with --max-drop only. Give both.")
    opened = Bundle.open(bundle)
    folder = PairFolder.open(data, scheme=opened.manifest.provenance.recipe.get("split"))
    points = {"miou_points": max_drop, "class_points": max_class_drop}
    given = {name: value for name, value in points.items() if value is not None}
    bound = None if max_drop is None else Bound(**given)
    with bars() as progress:
        made = quantize_bundle(opened, folder, method=method, tiles=tiles, bound=bound, progress=progress)
    found = _quantization(made)
    if not json:  # the names fill pages
        found["kept"] = {reason: f"{len(nodes)} nodes" for reason, nodes in found["kept"].items()}
    show({**describe_bundle(bundle), **found}, as_json=json, title="Quantized")


@app.command()
def sensitivity(
    bundle: BundleFolder,
    data: Data,
    tiles: Annotated[int, typer.Option(min=1, help="Most tiles to score on.")] = 16,
    split: Annotated[str, typer.Option(help="Split to score on.")] = "val",
    plot: Annotated[Path | None, typer.Option(help="PNG to draw: the layers that cost most.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write beside the bundle's.")] = None,
    json: Json = False,
) -> None:
    """Measure what INT8 costs in every layer of a quantized bundle, and rank them.

    Each layer is measured twice: as the only one in INT8, and as the only one that is not. The ranking is
    by points of mIoU that the first costs against the FP32 model's own labels (fidelity), which is finer
    than mIoU against the truth. The result is stored in the bundle; `quantize --max-drop` ranks layers by it
    if it is of the val split.

    Example: `hfd-edge sensitivity flood.hfd --data data/ombria --plot sensitivity.png`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.deploy.sensitivity import SENSITIVITY, as_rows, measure_sensitivity, store_sensitivity
    from hfd_edge.files import write_text
    from hfd_edge.report.console import bars, print_json
    from hfd_edge.report.sensitivity import plot_sensitivity, show_sensitivity

    opened = Bundle.open(bundle)
    folder = PairFolder.open(data, scheme=opened.manifest.provenance.recipe.get("split"))
    with bars() as progress:
        found = measure_sensitivity(opened, folder, split=split, tiles=tiles, progress=progress)
    store_sensitivity(opened, found)
    if plot is not None:
        plot_sensitivity(found, plot, title=f"INT8 sensitivity of {opened.manifest.name}")
    if out is not None:
        write_text(out, found.model_dump_json(indent=2) + "\n")
    if json:
        content = found.model_dump(mode="json", exclude={"layers"})
        print_json({"bundle": str(bundle), "file": SENSITIVITY, **content, "layers": as_rows(found)})
    else:
        show_sensitivity(found)


def _quantization(bundle: Bundle) -> dict[str, Any]:
    """How a bundle was quantised, how close the variants are, and what stays in high precision and why."""
    from hfd_edge.deploy.record import read_record

    record = read_record(bundle)
    kept: dict[str, list[str]] = {}
    for item in record.kept:
        kept.setdefault(item.reason, []).append(item.node)
    return {
        "method": record.method,
        "calibration_tiles": len(record.tiles),
        "selection": record.selection,
        "int8_layers": len(record.quantized_nodes),
        "metrics": {name: bundle.manifest.metrics[name] for name in ("fp16", "int8", "int8_fp16")},
        "kept": kept,
    }


def _show_bundle(path: Path, *, as_json: bool, title: str) -> None:
    from hfd_edge.cli.inspect import describe_bundle

    show(describe_bundle(path), as_json=as_json, title=title)
