"""A trained student's run folder into a bundle."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.describe import describe_training
from hfd_edge.deploy.graph import logits_of, session
from hfd_edge.deploy.onnx_export import Head, check_parity, export_network
from hfd_edge.deploy.qat import QAT_RANGES, write_ranges
from hfd_edge.deploy.tiles import golden_images, pad_to_tile
from hfd_edge.errors import DatasetError, ExportError, StorageError, require
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.image import write_image
from hfd_edge.raster.logits import labels_from_logits

if TYPE_CHECKING:
    from hfd_edge.hfdnet.run import Run

Warp = Literal["gather", "grid_sample"]
"""Export form of the alignment; see `hfdnet.alignment.warp`."""
MODEL = "model.fp32.onnx"
CARD = "README.md"
_GOLDEN_TILES = 3
_log = logging.getLogger("hfd_edge.deploy")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    folder: PairFolder | None = None,
    head: Head | None = None,
    tile_px: int | None = None,
    warp: Warp = "gather",
    progress: Progress = silent,
) -> Bundle:
    """Export a student as a bundle with an FP32 ONNX model that was compared with the weights.

    Args:
        run: Run folder of a student.
        out: Bundle folder to make; must not exist. Its name without suffix becomes the bundle's name.
        folder: Data to take golden tiles and statistics of the training images from; without, the bundle
            has none: a device cannot check itself, and cannot say when a scene is unlike the training data.
        head: "quarter" or "full"; None takes the recipe's.
        tile_px: Side of the tile, a multiple of 32; None takes the recipe's.
        warp: "gather" or "grid_sample", the same weights and numbers in two forms, whichever the training
            used. Gathers are fast in every CPU engine (GridSample is slow in ONNX Runtime:
            benchmarks/warp.py) and every compiler has them (TensorRT before 8.5 lacks GridSample, later
            ones were reported to mistranslate it: pytorch/TensorRT#4074, NVIDIA/TensorRT#4813).
        progress: Told of the steps.
    Returns:
        The new bundle.
    Raises:
        ExportError: the run is no student, an option is out of range, or ONNX and weights differ.
        CheckpointError: the run is damaged or is none.
        DatasetError: the data are not what the student was trained for.
        StorageError: `out` exists or cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise StorageError(f"{out} already exists. Choose another --out, or remove it first.")
    require("torch", extra="export", purpose="exporting a model")
    from hfd_edge.hfdnet.card import model_card

    opened = _open_student(Path(run), folder)
    deployed = _with_warp(opened, warp)
    steps = 3 if folder is None else 5
    head = opened.recipe.deploy.head if head is None else head
    tile_px = opened.recipe.deploy.tile_px if tile_px is None else tile_px
    _check_options(head, tile_px)
    manifest = _manifest(opened, name=out.stem, head=head, tile_px=tile_px)
    with tempfile.TemporaryDirectory(prefix="hfd-edge-") as work:
        model = Path(work) / MODEL
        network = deployed.network()
        progress(0, steps, "exporting to ONNX")
        bands = opened.info.bands
        export_network(network, model, bands=bands, tile_px=tile_px, head=head)
        progress(1, steps, "comparing ONNX with the weights")
        difference = check_parity(network, model, bands=bands, tile_px=tile_px, head=head)
        files: dict[str, bytes | Path] = {MODEL: model, CARD: model_card(opened).encode()}
        if (ranges := opened.quantizers()) is not None:
            files[QAT_RANGES] = write_ranges(model, ranges)
        if folder is not None:
            progress(2, steps, "making golden tiles")
            files |= _golden(folder, manifest, model, Path(work))
            progress(3, steps, "describing the training images")
            training = describe_training(folder, manifest.preprocessing)
            manifest = manifest.model_copy(update={"training": training})
        progress(steps - 1, steps, "writing the bundle")
        scores = {key: value for key, value in opened.metrics().items() if isinstance(value, (int, float))}
        metrics: dict[str, Any] = {
            "onnx_difference": difference,
            "warp": deployed.recipe.network.warp,
            "training": scores,
        }
        bundle = Bundle.create(out, manifest.model_copy(update={"metrics": {"fp32": metrics}}), files)
    progress(steps, steps, "exported")
    return bundle


def _open_student(path: Path, folder: PairFolder | None) -> Run:
    from hfd_edge.hfdnet.run import Run

    run = Run.open(path)
    if (reason := run.info.kept_back) is not None:
        raise ExportError(f"{path} {reason}. Export the run folder of a student.")
    if folder is not None:
        _check_data(run, folder)
    return run


def _with_warp(run: Run, warp: str) -> Run:
    """The run with another warp in its recipe, which changes the graph and not the weights."""
    if warp not in get_args(Warp):
        raise ExportError(f"Warp is {warp!r}, expected one of: {', '.join(get_args(Warp))}.")
    network = run.recipe.network.model_copy(update={"warp": warp})
    return replace(run, recipe=run.recipe.model_copy(update={"network": network}))


def _check_options(head: str, tile_px: int) -> None:
    from hfd_edge.hfdnet.network import MULTIPLE_PX

    if head not in get_args(Head) or tile_px < MULTIPLE_PX or tile_px % MULTIPLE_PX:
        raise ExportError(
            f"Cannot export head {head!r} for tiles of {tile_px} pixels; tile_px must be a positive multiple "
            f'of {MULTIPLE_PX} and head "quarter" or "full".'
        )


def _check_data(run: Run, folder: PairFolder) -> None:
    trained, given = run.info.dataset, folder.config
    for what, wanted, found in (
        ("classes", trained.classes, given.classes),
        ("SAR input", trained.sar, given.sar),
    ):
        if wanted != found:
            raise DatasetError(
                f"{folder.root} has {what} {found!r}, but the run was trained for {wanted!r}. Give the data "
                "that it was trained on, or leave --data away."
            )


def _manifest(run: Run, *, name: str, head: Head, tile_px: int) -> Manifest:
    from hfd_edge.hfdnet.run import now

    info, recipe = run.info, run.recipe
    assert info.preprocessing is not None  # RunInfo sees to it for students
    versions = {package: metadata.version(package) for package in _PACKAGES}
    return Manifest(
        name=name,
        classes=info.classes,
        palette=info.palette,
        nodata_label=info.dataset.ignore_index,
        sar=info.dataset.sar,
        preprocessing=info.preprocessing,
        head=head,
        tile_px=tile_px,
        precisions={"fp32": MODEL},
        provenance=Provenance(
            recipe=recipe.model_dump(mode="json"),
            data_sha256=info.data_sha256,
            versions={**info.versions, **versions},
            commit=info.commit,
            created=now(),
        ),
    )


def _golden(folder: PairFolder, manifest: Manifest, model: Path, work: Path) -> dict[str, bytes | Path]:
    """Tiles as stored, and the labels that the FP32 model gives them."""
    runner = session(model)
    files: dict[str, bytes | Path] = {}
    images = golden_images(folder, tile_px=manifest.tile_px, count=_GOLDEN_TILES)
    _warn_of_padding(folder, images, manifest.tile_px)
    for index, image in enumerate(images):
        sar, labels = work / f"{index:03}.sar.tif", work / f"{index:03}.labels.png"
        write_image(sar, image)
        write_image(labels, _labels(image, manifest, runner)[None])
        files |= {f"golden/{sar.name}": sar, f"golden/{labels.name}": labels}
    return files


def _warn_of_padding(folder: PairFolder, images: Sequence[NDArray[Any]], tile_px: int) -> None:
    """Tell when all images are smaller than the tile: the network sees their mirror images."""
    from hfd_edge.hfdnet.network import MULTIPLE_PX

    largest = max(side for image in images for side in image.shape[1:])
    enough = largest + -largest % MULTIPLE_PX
    if enough < tile_px:
        _log.warning(
            "The images of %s have at most %d pixels a side, but a tile has %d: they are mirrored up to it, "
            "which costs time and perhaps accuracy. Export with --tile %d, unless your scenes are larger.",
            *(folder.root, largest, tile_px, enough),
        )


def _labels(image: NDArray[Any], manifest: Manifest, runner: Any) -> NDArray[np.uint8]:
    pixels, valid = manifest.preprocessing(image)
    tile = pad_to_tile(pixels, tile_px=manifest.tile_px)
    logits = logits_of(runner, tile[None])[0]
    rows, cols = valid.shape
    labels = labels_from_logits(logits, stride=manifest.stride, rows=rows, cols=cols)
    labels[~valid] = manifest.nodata_label
    return labels
