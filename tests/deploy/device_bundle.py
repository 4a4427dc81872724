"""A quantised bundle with golden tiles, as a deployment engineer has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.quantize import quantize
from hfd_edge.raster.image import write_image

from .conftest import TILE, make_manifest

GOLDEN = 2
_MADE: dict[Path, Bundle] = {}


def make_device_bundle(root: Path, onnx: Path, folder: PairFolder) -> Bundle:
    """Write it below `root`, in all four precisions; once for each model in a test session."""
    if onnx in _MADE:
        return _MADE[onnx]
    files: dict[str, bytes | Path] = {"model.fp32.onnx": onnx}
    for index, pair in enumerate(folder.pairs("train")[:GOLDEN]):
        image, name = folder.load_sar(pair)[:, 8 : 8 + TILE, 4 : 4 + TILE], f"{index:03}"
        write_image(root / f"{name}.sar.tif", image)
        write_image(root / f"{name}.labels.png", np.zeros((1, *image.shape[1:]), np.uint8))
        files |= {f"golden/{name}.{kind}": root / f"{name}.{kind}" for kind in ("sar.tif", "labels.png")}
    bundle = Bundle.create(root / "mini.hfd", make_manifest(), files)
    _MADE[onnx] = quantize(bundle, folder, tiles=4)
    return _MADE[onnx]
