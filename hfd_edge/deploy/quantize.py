"""Add the FP16 and INT8 variants to a bundle, with the record of how they were made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Precision
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.calibration import LEVELS, METHODS
from hfd_edge.deploy.precision import HIGH_PRECISION, Agreement, Calibration, agreement, to_fp16, to_int8
from hfd_edge.deploy.tiles import CalibrationTile, calibration_tiles
from hfd_edge.errors import ExportError
from hfd_edge.progress import Progress, silent

RECORD = "calibration/int8.json"
SPLIT = "train"
_COMPARED_TILES = 8
_FP16_TOLERANCE = 0.05
"""Largest logits difference of FP16, relative to their range. Sound conversions stay near 0.002; an
activation beyond the range of FP16 (65504) exceeds this at once."""
_PACKAGES = ("nvidia-modelopt", "onnx", "onnxruntime")


def quantize(
    bundle: Bundle,
    folder: PairFolder,
    *,
    method: str = "entropy",
    tiles: int = 64,
    progress: Progress = silent,
) -> Bundle:
    """Make FP16 and INT8 models from the bundle's FP32 model.

    INT8 is calibrated on tiles of the training split, through the bundle's own preprocessing. What was
    measured goes to calibration/int8.json, and the agreement with FP32 on some of those tiles to the
    manifest's metrics.

    Args:
        bundle: Gets model.fp16.onnx, model.int8.onnx and the record, all or none of them.
        folder: Data folder that the model was trained on, or one like it.
        method: How activations are clipped: "entropy", "max" or "mse".
        tiles: Tiles to calibrate on.
        progress: Told of every tile.
    Raises:
        ExportError: unknown method, or a variant is too far from FP32.
        DatasetError: the folder's SAR is not what the bundle takes, or a file is unreadable.
        BundleError: the FP32 model is missing or was changed.
        StorageError: the disk is full; the bundle is as it was.
    """
    if method not in METHODS or tiles < 1:
        raise ExportError(
            f"Calibration method {method!r} on {tiles} tiles is not possible; choose one of "
            f"{', '.join(METHODS)} and at least 1 tile."
        )
    folder.require_fit("the bundle", sar=bundle.manifest.sar)
    source = bundle.model("fp32")
    pixels, chosen = calibration_tiles(
        folder,
        bundle.manifest.preprocessing,
        tile_px=bundle.manifest.tile_px,
        count=tiles,
        split=SPLIT,
        progress=progress,
    )
    with tempfile.TemporaryDirectory(prefix="hfd-edge-") as work:
        fp16, int8 = Path(work) / "model.fp16.onnx", Path(work) / "model.int8.onnx"
        to_fp16(source, fp16)
        calibration = to_int8(source, int8, tiles=pixels, method=method, progress=progress)
        compared = _spread(pixels)
        closeness = {"fp16": agreement(source, fp16, compared), "int8": agreement(source, int8, compared)}
        _check_fp16(closeness["fp16"])
        record = _record(bundle, folder, calibration, chosen)
        return bundle.add(
            {fp16.name: fp16, int8.name: int8, RECORD: record},
            precisions={"fp16": fp16.name, "int8": int8.name},
            metrics=_metrics(closeness, len(compared)),
        )


def _record(
    bundle: Bundle, folder: PairFolder, calibration: Calibration, tiles: Sequence[CalibrationTile]
) -> bytes:
    manifest = bundle.manifest
    content = {
        "method": calibration.method,
        "scale": f"amax / {LEVELS}, symmetric, zero point 0",
        "high_precision": HIGH_PRECISION,
        "onnx_sha256": manifest.files[manifest.precisions["fp32"]],
        "data_sha256": folder.sha256,
        "split": SPLIT,
        "tile_px": manifest.tile_px,
        "tiles": [asdict(tile) for tile in tiles],
        "quantized_node_count": len(calibration.quantized_nodes),
        "quantized_nodes": calibration.quantized_nodes,
        "quantized_weights": calibration.weights,
        "high_precision_nodes": calibration.high_precision_nodes,
        "amax": calibration.amax,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _metrics(closeness: dict[str, Agreement], tiles: int) -> dict[Precision, dict[str, Any]]:
    precisions: tuple[Precision, ...] = ("fp16", "int8")
    return {
        name: {
            "label_agreement_with_fp32": closeness[name].labels,
            "logits_difference_to_fp32": closeness[name].logits,
            "compared_tiles": tiles,
        }
        for name in precisions
    }


def _check_fp16(closeness: Agreement) -> None:
    if closeness.logits > _FP16_TOLERANCE:
        raise ExportError(
            f"The FP16 model differs from FP32 by {closeness.logits:.3f} of the range of the logits "
            f"(allowed {_FP16_TOLERANCE}), labels agree on {closeness.labels:.1%}. Some activations exceed "
            "the range of FP16: train with weight decay or a lower learning rate, and export again."
        )


def _spread(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    step = -(-len(tiles) // _COMPARED_TILES)
    return tiles[::step]
