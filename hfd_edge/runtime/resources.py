"""What lives on a GPU: memory, streams, events and kernels, each with an explicit end; see `device`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.runtime.external import follow

if TYPE_CHECKING:
    from hfd_edge.runtime.device import Device, DeviceLimits

_log = logging.getLogger("hfd_edge.runtime")


class Resource:
    """Something on a GPU that is given back once: by `close`, with its device, or when it is collected.

    PyCUDA's destructors do nothing in a thread where the context is not current, so this makes it current.
    """

    def __init__(self, device: Device, held: Any, release: Callable[[Any], None] | None = None) -> None:
        self._device = device
        # A list, so that the finalizer can drop the last reference: PyCUDA destroys streams in destructors.
        self._box = [held]
        self._finalize = weakref.finalize(self, _give_back, device, self._box, release)

    @property
    def closed(self) -> bool:
        """Whether it was given back."""
        return not self._finalize.alive

    @property
    def _held(self) -> Any:
        if not self._box:
            raise BackendError(
                f"This {type(self).__name__.lower()} was freed before it was used. "
                "Keep it until its work is done."
            )
        return self._box[0]

    def close(self) -> None:
        """Give it back; more than once is allowed. Work that uses it must be done."""
        self._finalize()


class Buffer(Resource):
    """Device memory.

    Attributes:
        nbytes: Its size.
    """

    def __init__(self, device: Device, allocation: Any, nbytes: int) -> None:
        super().__init__(device, allocation, lambda held: held.free())
        self.nbytes = nbytes

    @property
    def address(self) -> int:
        """Device address of the first byte. Raises BackendError after `free`."""
        return int(self._held)

    def free(self) -> None:
        """Give the memory back; more than once is allowed. Work that uses it must be done."""
        self.close()


class Pinned(Resource):
    """Page-locked host memory.

    Collected, it lives on while views of `array` do; freed, they must not be used.
    """

    def __init__(self, device: Device, array: Any, *, mapped: bool) -> None:
        super().__init__(device, array)
        self._mapped_at = int(array.base.get_device_pointer()) if mapped else None

    @property
    def array(self) -> NDArray[Any]:
        """The memory. Raises BackendError after `free`."""
        held: NDArray[Any] = self._held
        return held

    @property
    def address(self) -> int:
        """Host address of the first byte."""
        return int(self.array.ctypes.data)

    @property
    def device_address(self) -> int | None:
        """Where kernels find the same memory; None where it is not mapped."""
        return self._mapped_at if self._held is not None else None

    def close(self) -> None:
        """As `free`."""
        if not self.closed:
            with self._device.current("freeing page-locked memory"):
                self._held.base.free()
        super().close()

    def free(self) -> None:
        """Give the memory back; more than once is allowed. Work that uses it must be done."""
        self.close()


class Stream(Resource):
    """A queue of work for the GPU, done in order; `close` waits for it."""

    def __init__(self, device: Device, stream: Any) -> None:
        super().__init__(device, stream, lambda held: held.synchronize())

    @property
    def handle(self) -> int:
        """CUstream, for TensorRT and CUDA graphs."""
        return int(self._held.handle)

    def synchronize(self) -> None:
        """Wait until all of it is done. Raises BackendError if any of it failed."""
        with self._device.current("waiting for a stream (the fault may be of earlier work)"):
            self._held.synchronize()

    def record(self, event: Event) -> None:
        """Set an event when what was queued so far is done."""
        with self._device.current("recording an event"):
            event._held.record(self._held)

    def wait(self, event: Event) -> None:
        """Hold further work back until an event is set."""
        with self._device.current("making a stream wait for an event"):
            self._held.wait_for_event(event._held)

    def follow(self, handle: int) -> None:
        """Hold further work back until another package's stream is done; see `External.stream`."""
        with self._device.current("waiting for a device array"):
            follow(handle, self.handle)

    def copy_in(self, dst_address: int, host_array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device; from `Pinned` memory without holding up the CPU."""
        if not host_array.flags.c_contiguous:
            raise BackendError("copy_in needs a C-contiguous array. Copy it with numpy.ascontiguousarray.")
        with self._device.current(f"copying {host_array.nbytes:,} bytes to the GPU"):
            self._device.driver.memcpy_htod_async(int(dst_address), host_array, self._held)

    def copy_out(self, host_array: NDArray[Any], src_address: int) -> None:
        """Copy from the device into a contiguous array; complete when the stream has passed it."""
        if not (host_array.flags.c_contiguous and host_array.flags.writeable):
            raise BackendError("copy_out needs a writable C-contiguous array. Copy into such a one.")
        with self._device.current(f"copying {host_array.nbytes:,} bytes from the GPU"):
            self._device.driver.memcpy_dtoh_async(host_array, int(src_address), self._held)

    def copy(self, dst_address: int, src_address: int, nbytes: int) -> None:
        """Copy within the device; the two may not overlap."""
        with self._device.current(f"copying {nbytes:,} bytes within the GPU"):
            self._device.driver.memcpy_dtod_async(int(dst_address), int(src_address), int(nbytes), self._held)

    def copy2d(self, dst: int, dst_pitch: int, src: int, src_pitch: int, width_bytes: int, rows: int) -> None:
        """Copy rows within the device from one pitch to another; all in bytes."""
        if width_bytes > min(dst_pitch, src_pitch):
            raise BackendError(
                f"copy2d: rows of {width_bytes} bytes overlap at pitches {src_pitch} and {dst_pitch}."
            )
        with self._device.current(f"copying {rows} rows of {width_bytes} bytes within the GPU"):
            call = self._device.driver.Memcpy2D()
            call.set_src_device(int(src))
            call.set_dst_device(int(dst))
            call.src_pitch, call.dst_pitch = int(src_pitch), int(dst_pitch)
            call.width_in_bytes, call.height = int(width_bytes), int(rows)
            call(self._held)

    def fill(self, address: int, byte_value: int, nbytes: int) -> None:
        """Set every byte of a range."""
        with self._device.current(f"filling {nbytes:,} bytes"):
            self._device.driver.memset_d8_async(int(address), byte_value, int(nbytes), self._held)


class Event(Resource):
    """A mark in a stream."""

    def __init__(self, device: Device, event: Any, *, timing: bool) -> None:
        super().__init__(device, event)
        self.timing = timing

    def done(self) -> bool:
        """Whether the work before the last record is done; True for one that was never recorded."""
        with self._device.current("asking for an event (the fault may be of earlier work)"):
            return bool(self._held.query())

    def synchronize(self) -> None:
        """Wait until it is done."""
        with self._device.current("waiting for an event (the fault may be of earlier work)"):
            self._held.synchronize()

    def ms_since(self, other: Event) -> float:
        """Milliseconds from another event to this one; both recorded, done, and made with timing."""
        if not (self.timing and other.timing):
            raise BackendError("ms_since needs events that keep the time. Make both with event(timing=True).")
        with self._device.current("taking the time between events"):
            return float(self._held.time_since(other._held))


class Module(Resource):
    """Loaded kernels."""

    def __init__(self, device: Device, module: Any) -> None:
        # PyCUDA's functions keep their module loaded, so they are dropped with it.
        super().__init__(device, (module, {}))

    def function(self, name: str) -> Function:
        """Find a kernel. Raises BackendError where the image has none of that name."""
        module, functions = self._held
        with self._device.current(f"finding kernel {name}"):
            functions.setdefault(name, module.get_function(name))
        return Function(self, name)


class Function:
    """A kernel; it lives as long as its module is open."""

    def __init__(self, module: Module, name: str) -> None:
        self._module = module
        self._allowed = module._device.limits.shared_bytes
        self.name = name

    @property
    def _function(self) -> Any:
        return self._module._held[1][self.name]  # raises where the module was closed

    @property
    def attributes(self) -> dict[str, int]:
        """Registers a thread, bytes of static shared and of local memory, threads a block may have."""
        kinds = self._module._device.driver.function_attribute
        names = ("num_regs", "shared_size_bytes", "local_size_bytes", "max_threads_per_block")
        with self._module._device.current(f"asking about kernel {self.name}"):
            return {name: int(self._function.get_attribute(getattr(kinds, name.upper()))) for name in names}

    def __call__(
        self,
        stream: Stream,
        *,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: np.void,
        shared_bytes: int = 0,
    ) -> None:
        """Launch it.

        Args:
            stream: Where.
            grid: Blocks along x, y, z.
            block: Threads of a block along x, y, z.
            args: The kernel's one struct, of an aligned NumPy type; copied before this returns.
            shared_bytes: Dynamic shared memory of a block.
        Raises:
            BackendError: the launch is beyond the device's limits, or the driver refuses it.
        """
        device, function = self._module._device, self._function
        self._check(device.limits, grid, block, shared_bytes)
        with device.current(f"launching kernel {self.name} with grid {grid} and block {block}"):
            if shared_bytes > self._allowed:
                kinds = device.driver.function_attribute
                function.set_attribute(kinds.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
                self._allowed = shared_bytes
            # The caller's integers may be NumPy's, which PyCUDA's converters refuse.
            grid, block = tuple(int(side) for side in grid), tuple(int(side) for side in block)
            function._launch_kernel(grid, block, args.tobytes(), int(shared_bytes), stream._held)

    def _check(
        self, limits: DeviceLimits, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int
    ) -> None:
        threads = int(np.prod(block, dtype=np.int64))
        wide = any(side > most for side, most in zip(grid, limits.max_grid, strict=False))
        if min(*grid, *block) < 1 or wide or threads > limits.max_threads:
            raise BackendError(
                f"Kernel {self.name} cannot be launched with grid {grid} and block {block}: {limits.name} "
                f"takes 1 to {limits.max_threads} threads and grids from 1 to {limits.max_grid}. "
                "Use a smaller image."
            )
        if shared_bytes > max(limits.shared_bytes, limits.shared_bytes_optin):
            raise BackendError(
                f"Kernel {self.name} needs {shared_bytes} bytes of shared memory a block, but {limits.name} "
                f"has {limits.shared_bytes_optin}. Use a smaller window or fewer bands."
            )


def _give_back(device: Device, box: list[Any], release: Callable[[Any], None] | None) -> None:
    """Destroy what a resource held; a lost context must not hide the error that lost it."""
    try:
        with device.current("freeing GPU memory"):
            if release is not None:
                _release(device, box[0], release)
            box.clear()
    except BackendError as error:
        box.clear()
        _log.warning("%s", error)


def _release(device: Device, held: Any, release: Callable[[Any], None]) -> None:
    try:
        release(held)
    except device.driver.Error as error:
        _log.warning("freeing GPU memory failed: %s", error)
