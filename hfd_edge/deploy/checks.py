"""Checks of an ONNX graph against what TensorRT's parser and builder take; see `preflight`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hfd_edge.bundle import Manifest
from hfd_edge.deploy.graph import OUTPUT, onnx_package
from hfd_edge.deploy.shapes import Tensor, batch_of, folded
from hfd_edge.deploy.targets import GRID_SAMPLE_SINCE, Target

_KNOWN = frozenset(
    "Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv "
    "ConvTranspose DequantizeLinear Div Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND "
    "Gemm GlobalAveragePool Greater HardSigmoid Identity InstanceNormalization LeakyRelu Less Log MatMul Max "
    "MaxPool Min Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceMin "
    "ReduceSum Relu Reshape Resize Round Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh Tile "
    "Transpose Unsqueeze Upsample Where".split()
)
"""Operators that the parser has taken since TensorRT 8.2 (onnx-tensorrt, docs/operators.md of 8.2)."""
_SINCE = {"GridSample": GRID_SAMPLE_SINCE}
"""Later ones that models here use, with their first TensorRT (onnx-tensorrt's changelog)."""
_ADVICE = {"GridSample": "export the run again with --warp gather: the same numbers from other operators"}
_NO_DTYPE = frozenset(("STRING", "COMPLEX64", "COMPLEX128", "UINT32", "UINT64", "UINT16", "INT16"))
_BFLOAT16_SINCE = 80
_INT32 = 2**31
_LISTED = 3


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: "error": it cannot be built or will not fit; "warning": it may disappoint; "ok".
        check: Which check: "precision", "operators", "opset", "dtypes", ...
        where: Node, tensor or other thing that it is about; "" for the whole model.
        what: What was seen, with the value expected.
        why: Why it matters; may be "".
        fix: What to do; "" where nothing is.
    """

    level: Literal["ok", "warning", "error"]
    check: str
    where: str
    what: str
    why: str = ""
    fix: str = ""


def operators(model: Any, target: Target) -> list[Finding]:
    """Every operator must be one that the device's parser knows."""
    version = target.tensorrt_version
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        key = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        found.setdefault(key, []).append(node.name)
    findings = []
    for operator, nodes in sorted(found.items()):
        since = _SINCE.get(operator)
        if operator in _KNOWN or (since is not None and (version is None or version >= since)):
            continue
        if since is not None:
            what = f"TensorRT {target.tensorrt} has no {operator}; it came with {since[0]}.{since[1]}"
            findings.append(
                Finding(
                    "error",
                    "operators",
                    _names(nodes),
                    what,
                    f"{len(nodes)} nodes need it",
                    _ADVICE.get(operator, "use a newer JetPack"),
                )
            )
        else:
            findings.append(
                Finding(
                    "warning",
                    "operators",
                    _names(nodes),
                    f"{operator} is not among the operators known to work",
                    "the device's parser may refuse it",
                    "build a kit and try it, or replace the operator",
                )
            )
    taken = len(found) - len(findings)
    builder = f"TensorRT {target.tensorrt}" if target.tensorrt else "TensorRT-RTX"
    what = f"{taken} of {len(found)} operators known to {builder}"
    return [*findings, Finding("ok", "operators", "", what)]


def zero_points(model: Any) -> list[Finding]:
    """INT8 must be symmetric: TensorRT refuses every zero point but 0, and unsigned codes."""
    constants = {item.name: item for item in model.graph.initializer}
    findings, pairs = [], 0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            pairs += node.op_type == "QuantizeLinear"
            if reason := _refused_quantizer(node, constants):
                findings.append(
                    Finding(
                        "error",
                        "zero points",
                        node.name,
                        reason,
                        "TensorRT takes symmetric INT8 with one scale per tensor, per channel for weights",
                        "quantize again with hfd-edge",
                    )
                )
    if pairs and not findings:
        findings.append(Finding("ok", "zero points", "", f"{pairs} quantised tensors, all symmetric INT8"))
    return findings


def shapes(model: Any, tensors: Mapping[str, Tensor], manifest: Manifest) -> list[Finding]:
    """Input and output must be what the manifest says."""
    entry = model.graph.input[0].name
    bands, tile = len(manifest.sar.bands), manifest.tile_px
    side = tile // manifest.stride
    findings = []
    for name, expected in ((entry, (bands, tile, tile)), (OUTPUT, (len(manifest.classes), side, side))):
        if tensors[name].shape[1:] != expected:
            what = f"shape is {tensors[name].shape[1:]}, the manifest says {expected}"
            findings.append(Finding("error", "shapes", name, what, "", "export the run again"))
    if not findings:
        text = f"{entry} {tensors[entry].shape} to {OUTPUT} {tensors[OUTPUT].shape}, all inner shapes known"
        findings.append(Finding("ok", "shapes", "", text))
    return findings


def batch(model: Any, target: Target) -> list[Finding]:
    """The model must take the target's batches."""
    fixed, wanted = batch_of(model), target.batch
    sizes = f"{wanted.min} to {wanted.max} tiles" if wanted.min < wanted.max else _tiles(wanted.max)
    if fixed is not None and {fixed} != {wanted.min, wanted.opt, wanted.max}:
        what = f"the model takes {_tiles(fixed)} a call, target {target.name} asks for {sizes}"
        fix = f"set min, opt and max of the target's [batch] to {fixed}, or export again"
        return [Finding("error", "batch", model.graph.input[0].name, what, "", fix)]
    return [Finding("ok", "batch", "", f"{sizes} a call")]


def dtypes(model: Any, tensors: Mapping[str, Tensor], target: Target) -> list[Finding]:
    """Element types that TensorRT has, and 64-bit constants that fit its 32 bits.

    Constants may be DOUBLE: the parser casts them to FLOAT (onnx-tensorrt, "cast down to FLOAT").
    """
    constant, skipped = {item.name for item in model.graph.initializer}, folded(model)
    constant |= {name for node in model.graph.node if node.name in skipped for name in node.output}
    lowest = min(target.compute_capabilities)
    refused: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        brain = tensor.dtype == "BFLOAT16" and lowest < _BFLOAT16_SINCE
        double = tensor.dtype == "DOUBLE" and name not in constant
        if tensor.dtype in _NO_DTYPE or brain or double:
            refused.setdefault(tensor.dtype, []).append(name)
    findings = []
    for kind, names in refused.items():
        what = f"element type is {kind}, which TensorRT on sm_{lowest} does not compute in"
        findings.append(Finding("error", "dtypes", _names(names), what, "", "export the run again"))
    wide = [item.name for item in model.graph.initializer if not _narrow(item)]
    if wide:
        what = "64-bit constants do not fit into 32 bits"
        why = "TensorRT computes indices in 32 bits"
        findings.append(Finding("error", "dtypes", _names(wide), what, why, "export the run again"))
    if not findings:
        kinds = ", ".join(sorted({tensor.dtype for name, tensor in tensors.items() if name not in constant}))
        findings.append(Finding("ok", "dtypes", "", f"computes in {kinds}"))
    return findings


def _refused_quantizer(node: Any, constants: Mapping[str, Any]) -> str:
    onnx = onnx_package()
    to_array = onnx.numpy_helper.to_array
    if len(node.input) < 3 or not node.input[2]:
        return "no zero point, so its codes are unsigned; expected INT8 with zero point 0"
    if any(name not in constants for name in node.input[1:]):
        return "scale or zero point is computed in the graph; expected constants"
    zero, scale = constants[node.input[2]], to_array(constants[node.input[1]])
    kind = onnx.TensorProto.DataType.Name(zero.data_type)
    if kind != "INT8":
        return f"codes are {kind}, expected INT8"
    value = next((int(item) for item in to_array(zero).ravel() if item), 0)
    if value:
        return f"zero point is {value}, expected 0"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return f"scale is {float(scale.min())}, expected positive and finite"
    if node.op_type == "QuantizeLinear" and scale.size > 1 and node.input[0] not in constants:
        return f"an activation has {scale.size} scales, expected one"
    return ""


def _narrow(item: Any) -> bool:
    onnx = onnx_package()
    if item.data_type != onnx.TensorProto.INT64:
        return True
    values = onnx.numpy_helper.to_array(item)
    # Slices to the end are written as the largest number there is; the parser clamps those.
    ends = np.isin(values, (np.iinfo(np.int64).max, np.iinfo(np.int64).min))
    return bool((np.abs(np.where(ends, 0, values)) < _INT32).all())


def _tiles(count: int) -> str:
    return "1 tile" if count == 1 else f"{count} tiles"


def _names(nodes: list[str]) -> str:
    more = f" and {len(nodes) - _LISTED} more" if len(nodes) > _LISTED else ""
    return ", ".join(nodes[:_LISTED]) + more
