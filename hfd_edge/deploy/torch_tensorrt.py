"""Compile a trained student with torch-tensorrt, for desktops that have PyTorch and an NVIDIA GPU.

The dynamo path: `torch.export` traces the network, `torch_tensorrt.dynamo.compile` turns what TensorRT knows
into engines and leaves the rest to PyTorch, `torch_tensorrt.save` writes one program (.pt2). Beside it lies
the same sidecar that every engine has. Names and defaults: torch_tensorrt 2.11 to 2.14 Python API, read in
the published packages. How it divides the network was seen on a CPU (benchmarks/torch_tensorrt_coverage.py);
compiled programs have never run.

Precision lives in the graph, as for every other compiler here: torch-tensorrt builds strongly typed networks
(the default since 2.11, the only way since 2.14), so an FP16 program is one whose weights are FP16. The
sampling positions stay FP32 (`hfdnet.alignment.sampling_grid`). An FP32 program may use TF32 on the GPU, as
TensorRT engines do by default.

Keep warp = "grid_sample" here: torch_tensorrt 2.14 takes it whole. With a dynamic batch the gather form that
preceded today's left 24 operators of preset s to PyTorch, which made five engines of one.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfd_edge.bundle import Precision
from hfd_edge.deploy.targets import Target
from hfd_edge.deploy.torch_program import (
    Coverage,
    Input,
    compiler_options,
    count_engines,
    difference,
    exported_form,
    trace,
)
from hfd_edge.engine_record import EngineRecord, engine_key
from hfd_edge.errors import EngineError, ExportError, HfdEdgeError, require
from hfd_edge.files import atomic_path, sha256
from hfd_edge.progress import Progress, silent

if TYPE_CHECKING:
    from hfd_edge.hfdnet.run import Run

FLAVOUR = "torch_tensorrt"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
_STEPS = 5
_DISTRIBUTIONS = ("torch-tensorrt", "torch-tensorrt-rtx")


@dataclass(frozen=True)
class Gpu:
    """The GPU that a program is compiled on and for.

    Attributes:
        device: PyTorch's name of it, "cuda".
        capability: 89 is sm_89.
        name: The vendor's name.
    """

    device: str
    capability: int
    name: str


@dataclass(frozen=True)
class _Task:
    """All that shapes a program beside the compiler."""

    run: Run
    target: Target
    precision: Precision
    given: Input
    gpu: Gpu


def why_not_here() -> str | None:
    """None where programs can be compiled, else the reason in words."""
    try:
        _gpu()
        _compiler()
    except HfdEdgeError as error:
        return str(error)
    return None


def compile_run(
    run: Path | str,
    out: Path | str,
    target: Target,
    *,
    precision: str | None = None,
    tile_px: int | None = None,
    progress: Progress = silent,
) -> EngineRecord:
    """Compile a student for this machine's GPU, compare it with PyTorch, and save it.

    Args:
        run: Run folder of a student.
        out: Folder that gets <target>-<precision>.pt2 and its sidecar .json; files of these names are
            replaced.
        target: Profile with flavour "torch_tensorrt"; its batch and workspace are used.
        precision: "fp32" or "fp16"; None takes the target's default.
        tile_px: Side of the tile, a multiple of 32; None takes the recipe's.
        progress: Told of the steps. The compiler reports none of its own, and an interrupt (Ctrl-C) waits
            until the engine in work is built; nothing is written then.
    Returns:
        The sidecar. Its `onnx_sha256` is the hash of the weights file, which is what was compiled.
    Raises:
        EngineError: no GPU, a GPU that the target does not name, another precision, nothing that TensorRT
            can run, or a program that computes something else than the weights.
        MissingExtraError: torch or torch-tensorrt is not installed.
        CheckpointError: the run is damaged or is none.
        ExportError: the run is no student, or tile_px is out of range.
        StorageError: `out` cannot be written.

    The file is PyTorch's .pt2 archive, which may hold pickled parts: load it only when it passes
    `engine_record.check_engine`.
    """
    chosen = _precision(target, precision)
    gpu = _gpu()
    trt = _compiler()
    _check_gpu(gpu, target)
    opened, tile_px = _student(run, tile_px)
    given = Input(target.batch, opened.info.bands, tile_px, gpu.device)
    task = _Task(opened, target, chosen, given, gpu)
    with _output_to_stderr():
        record = _compile_and_save(trt, task, Path(out), progress)
    progress(_STEPS, _STEPS, "compiled")
    return record


def _compile_and_save(trt: Any, task: _Task, out: Path, progress: Progress) -> EngineRecord:
    given = task.given
    progress(0, _STEPS, "exporting the network")
    reference = exported_form(task.run.network(), head=task.run.recipe.deploy.head).to(given.device)
    program = trace(reference, given, precision=task.precision)
    progress(1, _STEPS, "compiling with torch-tensorrt, which reports no progress")
    started = time.monotonic()
    compiled = _compile(trt, program, task)
    seconds = time.monotonic() - started
    coverage = count_engines(compiled)
    if not coverage.engines:
        raise EngineError(
            f"torch-tensorrt {trt.__version__} put nothing of {task.run.path} into an engine; PyTorch would "
            f"run {coverage.left_to_torch()}. Export a bundle and build it for target desktop-rtx instead."
        )
    progress(2, _STEPS, "comparing with PyTorch")
    difference(compiled, reference, given, which="compiled")
    name = f"{task.target.name}-{task.precision}"
    with atomic_path(out / f"{name}.json") as sidecar, atomic_path(out / f"{name}.pt2") as path:
        progress(3, _STEPS, "saving the program")
        _save(trt, compiled, path, given)
        progress(4, _STEPS, "comparing the saved program with PyTorch")
        distance = difference(_load(trt, path), reference, given, which="saved")
        record = _record(task, path, str(trt.__version__), seconds, _note(coverage, distance))
        sidecar.write_text(record.to_json(), "utf-8")
    return record


def _gpu() -> Gpu:
    """The current CUDA device. Before torch_tensorrt, whose import fails without one."""
    torch: Any = require("torch", extra="torch-tensorrt", purpose="compiling with torch-tensorrt")
    if not torch.cuda.is_available():
        raise EngineError(
            "Compiling with torch-tensorrt needs an NVIDIA GPU, and PyTorch finds none on this machine. "
            "Compile on the desktop that will run the program; or build for target desktop-rtx, which needs "
            "no GPU."
        )
    major, minor = torch.cuda.get_device_capability()
    return Gpu("cuda", 10 * int(major) + int(minor), str(torch.cuda.get_device_name()))


def _compiler() -> Any:
    try:
        return require("torch_tensorrt", extra="torch-tensorrt", purpose="compiling with torch-tensorrt")
    except (OSError, RuntimeError, AttributeError) as error:  # a TensorRT or CUDA library does not load
        raise EngineError(
            f"torch-tensorrt is installed but cannot be loaded: {error}. Its release must be that of torch "
            "(2.14 with 2.14). Install both again with: pip install 'hfd-edge[torch-tensorrt]'"
        ) from error


def _precision(target: Target, precision: str | None) -> Precision:
    if target.flavour != FLAVOUR:
        raise EngineError(
            f"Target {target.name} is compiled by {target.flavour}, not by torch-tensorrt. Build it from a "
            "bundle, or choose a target such as desktop-torch-tensorrt."
        )
    chosen = target.default_precision if precision is None else precision
    known = [name for name in PRECISIONS if name in target.precisions]
    for name in known:
        if name == chosen:
            return name
    raise EngineError(
        f"Target {target.name} has no precision {chosen!r} with torch-tensorrt; it takes: "
        f"{', '.join(known)}. Choose one of these; INT8 goes through a bundle and TensorRT."
    )


def _check_gpu(gpu: Gpu, target: Target) -> None:
    if gpu.capability not in target.compute_capabilities:
        known = ", ".join(f"sm_{capability}" for capability in target.compute_capabilities)
        raise EngineError(
            f"This machine's GPU is {gpu.name} (sm_{gpu.capability}), but target {target.name} is for "
            f"{known}. torch-tensorrt compiles for the GPU that it runs on: use another machine, or add the "
            "capability in a TOML file of your own and give its path as the target."
        )


def _student(path: Path | str, tile_px: int | None) -> tuple[Run, int]:
    """The run, and the side of the tile."""
    from hfd_edge.hfdnet.network import MULTIPLE_PX
    from hfd_edge.hfdnet.run import Run

    run = Run.open(Path(path))
    if (reason := run.info.kept_back) is not None:
        raise ExportError(f"{path} {reason}. Compile the run folder of a student.")
    tile_px = run.recipe.deploy.tile_px if tile_px is None else tile_px
    if tile_px < MULTIPLE_PX or tile_px % MULTIPLE_PX:
        raise ExportError(
            f"Cannot compile for tiles of {tile_px} pixels; tile_px must be a positive multiple of "
            f"{MULTIPLE_PX}."
        )
    return run, tile_px


def _compile(trt: Any, program: Any, task: _Task) -> Any:
    options = compiler_options(trt, task.given, workspace_mb=task.target.workspace_mb)
    try:
        return trt.dynamo.compile(program, **options)
    except Exception as error:  # converters and TensorRT raise classes of their own
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise EngineError(
            f"torch-tensorrt {trt.__version__} could not compile the network for {task.target.name}: "
            f"{reason}. If memory ran out, lower batch.max or workspace_mb in a TOML file of your own and "
            "give its path as the target; otherwise try another precision, or export a bundle and build it "
            "for target desktop-rtx."
        ) from error


def _save(trt: Any, compiled: Any, path: Path, given: Input) -> None:
    example, dynamic = given.example()
    options = {"output_format": "exported_program", "arg_inputs": [example], "dynamic_shapes": dynamic}
    try:
        trt.save(compiled, str(path), **options)
    except OSError:  # a full disk has its own message
        raise
    except Exception as error:
        raise EngineError(
            f"torch-tensorrt {trt.__version__} could not save what it compiled: {error}. Try a target with a "
            "fixed batch (min = opt = max)."
        ) from error


def _load(trt: Any, path: Path) -> Any:
    try:
        return trt.load(str(path)).module()
    except Exception as error:
        raise EngineError(
            f"torch-tensorrt {trt.__version__} cannot load the program that it has just saved: {error}. Try "
            "a target with a fixed batch (min = opt = max), or another release of torch-tensorrt."
        ) from error


def _record(task: _Task, path: Path, version: str, seconds: float, note: str) -> EngineRecord:
    import torch

    batch, digest = task.target.batch, sha256(task.run.weights_path)
    options = {
        "batch": [batch.min, batch.opt, batch.max],
        "workspace_mb": task.target.workspace_mb,
        "tile_px": task.given.tile_px,
        "head": task.run.recipe.deploy.head,
        "precision": task.precision,
        "distribution": _distribution(),
        "torch": str(torch.__version__),
    }
    identity: dict[str, Any] = {
        "flavour": FLAVOUR,
        "version": version,
        "compute_capabilities": (task.gpu.capability,),
        "options": options,
    }
    return EngineRecord(
        target=task.target.name,
        precision=task.precision,
        engine_key=engine_key(digest, **identity),
        onnx_sha256=digest,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        seconds=round(seconds, 3),
        note=note,
        **identity,
    )


def _note(coverage: Coverage, distance: float) -> str:
    return (
        f"torch-tensorrt programs are not inspected. TensorRT engines: {coverage.engines}; left to PyTorch: "
        f"{coverage.left_to_torch()}. Differs from PyTorch FP32 by {distance:.1e} of the range of the logits."
    )


def _distribution() -> str:
    """Which of the packages with a module torch_tensorrt is installed, with its release."""
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return "unknown"


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Keep the compiler's prints off stdout, which belongs to --json."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
