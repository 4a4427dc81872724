"""What a graph costs: the shape of every tensor, multiply-accumulates, weights and activation memory.

Compilers fold constants, fuse convolutions with what follows them and reuse memory, each in its own way.
The figures here are of the graph itself under simple rules (stated below): good enough to say whether a
model fits a board, and which share of the work a layer does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hfd_edge.deploy.graph import consumers, onnx_package
from hfd_edge.errors import ExportError

_BYTES = {"FLOAT16": 2, "BFLOAT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1}
"""Bytes of an element on a device; 4 for all others. TensorRT up to 9 computes 64-bit types in 32 bits; 10
and later keep INT64, but only shape arithmetic and gather indices have that type here."""
_IN_PLACE = frozenset(
    "Relu Clip LeakyRelu Sigmoid QuantizeLinear DequantizeLinear Cast Identity Reshape Flatten Squeeze "
    "Unsqueeze".split()
)
"""Operators that compilers fuse into the layer before them, or that only rename a tensor's axes."""


@dataclass(frozen=True)
class Tensor:
    """Shape and element type of a tensor.

    Attributes:
        shape: Extents; empty for a scalar.
        dtype: ONNX element type, for example "FLOAT16".
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needs on a device while it runs.

    Attributes:
        weights_bytes: Constants.
        activations_bytes: Largest sum of tensors alive at the same time, input and output included.
    """

    weights_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.activations_bytes


def infer(model: Any, *, batch: int = 1) -> dict[str, Tensor]:
    """Shape and type of every tensor of a model, constants and inputs included.

    Args:
        model: ONNX model of this project: input (batch, bands, rows, cols).
        batch: Tiles per call; takes the place of a symbolic batch axis. A fixed one stays.
    Raises:
        ExportError: the shape of a tensor cannot be known; the message names it and its node.
    """
    onnx = onnx_package()
    fixed = with_batch(model, batch)
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises a class of its own, and protobuf others
        raise ExportError(
            f"Shapes of the model do not fit together: {str(error).strip().splitlines()[0][:300]}. "
            "Export the run again."
        ) from error
    kinds = onnx.TensorProto.DataType
    tensors = {item.name: Tensor(tuple(item.dims), kinds.Name(item.data_type)) for item in _constants(fixed)}
    graph = fixed.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shape = tuple(axis.dim_value for axis in kind.shape.dim)
        if kind.HasField("shape") and (all(shape) or not shape):
            tensors[value.name] = Tensor(shape, kinds.Name(kind.elem_type))
    for node in graph.node:
        for name in node.output:
            if name and name not in tensors:
                raise ExportError(
                    f"The shape of tensor {name} (node {node.name}, {node.op_type}) is not known before the "
                    "model runs; a device needs fixed shapes. Export the run again with this version."
                )
    return tensors


def with_batch(model: Any, batch: int) -> Any:
    """A copy of a model whose symbolic batch axis is `batch`; a fixed one stays.

    Output shapes are cleared beside the batch, so that shape inference fills them in again.
    """
    fixed = copy.deepcopy(model)
    for value in fixed.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].dim_value:
            axes[0].dim_value = batch
            for output in fixed.graph.output:
                output.type.tensor_type.shape.dim[0].dim_value = batch
    # Old annotations may name the symbol.
    del fixed.graph.value_info[:]
    return fixed


def batch_of(model: Any) -> int | None:
    """Tiles per call that a model takes; None when any number."""
    axes = model.graph.input[0].type.tensor_type.shape.dim
    return int(axes[0].dim_value) or None


