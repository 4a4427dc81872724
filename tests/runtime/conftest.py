"""A small real network in a real bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.config import SarInput
from hfd_edge.sar.preprocessing import Preprocessing

BANDS, CLASSES = ("vv", "vh"), ("water", "soil", "forest", "city")
PALETTE = ((0, 0, 255), (160, 120, 60), (0, 120, 0), (200, 0, 0))


def make_onnx(*, bands: int, classes: int, stride: int = 4, tile: int | None = None) -> bytes:
    """Make a network of 3x3 convolutions with fixed random weights.

    At stride 4 the receptive field is 39 pixels: 3, 7, then four layers of 8 more. Spatial dimensions are
    free unless `tile` is given, so tests can run whole images.
    """
    rng = np.random.default_rng(7)
    strides = (2, 2, 1, 1, 1, 1) if stride == 4 else (1, 1)
    nodes, weights, name, depth = [], [], "sar", bands
    for index, step in enumerate(strides):
        kernel = rng.normal(size=(8, depth, 3, 3)) * np.sqrt(2 / (9 * depth))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        conv = {"kernel_shape": [3, 3], "strides": [step, step], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], **conv))
        nodes.append(helper.make_node("LeakyRelu", [f"c{index}"], [f"r{index}"], alpha=0.3))
        name, depth = f"r{index}", 8
    kernel = rng.normal(size=(classes, depth, 1, 1)).astype(np.float32)
    weights.append(numpy_helper.from_array(kernel - kernel.mean(axis=0), "head"))
    nodes.append(helper.make_node("Conv", [name, "head"], ["logits"], kernel_shape=[1, 1]))
    side = tile if tile is not None else "side"
    low = tile // stride if tile is not None else "low"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("sar", TensorProto.FLOAT, ["batch", bands, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, low, low])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def make_manifest(**changes: Any) -> Manifest:
    """Describe the small network: two bands of intensity, Lee filter, tiles of 128."""
    chosen = {"units": "intensity", "nodata": 0.0, "speckle": "lee", "bands": BANDS} | changes
    bands = chosen["bands"]
    decibels = chosen["units"] != "stretched"
    preprocessing = Preprocessing(
        units=chosen["units"],
        looks=4.0,
        nodata=chosen["nodata"],
        speckle=chosen["speckle"],
        window_px=5,
        clip=((-30.0, 60.0) if decibels else (0.0, 255.0),) * len(bands),
        mean=(-15.0 if decibels else 120.0,) * len(bands),
        std=(5.0 if decibels else 60.0,) * len(bands),
    )
    return Manifest(
        name="small",
        classes=CLASSES,
        palette=PALETTE,
        sar=SarInput(bands=bands, units=chosen["units"], looks=4.0, nodata=chosen["nodata"]),
        preprocessing=preprocessing,
        head=chosen.get("head", "quarter"),
        tile_px=chosen.get("tile_px", 128),
        precisions=chosen.get("precisions", {"fp32": "model.fp32.onnx"}),
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )


MakeBundle = Callable[..., Bundle]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what this user's machine remembers, nor anything left there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Give a function that makes a bundle; options are those of `make_manifest`, and `onnx` bytes."""

    def make(*, name: str = "small.hfd", onnx: bytes | None = None, **changes: Any) -> Bundle:
        manifest = make_manifest(**changes)
        stride = manifest.stride
        model = onnx or make_onnx(bands=len(manifest.sar.bands), classes=len(CLASSES), stride=stride)
        files = dict.fromkeys(manifest.precisions.values(), model)
        return Bundle.create(tmp_path / "bundles" / name, manifest, files)

    return make


@pytest.fixture
def make_image() -> Callable[..., np.ndarray]:
    """Give a function that makes a speckled two-band intensity image with regions and no-data."""

    def make(rows: int, cols: int, *, bands: int = 2, hole: bool = True) -> np.ndarray:
        rng = np.random.default_rng(rows * 7919 + cols)
        row, col = np.mgrid[:rows, :cols]
        level = -15 + 6 * np.sin(row / 23) * np.cos(col / 31)
        image = 10 ** (level / 10) * rng.gamma(4, 1 / 4, (bands, rows, cols))
        if hole and rows > 60 and cols > 60:
            image[:, 20:55, 30:50] = 0.0
            image[0, -10:, -7:] = np.nan
        return image.astype(np.float32)

    return make
