"""Reading and tidying ONNX graphs: names that people can read, and which nodes must stay precise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import ExportError, MissingExtraError, require

INPUT = "sar"
OUTPUT = "logits"
_WARPS = {"GridSample": 1, "GatherND": 1, "GatherElements": 1}
"""Operators of the warp, with the input that carries positions; the last one in bundles of older versions."""
_PURPOSE = "deploying a model"
# As in runtime.backends.onnxruntime, which says why.
_HARMFUL = ["WeightBiasQuantization"]
_WHY = {
    "flow": "flow head: offsets in pixels, an error of 1/127 of the largest one moves features",
    "grid": "warp grid: positions need more than 8 bits",
    "warp": "warp: samples at positions that need more than 8 bits",
    "classifier": "classifier: its logits decide the label directly",
    "sum": "sum of maps: no convolution's kernel takes it over, so INT8 inputs would gain nothing",
}


def onnx_package() -> Any:
    """Import onnx. Raises MissingExtraError."""
    return require("onnx", extra="export", purpose=_PURPOSE)


def load(path: Path) -> Any:
    """Read an ONNX model and check that it is whole.

    Raises:
        ExportError: the file is missing, truncated or not an ONNX model of this project.
    """
    onnx = onnx_package()
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except MissingExtraError:
        raise
    except Exception as error:  # protobuf and the checker raise classes of their own
        raise ExportError(
            f"{path} is not a whole ONNX model: {_first_line(error)}. Export the run again."
        ) from error
    names = ([item.name for item in model.graph.input], [item.name for item in model.graph.output])
    if names != ([INPUT], [OUTPUT]):
        raise ExportError(
            f"{path} has inputs {names[0]} and outputs {names[1]}, expected ['{INPUT}'] and ['{OUTPUT}']. "
            "Give a model that hfd-edge exported."
        )
    return model


def tidy(model: Any) -> None:
    """Rename nodes after the module they come from and drop the exporter's notes, in place.

    The names appear in TensorRT's messages and profiles and in the calibration record. The notes hold
    stack traces with the paths of the exporting machine, and make equal models differ.
    """
    renamed: dict[str, str] = {}
    taken: set[str] = set()
    fixed = {item.name for item in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        node.name = _unique(_readable_name(node), taken)
        for index, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = node.name + (":out" if index == 0 else f":out{index}")
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        del node.metadata_props[:]
        node.doc_string = ""
    # Shapes of inner tensors are inferred again by every reader.
    del model.graph.value_info[:]
    for owner in (model, model.graph, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del owner.metadata_props[:]
        owner.doc_string = ""


def weight_of(node: Any) -> str:
    """Name of a convolution's weight; "" for other nodes."""
    return str(node.input[1]) if node.op_type == "Conv" else ""


def producers(model: Any) -> dict[str, Any]:
    """Tensor name to the node that computes it."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: Any) -> dict[str, list[Any]]:
    """Tensor name to the nodes that read it."""
    found: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            if name:
                found.setdefault(name, []).append(node)
    return found


def high_precision_nodes(model: Any) -> tuple[str, ...]:
    """Names of the nodes that stay in FP32 in every variant: flow heads, warps and classifier."""
    return tuple(kept_reasons(model))


def kept_reasons(model: Any) -> dict[str, str]:
    """The nodes that stay in FP32 in every variant, in the graph's order, each with the reason.

    Found from the graph itself: from every warp up to the convolution that predicts its positions, from
    there down through the warp's arithmetic, and from the output up to the last convolution.
    """
    by_output = producers(model)
    reasons: dict[str, str] = {}
    heads = []
    for warp in [node for node in model.graph.node if node.op_type in _WARPS]:
        above = _upstream([warp.input[_WARPS[warp.op_type]]], by_output)
        heads += [node for node in above if node.op_type == "Conv"]
        reasons |= dict.fromkeys((node.name for node in above), _WHY["grid"]) | {warp.name: _WHY["warp"]}
    below = _warping(model, [name for head in heads for name in head.output])
    reasons = {node.name: _WHY["grid"] for node in below} | reasons
    reasons |= {head.name: _WHY["flow"] for head in heads}
    output = [item.name for item in model.graph.output]
    reasons |= {node.name: _WHY["classifier"] for node in _upstream(output, by_output)}
    return {node.name: reasons[node.name] for node in model.graph.node if node.name in reasons}


def unfused_sums(model: Any) -> dict[str, str]:
    """Additions that no convolution's kernel takes over, with the reason why INT8 leaves them out.

    TensorRT adds a residual inside the kernel of the convolution that feeds the sum, where an INT8 skip
    saves memory traffic. A sum whose inputs both come from elsewhere (here: a lateral map and a warped one)
    is a pass of its own, which only loses by quantised inputs.

    Source: TensorRT developer guide, "Q/DQ layer-placement recommendations".
    """
    by_output = producers(model)
    kept = kept_reasons(model)
    return {
        node.name: _WHY["sum"]
        for node in model.graph.node
        if node.op_type == "Add"
        and node.name not in kept
        and not any(name in by_output and by_output[name].op_type == "Conv" for name in node.input)
    }


def quantizers(model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Scales of the QuantizeLinear nodes, as (activations, weights): tensor name to scale's name."""
    constants = {item.name for item in model.graph.initializer}
    activations: dict[str, str] = {}
    weights: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            (weights if node.input[0] in constants else activations)[node.input[0]] = node.input[1]
    return activations, weights


