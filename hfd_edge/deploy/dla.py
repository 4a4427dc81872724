"""Which layers a Jetson's deep learning accelerator (DLA) takes, and why it refuses the others.

A DLA runs FP16 and INT8 convolutional layers beside the GPU. What it refuses runs on the GPU
(`--allowGPUFallback`), and every change of side copies maps between both. The rules are those of NVIDIA's
"DLA Supported Layers and Restrictions" (TensorRT 8.2 to 11.4 developer guides), as far as they concern the
operators here; the compiler on the device may refuse more (its buffers are finite), never less.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hfd_edge.deploy.graph import onnx_package, producers
from hfd_edge.deploy.shapes import Tensor, folded, macs

LOADABLES = 16
"""Subgraphs that one core holds at the same time (developer guide, general restrictions)."""
_LARGEST_AXIS = 8192
_LARGEST_BATCH = 4096
_LINEAR_RESIZE_SINCE = (8, 4, 0)
"""TensorRT 8.2 resizes on the DLA by nearest neighbour only (its developer guide, Resize layer)."""
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_SAME_RANGE = 1e-6  # relative; ranges that are meant to be equal are equal to the last bit


@dataclass(frozen=True)
class LayerPlacement:
    """Where a layer runs.

    Attributes:
        node: Its name.
        operator: ONNX operator.
        device: "DLA" or "GPU".
        reason: Why not on the DLA; "" where it is.
        macs: Multiply-accumulates.
    """

    node: str
    operator: str
    device: Literal["DLA", "GPU"]
    reason: str
    macs: int


@dataclass(frozen=True)
class DlaPlacement:
    """All layers, in the order of the graph.

    Attributes:
        layers: One entry per layer; constants that compilers fold are left out.
        subgraphs: Separate pieces of work for the DLA. Each is one loadable.
    """

    layers: tuple[LayerPlacement, ...]
    subgraphs: int

    @property
    def fallback_share(self) -> float:
        """Share of the multiply-accumulates that the GPU does, 0 to 1; 1 for a model without any."""
        total = sum(layer.macs for layer in self.layers)
        gpu = sum(layer.macs for layer in self.layers if layer.device == "GPU")
        return gpu / total if total else 1.0

    @property
    def reasons(self) -> dict[str, tuple[str, ...]]:
        """Reason of a refusal to the nodes that it concerns, the most frequent first."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.reason:
                found.setdefault(layer.reason, []).append(layer.node)
        return {reason: tuple(found[reason]) for reason in sorted(found, key=lambda key: -len(found[key]))}


@dataclass(frozen=True)
class Rules:
    """What the answer depends on beside the graph.

    Attributes:
        tensorrt: Version of the device; None for the newest.
        amax: Tensor to its INT8 range; empty when the model runs in FP16, where ranges do not matter.
        wide: Nodes kept in FP32, which the DLA does not compute in.
    """

    tensorrt: tuple[int, int, int] | None = None
    amax: Mapping[str, float] | None = None
    wide: Collection[str] = ()


def place_on_dla(model: Any, tensors: Mapping[str, Tensor], rules: Rules) -> DlaPlacement:
    """Decide for every layer whether the DLA takes it.

    Args:
        model: ONNX model. Q/DQ nodes are seen through.
        tensors: From `shapes.infer`, with the batch of the engine.
        rules: Version, ranges and nodes in FP32.
    """
    context = _Context(model, tensors, rules)
    work, skipped = macs(model, tensors), folded(model)
    layers = []
    for node in model.graph.node:
        if node.name in skipped or node.op_type in _QDQ:
            continue
        reason = context.refusal(node)
        layers.append(
            LayerPlacement(
                node.name, node.op_type, "GPU" if reason else "DLA", reason, work.get(node.name, 0)
            )
        )
    taken = {layer.node for layer in layers if layer.device == "DLA"}
    return DlaPlacement(tuple(layers), _subgraphs(model, taken, skipped))


