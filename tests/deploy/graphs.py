"""Small ONNX graphs written by hand, for checks whose answers are counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def make_graph(
    nodes: Sequence[Any], constants: dict[str, np.ndarray], shape: Sequence[int | str], *, opset: int = 17
) -> Any:
    """A model from "sar" (FP32, `shape`) to "logits"; its shape is left to inference."""
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", None, None, None])
    graph = helper.make_graph(
        list(nodes),
        "hand",
        [helper.make_tensor_value_info("sar", TensorProto.FLOAT, shape)],
        [output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    """A node named after its output."""
    return helper.make_node(operator, list(inputs), [output], name=f"{output}/{operator}", **attributes)


def weight(*shape: int) -> np.ndarray:
    """A constant of ones."""
    return np.ones(shape, np.float32)
