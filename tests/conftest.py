"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Small problems: more threads cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait by spinning burn ten times the work where other jobs share the cores (measured).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Demo:
    """A finished demo on tiny data; tests read it and leave it as it is."""

    out: Path
    recipe: Any
    size: Any
    summary: dict[str, Any]

    @property
    def pairs(self) -> Path:
        return self.out / "data" / "pairs"

    @property
    def bundle(self) -> Path:
        return Path(self.summary["bundle"])


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real EO/SAR data beside the repository; the licences forbid shipping it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real SAR data are not beside the repository (../shared/data)")
    return folder


@contextmanager
def _files_end_at(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so writing beyond the limit fails with EFBIG, as ENOSPC would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        # Before the test ends: pytest's own output may go to a file that is longer already.
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A disk that is full, without needing one: inside the block, files cannot grow beyond so many bytes."""
    return _files_end_at


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The whole road once, through the code of `hfd-edge demo`; half a minute, for all tests together."""
    from hfd_edge.config import Recipe
    from hfd_edge.demo import DemoSize, run_demo

    recipe = Recipe.model_validate(
        {
            "network": {"preset": "s", "channels": 16, "init": "random"},
            "training": {"epochs": 2, "batch": 4, "crop_px": 64},
            "preprocessing": {"speckle": "lee"},
            "deploy": {"tile_px": 64},
        }
    )
    size = DemoSize(train=8, val=2, test=3, tile_px=64, scene_px=300, calibration_tiles=4)
    out = tmp_path_factory.mktemp("demo") / "run"
    return Demo(out, recipe, size, run_demo(out, recipe=recipe, size=size))


THRESHOLDS = {"fp32": 100.0, "fp16": 100.0, "int8": 120.0}


def _threshold_model(threshold: float, *, tile_px: int) -> bytes:
    """One convolution: class 1 where the pixel is above the threshold, class 0 elsewhere."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [np.array([-1.0, 1.0], np.float32).reshape(2, 1, 1, 1), np.array([threshold, -threshold])]
    shapes = [("sar", ["batch", 1, tile_px, tile_px]), ("logits", ["batch", 2, tile_px, tile_px])]
    sar, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    constants = [
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in zip("wb", weights, strict=True)
    ]
    node = helper.make_node("Conv", ["sar", "w", "b"], ["logits"], kernel_shape=[1, 1])
    graph = helper.make_graph([node], "threshold", [sar], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.fixture
def make_thresholds(tmp_path: Path) -> Callable[..., Any]:
    """Give a function that makes a bundle whose variants are thresholds, so every score is known exactly.

    FP32 and FP16 call a pixel flood above 100, INT8 above 120 (`THRESHOLDS`).
    """
    from hfd_edge.bundle import Bundle, Manifest, Provenance
    from hfd_edge.config import SarInput
    from hfd_edge.sar.preprocessing import Preprocessing

    def make(thresholds: dict[str, float] | None = None, *, extra: dict[str, bytes] | None = None) -> Bundle:
        chosen = THRESHOLDS if thresholds is None else thresholds
        files = {f"model.{name}.onnx": _threshold_model(value, tile_px=64) for name, value in chosen.items()}
        engines = {Path(name).stem: name for name in extra or {} if name.endswith(".engine")}
        manifest = Manifest(
            name="thresholds",
            classes=("dry", "flood"),
            palette=((200, 180, 140), (30, 100, 200)),
            sar=SarInput(bands=("sar",), units="stretched", looks=1.0, nodata=0.0),
            preprocessing=Preprocessing(
                units="stretched",
                looks=1.0,
                nodata=0.0,
                speckle="none",
                window_px=7,
                clip=((0.0, 255.0),),
                mean=(0.0,),
                std=(1.0,),
            ),
            head="full",
            tile_px=64,
            precisions={name: f"model.{name}.onnx" for name in chosen},
            engines=engines,
            provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
        )
        return Bundle.create(tmp_path / "thresholds.hfd", manifest, {**files, **(extra or {})})

    return make


@pytest.fixture
def threshold_data(tmp_path: Path) -> Path:
    """Eight test pairs whose truth is flood above 110, in part unknown; tile 3 has no EO, tile 7 no label."""
    from hfd_edge.config import DatasetConfig, EoInput, SarInput, write_toml
    from hfd_edge.raster.image import write_image

    root = tmp_path / "pairs"
    rng = np.random.default_rng(5)
    for index in range(8):
        # Tile 0 has values from 60 on, tile 7 from 95 on: later tiles have more pixels from 101 to 120.
        image = rng.integers(60 + 5 * index, 130, (1, 40, 50)).astype(np.uint8)
        image[:, :6, :7] = 0
        truth = (image > 110).astype(np.uint8)
        truth[:, 20:30, 20:45] = 255
        write_image(root / f"test/sar/tile_{index}.png", image)
        if index != 7:
            write_image(root / f"test/label/tile_{index}.png", truth)
        if index != 3:
            write_image(root / f"test/eo/tile_{index}.png", np.repeat(image, 3, axis=0))
    config = DatasetConfig(
        name="thresholds",
        classes=("dry", "flood"),
        palette=((200, 180, 140), (30, 100, 200)),
        sar=SarInput(bands=("sar",), units="stretched", looks=1.0, nodata=0.0),
        eo=EoInput(bands=("red", "green", "blue"), scale=255.0),
    )
    write_toml(root / "dataset.toml", config)
    return root
