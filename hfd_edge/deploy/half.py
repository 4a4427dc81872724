"""FP16 where FP32 is not needed, in plain ONNX and in models with Q/DQ nodes.

The converter is our own rather than modelopt's autocast, so that the FP16 and the INT8+FP16 variant cast at
the same places, and the Q/DQ nodes of the latter keep the form that TensorRT recognises: Q and DQ in the type
of what they feed, with scales of that type.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.graph import drop_unused_constants, onnx_package
from hfd_edge.errors import ExportError

_FLOAT_ONLY = {"Resize": (1, 2), "QuantizeLinear": (2,), "DequantizeLinear": (0, 2)}
"""Inputs that do not take the type of the node: ONNX fixes them (region and scales of Resize, codes)."""
_SOURCES = frozenset(("Cast", "Constant", "ConstantOfShape", "Range", "RandomNormal", "EyeLike", "Shape"))
"""Operators whose output type is an attribute, or does not follow their inputs."""
_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: Any, keep: Collection[str]) -> None:
    """Convert all nodes but `keep` to FP16, in place; input and output of the model stay FP32.

    Constants beyond the range of FP16 (65504) are clipped to it.

    Args:
        model: FP32 ModelProto, with or without Q/DQ nodes.
        keep: Names of nodes that stay in FP32.
    Raises:
        ExportError: the types of the model's tensors cannot be inferred.
    """
    onnx = onnx_package()
    floats = _float_tensors(model)
    constants = {item.name: item for item in model.graph.initializer if item.name in floats}
    kept = {node.name for node in model.graph.node if node.name in keep or node.op_type in _SOURCES}
    halves = {
        name for node in model.graph.node if node.name not in kept for name in node.output if name in floats
    }
    casts: dict[tuple[str, bool], str] = {}
    nodes: list[Any] = []
    for node in model.graph.node:
        low = node.name not in kept
        for index, name in enumerate(node.input):
            fixed = index in _FLOAT_ONLY.get(node.op_type, ())
            wanted = low and not fixed
            if name not in floats or wanted == (name in halves):
                continue
            if (name, wanted) not in casts:
                casts[name, wanted] = _convert(onnx, model, nodes, name, constants, half=wanted)
            node.input[index] = casts[name, wanted]
        nodes.append(node)
    nodes += _outputs(onnx, model, nodes, halves)
    _replace(model, nodes)


def upward_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Round scales to FP16, never down: a scale that is too small would clip the largest values."""
    rounded = np.asarray(values).astype(np.float16)
    larger = np.nextafter(rounded, np.float16(np.inf))
    return np.asarray(np.where(rounded.astype(np.float64) < values, larger, rounded))


def _float_tensors(model: Any) -> set[str]:
    onnx = onnx_package()
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except Exception as error:  # onnx raises classes of its own
        raise ExportError(
            f"The model cannot be converted to FP16: {str(error).strip().splitlines()[0][:300]}. "
            "Export the run again."
        ) from error
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {item.name: item.type.tensor_type.elem_type for item in values}
    types |= {item.name: item.data_type for item in inferred.initializer}
    for node in model.graph.node:
        unknown = next((name for name in node.output if name and not types.get(name)), None)
        if unknown is not None:
            raise ExportError(
                f"The model cannot be converted to FP16: the type of {unknown}, which node {node.name} "
                f"({node.op_type}) computes, is not known. Export the run again."
            )
    return {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}


def _convert(
    onnx: Any, model: Any, nodes: list[Any], name: str, constants: dict[str, Any], *, half: bool
) -> str:
    """Give the name of a tensor's copy in the other type: a new constant, or the output of a new Cast."""
    other = f"{name}:{'fp16' if half else 'fp32'}"
    if name in constants:  # constants are FP32 at the start, so only FP16 copies are asked for
        values = np.clip(onnx.numpy_helper.to_array(constants[name]), -_LARGEST, _LARGEST)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), other))
        return other
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    nodes.append(onnx.helper.make_node("Cast", [name], [other], name=f"{other}/Cast", to=kind))
    return other


def _outputs(onnx: Any, model: Any, nodes: list[Any], halves: set[str]) -> list[Any]:
    """Casts back to FP32 for outputs of the model that became FP16."""
    added = []
    for item in model.graph.output:
        if item.name in halves:
            inner = f"{item.name}:fp16"
            for node in nodes:
                node.input[:] = [inner if name == item.name else name for name in node.input]
                node.output[:] = [inner if name == item.name else name for name in node.output]
            added.append(
                onnx.helper.make_node(
                    "Cast", [inner], [item.name], name=f"{item.name}/Cast", to=onnx.TensorProto.FLOAT
                )
            )
    return added


def _replace(model: Any, nodes: list[Any]) -> None:
    fresh = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(fresh)
    # Types of inner tensors are inferred again by every reader.
    del model.graph.value_info[:]
    drop_unused_constants(model)