class _Context:
    """The graph as the rules look at it."""

    def __init__(self, model: Any, tensors: Mapping[str, Tensor], rules: Rules) -> None:
        self.tensors, self.rules = tensors, rules
        self.amax = rules.amax or {}
        self._by_output = producers(model)
        constant = {item.name for item in model.graph.initializer}
        skipped = folded(model)
        constant |= {name for node in model.graph.node if node.name in skipped for name in node.output}
        self.constants = constant
        self.values = {item.name: item for item in model.graph.initializer}

    def refusal(self, node: Any) -> str:
        """Why the DLA does not take a node; "" when it does."""
        if node.name in self.rules.wide:
            return "kept in FP32; the DLA computes in FP16 and INT8"
        rule = _RULES.get(node.op_type)
        if rule is None:
            return f"{node.op_type} is not among the layers of the DLA"
        for name in (*node.input, *node.output):
            if name and name not in self.constants and (reason := _refused_tensor(self.tensors.get(name))):
                return reason
        return rule(node, self)

    def maps(self, node: Any) -> list[str]:
        """Inputs that are computed, behind their Q/DQ nodes."""
        return [self.source(name) for name in node.input if name and name not in self.constants]

    def source(self, name: str) -> str:
        while (node := self._by_output.get(name)) is not None and node.op_type in _QDQ:
            name = node.input[0]
        return name

    def scalar(self, name: str) -> float | None:
        """Value of a constant of one element; None for anything else."""
        if name not in self.values:
            return None
        array = onnx_package().numpy_helper.to_array(self.values[name])
        return float(array.reshape(-1)[0]) if array.size == 1 else None

    def ranges_differ(self, names: Collection[str]) -> str:
        """A reason when tensors that need one range have several."""
        found = {name: self.amax[name] for name in names if name in self.amax}
        if not found or max(found.values()) <= min(found.values()) * (1 + _SAME_RANGE):
            return ""
        return "INT8 ranges of its tensors differ"


def _refused_tensor(tensor: Tensor | None) -> str:
    if tensor is None:
        return "the shape of one of its tensors is not known"
    if len(tensor.shape) != 4:
        return f"one of its tensors has {len(tensor.shape)} axes, expected 4"
    if not tensor.is_float and tensor.dtype != "INT8":
        return f"one of its tensors is {tensor.dtype}"
    if tensor.shape[0] > _LARGEST_BATCH:
        return f"the batch is {tensor.shape[0]}, at most {_LARGEST_BATCH} is taken"
    if max(tensor.shape[1:]) > _LARGEST_AXIS:
        return f"an axis has {max(tensor.shape[1:])} elements, at most {_LARGEST_AXIS} are taken"
    return ""


def _convolution(node: Any, context: _Context) -> str:
    kernel = context.tensors[node.input[1]].shape[2:]
    limits = {
        "kernel": (kernel, 1, 32),
        "stride": (_ints(node, "strides", [1, 1]), 1, 8),
        "padding": (_ints(node, "pads", [0, 0, 0, 0]), 0, 31),
        "dilation": (_ints(node, "dilations", [1, 1]), 1, 32),
    }
    return _beyond(limits)


def _deconvolution(node: Any, context: _Context) -> str:
    if any(_ints(node, "pads", [0, 0, 0, 0])) or any(_ints(node, "output_padding", [0, 0])):
        return "the DLA's deconvolution takes no padding"
    if _int(node, "group", 1) != 1 or _ints(node, "dilations", [1, 1]) != [1, 1]:
        return "the DLA's deconvolution takes no groups and no dilation"
    kernel = context.tensors[node.input[1]].shape[2:]
    if all(side <= 32 or side in (64, 96, 128) for side in kernel):
        return ""
    return f"the deconvolution's kernel is {list(kernel)}, taken are 1 to 32, 64, 96 and 128"


def _pooling(node: Any, context: _Context) -> str:
    if _int(node, "ceil_mode", 0):
        return "pooling with ceil_mode"
    limits = {
        "window": (_ints(node, "kernel_shape", [1, 1]), 1, 8),
        "stride": (_ints(node, "strides", [1, 1]), 1, 16),
        "padding": (_ints(node, "pads", [0, 0, 0, 0]), 0, 7),
    }
    return _beyond(limits) or context.ranges_differ((*context.maps(node), node.output[0]))


def _activation(node: Any, context: _Context) -> str:
    return ""


def _clip(node: Any, context: _Context) -> str:
    low, high = (context.scalar(node.input[index]) if len(node.input) > index else None for index in (1, 2))
    if low == 0 and high is not None and 1 <= high <= 127:
        return ""
    return f"Clip from {low} to {high}; the DLA clips from 0 to between 1 and 127"


