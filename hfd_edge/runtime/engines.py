"""Engines onto the GPU, checked before TensorRT sees them.

A plan of another version, GPU or model gives a null pointer at best. So the sidecar is compared with the
bundle and the machine first, and every refusal names the command that builds the engine again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from hfd_edge.bundle import Bundle
from hfd_edge.engine_record import EngineRecord, Here, check_fits, read_engine_record
from hfd_edge.errors import EngineError
from hfd_edge.gpu import Gpu, find_gpu
from hfd_edge.tensorrt_api import (
    PRODUCTS,
    LoadedEngine,
    TensorRT,
    deserialize,
    load_tensorrt,
    member,
    product,
    tensorrt_logger,
    tensorrt_version,
)

_log = logging.getLogger("hfd_edge.runtime")


@dataclass(frozen=True)
class OpenedEngine:
    """An engine on the GPU.

    Attributes:
        record: Its sidecar.
        loaded: TensorRT's engine, with the runtime that must outlive it.
        gpu: Where it is.
    """

    record: EngineRecord
    loaded: LoadedEngine
    gpu: Gpu


def open_engine(bundle: Bundle, name: str) -> OpenedEngine:
    """Load an engine of a bundle.

    Args:
        bundle: The bundle.
        name: `<target>-<precision>`.
    Raises:
        BundleError: the bundle has no such engine, or the file was changed.
        EngineError: the engine was built from another model, by another TensorRT or for another GPU, there is
            no GPU, or TensorRT refuses it. Says what would build it again.
        MissingExtraError: the TensorRT that built it is not installed.
    """
    record, trt, gpu = verify_engine(bundle, name)
    path = bundle.engine(name)
    content = path.read_bytes()
    _check_validity(trt, content, record, bundle)
    plan = record.options.get("plan") or {}  # of engines that trtexec built, see `deploy.plan.Plan`
    loaded, faults = deserialize(trt, content, dla_core=plan.get("dla_core"))
    if loaded is None:
        raise EngineError(
            f"{product(record.flavour, trt)} could not load engine {name}: "
            f"{'; '.join(fault.strip() for fault in faults[:3]) or 'no reason given'}. "
            f"Build it again with: {record.rebuild(bundle.path)}"
        )
    return OpenedEngine(record, loaded, gpu)


def verify_engine(bundle: Bundle, name: str) -> tuple[EngineRecord, TensorRT, Gpu]:
    """Compare an engine's sidecar with the bundle and this machine, without loading the engine.

    Returns:
        The sidecar, the TensorRT that built it, and the GPU.
    Raises:
        BundleError, EngineError, MissingExtraError: as `open_engine`.
    """
    bundle.engine(name)
    record = _own_record(bundle, name)
    trt = load_tensorrt(record.flavour, purpose=f"loading engine {name}")
    gpu = find_gpu()
    here = Here(
        flavour=record.flavour,
        version=tensorrt_version(trt),
        compute_capability=None if gpu is None else gpu.compute_capability,
    )
    check_fits(record, here, onnx_sha256=_model_sha256(bundle, record), bundle=bundle.path)
    if gpu is None:
        raise EngineError(
            f"Engine {name} needs an NVIDIA GPU with a driver, and there is none here. "
            "Check with nvidia-smi, or use backend='onnxruntime'."
        )
    return record, trt, gpu


def _model_sha256(bundle: Bundle, record: EngineRecord) -> str:
    relpath = bundle.manifest.precisions.get(record.precision)
    return bundle.manifest.files[relpath] if relpath is not None else "none"


def _own_record(bundle: Bundle, name: str) -> EngineRecord:
    """The sidecar, after checking that it is this engine's and of a TensorRT that loads plans."""
    relpath = bundle.manifest.engines[name]
    record = read_engine_record(bundle.path / relpath)
    if bundle.manifest.files[relpath] != record.sha256:
        raise EngineError(
            f"{bundle.path / relpath} is not the engine that its sidecar describes: their SHA-256 differ. "
            f"Build it again with: {record.rebuild(bundle.path)}"
        )
    if record.flavour not in PRODUCTS:
        raise EngineError(
            f"{bundle.path / relpath} was made by {record.flavour}, but this loads plans of "
            f"{' and '.join(PRODUCTS)} alone. Use the software that made it."
        )
    return record


def _check_validity(trt: TensorRT, content: bytes, record: EngineRecord, bundle: Bundle) -> None:
    """Ask TensorRT-RTX whether an engine fits; without a driver its answer would mean nothing."""
    if member(trt.Runtime, "get_engine_validity") is None:  # of RTX alone
        return
    runtime: Any = trt.Runtime(tensorrt_logger(trt))
    states = member(trt, "EngineValidity")
    state, diagnostics = runtime.get_engine_validity(content)
    if state == states.INVALID:
        raise EngineError(
            f"{product(record.flavour, trt)} says that engine {record.target}-{record.precision} is invalid "
            f"here: {_diagnoses(trt, int(diagnostics))}. "
            f"Build it again with: {record.rebuild(bundle.path)}"
        )
    if state == states.SUBOPTIMAL:
        _log.warning(
            "engine %s-%s runs here, but not at full speed; build it again with: %s",
            record.target,
            record.precision,
            record.rebuild(bundle.path),
        )


def _diagnoses(trt: TensorRT, bits: int) -> str:
    """Names of the reasons in a validity mask."""
    kinds = member(trt, "EngineInvalidityDiagnostics")
    names = [name for name in dir(kinds) if name.isupper() and bits & int(member(kinds, name))]
    return ", ".join(name.lower().replace("_", " ") for name in names) or "no reason given"
