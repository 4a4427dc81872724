"""The part of TensorRT's Python API that hfd-edge uses, in all its generations.

TensorRT 8.6, 10 and 11 and TensorRT-RTX differ in names, not in the road: logger, builder, network, parser,
configuration, serialised engine; runtime, engine, inspector. `TensorRT` lists the names that every generation
has; its types come from tensorrt-stubs, so mypy checks each call against the real signatures. What only some
generations have is asked for with `member`, and its absence is handled where it is used.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from hfd_edge.errors import EngineError, MissingExtraError, require

if TYPE_CHECKING:
    import tensorrt

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}
"""Flavours, which are Python modules, and the extras that install them."""
_ELSEWHERE = {
    "tensorrt_rtx": "; it has wheels for x86-64 alone",
    "tensorrt": "; a Jetson has it from JetPack, which a virtual environment sees with: "
    "python3 -m venv --system-site-packages",
}
PRODUCTS = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


class TensorRT(Protocol):
    """A TensorRT module of any generation: the names that 8.6, 10, 11 and RTX all have."""

    @property
    def Builder(self) -> type[tensorrt.Builder]: ...
    @property
    def OnnxParser(self) -> type[tensorrt.OnnxParser]: ...
    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...
    @property
    def ILogger(self) -> type[tensorrt.ILogger]: ...
    @property
    def NetworkDefinitionCreationFlag(self) -> type[tensorrt.NetworkDefinitionCreationFlag]: ...
    @property
    def BuilderFlag(self) -> type[tensorrt.BuilderFlag]: ...
    @property
    def MemoryPoolType(self) -> type[tensorrt.MemoryPoolType]: ...
    @property
    def ProfilingVerbosity(self) -> type[tensorrt.ProfilingVerbosity]: ...
    @property
    def LayerInformationFormat(self) -> type[tensorrt.LayerInformationFormat]: ...
    @property
    def ErrorCode(self) -> type[tensorrt.ErrorCode]: ...
    @property
    def DataType(self) -> type[tensorrt.DataType]: ...


if TYPE_CHECKING:
    # mypy compares the protocol with the stubs here: a name or type that TensorRT lacks fails the build.
    _checked: TensorRT = tensorrt


@dataclass
class BuildLog:
    """What TensorRT logged while it was listened to.

    Attributes:
        faults: Errors, in order.
        weights_bytes: Memory of the engine's weights; None if the log does not say.
        activation_bytes: Memory of its activations for the largest shapes; None if the log does not say.
    """

    faults: list[str] = field(default_factory=list)
    weights_bytes: int | None = None
    activation_bytes: int | None = None

    # "Total Weights Memory: 3615752 bytes" in TensorRT 10 and RTX; 8.6 leaves out the unit.
    _TOTAL = re.compile(r"Total (Weights|Activation) Memory: (\d+)")

    def note(self, message: str) -> None:
        """Take the figures from an informative message."""
        if (found := self._TOTAL.search(message)) is None:
            return
        if found[1] == "Weights":
            self.weights_bytes = int(found[2])
        else:
            self.activation_bytes = int(found[2])


@dataclass(frozen=True)
class LoadedEngine:
    """An engine on the GPU, and the runtime that it needs as long as it lives."""

    runtime: tensorrt.Runtime
    engine: tensorrt.ICudaEngine


def load_tensorrt(flavour: str, *, purpose: str) -> TensorRT:
    """Import a TensorRT.

    Args:
        flavour: "tensorrt_rtx" or "tensorrt".
        purpose: What needs it; the subject of the message.
    Raises:
        EngineError: it is installed, but its libraries do not load.
        MissingExtraError: it is not installed.
    """
    try:
        module = require(flavour, extra=EXTRAS[flavour], purpose=purpose)
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}{_ELSEWHERE[flavour]}") from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"{purpose} needs the package '{flavour}', which is installed but does not load: {error}. "
            "Install it again, for the CUDA of the driver."
        ) from error
    if not hasattr(module, "Builder"):
        # Type stubs in site-packages, or a checkout beside the script, import as a namespace package.
        raise MissingExtraError(
            f"{purpose} needs the package '{flavour}', but Python finds only a folder of that name, without "
            f"Builder. Install it with: pip install 'hfd-edge[{EXTRAS[flavour]}]'{_ELSEWHERE[flavour]}"
        )
    return cast("TensorRT", module)


def tensorrt_version(trt: TensorRT) -> str:
    """Its version, "10.3.0" or "1.7.1.116"."""
    return str(member(trt, "__version__"))  # mypy knows no such attribute of modules


def product(flavour: str, trt: TensorRT) -> str:
    """Name and version for messages, "TensorRT 10.3.0"."""
    return f"{PRODUCTS[flavour]} {tensorrt_version(trt)}"


def member(owner: object, name: str) -> Any:
    """A class, flag or method that some generations lack, or None."""
    return getattr(owner, name, None)


def ahead_of_time(trt: TensorRT) -> bool:
    """Whether it compiles for GPUs that are named rather than for the one that is here."""
    return member(trt, "ComputeCapability") is not None


def strongly_typed(trt: TensorRT) -> bool:
    """Whether a network can take its precision from the ONNX alone (TensorRT 10, 11, RTX)."""
    return member(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") is not None


def tensorrt_logger(trt: TensorRT) -> Any:
    """The process's one logger of a TensorRT: the first one registered gets the messages of all later builds.

    Returns:
        An ILogger; `recording()` gives a `BuildLog` of what it hears while a `with` block runs.
    """
    base: Any = trt.ILogger  # the stubs' classes are not Hashable for mypy
    return _logger(base)


def deserialize(
    trt: TensorRT, content: bytes, *, dla_core: int | None = None
) -> tuple[LoadedEngine | None, list[str]]:
    """Load an engine on this machine's GPU.

    Args:
        trt: The TensorRT that built it.
        content: The engine.
        dla_core: DLA core that it was built for. TensorRT takes the first, unless it is told.
    Returns:
        The engine, or None if TensorRT refuses it or there is no GPU; and what it logged as errors.
    """
    logger = tensorrt_logger(trt)
    with logger.recording() as log:
        try:
            runtime = trt.Runtime(logger)
            if dla_core is not None:
                runtime.DLA_core = dla_core
            engine = runtime.deserialize_cuda_engine(content)
        except (TypeError, RuntimeError) as error:
            # Without a driver pybind11 reports "factory function returned nullptr", a TypeError.
            return None, [*log.faults, str(error)]
    # The stubs promise an engine, but C++ gives a null pointer where it cannot.
    loaded = cast("tensorrt.ICudaEngine | None", engine)
    return (None if loaded is None else LoadedEngine(runtime, loaded)), log.faults


@cache
def _logger(base: Any) -> Any:
    errors = (base.ERROR, base.INTERNAL_ERROR)

    class Logger(base):  # type: ignore[misc]  # the class of whichever module was loaded
        """Keeps errors and figures for those who listen; drops the rest, which TensorRT would print.

        Several may listen at once, from several threads: TensorRT does not say whom a message is for.
        """

        def __init__(self) -> None:
            super().__init__()
            self._listening: tuple[BuildLog, ...] = ()
            self._lock = threading.Lock()

        def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
            for log in self._listening:
                if severity in errors:
                    log.faults.append(message)
                else:
                    log.note(message)

        @contextlib.contextmanager
        def recording(self) -> Iterator[BuildLog]:
            mine = BuildLog()
            with self._lock:
                self._listening += (mine,)
            try:
                yield mine
            finally:
                with self._lock:
                    self._listening = tuple(log for log in self._listening if log is not mine)

    make: Callable[[], Any] = Logger
    return make()