def _elementwise(node: Any, context: _Context) -> str:
    names = context.maps(node)
    return context.ranges_differ(names) if len(names) > 1 else ""


def _concat(node: Any, context: _Context) -> str:
    if _int(node, "axis", 1) not in (1, -3):
        return "Concat along another axis than channels"
    return context.ranges_differ((*context.maps(node), node.output[0]))


def _resize(node: Any, context: _Context) -> str:
    mode = _text(node, "mode", "nearest")
    form = _text(node, "coordinate_transformation_mode", "half_pixel")
    before, after = (context.tensors[name].shape for name in (node.input[0], node.output[0]))
    if before[:2] != after[:2] or any(new % old for old, new in zip(before[2:], after[2:], strict=True)):
        return f"Resize from {list(before[2:])} to {list(after[2:])} is not by a whole number"
    scale = max(new // old for old, new in zip(before[2:], after[2:], strict=True))
    if mode == "nearest":
        return "" if scale <= 32 else f"nearest Resize by {scale}, at most 32 is taken"
    version = context.rules.tensorrt
    if version is not None and version < _LINEAR_RESIZE_SINCE:
        return f"{mode} Resize; before TensorRT 8.4 the DLA resizes by nearest neighbour only"
    if mode != "linear" or form not in ("half_pixel", "pytorch_half_pixel"):
        return f"{mode} Resize with {form} coordinates, expected linear with half_pixel"
    return "" if scale <= 4 else f"linear Resize by {scale}, at most 4 is taken"


_Rule = Callable[[Any, _Context], str]
_RULES: Mapping[str, _Rule] = {
    "Conv": _convolution,
    "ConvTranspose": _deconvolution,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    "Relu": _activation,
    "Sigmoid": _activation,
    "Tanh": _activation,
    "Clip": _clip,
    "Add": _elementwise,
    "Sub": _elementwise,
    "Mul": _elementwise,
    "Max": _elementwise,
    "Min": _elementwise,
    "Concat": _concat,
    "Resize": _resize,
}


def _beyond(limits: Mapping[str, tuple[Any, int, int]]) -> str:
    for what, (values, low, high) in limits.items():
        if any(not low <= value <= high for value in values):
            return f"{what} {list(values)}, taken are {low} to {high}"
    return ""


def _subgraphs(model: Any, taken: Collection[str], skipped: Collection[str]) -> int:
    """Count the connected pieces of DLA work that the GPU's layers leave.

    Two neighbours on the DLA are in one piece unless a path through the GPU leads from one to the other:
    that one would have to run in between. The stage of a node is the number of its changes from GPU to DLA.
    """
    stage: dict[str, int] = {}  # tensor to the stage that computed it
    device: dict[str, bool] = {}
    piece: dict[str, str] = {}

    def root(name: str) -> str:
        while piece[name] != name:
            name = piece[name]
        return name

    owner: dict[str, str] = {}
    for node in model.graph.node:
        if node.name in skipped:
            continue
        inputs = [name for name in node.input if name in stage]
        through = node.op_type in _QDQ
        here = device[inputs[0]] if through and inputs else node.name in taken
        steps = [stage[name] + (here and not device[name]) for name in inputs]
        own = max(steps, default=0)
        if here and not through:
            piece[node.name] = node.name
            for name in inputs:
                if device[name] and stage[name] == own and name in owner:
                    piece[root(owner[name])] = root(node.name)
        for name in node.output:
            stage[name], device[name] = own, here
            if through and inputs and inputs[0] in owner:
                owner[name] = owner[inputs[0]]
            elif not through:
                owner[name] = node.name
    return len({root(name) for name in piece})


def _attribute(node: Any, name: str) -> Any:
    return next((item for item in node.attribute if item.name == name), None)


def _ints(node: Any, name: str, default: list[int]) -> list[int]:
    item = _attribute(node, name)
    return default if item is None else list(item.ints)


def _int(node: Any, name: str, default: int) -> int:
    item = _attribute(node, name)
    return default if item is None else int(item.i)


def _text(node: Any, name: str, default: str) -> str:
    item = _attribute(node, name)
    return default if item is None else item.s.decode()
