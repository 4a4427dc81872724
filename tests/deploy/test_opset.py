"""Older forms of a model compute the same numbers, and what has no older form is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.deploy.graph import session
from hfd_edge.deploy.opset import lower_opset, opset_of
from hfd_edge.errors import ExportError

from .conftest import make_tiles

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
TILES = make_tiles(2, seed=4)


def run(model: Any, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(session(model).run(None, inputs or {"sar": TILES})[0])


def model_of(
    *nodes: Any,
    opset: int = 19,
    shape: tuple[int, ...] = (1, 2, 4, 4),
    kind: int = FLOAT,
    rank: int = 4,
    constants: dict[str, np.ndarray] | None = None,
) -> Any:
    """A model from input "x" to output "y"."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def quantised(model: Any, *, weight: str = "fine.1.0.weight", scale: str = "float32") -> Any:
    """The model at opset 19 with Q/DQ pairs at the first Clip's output and INT8 codes for a weight."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.opset_import[0].version = 19
    position, conv = next(
        (index, node) for index, node in enumerate(changed.graph.node) if weight in node.input
    )
    tensor = next(item for item in changed.graph.initializer if item.name == weight)
    values = numpy_helper.to_array(tensor)
    scales = (np.abs(values).max((1, 2, 3)) / 127).astype(scale)
    codes = np.rint(values / scales[:, None, None, None]).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(codes, weight))
    constants = {
        "s": np.array(0.05, scale),
        "z": np.array(0, np.int8),
        "ws": scales,
        "wz": np.zeros(len(codes), np.int8),
    }
    changed.graph.initializer.extend(numpy_helper.from_array(item, name) for name, item in constants.items())
    pairs = [
        helper.make_node("QuantizeLinear", [conv.input[0], "s", "z"], ["codes"], name="q", saturate=1),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["floats"], name="dq"),
        helper.make_node("DequantizeLinear", [weight, "ws", "wz"], ["w"], name="wdq", axis=0),
    ]
    conv.input[0], conv.input[1] = "floats", "w"
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes[:position], *pairs, *nodes[position:]])
    return changed


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (16, 8)])
def test_grid_sample_goes_down_to_16(mini_onnx: Path, opset: int, ir: int) -> None:
    model = onnx.load(mini_onnx)
    lowered = lower_opset(model, opset)
    assert (opset_of(lowered), lowered.ir_version) == (opset, ir)
    assert [node.name for node in lowered.graph.node] == [node.name for node in model.graph.node]
    np.testing.assert_array_equal(run(lowered), run(model))
    assert opset_of(model) == 18  # the original is not changed


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (14, 7), (13, 7)])
def test_the_gather_form_goes_down_to_13(gather_onnx: Path, opset: int, ir: int) -> None:
    model = onnx.load(gather_onnx)
    lowered = lower_opset(model, opset)
    assert (opset_of(lowered), lowered.ir_version) == (opset, ir)
    np.testing.assert_array_equal(run(lowered), run(model))


def test_explicit_int8_goes_down_to_13(gather_onnx: Path) -> None:
    model = quantised(onnx.load(gather_onnx))
    lowered = lower_opset(model, 13)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in lowered.graph.node}
    np.testing.assert_array_equal(run(lowered), run(model))


def test_nothing_is_raised(mini_onnx: Path) -> None:
    model = onnx.load(mini_onnx)
    for opset in (18, 20, 25):
        lowered = lower_opset(model, opset)
        assert lowered == model and lowered is not model


def test_grid_sample_has_no_form_below_16(mini_onnx: Path) -> None:
    with pytest.raises(
        ExportError,
        match="GridSample exists from opset 16 on, but opset 13.*: align/GridSample.*--warp gather",
    ):
        lower_opset(onnx.load(mini_onnx), 13)


def test_half_precision_scales_have_no_form_below_19(mini_onnx: Path) -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="layer/Quantize")
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="layer/Dequantize")
    constants = {"s": np.array(0.1, np.float16), "z": np.array(0, np.int8)}
    model = model_of(node, back, kind=HALF, constants=constants)
    with pytest.raises(
        ExportError, match=r"QuantizeLinear layer/Quantize has x as tensor\(float16\), which opset 17"
    ):
        lower_opset(model, 17)


@pytest.mark.parametrize(("new", "old"), [("linear", "bilinear"), ("nearest", "nearest"), (None, "bilinear")])
def test_grid_sample_modes_were_renamed_in_20(new: str | None, old: str) -> None:
    attributes = {} if new is None else {"mode": new}
    grid = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 3, 3, 2)).astype(np.float32)
    node = helper.make_node("GridSample", ["x", "g"], ["y"], padding_mode="border", **attributes)
    model = model_of(node, opset=20, constants={"g": grid})
    lowered = lower_opset(model, 16)
    (mode,) = [item.s.decode() for item in lowered.graph.node[0].attribute if item.name == "mode"]
    assert mode == old
    pixels = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(lowered, x=pixels), run(model, x=pixels))


def test_axes_of_reductions_become_an_attribute() -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="squeeze", keepdims=1)
    model = model_of(node, constants={"axes": np.array([2, 3])})
    lowered = lower_opset(model, 13)
    assert len(lowered.graph.initializer) == 0
    pixels = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(lowered, x=pixels), run(model, x=pixels))


def test_a_reshape_that_keeps_zeros_is_refused() -> None:
    for sizes, ok in (([1, 32], True), ([0, 32], False)):
        node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="flat", allowzero=1)
        model = model_of(node, rank=2, constants={"shape": np.array(sizes)})
        if ok:
            assert not lower_opset(model, 13).graph.node[0].attribute
        else:
            with pytest.raises(
                ExportError, match="Reshape flat has allowzero = 1, which opset 13 does not know"
            ):
                lower_opset(model, 13)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"antialias": 1}, "Resize up has antialias = 1, which opset 17 does not know.*takes opset 19"),
        (
            {"coordinate_transformation_mode": "half_pixel_symmetric"},
            "has coordinate_transformation_mode = b'ha",
        ),
        ({"axes": [2, 3]}, r"has axes = \[2, 3\]"),
    ],
)
def test_attributes_that_matter_are_refused(attributes: dict[str, Any], message: str) -> None:
    scales = np.array([2.0, 2.0] if "axes" in attributes else [1.0, 1.0, 2.0, 2.0], np.float32)
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], name="up", mode="linear", **attributes)
    model = model_of(node, constants={"s": scales})
    with pytest.raises(ExportError, match=message):
        lower_opset(model, 17)


def test_operators_without_a_known_older_form() -> None:
    split = helper.make_node("Split", ["x"], ["y", "z"], name="halves", axis=1, num_outputs=2)
    with pytest.raises(ExportError, match="Split halves changed between opset 13 and 19 in a way"):
        lower_opset(model_of(split), 13)
    gelu = helper.make_node("Gelu", ["x"], ["y"], name="act")
    with pytest.raises(
        ExportError, match="Gelu exists from opset 20 on, but opset 17 is asked for: act. Use a"
    ):
        lower_opset(model_of(gelu, opset=20), 17)
    mish = [helper.make_node("Mish", [f"{i}" if i else "x"], [f"{i + 1}"], name=f"m{i}") for i in range(5)]
    mish[-1].output[0] = "y"
    with pytest.raises(ExportError, match="m0, m1, m2 and 2 more"):
        lower_opset(model_of(*mish), 17)


def test_what_is_not_standard_onnx() -> None:
    custom = helper.make_node("Warp", ["x"], ["y"], domain="com.example")
    with pytest.raises(ExportError, match="uses operators of com.example, which have no older opset"):
        lower_opset(model_of(custom), 13)
    with pytest.raises(ExportError, match="Opset is 12, but models are written for 13 and later"):
        lower_opset(model_of(helper.make_node("Relu", ["x"], ["y"])), 12)
