"""CUDA graphs: the launches of an engine, recorded once and then started as one.

An engine is tens to hundreds of short kernels; on a small GPU the CPU can take longer to launch them than the
GPU to run them. PyCUDA has no graphs, so this goes through cuda-bindings, on PyCUDA's streams.

TensorRT's rules for them (developer guide, "CUDA Graphs"): run once before, because the first run of a shape
may allocate; a graph is good for one shape and the addresses that it was recorded with; and each graph has an
execution context of its own.
"""

from __future__ import annotations

import contextlib
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError, require
from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.resources import Resource

MOST_GRAPHS = 4
"""Graphs that `Replays` keeps: triple buffering has three pairs of addresses, and a short last batch one."""
TOLERANCE = 4e-3
"""Largest difference of a replay from the run before it, relative to the range of the logits: four steps of
FP16. They are the same kernels on the same input, but some of them may add up in no fixed order."""

_ADVICE = "Open the engine without graphs (graphs=False)."
_POISON = 0xFF  # NaN in every floating point type


class Graph(Resource):
    """Recorded work, which can be launched into any stream; one launch runs at a time."""

    @classmethod
    def capture(cls, device: Device, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` puts into a stream; nothing of it is executed.

        Args:
            device: Where.
            stream: The stream that `work` uses; no other thread may use it meanwhile.
            work: Enqueues to `stream`, without waiting for anything.
        Raises:
            BackendError: something in `work` cannot be recorded, or `work` raised it.
            MissingExtraError: cuda-bindings is not installed.
        """
        cuda = _bindings()
        with device.current("recording a CUDA graph"), _no_collection():
            # Thread local: allocations of other threads, which any library may make, do not spoil it.
            mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            _checked(cuda, "cuStreamBeginCapture", stream.handle, mode)
            try:
                work()
            except BaseException:
                _, graph = cuda.cuStreamEndCapture(stream.handle)
                if graph is not None and int(graph):
                    cuda.cuGraphDestroy(graph)
                raise
            graph = _checked(cuda, "cuStreamEndCapture", stream.handle)
            try:
                executable = _checked(cuda, "cuGraphInstantiate", graph, 0)
            finally:
                cuda.cuGraphDestroy(graph)
            return device._adopt(cls(device, executable, lambda held: cuda.cuGraphExecDestroy(held)))

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it. Raises BackendError."""
        executable = self._held
        with self._device.current("launching a CUDA graph"):
            _checked(_bindings(), "cuGraphLaunch", executable, stream.handle)


@dataclass(frozen=True)
class Batch:
    """What a graph is good for.

    Attributes:
        input_address: Of the tiles.
        output_address: Of the logits.
        tiles: How many.
    """

    input_address: int
    output_address: int
    tiles: int


class Replays:
    """The graphs of an engine, recorded when a batch first has this size and these addresses.

    Not thread safe; the backend that holds it takes turns.

    Args:
        device: Where.
        prepare: Makes an execution context with the shape and the addresses of a batch; gives what enqueues
            it to the stream of a handle, and keeps the context alive.
        logits_bytes: Size of the logits of so many tiles.
        half: Whether logits are float16; else float32.
        what: The engine, for messages.
    """

    def __init__(
        self,
        device: Device,
        prepare: Callable[[Batch], Callable[[int], None]],
        *,
        logits_bytes: Callable[[int], int],
        half: bool,
        what: str,
    ) -> None:
        self._device, self._prepare, self._what = device, prepare, what
        self._logits_bytes, self._dtype = logits_bytes, np.dtype(np.float16 if half else np.float32)
        self._kept: OrderedDict[Batch, tuple[Graph, Callable[[int], None]]] = OrderedDict()

    def enqueue(self, batch: Batch, stream: Stream) -> None:
        """Put a batch into a stream. The first of its kind also runs without a graph, and waits.

        Args:
            batch: Its addresses hold what they will hold when the stream comes to it.
            stream: Where; work of this engine in other streams must be done when it runs.
        Raises:
            BackendError: the engine cannot be recorded, or the replay gives other logits than the run.
        """
        if batch not in self._kept:
            stream.synchronize()  # graphs that are dropped here, or after an error, may not still run
            if len(self._kept) >= MOST_GRAPHS:
                self._drop(next(iter(self._kept)))
            # What other threads put into `stream` meanwhile would be recorded, and not run.
            apart = self._device.stream()
            try:
                self._kept[batch] = self._record(batch, apart)
            finally:
                apart.close()
            return
        self._kept.move_to_end(batch)
        self._kept[batch][0].launch(stream)

    def close(self) -> None:
        """Free the graphs and their contexts; their work must be done. More than once is allowed."""
        for batch in list(self._kept):
            self._drop(batch)

    def _drop(self, batch: Batch) -> None:
        graph, _ = self._kept.pop(batch)
        graph.close()

    def _record(self, batch: Batch, stream: Stream) -> tuple[Graph, Callable[[int], None]]:
        execute = self._prepare(batch)
        execute(stream.handle)
        expected = self._logits(batch, stream)
        graph = Graph.capture(self._device, stream, lambda: execute(stream.handle))
        try:
            # A replay that writes elsewhere, or nothing, must not find the right logits there already.
            stream.fill(batch.output_address, _POISON, self._logits_bytes(batch.tiles))
            graph.launch(stream)
            self._compare(expected, self._logits(batch, stream))
        except BaseException:
            graph.close()
            raise
        return graph, execute

    def _logits(self, batch: Batch, stream: Stream) -> NDArray[np.float32]:
        """Wait for a batch, and bring its logits here."""
        stored = np.empty(self._logits_bytes(batch.tiles), np.uint8)
        stream.copy_out(stored, batch.output_address)
        stream.synchronize()
        return stored.view(self._dtype).astype(np.float32)

    def _compare(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        if np.array_equal(expected, found, equal_nan=True):
            return
        with np.errstate(invalid="ignore"):
            distance = np.abs(expected - found) / max(float(np.ptp(expected)), 1e-30)
        wrong = int(np.count_nonzero(~(distance <= TOLERANCE)))
        if wrong:
            raise BackendError(
                f"A CUDA graph of {self._what} gives other logits than the engine itself: {wrong} of "
                f"{found.size} differ by more than {TOLERANCE:.0e} of their range. {_ADVICE}"
            )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing GPU memory in this thread, which would end a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _bindings() -> Any:
    return require("cuda.bindings.driver", extra="cuda", purpose="running an engine as a CUDA graph")


def _checked(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call the driver; gives its one result, or None."""
    status, *results = getattr(cuda, name)(*arguments)
    if status != cuda.CUresult.CUDA_SUCCESS:
        _, text = cuda.cuGetErrorString(status)
        reason = (text or b"unknown error").decode()
        raise BackendError(f"{name} failed: {status.name}, {reason}. {_ADVICE}")
    return results[0] if results else None
