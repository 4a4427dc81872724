"""FP16 and INT8 variants: what is converted, what is not, and how close they stay."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from hfd_edge.deploy import precision as room
from hfd_edge.deploy.graph import (
    high_precision_nodes,
    load,
    quantizers,
    replace_initializers,
    session,
)
from hfd_edge.deploy.precision import Agreement, Calibration, place, to_fp16, to_int8
from hfd_edge.deploy.qdq import layers
from hfd_edge.errors import ExportError, MissingExtraError

from .conftest import make_tiles


@pytest.fixture(scope="module")
def fp16(mini_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp16") / "model.fp16.onnx"
    to_fp16(mini_onnx, path)
    return path


@pytest.fixture(scope="module")
def int8(mini_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    return path, to_int8(mini_onnx, path, tiles=make_tiles(6), method="entropy")


def agreement(reference: Path, variant: Path, tiles: np.ndarray) -> Agreement:
    return room.agreement(reference, {"int8": variant}, tiles)["int8"]


def element_types(path: Path) -> dict[str, int]:
    """Tensor name to element type, constants and inferred values."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    types |= {item.name: item.data_type for item in model.graph.initializer}
    return types


def test_fp16_keeps_float_input_and_output(fp16: Path) -> None:
    model = load(fp16)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_fp16_converts_convolutions_but_not_the_warp(mini_onnx: Path, fp16: Path) -> None:
    types = element_types(fp16)
    kept = set(high_precision_nodes(load(mini_onnx)))
    convolutions = {node.name: node for node in load(fp16).graph.node if node.op_type == "Conv"}
    for name, node in convolutions.items():
        expected = TensorProto.FLOAT if name in kept else TensorProto.FLOAT16
        assert types[node.input[1]] == expected, name
    (warp,) = (node for node in load(fp16).graph.node if node.op_type == "GridSample")
    assert types[warp.input[1]] == TensorProto.FLOAT


def test_fp16_is_close_and_smaller(mini_onnx: Path, fp16: Path) -> None:
    close = agreement(mini_onnx, fp16, make_tiles(4, seed=1))
    assert close.labels > 0.99
    assert 0 < close.logits < 0.01
    assert fp16.stat().st_size < 0.75 * mini_onnx.stat().st_size


