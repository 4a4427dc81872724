"""The GPU: memory, streams, events and kernels on the primary context, through PyCUDA.

The primary context is the one that TensorRT, PyTorch and every other `Device` of the process use, so
addresses and streams pass between them. It is current in a thread only while a call of this module runs:
nothing that the caller's thread had current is disturbed.

Everything that takes a `Stream` is asynchronous. What it reads and writes must live, and stay as it is, until
the stream has passed that point. A GPU reports a fault of asynchronous work at any later call, which is why
messages speak of earlier work.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from hfd_edge.errors import BackendError, require
from hfd_edge.gpu import pop_context
from hfd_edge.runtime.external import External, external
from hfd_edge.runtime.resources import Buffer, Event, Function, Module, Pinned, Resource, Stream

__all__ = ["Buffer", "Device", "DeviceLimits", "Event", "External", "Function", "Module", "Pinned", "Stream"]
__all__ += ["external"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, cuda.h: not ordered with the legacy default stream, torch's
_R = TypeVar("_R", bound="Resource")
_log = logging.getLogger("hfd_edge.runtime")


@dataclass(frozen=True)
class DeviceLimits:
    """What a GPU can do.

    Attributes:
        name: Its name.
        compute_capability: 87 is sm_87.
        multiprocessors: How many.
        shared_bytes: Shared memory that a block may use without asking.
        shared_bytes_optin: Shared memory that it may use when its kernel asks, which `Function` does.
        max_threads: Threads of a block.
        max_grid: Blocks along x, y, z.
        integrated: It shares the CPU's memory (Jetson).
        maps_host_memory: It can read and write page-locked host memory.
        total_bytes: Its memory.
    """

    name: str
    compute_capability: int
    multiprocessors: int
    shared_bytes: int
    shared_bytes_optin: int
    max_threads: int
    max_grid: tuple[int, int, int]
    integrated: bool
    maps_host_memory: bool
    total_bytes: int


class Device:
    """A GPU; opened with `Device.open`, closed with `close` or by leaving a `with` block.

    Several may be open on one GPU, and any thread may use them.

    Attributes:
        ordinal: Its number among the process's GPUs.
        limits: What it can do.
        memory_mode: "mapped" where `Pinned` memory is read by kernels in place, else "copy".
        memory_reason: Why.
        driver: PyCUDA's driver module, for what stands beside this module.
    """

    @classmethod
    def open(cls, ordinal: int = 0, *, memory: str = "auto") -> Device:
        """Retain a GPU's primary context.

        Args:
            ordinal: Number of the GPU.
            memory: "copy", "mapped", or "auto" to let a measurement choose where the GPU shares the CPU's.
        Raises:
            BackendError: no driver, no such GPU, or no memory for a context.
            MissingExtraError: PyCUDA is not installed.
        """
        return cls(_load_pycuda(), ordinal, memory=memory)

    def __init__(self, driver: Any, ordinal: int, *, memory: str) -> None:
        self.ordinal = ordinal
        self.driver = driver
        self._lock = threading.Lock()
        self._living: weakref.WeakSet[Resource] = weakref.WeakSet()
        with _naming(driver, f"opening GPU {ordinal}"):
            driver.init()
            self.limits = _limits(driver, driver.Device(ordinal))
            self._context: Any = driver.Device(ordinal).retain_primary_context()
        self._detach = weakref.finalize(self, _detach, driver, self._context)
        # When the program ends finalizers run, too, but memory would be freed before the work that uses it.
        atexit.register(_close, weakref.ref(self))
        try:
            from hfd_edge.runtime.mapped import choose_memory

            self.memory_mode, self.memory_reason = choose_memory(self, memory)
        except BaseException:
            self.close()
            raise
        _log.info(
            "GPU %d is %s; memory: %s (%s)", ordinal, self.limits.name, self.memory_mode, self.memory_reason
        )

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def current(self, doing: str = "using the GPU") -> Iterator[None]:
        """Make the context current in this thread; may be nested. Driver errors become BackendError.

        Args:
            doing: Subject of the message when the driver refuses.
        """
        if not self._detach.alive:
            raise BackendError(f"GPU {self.ordinal} was closed before {doing}. Open it again.")
        with _naming(self.driver, doing):
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    def buffer(self, nbytes: int) -> Buffer:
        """Allocate device memory; its content is undefined.

        Raises:
            BackendError: out of memory; says how much was asked for and how much is free.
        """
        _positive("nbytes", nbytes)
        try:
            with self.current(f"allocating {nbytes:,} bytes on the GPU"):
                allocation = self.driver.mem_alloc(nbytes)
                return self._adopt(Buffer(self, allocation, nbytes))
        except BackendError as error:
            if not isinstance(error.__cause__, self.driver.MemoryError):
                raise
            raise BackendError(
                f"The GPU has no room for {nbytes:,} bytes: {self.free_bytes():,} of "
                f"{self.limits.total_bytes:,} are free ({error.__cause__}). "
                "Close other programs that use it, or use smaller tiles or batches, or a narrower scene."
            ) from error.__cause__

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Pinned:
        """Allocate page-locked host memory, which copies asynchronously; mapped in memory mode "mapped".

        Raises:
            BackendError: out of memory.
        """
        side = (shape,) if isinstance(shape, int) else tuple(shape)
        nbytes = int(np.prod(side, dtype=np.int64)) * np.dtype(dtype).itemsize
        _positive("the size", nbytes)
        return self._pin(side, dtype, mapped=self.memory_mode == "mapped")

    def stream(self) -> Stream:
        """Make a queue of work, not ordered with any other."""
        with self.current("creating a stream"):
            return self._adopt(Stream(self, self.driver.Stream(_NON_BLOCKING)))

    def event(self, *, timing: bool = False) -> Event:
        """Make a mark for streams; one that keeps the time costs a little more."""
        flags = self.driver.event_flags
        with self.current("creating an event"):
            made = self.driver.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)
            return self._adopt(Event(self, made, timing=timing))

    def module(self, image: bytes) -> Module:
        """Load compiled kernels: a fatbin, a cubin or PTX.

        Raises:
            BackendError: the image is damaged, or has nothing for this GPU.
        """
        with self.current(f"loading kernels for sm_{self.limits.compute_capability}"):
            return self._adopt(Module(self, self.driver.module_from_buffer(image)))

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        with self.current("asking for free memory"):
            free, _ = self.driver.mem_get_info()
        return int(free)

    def close(self) -> None:
        """Free all that was made with it and release the context; more than once is allowed."""
        with self._lock:
            living = list(self._living)
        # Streams first: closing one waits for the work that uses the others.
        for resource in sorted(living, key=lambda item: not isinstance(item, Stream)):
            resource.close()
        self._detach()

    def _pin(self, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool) -> Pinned:
        flags = self.driver.host_alloc_flags.DEVICEMAP if mapped else 0
        with self.current(f"allocating page-locked memory of shape {shape}"):
            array = self.driver.pagelocked_empty(shape, dtype, mem_flags=flags)
            return self._adopt(Pinned(self, array, mapped=mapped))

    def _adopt(self, resource: _R) -> _R:
        with self._lock:
            self._living.add(resource)
        return resource


def _load_pycuda() -> Any:
    return require("pycuda.driver", extra="cuda", purpose="the GPU runtime")


def _limits(driver: Any, device: Any) -> DeviceLimits:
    kinds = driver.device_attribute
    major, minor = device.compute_capability()

    def ask(name: str) -> int:
        return int(device.get_attribute(getattr(kinds, name)))

    return DeviceLimits(
        name=device.name(),
        compute_capability=10 * major + minor,
        multiprocessors=ask("MULTIPROCESSOR_COUNT"),
        shared_bytes=ask("MAX_SHARED_MEMORY_PER_BLOCK"),
        shared_bytes_optin=ask("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        max_threads=ask("MAX_THREADS_PER_BLOCK"),
        max_grid=(ask("MAX_GRID_DIM_X"), ask("MAX_GRID_DIM_Y"), ask("MAX_GRID_DIM_Z")),
        integrated=bool(ask("INTEGRATED")),
        maps_host_memory=bool(ask("CAN_MAP_HOST_MEMORY")),
        total_bytes=int(device.total_memory()),
    )


@contextlib.contextmanager
def _naming(driver: Any, doing: str) -> Iterator[None]:
    """Turn the driver's errors, which name the call, into ours, which also say what it was for."""
    try:
        yield
    except driver.Error as error:
        raise BackendError(
            f"{doing[0].upper()}{doing[1:]} failed: {error}. {_advice(driver, error)}"
        ) from error


def _advice(driver: Any, error: Exception) -> str:
    lost = ("illegal", "launch failure", "launch timed out", "misaligned", "assert", "hardware", "destroyed")
    if any(word in str(error) for word in lost):
        return (
            "The GPU's context is lost to everything in this process: close it all and start again; "
            "hfd-edge selftest tells whether a kernel is at fault."
        )
    if isinstance(error, driver.MemoryError):
        return "Close other programs that use the GPU, or use smaller tiles."
    return "Check the driver with nvidia-smi and the set-up with hfd-edge doctor."


def _close(device: weakref.ref[Device]) -> None:
    opened = device()
    if opened is not None:
        opened.close()


def _detach(driver: Any, context: Any) -> None:
    """Release the primary context.

    PyCUDA releases only what it believes current, and leaves it on the driver's stack, where the next call of
    torch in this thread would find a context that may be destroyed. So it is taken off before, which PyCUDA
    does not see; it then puts back what was current.
    """
    try:
        context.push()
        pop_context()
        context.detach()
    except driver.Error as error:
        _log.warning("releasing the GPU's context failed: %s", error)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise BackendError(f"{name} is {value}, expected 1 byte or more.")
