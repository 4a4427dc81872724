"""Explicit quantisation: which layers of a placed model compute in INT8, with which scales.

`precision.place` gives a model with Q/DQ nodes wherever INT8 can compute. Here it is cut down to the layers
that are wanted, gets its scales, and its weights become INT8 constants. What that means for TensorRT:

- Every quantised tensor has one Q and one DQ node, which all its readers share.
- A residual sum belongs to the convolution whose output it takes as it is; the skip is quantised. So
  TensorRT runs convolution, sum and requantisation as one kernel.
- A concatenation that an INT8 convolution reads is quantised behind it, once. What reaches it directly or
  through a Resize shares that scale (`shared_scales`), so it is written as INT8 straight into place.
- A map that only warps or unfused sums read has no Q/DQ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.graph import (
    drop_unused_constants,
    high_precision_nodes,
    onnx_package,
    producers,
    quantizers,
    replace_initializers,
)
from hfd_edge.deploy.half import to_half, upward_half
from hfd_edge.deploy.record import LEVELS
from hfd_edge.errors import ExportError

Rest = Literal["fp32", "fp16"]
_TAKERS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool")
)
"""Operators that compute in INT8 when their inputs are quantised; others only read what is there."""
_THROUGH = ("Resize", "Concat")
_BIAS_CODES = 2.0**30
"""Largest bias in units of input scale times weight scale: half of what int32 holds."""


def layers(placed: Any) -> tuple[str, ...]:
    """Names of the nodes that compute in INT8, in the graph's order.

    These are the units that can be taken back to high precision one by one (`int8_model`'s `keep`).
    """
    raw = _dequantised(placed)
    return tuple(node.name for node in placed.graph.node if _is_layer(node, raw))


def quantized_tensors(model: Any) -> tuple[str, ...]:
    """Activation tensors with Q/DQ nodes, in the graph's order; works on placed and finished models."""
    return tuple(quantizers(model)[0])


def shared_scales(placed: Any) -> dict[str, str]:
    """Quantised tensors that reach a quantised concatenation as they are, with that concatenation's tensor.

    Through a Resize counts as well: bilinear interpolation stays within the range of its input.
    """
    quantised = set(quantized_tensors(placed))
    raw = _dequantised(placed)
    by_output = producers(placed)
    found: dict[str, str] = {}
    for node in placed.graph.node:
        if node.op_type == "Concat" and node.output[0] in quantised:
            for name in _above(node, by_output, raw):
                found.setdefault(name, node.output[0])
    return {name: whole for name, whole in found.items() if name in quantised}


def share(amax: Mapping[str, float], placed: Any, *, fixed: Collection[str] = ()) -> dict[str, float]:
    """Give tensors that meet in a concatenation its range; names in `fixed` keep theirs.

    The concatenation's own range was measured over all its inputs, so none is cut more than by it.
    """
    shared = {
        name: amax[whole]
        for name, whole in shared_scales(placed).items()
        if name in amax and whole in amax and name not in fixed
    }
    return {**amax, **shared}


def int8_model(
    placed: Any, amax: Mapping[str, float], *, keep: Collection[str] = (), rest: Rest = "fp32"
) -> Any:
    """Make an INT8 model from a placed one, which is left as it is.

    Args:
        placed: What `precision.place` gives.
        amax: Largest magnitude that is not clipped, for every quantised tensor; more names are ignored.
        keep: Layers (see `layers`) to leave in high precision. Q/DQ pairs that nobody needs any more go.
        rest: Type of what is not INT8. Flow heads, warps and classifier are FP32 in both.
    Returns:
        ModelProto with FP32 input and output, INT8 weights and zero points 0, checked.
    Raises:
        ExportError: a name in `keep` is no layer, or a range is missing or not positive.
    """
    unknown = sorted(set(keep) - set(layers(placed)))
    if unknown:
        raise ExportError(
            f"{unknown[0]} cannot be kept in high precision: it is no layer that INT8 takes. "
            f"Layers: {', '.join(layers(placed))}."
        )
    model = type(placed)()
    model.CopyFrom(placed)
    _release(model, keep)
    _set_scales(model, amax, half=rest == "fp16")
    fold_weights(model)
    if rest == "fp16":
        to_half(model, high_precision_nodes(model))
    _scales_as_vectors(model)
    _check_symmetric(model)
    onnx_package().checker.check_model(model)
    return model


def fold_weights(model: Any) -> None:
    """Store quantised weights as INT8 constants, in place: same numbers, a quarter of the file.

    modelopt leaves FP32 weights behind a QuantizeLinear, which every reader would fold again.
    """
    onnx = onnx_package()
    constants = {item.name: item for item in model.graph.initializer}
    folded = [
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in constants
    ]
    for node in folded:
        weight = onnx.numpy_helper.to_array(constants[node.input[0]])
        scale = onnx.numpy_helper.to_array(constants[node.input[1]])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        if scale.ndim:
            scale = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
        codes = np.clip(np.rint(weight / scale), -LEVELS, LEVELS).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(codes, node.output[0]))
        model.graph.node.remove(node)
    drop_unused(model)


def drop_unused(model: Any) -> None:
    """Remove nodes that nothing reads, then constants that nothing reads, in place."""
    wanted = {item.name for item in model.graph.output}
    nodes = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    kept = list(reversed(nodes))
    if len(kept) != len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)
    drop_unused_constants(model)