def test_fp16_of_the_gather_form_keeps_positions_exact(gather_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    to_fp16(gather_onnx, path)
    types = element_types(path)
    for node in load(path).graph.node:
        if node.op_type in ("Floor", "Sub"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    assert agreement(gather_onnx, path, make_tiles(4, seed=1)).logits < 0.01


def test_int8_is_symmetric_with_the_recorded_scales(int8: tuple[Path, Calibration]) -> None:
    path, calibration = int8
    model = load(path)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    activations, weights = quantizers(model)
    assert set(activations) == set(calibration.amax)
    assert weights == {}  # stored as INT8, so there is nothing left to quantise
    for name, scale in activations.items():
        assert constants[scale] == pytest.approx(calibration.amax[name] / 127, rel=1e-6)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()


def test_int8_weights_are_stored_as_codes_per_channel(int8: tuple[Path, Calibration]) -> None:
    path, calibration = int8
    constants = {item.name: numpy_helper.to_array(item) for item in load(path).graph.initializer}
    dequantised = {
        node.output[0]: node for node in load(path).graph.node if node.op_type == "DequantizeLinear"
    }
    quantised = [
        node
        for node in load(path).graph.node
        if node.name in calibration.quantized_nodes and node.op_type == "Conv"
    ]
    assert quantised
    for node in quantised:
        codes, scales = (constants[name] for name in dequantised[node.input[1]].input[:2])
        assert codes.dtype == np.int8
        assert scales.shape == (codes.shape[0],)
        # Each channel's largest weight is the largest code, on either side.
        assert (np.abs(codes).reshape(len(codes), -1).max(1) == 127).all()


def test_int8_leaves_flow_warp_and_classifier(int8: tuple[Path, Calibration]) -> None:
    path, calibration = int8
    assert {"align.flow_head", "align/GridSample", "classifier"} <= set(calibration.high_precision_nodes)
    assert not set(calibration.high_precision_nodes) & set(calibration.quantized_nodes)
    assert {"coarse.0", "merge.0"} <= set(calibration.quantized_nodes)
    nodes = {node.name: node for node in load(path).graph.node}
    constants = {item.name: item.data_type for item in load(path).graph.initializer}
    for name in ("align.flow_head", "classifier"):
        assert constants[nodes[name].input[1]] == TensorProto.FLOAT


def test_int8_runs_on_the_cpu_and_is_close(mini_onnx: Path, int8: tuple[Path, Calibration]) -> None:
    close = agreement(mini_onnx, int8[0], make_tiles(4, seed=1))
    assert close.labels > 0.95
    assert 0 < close.logits < 0.2
    assert int8[0].stat().st_size < 0.75 * mini_onnx.stat().st_size
    assert session(int8[0]).run(["logits"], {"sar": make_tiles(3)})[0].dtype == np.float32


@pytest.mark.parametrize("method", ["max", "mse", "percentile"])
def test_methods(mini_onnx: Path, tmp_path: Path, int8: tuple[Path, Calibration], method: str) -> None:
    calibration = to_int8(mini_onnx, tmp_path / "m.onnx", tiles=make_tiles(6), method=method)
    largest = to_int8(mini_onnx, tmp_path / "max.onnx", tiles=make_tiles(6), method="max").amax
    assert calibration.method == method
    assert set(calibration.amax) == set(int8[1].amax)
    assert all(value <= largest[name] * (1 + 1e-6) for name, value in calibration.amax.items())
    if method == "max":
        assert calibration.amax["sar"] == pytest.approx(float(np.abs(make_tiles(6)).max()))
    assert agreement(mini_onnx, tmp_path / "m.onnx", make_tiles(4, seed=1)).labels > 0.95


def test_the_same_tiles_give_the_same_bytes(mini_onnx: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path in (first, second):
        to_int8(mini_onnx, path, tiles=make_tiles(2), method="max")
    assert first.read_bytes() == second.read_bytes()


def test_what_cannot_be_calibrated(mini_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="method is 'minmax', expected one of: entropy, max, mse, perc"):
        to_int8(mini_onnx, out, tiles=make_tiles(1), method="minmax")
    with pytest.raises(ExportError, match=r"tiles have shape \(0,\), expected \(count.*at least one"):
        to_int8(mini_onnx, out, tiles=make_tiles(1)[:0])
    with pytest.raises(ExportError, match=r"tiles have shape \(2, 64, 64\)"):
        to_int8(mini_onnx, out, tiles=make_tiles(1)[0])
    with pytest.raises(ExportError, match="overflow"):
        to_int8(mini_onnx, out, tiles=np.full((1, 2, 64, 64), np.nan, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [to_fp16, lambda path, out: to_int8(path, out, tiles=make_tiles(1))])
def test_a_truncated_model(mini_onnx: Path, tmp_path: Path, make: object) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(mini_onnx.read_bytes()[:20_000])
    with pytest.raises(ExportError, match="is not a whole ONNX model"):
        make(path, tmp_path / "out.onnx")  # type: ignore[operator]
    assert [item.name for item in tmp_path.iterdir()] == ["cut.onnx"]


@pytest.mark.parametrize("module", ["modelopt.onnx.quantization", "modelopt.onnx.trt_utils"])
def test_a_missing_extra(
    mini_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{module}'.*pip install 'hfd-edge\[export\]'"):
        to_int8(mini_onnx, tmp_path / "m.onnx", tiles=make_tiles(1))


def test_a_tensorrt_that_cannot_work_does_not_matter(
    mini_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Type stubs make an empty module of that name importable; without a GPU the real one fails the same way.
    from modelopt.onnx import trt_utils

    monkeypatch.setattr(trt_utils, "TRT_PYTHON_AVAILABLE", True)
    monkeypatch.setattr(trt_utils, "trt", types.ModuleType("tensorrt"), raising=False)
    assert layers(place(mini_onnx, make_tiles(1)[0]))
    assert trt_utils.TRT_PYTHON_AVAILABLE is True


def test_the_tile_shown_to_modelopt_decides_nothing(mini_onnx: Path) -> None:
    first, second = (place(mini_onnx, tile) for tile in make_tiles(2, seed=4))
    assert layers(first) == layers(second)
    scales = [quantizers(model)[1] for model in (first, second)]
    assert scales[0] == scales[1]


def test_a_model_that_int8_cannot_speed_up(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("sar", TensorProto.FLOAT, [1, 2, 64, 64])
    out = onnx.helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 64, 64])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["sar"], ["logits"])], "g", [value], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "plain.onnx",
    )
    with pytest.raises(ExportError, match=r"plain\.onnx has no node that INT8 can speed up"):
        place(tmp_path / "plain.onnx", make_tiles(1)[0])


def test_several_variants_are_compared_in_one_pass(mini_onnx: Path, fp16: Path) -> None:
    found = room.agreement(mini_onnx, {"same": mini_onnx, "fp16": fp16}, make_tiles(2))
    assert found["same"] == Agreement(labels=1.0, logits=0.0)
    assert found["fp16"].logits > 0


def test_a_variant_that_overflows(mini_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(mini_onnx)
    bias = next(item for item in model.graph.initializer if item.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([np.inf, 0, 0], np.float32), bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(ExportError, match=r"broken\.onnx gives logits that are not finite"):
        agreement(mini_onnx, tmp_path / "broken.onnx", make_tiles(1))


def test_a_variant_whose_positions_are_not_finite(gather_onnx: Path, tmp_path: Path) -> None:
    model = load(gather_onnx)
    replace_initializers(model, {"align.flow_head.bias": np.full(2, np.nan, np.float32)})
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(ExportError, match="not finite"):
        agreement(gather_onnx, tmp_path / "broken.onnx", make_tiles(1))


def test_nothing_is_printed(mini_onnx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to_fp16(mini_onnx, tmp_path / "a.onnx")
    to_int8(mini_onnx, tmp_path / "b.onnx", tiles=make_tiles(2))
    assert capfd.readouterr() == ("", "")
