"""FP16 conversion: which tensors change, where casts go, and what FP16 cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.deploy.graph import session
from hfd_edge.deploy.half import to_half, upward_half
from hfd_edge.errors import ExportError


def make_model(*, bias: float = 0.5) -> Any:
    """sar -> Conv a -> Resize -> Add -> Conv b -> logits; the sum also goes to an output-free branch."""
    rng = np.random.default_rng(0)
    weights = {
        "wa": rng.normal(size=(4, 2, 3, 3)),
        "wb": rng.normal(size=(3, 4, 1, 1)),
        "shift": np.full((1, 4, 1, 1), bias),
        "scales": np.array([1.0, 1.0, 2.0, 2.0]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["sar", "wa"], ["x"], name="a", pads=[1, 1, 1, 1]),
            helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize", mode="linear"),
            helper.make_node("Add", ["y", "shift"], ["z"], name="add"),
            helper.make_node("Conv", ["z", "wb"], ["logits"], name="b"),
        ],
        "g",
        [helper.make_tensor_value_info("sar", TensorProto.FLOAT, [1, 2, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 16, 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def types(model: Any) -> dict[str, int]:
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {item.name: item.type.tensor_type.elem_type for item in (*found.value_info, *found.output)} | {
        item.name: item.data_type for item in found.initializer
    }


def run(model: Any) -> np.ndarray:
    pixels = np.random.default_rng(1).normal(size=(1, 2, 8, 8)).astype(np.float32)
    return np.asarray(session(model).run(None, {"sar": pixels})[0])


@pytest.mark.parametrize("keep", [(), ("a",), ("b",), ("add",), ("a", "b"), ("resize",)])
def test_nodes_change_their_type_and_hardly_the_result(keep: tuple[str, ...]) -> None:
    model = make_model()
    expected = run(model)
    to_half(model, keep)
    onnx.checker.check_model(model, full_check=True)
    kinds = types(model)
    for node in model.graph.node:
        if node.op_type != "Cast" and node.output[0] != "logits":
            wanted = TensorProto.FLOAT if node.name in keep else TensorProto.FLOAT16
            assert kinds[node.output[0]] == wanted, node.name
    assert kinds["logits"] == TensorProto.FLOAT
    assert kinds["scales"] == TensorProto.FLOAT  # ONNX gives Resize's scales in float32
    np.testing.assert_allclose(run(model), expected, atol=0.02)


def test_keeping_everything_changes_nothing() -> None:
    model = make_model()
    expected = model.SerializeToString(deterministic=True)
    to_half(model, ("a", "resize", "add", "b"))
    assert model.SerializeToString(deterministic=True) == expected


def test_casts_are_shared_and_only_where_types_meet() -> None:
    model = make_model()
    to_half(model, ("add",))
    casts = [(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "Cast"]
    assert casts == [("sar", "sar:fp16"), ("y", "y:fp32"), ("z", "z:fp16"), ("logits:fp16", "logits")]
    names = {item.name for item in model.graph.initializer}
    assert names == {"wa:fp16", "wb:fp16", "shift", "scales"}


def test_constants_beyond_the_range_are_clipped() -> None:
    model = make_model(bias=1e6)
    to_half(model, ())
    (shift,) = (item for item in model.graph.initializer if item.name == "shift:fp16")
    assert (numpy_helper.to_array(shift) == np.float16(65504)).all()


def test_types_that_cannot_be_inferred() -> None:
    model = make_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"type of y, which node resize \(NoSuchOperator\) computes"):
        to_half(model, ())


def test_scales_are_rounded_up_by_little() -> None:
    rng = np.random.default_rng(0)
    scales = (10 ** rng.uniform(-4, 2, 1000)).astype(np.float32)
    rounded = upward_half(scales).astype(np.float64)
    assert (rounded >= scales).all()
    assert (rounded <= scales * (1 + 2.0**-10)).all()
    exact = np.array([0.5, 2.0**-14, 3.0], np.float32)
    np.testing.assert_array_equal(upward_half(exact), exact)
    assert upward_half(np.float32(1e-12)) == np.float16(6e-8)  # never zero
    assert upward_half(np.float32(0.1)).shape == ()