def _dequantised(model: Any) -> dict[str, str]:
    """Output of every DQ node to the tensor that its Q node reads; with folded weights, to "" for those."""
    by_output = producers(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            source = by_output.get(node.input[0])
            found[node.output[0]] = "" if source is None else source.input[0]
    return found


def _is_layer(node: Any, raw: Mapping[str, str]) -> bool:
    reads = [name in raw for name in node.input if name]
    if node.op_type == "Add":  # with one quantised input it belongs to the convolution that gives the other
        return len(reads) == 2 and all(reads)
    return node.op_type in _TAKERS and bool(reads) and reads[0]


def _riders(model: Any, raw: Mapping[str, str]) -> dict[str, list[str]]:
    """Layer to the residual sums that its kernel takes over."""
    by_output = producers(model)
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "Add" and not _is_layer(node, raw) and any(name in raw for name in node.input):
            for name in node.input:
                source = by_output.get(name)
                if source is not None and name not in raw and _is_layer(source, raw):
                    found.setdefault(source.name, []).append(node.name)
    return found


def _release(model: Any, keep: Collection[str]) -> None:
    """Let kept layers, and what no INT8 layer needs, read the tensors before Q/DQ, in place."""
    raw = _dequantised(model)
    riders = _riders(model, raw)
    active = {node.name for node in model.graph.node if _is_layer(node, raw)} - set(keep)
    active |= {name for layer in active for name in riders.get(layer, ())}
    released = set(keep) | {name for layer in keep for name in riders.get(layer, ())}
    needed = {name for node in model.graph.node if node.name in active for name in node.input}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in raw and (node.name in released or name not in needed):
                node.input[index] = raw[name]
    drop_unused(model)


def _above(node: Any, by_output: Mapping[str, Any], raw: Mapping[str, str]) -> Iterable[str]:
    """Tensors whose values reach a node through nothing but Q/DQ, Resize and Concat."""
    names = node.input if node.op_type == "Concat" else node.input[:1]
    for name in names:
        tensor = raw.get(name) or name
        yield tensor
        source = by_output.get(tensor)
        if source is not None and source.op_type in _THROUGH:
            yield from _above(source, by_output, raw)


def _set_scales(model: Any, amax: Mapping[str, float], *, half: bool) -> None:
    """Write the scales; with `half`, as numbers that FP16 holds exactly."""
    onnx = onnx_package()
    activations, weights = quantizers(model)
    for name in activations:
        if not amax.get(name, 0.0) > 0 or not np.isfinite(amax[name]):
            raise ExportError(
                f"Tensor {name} has range {amax.get(name)}, expected a positive number. Calibrate again "
                "with: hfd-edge quantize BUNDLE --data DIR"
            )
    constants = {item.name: item for item in model.graph.initializer}
    values: dict[str, NDArray[Any]] = {
        scale: onnx.numpy_helper.to_array(constants[scale]) for scale in weights.values()
    }
    values |= {scale: np.asarray(amax[name] / LEVELS, np.float32) for name, scale in activations.items()}
    _make_room_for_biases(model, values, constants)
    if half:
        # Before the weights are divided by them, so that codes and scales still belong together.
        values = {name: upward_half(value).astype(np.float32) for name, value in values.items()}
    replace_initializers(model, values)


def _make_room_for_biases(model: Any, values: dict[str, NDArray[Any]], constants: Mapping[str, Any]) -> None:
    """Raise weight scales, in place, where the bias would not fit 32 bits in units of both scales.

    Integer kernels add biases as int32 codes. Batch normalisation leaves channels that are as good as dead,
    with weights of 1e-9 and an ordinary bias, which overflows there (preset s has 45 of them). Their weights
    become zeros, which moves the output by less than the bias's own last bit.
    """
    onnx = onnx_package()
    by_output = producers(model)

    def scale_of(name: str) -> str:
        node = by_output.get(name)
        return str(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else ""

    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in constants:
            step, weight = scale_of(node.input[0]), scale_of(node.input[1])
            bias = onnx.numpy_helper.to_array(constants[node.input[2]])
            if step in values and weight in values and values[weight].shape in ((), bias.shape):
                least = np.abs(bias, dtype=np.float64) / (values[step] * _BIAS_CODES)
                least = least if values[weight].shape else least.max()
                values[weight] = np.maximum(values[weight], least).astype(np.float32)


def _scales_as_vectors(model: Any) -> None:
    """Give scales and zero points of whole tensors one element instead of no dimension, in place.

    Both mean the same to ONNX Runtime and to TensorRT's parser, which compares volumes. But TensorRT-RTX
    1.7.1 compiles scalars badly: preset s for a batch of one took 44.6 MB of weights with scalars, 3.6 MB
    with vectors (FP32: 13.3 MB).
    """
    onnx = onnx_package()
    used = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    for item in model.graph.initializer:
        if item.name in used and not item.dims:
            value = onnx.numpy_helper.to_array(item)
            item.CopyFrom(onnx.numpy_helper.from_array(value.reshape(1), item.name))


def _check_symmetric(model: Any) -> None:
    """TensorRT takes signed 8-bit codes with zero point 0 and nothing else."""
    onnx = onnx_package()
    constants = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = onnx.numpy_helper.to_array(constants[node.input[2]])
            if zero.dtype != np.int8 or zero.any():
                raise ExportError(
                    f"{node.name} has zero point {zero.ravel()[:1]} ({zero.dtype}), expected int8 zeros."
                )
