"""Frames and rasters through one GPU: several frames under way, their masks in order.

    stored pixels -> load: copy, speckle kernel -> infer: network, labels kernel -> unload: copy -> mask

The three streams work side by side on three frames. Every frame has memory of its own until its mask was
copied from there, by whoever comes first: its `result`, or the `submit` that needs its place. So masks wait
in ordinary memory when their caller is slow, and the GPU does not wait for him.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.runtime.cuda_frames import FrameSlot
from hfd_edge.runtime.cuda_parts import DeviceBackend, Parts
from hfd_edge.runtime.cuda_rows import CudaRows
from hfd_edge.runtime.rows import Tiler
from hfd_edge.runtime.scene import ArraySink, RowDriver
from hfd_edge.runtime.transfer import DeviceImage

_Made = tuple[NDArray[np.uint8], dict[str, float]]


class CudaFrame:
    """A mask in the making; see `Pending`."""

    def __init__(self, finish: Callable[[], _Made]) -> None:
        self.stages_ms: dict[str, float] = {}
        self._lock = threading.Lock()
        self._finish: Callable[[], _Made] | None = finish
        self._mask: NDArray[np.uint8] | None = None
        self._error: BaseException | None = None

    def settle(self) -> None:
        """Wait for the mask, take it out of the frame's memory and give that back; once. `result` raises what
        went wrong."""
        with self._lock:
            if self._finish is None:
                return
            finish, self._finish = self._finish, None
            try:
                self._mask, self.stages_ms = finish()
            except BaseException as error:
                self._error = error
                if not isinstance(error, Exception):  # a Ctrl-C is for whoever waits now
                    raise

    def result(self) -> NDArray[np.uint8]:
        """Wait for the mask (rows, cols). Raises RadiometryError and BackendError."""
        self.settle()
        if self._error is not None:
            raise self._error
        mask, self._mask = self._mask, None
        assert mask is not None, "result is asked for once"
        return mask

    def discard(self) -> None:
        """Give the mask up; the frame's memory is free when the GPU is done with it."""
        self._mask = None


class CudaPipeline:
    """Frames and rasters on a GPU; see `Pipeline`.

    Attributes:
        memory_mode: "mapped" where kernels read host memory in place, else "copy".
        kernels: How each kernel source was had; see `Kernels.ways`.
        device: The GPU.
    """

    spare_cores = True

    def __init__(self, backend: DeviceBackend, tiler: Tiler, *, depth: int = 3) -> None:
        """Load the kernels.

        Args:
            backend: The network; closed with the pipeline.
            tiler: Geometry and preprocessing of the bundle.
            depth: Frames under way at once: 2 to copy and compute side by side, 3 to do it both ways.
        Raises:
            BackendError: a kernel cannot be had, or not for this preprocessing; or `depth` is below 1.
        """
        if depth < 1:
            raise BackendError(f"depth is {depth}, expected 1 or more frames under way.")
        self.name: str = backend.name
        self.precision: str = backend.precision
        self.depth = depth
        self.tiler = tiler
        self.device = backend.device
        self.memory_mode = backend.device.memory_mode
        self._parts = Parts.of(backend, tiler)
        self.kernels = self._parts.kernels.ways
        self._lock = threading.Lock()
        self._free = threading.Lock()  # of `_engines`; a frame that is settled must not need the other lock
        self._flight: deque[CudaFrame] = deque()
        self._slots: list[FrameSlot] = []  # free ones
        self._engines: list[CudaRows] = []  # free ones, all of one width
        self._closed = False

    def submit(self, image: Any) -> CudaFrame:
        """Put a frame in the queues; see `Pipeline.submit`. Raises RadiometryError and BackendError."""
        with self._lock:
            self._check_open()
            if hasattr(image, "__cuda_array_interface__"):
                image = DeviceImage.of(image, ordinal=self._parts.device.ordinal)
            while len(self._flight) >= self.depth:
                self._flight.popleft().settle()
            size = self.tiler.tile_px
            small = image.shape[1] <= size and image.shape[2] <= size
            frame = CudaFrame(self._start_small(image) if small else self._start_large(image))
            self._flight.append(frame)
            return frame

    def rows(self, *, cols: int) -> CudaRows:
        """Make an engine for a raster of this width; see `Pipeline.rows`."""
        with self._lock:
            self._check_open()
            return CudaRows(self._parts, cols=cols)

    def close(self) -> None:
        """Wait for the frames under way, whose results can still be taken, and free everything."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._flight:
                self._flight.popleft().settle()
            self._parts.quiesce()
            while self._slots:
                self._slots.pop().close()
            while self._engines:
                self._engines.pop().close()
            self._parts.close()
            self._parts.backend.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"The {self.name} pipeline was closed. Open the bundle again to run it.")

    def _start_small(self, image: NDArray[Any] | DeviceImage) -> Callable[[], _Made]:
        """Start a frame that one tile holds; gives what finishes it."""
        slot = self._slots.pop() if self._slots else FrameSlot(self._parts)
        try:
            slot.start(image)
        except BaseException:
            self._parts.quiesce()
            self._slots.append(slot)
            raise

        def finish() -> _Made:
            try:
                return slot.finish()
            except BaseException as error:
                if not isinstance(error, RadiometryError):
                    self._parts.quiesce()  # the slot is used again: nothing may be under way in it
                raise
            finally:
                self._slots.append(slot)

        return finish

    def _start_large(self, image: NDArray[Any] | DeviceImage) -> Callable[[], _Made]:
        """Start a frame of several tiles; its last row of tiles is under way when this returns."""
        rows, cols = int(image.shape[1]), int(image.shape[2])
        engine = self._engine(cols)
        driver = RowDriver(engine, self.tiler, cols=cols, rows=rows, name="The image")
        sink = ArraySink(rows=rows, cols=cols)
        try:
            for done in driver.push(image):  # type: ignore[arg-type]  # cut by rows alone, as arrays are
                sink.write_rows(done.start, done.values)
        except BaseException:
            engine.close()
            raise

        def finish() -> _Made:
            try:
                for done in driver.drain():
                    sink.write_rows(done.start, done.values)
                return sink.labels, engine.stages_ms
            finally:
                self._give_back(engine)

        return finish

    def _engine(self, cols: int) -> CudaRows:
        """An engine of this width. Those of another are freed: a stream's frames mostly have one size."""
        with self._free:
            while self._engines:
                engine = self._engines.pop()
                if engine.cols == cols:
                    return engine
                engine.close()
        return CudaRows(self._parts, cols=cols)

    def _give_back(self, engine: CudaRows) -> None:
        if not engine.quiet:
            engine.close()
            return
        engine.restart()
        with self._free:
            self._engines.append(engine)