def macs(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Multiply-accumulates of the nodes that have any: convolutions and matrix products.

    Args:
        model: The model.
        tensors: From `infer`; its batch counts.
    Returns:
        Node name to multiply-accumulates.
    """
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            found[node.name] = tensors[node.output[0]].elements * math.prod(tensors[node.input[1]].shape[1:])
        elif node.op_type == "ConvTranspose":
            found[node.name] = tensors[node.input[0]].elements * math.prod(tensors[node.input[1]].shape[1:])
        elif node.op_type in ("MatMul", "Gemm"):
            axis = 0 if _attribute(node, "transA", 0) else -1
            found[node.name] = tensors[node.output[0]].elements * tensors[node.input[0]].shape[axis]
    return found


def folded(model: Any, *, but: Collection[str] = ()) -> frozenset[str]:
    """Names of the nodes that depend on constants alone, which every compiler computes once.

    Args:
        model: The model.
        but: Operators that are left alone, with what depends on them.
    """
    known = {item.name for item in _constants(model)} | {""}
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in but and all(name in known for name in node.input):
            known.update(node.output)
            found.add(node.name)
    return frozenset(found)


def memory(
    model: Any, tensors: Mapping[str, Tensor], *, float_bytes: int = 4, int8: Collection[str] = ()
) -> Memory:
    """Estimate the memory of a model: its constants, and its activations by liveness.

    A tensor lives from the node that computes it to its last reader. What `_IN_PLACE` operators give
    shares the memory of what they take when nothing else reads it, at the narrower of both types: that is
    a convolution fused with its activation and with the quantiser behind it.

    Args:
        model: The model.
        tensors: From `infer`.
        float_bytes: Bytes of an FP32 element on the device: 2 where the builder is free to use FP16.
        int8: Nodes that compute in INT8 without Q/DQ nodes (ranges from a calibration cache): their
            weights take 1 byte, and what feeds them too.
    """
    narrow = frozenset(int8)
    weights = {node.input[1] for node in model.graph.node if node.name in narrow and len(node.input) > 1}
    feeds = {node.input[0] for node in model.graph.node if node.name in narrow}

    def size(name: str, small: Collection[str]) -> int:
        tensor = tensors[name]
        if tensor.is_float and name in small:
            return tensor.elements
        wide = float_bytes if tensor.dtype == "FLOAT" else _BYTES.get(tensor.dtype, 4)
        return tensor.elements * wide

    constants = sum(size(item.name, weights) for item in _constants(model))
    sizes = {name: size(name, feeds) for name in tensors}
    return Memory(constants, _peak(model, sizes))


def _peak(model: Any, sizes: Mapping[str, int]) -> int:
    """Largest sum of buffers alive at a node."""
    buffers, members = _buffers(model, sizes)
    skipped, last = folded(model), len(model.graph.node)
    first: dict[str, int] = {buffers[item.name]: -1 for item in model.graph.input if item.name in buffers}
    end: dict[str, int] = {buffers[item.name]: last for item in model.graph.output}
    for index, node in enumerate(model.graph.node):
        if node.name in skipped:
            continue
        for name in node.output:
            if name:
                first.setdefault(buffers[name], index)
        for name in (*node.input, *node.output):
            if name in buffers and buffers[name] in first:
                end[buffers[name]] = max(end.get(buffers[name], index), index)
    change = [0] * (last + 3)
    for buffer, start in first.items():
        size = min(sizes[name] for name in members[buffer])
        change[start + 1] += size
        change[end.get(buffer, start) + 2] -= size
    peak = alive = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak


def _buffers(model: Any, sizes: Mapping[str, int]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Tensor to the buffer that holds it, and buffer to its tensors. A buffer is named by its first."""
    constants = {item.name for item in _constants(model)}
    readers = consumers(model)
    outputs = {item.name for item in model.graph.output}
    buffers = {item.name: item.name for item in model.graph.input if item.name not in constants}
    for node in model.graph.node:
        source = node.input[0] if node.input else ""
        shared = (
            node.op_type in _IN_PLACE
            and source in buffers
            and len(readers[source]) == 1
            and source not in outputs
        )
        for name in node.output:
            if name:
                buffers[name] = buffers[source] if shared else name
    members: dict[str, list[str]] = {}
    for name, buffer in buffers.items():
        members.setdefault(buffer, []).append(name)
    return buffers, members


def _constants(model: Any) -> list[Any]:
    return list(model.graph.initializer)


def _attribute(node: Any, name: str, default: Any) -> Any:
    onnx = onnx_package()
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
