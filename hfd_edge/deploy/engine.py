"""Compile an ONNX file to a TensorRT-RTX engine, ahead of time and without a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hfd_edge.deploy.targets import Target
from hfd_edge.errors import EngineError, require
from hfd_edge.progress import Progress, silent

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Engine:
    """A compiled engine and what it was compiled with."""

    content: bytes
    version: str
    seconds: float


def build_engine(
    model: Path, *, target: Target, progress: Progress = silent, label: str = "engine"
) -> Engine:
    """Compile a model for all compute capabilities of a target.

    Args:
        model: ONNX file; its types are the engine's (strongly typed network).
        target: What to compile for.
        progress: Told of every step; when it raises, the build stops and the exception passes through. So
            does an interrupt (Ctrl-C).
        label: Names the work in progress.
    Raises:
        EngineError: TensorRT cannot read the file, refuses an operator (named), or cannot compile it.
        MissingExtraError: the rtx extra is not installed.
    """
    trt = _tensorrt()
    log = _logger()
    monitor = _monitor(trt)(progress, label)
    with log.recording() as faults, _interrupt_cancels(monitor):
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        # The parser owns the weights that the network points to: it must live until the build is over.
        parser = trt.OnnxParser(network, log)
        _parse(trt, parser, model)
        config = _configure(trt, builder, network, target)
        config.progress_monitor = monitor
        started = time.monotonic()
        blob = builder.build_serialized_network(network, config)
        seconds = time.monotonic() - started
        del parser
    if monitor.stopped is not None:
        raise monitor.stopped
    if blob is None:
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} could not compile {model.name} for {target.name}: "
            f"{_reasons(faults)} {_advice(faults, target)}"
        )
    progress(1.0, 1.0, f"{label}: done")
    return Engine(bytes(blob), str(trt.__version__), seconds)


def compiler_version() -> str:
    """Version of the installed TensorRT-RTX. Raises MissingExtraError."""
    return str(_tensorrt().__version__)


def build_options(target: Target) -> dict[str, Any]:
    """Everything beside model, compiler and capabilities that shapes an engine."""
    return {
        "batch": [target.batch.min, target.batch.opt, target.batch.max],
        "workspace_mb": target.workspace_mb,
        "strongly_typed": True,
        "profiling_verbosity": "detailed",
    }


def engine_key(
    onnx_sha256: str,
    *,
    flavour: str,
    version: str,
    compute_capabilities: tuple[int, ...],
    options: dict[str, Any],
) -> str:
    """Hash all that an engine depends on; an engine with another key must be built again.

    Args:
        onnx_sha256: Hash of the ONNX file's bytes.
        flavour: "tensorrt_rtx".
        version: The compiler's.
        compute_capabilities: In any order.
        options: See `build_options`.
    Returns:
        SHA-256, hex.
    """
    content = {
        "onnx_sha256": onnx_sha256,
        "flavour": flavour,
        "version": version,
        "compute_capabilities": sorted(compute_capabilities),
        "options": options,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tensorrt() -> Any:
    return require("tensorrt_rtx", extra="rtx", purpose="building an engine")


def _parse(trt: Any, parser: Any, model: Path) -> None:
    if parser.parse(model.read_bytes()):
        return
    reasons = [_parser_reason(trt, parser.get_error(index)) for index in range(parser.num_errors)]
    raise EngineError(
        f"TensorRT-RTX {trt.__version__} cannot use {model.name}: {_reasons(reasons)}. "
        "If a node is named, its operator is the cause: try warp = 'gather' in the recipe's [network]. "
        "Otherwise the file is damaged: export or quantize again."
    )


def _parser_reason(trt: Any, error: Any) -> str:
    """The parser's message with the node that it is about."""
    if not error.node_operator():
        return str(error.desc()).strip().rstrip(".")
    node = f"node {error.node_name()} ({error.node_operator()})"
    if error.code() == trt.ErrorCode.UNSUPPORTED_NODE:
        return f"{node} is not supported"
    return f"{node}: {error.desc().strip().rstrip('.')}"


