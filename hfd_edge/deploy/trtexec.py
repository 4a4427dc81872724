"""Command lines of `trtexec`, the builder that every JetPack brings, in the dialect of each TensorRT.

Its flags changed with the releases, and an unknown flag stops it. Sources: `trtexec --help` of 8.2, 8.5, 8.6
and 10.5 (samples/common/sampleOptions.cpp of those releases), the changelog of 8.4 (--memPoolSize and
--layerPrecisions are new), and the migration guides 8.x to 10.x and 10.x to 11.x:

| TensorRT | workspace | stop after building | per-layer precision | precision |
|---|---|---|---|---|
| 8.2 | --workspace | --buildOnly | none | --fp16, --int8 --calib |
| 8.4, 8.5 | --memPoolSize | --buildOnly | --layerPrecisions | the same |
| 8.6 | --memPoolSize | --skipInference | --layerPrecisions | the same |
| 10 | --memPoolSize | --skipInference | --layerPrecisions | the same, or --stronglyTyped without them |
| 11 | --memPoolSize | --skipInference | none | from the ONNX alone |

`--explicitBatch` does nothing since 8.2 and is refused by 10; it is never given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hfd_edge.errors import EngineError

Version = tuple[int, int, int]
_MEMORY_POOLS = (8, 4, 0)
_SKIP_INFERENCE = (8, 6, 0)
_STRONGLY_TYPED = (10, 0, 0)
_ONLY_TYPED = (11, 0, 0)


@dataclass(frozen=True)
class Job:
    """An engine to build.

    Attributes:
        model: ONNX file.
        engine: File to write.
        workspace_mb: Most scratch memory.
        typed: Take all precision from the ONNX (strongly typed network).
        fp16: Allow FP16; not with `typed`.
        int8: Allow INT8; not with `typed`.
        cache: Calibration cache; needs `int8`.
        layers: Node to the precision that it shall keep, "fp32" or "fp16"; not with `typed`.
        shapes: Smallest, best and largest input shape; None for a model with fixed shapes.
        dla_core: DLA that takes what it can; None for the GPU alone.
    """

    model: str
    engine: str
    workspace_mb: int
    typed: bool = False
    fp16: bool = False
    int8: bool = False
    cache: str | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    dla_core: int | None = None


def build_flags(job: Job, version: Version, *, input_name: str) -> tuple[str, ...]:
    """Flags that build an engine, each a whole argument, without the program's name.

    Raises:
        EngineError: this TensorRT cannot build it so; the message says why.
    """
    _check(job, version)
    flags = [f"--onnx={job.model}", f"--saveEngine={job.engine}"]
    if version >= _MEMORY_POOLS:
        flags.append(f"--memPoolSize=workspace:{job.workspace_mb}")
    else:
        flags.append(f"--workspace={job.workspace_mb}")
    if job.typed and _STRONGLY_TYPED <= version < _ONLY_TYPED:
        flags.append("--stronglyTyped")
    if job.fp16:
        flags.append("--fp16")
    if job.int8:
        flags.append("--int8")
    if job.cache is not None:
        flags.append(f"--calib={job.cache}")
    if job.layers and version >= _MEMORY_POOLS:
        # "obey": a preference would be dropped without an error, and the flow heads with it.
        flags.append("--precisionConstraints=obey")
        flags.append("--layerPrecisions=" + ",".join(f"{name}:{kind}" for name, kind in job.layers.items()))
    if job.shapes is not None:
        for name, shape in zip(("min", "opt", "max"), job.shapes, strict=True):
            flags.append(f"--{name}Shapes={input_name}:{_shape(shape)}")
    if job.dla_core is not None:
        flags += [f"--useDLACore={job.dla_core}", "--allowGPUFallback"]
    flags.append("--timingCacheFile=timing.cache")
    flags.append("--skipInference" if version >= _SKIP_INFERENCE else "--buildOnly")
    return tuple(flags)


def run_flags(
    engine: str, *, inputs: Mapping[str, str], output: str, shapes: Mapping[str, tuple[int, ...]], job: Job
) -> tuple[str, ...]:
    """Flags that run an engine once on given inputs and write its outputs as JSON.

    The same for every TensorRT from 8.2 to 11.

    Args:
        engine: Engine file.
        inputs: Input to the file of its raw values, in C order.
        output: JSON file to write.
        shapes: Shape of every input; empty for an engine with fixed shapes, which takes none.
        job: What the engine was built as: one with DLA work needs a core to run, too.
    """
    flags = [f"--loadEngine={engine}"]
    flags.append("--loadInputs=" + ",".join(f"{name}:{file}" for name, file in inputs.items()))
    if shapes:
        flags.append("--shapes=" + ",".join(f"{name}:{_shape(shape)}" for name, shape in shapes.items()))
    if job.dla_core is not None:
        flags.append(f"--useDLACore={job.dla_core}")
    flags += ["--iterations=1", "--warmUp=0", "--duration=0", f"--exportOutput={output}"]
    return tuple(flags)


def keeps_layers(version: Version) -> bool:
    """Whether single layers can be kept in another precision on the command line."""
    return _MEMORY_POOLS <= version < _ONLY_TYPED


def _check(job: Job, version: Version) -> None:
    text = ".".join(map(str, version))
    if job.typed and (job.fp16 or job.int8 or job.cache is not None or job.layers):
        raise EngineError(
            "A strongly typed engine takes its precision from the ONNX; precision flags are refused. "
            "Give either of them."
        )
    if job.typed and version < _STRONGLY_TYPED:
        raise EngineError(
            f"TensorRT {text} has no strongly typed networks; they came with 10. Use precision flags."
        )
    if not job.typed and version >= _ONLY_TYPED:
        raise EngineError(
            f"TensorRT {text} takes its precision from the ONNX alone; it has no --fp16, --int8 or --calib. "
            'Give the target int8 = "qdq".'
        )
    if job.cache is not None and not job.int8:
        raise EngineError(
            f"The calibration cache {job.cache} is for INT8, which is not asked for. Leave it away."
        )
    for name in job.layers:
        if any(mark in name for mark in ",:'*"):
            raise EngineError(
                f"Node name {name!r} cannot be written in --layerPrecisions. Export the run again."
            )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
