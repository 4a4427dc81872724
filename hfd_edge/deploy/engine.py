"""Compile an ONNX file to a TensorRT engine: RTX ahead of time, TensorRT on the GPU that shall run it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfd_edge.deploy.compiler import Arithmetic, configure, create_network, parse, told, typed_by_onnx
from hfd_edge.deploy.graph import load
from hfd_edge.deploy.inspector import inspect_engine
from hfd_edge.deploy.monitor import Watch, attach, interrupt_stops
from hfd_edge.deploy.opset import lower_opset, opset_of
from hfd_edge.deploy.targets import Target
from hfd_edge.deploy.timing import timing_cache, timing_cache_path
from hfd_edge.errors import EngineError, ExportError, MissingExtraError
from hfd_edge.gpu import Gpu, find_gpu
from hfd_edge.progress import Progress, silent
from hfd_edge.tensorrt_api import (
    BuildLog,
    TensorRT,
    ahead_of_time,
    load_tensorrt,
    product,
    tensorrt_logger,
    tensorrt_version,
)

_PURPOSE = "building an engine"


@dataclass(frozen=True)
class Engine:
    """A compiled engine and what it was compiled with.

    Attributes:
        content: The serialised engine, as trtexec and the runtime read it.
        version: The compiler's.
        compute_capabilities: GPUs that it runs on; 75 is sm_75.
        seconds: Time of the compilation.
        weights_bytes: Memory of its weights, from the compiler's log; None if the log has none.
        activation_bytes: Memory of its activations for the largest batch, from the log; None if it has none.
        inspection: The inspector's JSON; "" where the engine cannot be loaded.
        note: Why `inspection` is empty; else "".
    """

    content: bytes
    version: str
    compute_capabilities: tuple[int, ...]
    seconds: float
    weights_bytes: int | None
    activation_bytes: int | None
    inspection: str
    note: str


def build_engine(
    model: Path,
    *,
    target: Target,
    arithmetic: Arithmetic | None = None,
    progress: Progress = silent,
    label: str = "engine",
) -> Engine:
    """Compile a model for a target.

    Args:
        model: ONNX file. Its types are the engine's, except where `arithmetic` has a cache, or TensorRT is
            older than 10.
        target: What to compile for.
        arithmetic: The variant; None for an ONNX file that says all, which TensorRT 8.6 takes for FP32.
        progress: Told of every step; when it raises, the build stops and the exception passes through. So
            does an interrupt (Ctrl-C). TensorRT 8.6 reports no steps and ends its build first.
        label: Names the work in progress.
    Raises:
        EngineError: TensorRT cannot read the file, refuses an operator (named), cannot compile it, or needs
            a GPU that is not here.
        ExportError: an operator does not exist at the target's opset.
        MissingExtraError: this TensorRT is not installed.
    """
    trt = load_tensorrt(target.flavour, purpose=_PURPOSE)
    arithmetic = arithmetic or Arithmetic("fp32")
    gpu = None if ahead_of_time(trt) else _gpu(trt, target)
    content = _content(model, target)
    watch = Watch(progress, label)
    with tensorrt_logger(trt).recording() as log, interrupt_stops(watch):
        context = (arithmetic, gpu, watch, log)
        blob, seconds = _compile(trt, content, model=model, target=target, context=context)
    watch.raise_if_stopped()
    if blob is None:
        raise EngineError(
            f"{product(target.flavour, trt)} could not compile {model.name} for {target.name}: "
            f"{told(log.faults)} {_advice(log.faults, target)}"
        )
    inspection, note = inspect_engine(trt, blob)
    progress(1.0, 1.0, f"{label}: done")
    return Engine(
        content=blob,
        version=tensorrt_version(trt),
        compute_capabilities=target.compute_capabilities if gpu is None else (gpu.compute_capability,),
        seconds=seconds,
        weights_bytes=log.weights_bytes,
        activation_bytes=log.activation_bytes,
        inspection=inspection,
        note=note,
    )


def compiler_version(flavour: str = "tensorrt_rtx") -> str:
    """Version of an installed TensorRT. Raises MissingExtraError."""
    return tensorrt_version(load_tensorrt(flavour, purpose=_PURPOSE))


def can_build_here(target: Target) -> str | None:
    """Whether this machine can compile for a target.

    Returns:
        None if it can; else the reason why not, a clause for "No engine can be built here: ...".
    """
    if target.flavour == "torch_tensorrt":
        return f"torch-tensorrt compiles a run, not a bundle: hfd-edge build RUN --target {target.name}"
    gpu = find_gpu()
    if target.flavour == "tensorrt" and gpu is None:
        # First: nobody should install TensorRT on a machine whose lack of a GPU then stops the build.
        return "TensorRT compiles on the GPU that shall run the engine, and there is none here"
    try:
        trt = load_tensorrt(target.flavour, purpose=_PURPOSE)
    except MissingExtraError as error:
        return str(error)
    if ahead_of_time(trt):
        return None
    assert gpu is not None
    if (reason := _other_version(trt, target)) is not None:
        return reason
    if gpu.compute_capability not in target.compute_capabilities:
        wanted = ", ".join(f"sm_{capability}" for capability in target.compute_capabilities)
        return f"TensorRT compiles for the GPU that is here, sm_{gpu.compute_capability}, not for {wanted}"
    return None


def build_options(target: Target, arithmetic: Arithmetic | None = None) -> dict[str, Any]:
    """Everything beside model, compiler and capabilities that shapes an engine.

    The workspace is the target's bound, not the memory that was free: a key must not depend on the hour.
    """
    options: dict[str, Any] = {
        "batch": [target.batch.min, target.batch.opt, target.batch.max],
        "workspace_mb": target.workspace_mb,
        "strongly_typed": target.strongly_typed and (arithmetic is None or arithmetic.cache is None),
        "profiling_verbosity": "detailed",
        "opset_max": target.opset_max,
    }
    if arithmetic is not None and not options["strongly_typed"]:
        options |= {"flags": list(arithmetic.flags), "kept": list(arithmetic.kept)}
    return options


def _gpu(trt: TensorRT, target: Target) -> Gpu:
    gpu = find_gpu()
    if gpu is None:
        raise EngineError(
            f"{product(target.flavour, trt)} compiles on the GPU that shall run the engine, and there is "
            f"none here. Make a device kit instead: hfd-edge build BUNDLE --target {target.name} --kit"
        )
    return gpu


def _other_version(trt: TensorRT, target: Target) -> str | None:
    """Whether the installed TensorRT is another than the target's.

    A board's version is fixed by its JetPack, and a plan loads in the version that built it alone. Elsewhere
    the one that builds here also runs here, as long as the generation, and with it the profile's facts, fits.
    """
    here, there = tensorrt_version(trt), target.tensorrt_version
    if there is None:
        return None
    parts = tuple(int(part) for part in here.split(".")[:3])
    length = 3 if target.jetson else 1
    if parts[:length] == there[:length]:
        return None
    return f"the target has TensorRT {target.tensorrt} and this machine {here}; an engine fits one version"


def _content(model: Path, target: Target) -> bytes:
    """The file, at an opset that the target's parser reads."""
    content = model.read_bytes()
    try:
        opened = load(model)
    except ExportError:
        return content  # the parser says what is wrong with it
    if opset_of(opened) <= target.opset_max:
        return content
    return bytes(lower_opset(opened, target.opset_max).SerializeToString(deterministic=True))