def _configure(trt: Any, builder: Any, network: Any, target: Target) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mb * _MEGABYTE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(target.compute_capabilities)
    for index, capability in enumerate(target.compute_capabilities):
        known = getattr(trt.ComputeCapability, f"SM{capability}", None)
        if known is None:
            raise EngineError(
                f"TensorRT-RTX {trt.__version__} cannot build for sm_{capability}, which target "
                f"{target.name} asks for. It knows: {', '.join(_capabilities(trt))}. Correct the target."
            )
        config.set_compute_capability(known, index)
    profile = builder.create_optimization_profile()
    sizes = (target.batch.min, target.batch.opt, target.batch.max)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        _, *rest = tuple(tensor.shape)
        profile.set_shape(tensor.name, *((size, *rest) for size in sizes))
    config.add_optimization_profile(profile)
    return config


def _capabilities(trt: Any) -> list[str]:
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM") and name[2:].isdigit()]
    return [f"sm_{name[2:]}" for name in sorted(names, key=lambda name: int(name[2:]))]


def _reasons(faults: list[str]) -> str:
    return "; ".join(fault.strip() for fault in faults[:3]) or "no reason given"


def _advice(faults: list[str], target: Target) -> str:
    if any("OutOfMemory" in fault or "workspace" in fault for fault in faults):
        return (
            f"The target allows {target.workspace_mb} MB for batches of up to {target.batch.max}: raise "
            "workspace_mb or lower batch.max in a TOML file of your own and give its path as the target."
        )
    return "Try another precision, or warp = 'gather' in the recipe's [network]."


@contextlib.contextmanager
def _interrupt_cancels(monitor: Any) -> Iterator[None]:
    """Let Ctrl-C cancel at the next step, as a progress that raises does.

    Python would raise it inside whichever callback runs next, and TensorRT drops what its logger raises.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return

    def note(number: int, frame: object) -> None:
        monitor.stopped = monitor.stopped or KeyboardInterrupt()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@cache
def _logger() -> Any:
    """The process's one TensorRT logger: the first one registered gets the messages of all later builds."""
    trt: Any = _tensorrt()
    base: Any = trt.ILogger

    class Logger(base):
        """Keeps errors while a build listens; drops the rest, which TensorRT would print."""

        def __init__(self) -> None:
            super().__init__()
            self._faults: list[str] | None = None

        def log(self, severity: Any, message: str) -> None:
            if self._faults is not None and severity in (
                trt.ILogger.Severity.ERROR,
                trt.ILogger.Severity.INTERNAL_ERROR,
            ):
                self._faults.append(message)

        @contextlib.contextmanager
        def recording(self) -> Iterator[list[str]]:
            faults: list[str] = []
            self._faults = faults
            try:
                yield faults
            finally:
                self._faults = None

    return Logger()


@cache
def _monitor(trt: Any) -> Any:
    """The class that turns TensorRT's phases into progress and a raising progress into a cancelled build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self, progress: Progress, label: str) -> None:
            super().__init__()
            self.stopped: BaseException | None = None
            self._progress, self._label = progress, label
            self._phases: dict[str, tuple[int, int]] = {}  # running phases, outermost first: steps, done
            self._share = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = (steps, 0)
            self._tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            steps, _ = self._phases.get(name, (1, 0))
            self._phases[name] = (steps, step + 1)
            self._tell(name)
            return self.stopped is None

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)

        def _tell(self, name: str) -> None:
            # An exception must not cross the compiler's C++ frames: keep it, and cancel at the next step.
            if self.stopped is not None:
                return
            try:
                self._progress(self._done(), 1.0, f"{self._label}: {name.lower()}")
            except BaseException as error:
                self.stopped = error

        def _done(self) -> float:
            """Share of the work done: the running phases are nested, each a step of its parent."""
            share, weight = 0.0, 1.0
            for steps, done in self._phases.values():
                weight /= max(steps, 1)
                share += weight * min(done, steps)
            # A phase ends shortly before its parent counts it; a bar must not run backwards.
            self._share = min(max(self._share, share), 1.0)
            return self._share

    return Monitor
