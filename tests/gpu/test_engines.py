"""Engines on a real GPU: built, loaded, inspected, run; run with: pytest -m gpu tests/gpu."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.build import build, can_build_here
from hfd_edge.deploy.engine import compiler_version
from hfd_edge.deploy.targets import Target
from hfd_edge.engine_record import check_engine
from hfd_edge.errors import MissingExtraError
from hfd_edge.gpu import find_gpu
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.backends.tensorrt import TensorRTBackend
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.engines import open_engine

from ..runtime.conftest import make_manifest, make_onnx

GPU = find_gpu()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.hardware,
    pytest.mark.skipif(GPU is None, reason="no NVIDIA driver or GPU"),
]


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


def warped_onnx(flow: float = 0.01) -> bytes:
    """A network that samples its features at positions that depend on the image, as HFD-Net does."""
    rng = np.random.default_rng(3)
    side = np.linspace(-1, 1, 32, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1)[None]
    weights = {
        "w": rng.normal(size=(4, 2, 4, 4)).astype(np.float32) / 8,
        "v": flow * rng.normal(size=(2, 2, 4, 4)).astype(np.float32),  # by default up to some pixels
        "grid": grid,
    }
    nodes = [
        helper.make_node("Conv", ["sar", "w"], ["features"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["sar", "v"], ["flow"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Transpose", ["flow"], ["moved"], perm=[0, 2, 3, 1]),
        helper.make_node("Add", ["moved", "grid"], ["positions"]),
        helper.make_node("GridSample", ["features", "positions"], ["logits"], align_corners=1),
    ]
    graph = helper.make_graph(
        nodes,
        "warped",
        [helper.make_tensor_value_info("sar", TensorProto.FLOAT, ["batch", 2, 128, 128])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 32, 32])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("memory", ["copy", "mapped"])
@pytest.mark.parametrize("graphs", [False, True])
def test_the_logits_are_those_of_onnx_runtime(
    tmp_path: Path, target: Target, graphs: bool, memory: str
) -> None:
    files = {"model.fp32.onnx": warped_onnx()}
    bundle = Bundle.create(tmp_path / "warped.hfd", make_manifest(tile_px=128), files)
    build(bundle, target)
    bundle = Bundle.open(bundle.path)
    reference = OnnxRuntimeBackend(bundle, precision="fp32")
    still = onnxruntime.InferenceSession(warped_onnx(0), providers=["CPUExecutionProvider"])
    with Device.open(memory=memory) as device:
        backend = TensorRTBackend(bundle, "here-fp32", device=device, graphs=graphs)
        for seed in range(4):  # graphs come in with the second
            count = min(backend.batch, 1 + seed % 2)
            batch = np.random.default_rng(seed).normal(size=(count, 2, 128, 128)).astype(np.float32)
            expected = reference.run(batch)
            assert np.abs(still.run(None, {"sar": batch})[0] - expected).max() > 0.1 * np.ptp(expected)
            # TF32 multiplies with 11 bits; engines use it for FP32 unless they are told not to.
            np.testing.assert_allclose(backend.run(batch), expected, atol=4e-3 * np.ptp(expected))
        backend.close()


def test_free_memory_is_plausible() -> None:
    assert GPU is not None
    assert 0 < GPU.free_bytes <= GPU.total_bytes
