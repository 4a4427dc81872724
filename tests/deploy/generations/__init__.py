"""Stand-ins for TensorRT 8.6, 10.3, 11 and RTX that have exactly each generation's names.

A name beyond a generation's raises AttributeError, on reading and on writing, as pybind11's classes do. What
is behind the names follows the vendor's documentation as far as a builder and a loader can tell: rules about
types, calibration caches, cancelling, null pointers.
"""

from __future__ import annotations

import enum
import json
import types
from dataclasses import dataclass, field
from typing import Any

from .behaviour import CLASSES, Kind, plan
from .execution import EXECUTION
from .names import GENERATIONS, Names

__all__ = ["World", "engine_of", "plan", "stand_in"]


@dataclass
class World:
    """What a test arranges, and what the stand-in notes.

    Attributes:
        gpu: Whether there is one.
        capability: Of the GPU.
        refused: Operators that the parser refuses.
        refusal: What it says about them; "false" is TensorRT's way to say nothing.
        fault: Logged as the reason for a build that fails.
        validity: What RTX says about an engine.
        diagnostics: Mask of reasons with it.
        full: Whether the GPU has no room for an execution context.
        seen: What the last build was told, by topic.
    """

    gpu: bool = True
    capability: int = 87
    refused: tuple[str, ...] = ()
    refusal: str = "false"
    fault: str = ""
    validity: str = "VALID"
    diagnostics: int = 0
    full: bool = False
    seen: dict[str, Any] = field(default_factory=dict)


def stand_in(version: str) -> tuple[Any, World]:
    """A module of one generation.

    Args:
        version: "8.6.2", "10.3.0", "11.4.1" or, for RTX, "1.7.1.116".
    """
    world = World()
    names = GENERATIONS[version]
    rtx = "ComputeCapability" in names
    module = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    parts: dict[str, Any] = {**_enums(names, rtx), "__version__": version}
    parts |= _classes(version, names, parts, world)
    for name in names["module"]:
        setattr(module, name, parts.get(name) or type(name, (), {}))
    return module, world


def _strict(name: str, allowed: frozenset[str], behaviour: type, kind: Kind) -> type:
    """A class with no public name beyond the allowed ones; those without behaviour refuse to be used."""

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError(f"the stand-in's {name} has no behaviour for this name")

    def assign(self: Any, attribute: str, value: object) -> None:
        if not attribute.startswith("_") and attribute not in allowed:
            raise AttributeError(f"'{name}' object has no attribute '{attribute}'")
        object.__setattr__(self, attribute, value)

    def public(attribute: str) -> Any:
        return behaviour.__dict__.get(attribute, missing)

    private = {key: value for key, value in behaviour.__dict__.items() if key.startswith("_")}
    private.pop("__dict__", None)
    private.pop("__weakref__", None)
    names = {key: public(key) for key in allowed}
    return type(name, (), {**private, **names, "_kind": kind, "__setattr__": assign})


def _enums(names: Names, rtx: bool) -> dict[str, Any]:
    creation = {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1, "STRONGLY_TYPED": 0 if rtx else 1}
    flags = sorted(names["NetworkDefinitionCreationFlag"])
    made: dict[str, Any] = {
        "NetworkDefinitionCreationFlag": enum.IntEnum(
            "NetworkDefinitionCreationFlag", {name: creation[name] for name in flags}
        )
    }
    for name in ("BuilderFlag", "ErrorCode", "ComputeCapability", "EngineValidity"):
        if name in names:
            made[name] = enum.Enum(name, sorted(names[name]))
    made["EngineInvalidityDiagnostics"] = enum.IntEnum(
        "EngineInvalidityDiagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
    )
    for name, members in {
        "MemoryPoolType": "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_DRAM",
        "ProfilingVerbosity": "LAYER_NAMES_ONLY DETAILED NONE",
        "LayerInformationFormat": "ONELINE JSON",
        "DataType": "FLOAT HALF INT8 INT32 BOOL UINT8",
        "DeviceType": "GPU DLA",
        "TensorIOMode": "NONE INPUT OUTPUT",
        "CudaGraphStrategy": "DISABLED WHOLE_GRAPH_CAPTURE",
        "LayerType": "CONVOLUTION ELEMENTWISE ACTIVATION RESIZE SHUFFLE CONSTANT GRID_SAMPLE CAST",
    }.items():
        made[name] = enum.Enum(name, members.split())
    return made


def _classes(version: str, names: Names, parts: dict[str, Any], world: World) -> dict[str, Any]:
    made: dict[str, Any] = {}
    kind = Kind(version, parts, made, world)
    for behaviour in (*CLASSES, *EXECUTION):
        name, allowed = behaviour.__name__, names.get(behaviour.__name__)
        if allowed is None:
            made[name] = type(name, (behaviour,), {"_kind": kind})
        else:
            made[name] = _strict(name, allowed, behaviour, kind)
    return made


def engine_of(content: bytes) -> dict[str, Any]:
    """What a stand-in put into an engine."""
    return dict(json.loads(content))