_Context = tuple[Arithmetic, Gpu | None, Watch, BuildLog]


def _compile(
    trt: TensorRT, content: bytes, *, model: Path, target: Target, context: _Context
) -> tuple[bytes | None, float]:
    """Run the compiler. Returns the engine, None if there is none, and the seconds that it took."""
    arithmetic, gpu, watch, log = context
    logger = tensorrt_logger(trt)
    try:
        builder = trt.Builder(logger)
        network = create_network(trt, builder, typed=typed_by_onnx(trt, arithmetic))
        # The parser owns the weights that the network points to: it must live until the build is over.
        parser = trt.OnnxParser(network, logger)
    except (TypeError, RuntimeError) as error:
        # pybind11 reports a null pointer as a TypeError: no driver, or one that is too old.
        raise EngineError(
            f"{product(target.flavour, trt)} does not start: {told(log.faults or [str(error)])}. "
            "Check the driver with nvidia-smi."
        ) from error
    parse(trt, parser, content, model=model, flavour=target.flavour)
    config = configure(trt, builder, network, target=target, arithmetic=arithmetic, gpu=gpu)
    attach(trt, config, watch)
    with _timings(trt, config, target, gpu):
        if watch.stopped is not None:
            return None, 0.0
        started = time.monotonic()
        # The stubs promise memory, but C++ gives a null pointer on failure and when it was cancelled.
        blob: Any = builder.build_serialized_network(network, config)
        seconds = time.monotonic() - started
    del parser
    return (None if blob is None else bytes(blob)), seconds


@contextlib.contextmanager
def _timings(trt: TensorRT, config: Any, target: Target, gpu: Gpu | None) -> Iterator[None]:
    if gpu is None:
        yield
        return
    path = timing_cache_path(
        flavour=target.flavour, version=tensorrt_version(trt), compute_capability=gpu.compute_capability
    )
    with timing_cache(config, path):
        yield


def _advice(faults: list[str], target: Target) -> str:
    if any("OutOfMemory" in fault or "workspace" in fault for fault in faults):
        return (
            f"The target allows {target.workspace_mb} MB for batches of up to {target.batch.max}: raise "
            "workspace_mb or lower batch.max in a TOML file of your own and give its path as the target."
        )
    if any("calibrat" in fault.lower() for fault in faults):
        return "The calibration cache was not taken: quantize again, and build with the target's TensorRT."
    return "Try another precision, or the other form of the warp (export --warp gather or grid_sample)."
