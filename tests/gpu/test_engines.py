"""Engines on a real GPU: built, loaded, inspected; run with: pytest -m gpu tests/gpu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.build import build, can_build_here
from hfd_edge.deploy.engine import compiler_version
from hfd_edge.deploy.targets import Target
from hfd_edge.engine_record import check_engine
from hfd_edge.errors import MissingExtraError
from hfd_edge.gpu import find_gpu
from hfd_edge.runtime.engines import open_engine

from ..runtime.conftest import make_manifest, make_onnx

GPU = find_gpu()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPU is None, reason="no NVIDIA driver or GPU")]


def target_here(flavour: str) -> Target:
    """This machine as a target."""
    try:
        version = ".".join(compiler_version(flavour).split(".")[:3])
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert GPU is not None
    return Target.model_validate(
        {
            "name": "here",
            "flavour": flavour,
            "tensorrt": version if flavour == "tensorrt" else None,
            "compute_capabilities": (GPU.compute_capability,),
            "precisions": ("fp32",),
            "default_precision": "fp32",
            "int8": "none",
            "memory_mb": GPU.total_bytes >> 20,
            "workspace_mb": min(1024, GPU.total_bytes >> 20),
        }
    )


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Target:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return target_here(request.param)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = make_manifest(tile_px=128)
    return Bundle.create(
        tmp_path / "small.hfd", manifest, {"model.fp32.onnx": make_onnx(bands=2, classes=4, tile=128)}
    )


def test_an_engine_is_built_loaded_and_inspected(bundle: Bundle, target: Target, tmp_path: Path) -> None:
    assert can_build_here(target) is None
    (record,) = build(bundle, target)
    filled = Bundle.open(bundle.path)
    check_engine(filled.engine("here-fp32"))
    assert record.layers is not None, record.note
    assert record.layers.count > 0
    text = filled.file("engines/here-fp32.layers.json").read_text()
    assert json.loads(text)["Layers"]
    opened = open_engine(filled, "here-fp32")
    engine = opened.loaded.engine
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    assert names == {"sar", "logits"}
    kept = list((tmp_path / "cache").rglob("*.cache"))
    assert bool(kept) == (target.flavour == "tensorrt")


def test_free_memory_is_plausible() -> None:
    assert GPU is not None
    assert 0 < GPU.free_bytes <= GPU.total_bytes