def replace_initializers(model: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Overwrite constants by name, in place; types and shapes must stay.

    Raises:
        ExportError: the model has no such constant, or it has another shape.
    """
    onnx = onnx_package()
    found = {item.name: item for item in model.graph.initializer}
    for name, value in values.items():
        if name not in found or tuple(found[name].dims) != value.shape:
            raise ExportError(
                f"The model has no constant {name} of shape {value.shape}. Export the run again."
            )
        kind = onnx.helper.tensor_dtype_to_np_dtype(found[name].data_type)
        # Not np.ascontiguousarray, which makes a vector of a scalar: the shape must stay.
        found[name].CopyFrom(onnx.numpy_helper.from_array(np.array(value, kind, order="C"), name))


def drop_unused_constants(model: Any) -> None:
    """Remove constants that no node reads, in place."""
    used = {name for node in model.graph.node for name in node.input}
    for item in [item for item in model.graph.initializer if item.name not in used]:
        model.graph.initializer.remove(item)


def session(model: Any | Path, *, threads: int | None = None) -> Any:
    """Open a model, or the file of one, on ONNX Runtime's CPU backend.

    Raises:
        ExportError: ONNX Runtime refuses the model; the message holds its reason.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=_HARMFUL
        )
    except Exception as error:  # onnxruntime's classes have no common base
        raise ExportError(f"ONNX Runtime cannot open the model: {_first_line(error)}") from error


def logits_of(opened: Any, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a model that `session` opened on tiles (batch, bands, rows, cols).

    Raises:
        ExportError: ONNX Runtime failed. A warp does where its positions are not finite: they become indices
            of nothing.
    """
    try:
        found: NDArray[np.float32] = opened.run([OUTPUT], {INPUT: tiles})[0]
    except Exception as error:  # onnxruntime's classes have no common base
        raise ExportError(
            f"ONNX Runtime cannot run the model: {_first_line(error)}. Some activations are not finite, or "
            "exceed the range of its precision. Use a higher precision; where it is FP32, train again."
        ) from error
    return found


def _readable_name(node: Any) -> str:
    weight = weight_of(node)
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    notes = {item.key: item.value for item in node.metadata_props}
    scopes = notes.get("pkg.torch.onnx.name_scopes", "").strip("[]").replace("'", "").split(", ")
    scope = scopes[-2] if len(scopes) > 1 else ""
    return f"{scope}/{node.op_type}" if scope else str(node.op_type)


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 2
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


def _upstream(names: Iterable[str], by_output: Mapping[str, Any]) -> list[Any]:
    """Nodes above the tensors, up to and with the nearest convolutions."""
    found: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        node = by_output.get(waiting.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = node
        if node.op_type != "Conv":
            waiting.extend(node.input)
    return list(found.values())


def _warping(model: Any, flows: Iterable[str]) -> list[Any]:
    """The arithmetic of warps: what depends on flows alone, the warps, and what weighs their samples.

    Ends before what quantises, and before what merges a warped map with another one.
    """
    constants = {item.name for item in model.graph.initializer}
    known, found = set(flows), []
    for node in model.graph.node:  # in topological order
        inputs = {name for name in node.input if name} - constants
        if not inputs:
            constants.update(node.output)
        elif node.op_type in ("Conv", "Concat", "QuantizeLinear") or not inputs & known:
            continue
        elif node.op_type in _WARPS or inputs <= known:
            found.append(node)
            known.update(node.output)
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
