"""What TensorRT made of a model: layers by precision, and the reformats that INT8 pays with.

The inspector's JSON differs between generations: layers without detail are plain names; "Bindings" of
TensorRT 10, a list of names, became "I/O Tensors", a list of objects, in 11 (TensorRT 11 migration guide).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from hfd_edge.engine_record import NO_INSPECTION, Layers
from hfd_edge.errors import EngineError
from hfd_edge.tensorrt_api import TensorRT, deserialize

# "Row major linear FP16 format" (8.6 to 10.x), "Half(64,1:8,...)" or "Float" (later 10.x, 11).
_PRECISIONS = (
    ("int8", re.compile(r"\bint8", re.IGNORECASE)),
    ("fp8", re.compile(r"\bfp8", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half|float16)", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float)", re.IGNORECASE)),
    ("int32", re.compile(r"\b(int32|int64)", re.IGNORECASE)),
)
OTHER = "other"
"""Precision of a layer whose types the inspector does not tell, as with dynamic shapes."""


def inspect_engine(trt: TensorRT, content: bytes) -> tuple[str, str]:
    """Ask the inspector about a new engine.

    Returns:
        Its JSON and ""; or "" and the reason, where the engine cannot be loaded on this machine.
    """
    loaded, faults = deserialize(trt, content)
    if loaded is None:
        reason = f" TensorRT says: {faults[0].strip()}" if faults else ""
        return "", NO_INSPECTION + reason
    inspector = loaded.engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON)), ""


def summarise(text: str) -> Layers:
    """Count the layers of the inspector's JSON.

    Args:
        text: Of any generation.
    Raises:
        EngineError: it is not the inspector's JSON.
    """
    layers = _content(text)["Layers"]
    computing = [layer for layer in layers if not _reformats(layer)]
    counts = Counter(precision_of(layer) for layer in computing)
    return Layers(
        count=len(layers),
        by_precision=dict(sorted(counts.items())),
        reformats=len(layers) - len(computing),
    )


def tensors(text: str) -> tuple[str, ...]:
    """Names of the engine's inputs and outputs in the inspector's JSON. Raises EngineError."""
    content = _content(text)
    if "I/O Tensors" in content:
        return tuple(str(tensor["Name"]) for tensor in content["I/O Tensors"])
    return tuple(str(name) for name in content.get("Bindings", ()))


def precision_of(layer: Any) -> str:
    """Precision in which a layer of the inspector's JSON computes.

    The type of its weights where it has some: a layer may take INT8 and give FP16. Else of its output.
    """
    if not isinstance(layer, dict):
        return OTHER
    weights = layer.get("Weights")
    told = [weights.get("Type", "")] if isinstance(weights, dict) else []
    told += [tensor.get("Format/Datatype", "") for tensor in layer.get("Outputs", ())[:1]]
    for text in told:
        for name, pattern in _PRECISIONS:
            if pattern.search(str(text)):
                return name
    return OTHER


def _content(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
        if not isinstance(content["Layers"], list):
            raise TypeError("Layers is no list")
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"TensorRT's inspector gave something else than JSON with Layers: {text[:60]!r} ({error}). "
            "Build the engine with detailed profiling verbosity."
        ) from error
    return dict(content)


def _reformats(layer: Any) -> bool:
    if isinstance(layer, dict):
        return str(layer.get("LayerType", "")).lower() == "reformat"
    # Without detailed verbosity a layer is its name alone.
    return str(layer).startswith("Reformatting CopyNode")
