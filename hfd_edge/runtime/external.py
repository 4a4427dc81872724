"""Device arrays of other packages, through the CUDA array interface, without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hfd_edge.errors import BackendError, require
from hfd_edge.gpu import current_gpu

_DEFAULT_STREAM = 1  # CU_STREAM_LEGACY, cuda.h


@dataclass(frozen=True)
class External:
    """A device array of somebody else; `owner` must live as long as it is used.

    Attributes:
        address: Device address of its first element.
        shape: Its shape.
        strides: Bytes from one element to the next, for each axis.
        dtype: Type of its elements.
        stream: CUstream handle whose work must be done before it is read. 1 and 2 are CUDA's legacy and
            per-thread default streams.
        owner: What the memory belongs to.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int
    owner: object


def external(array: Any, *, writable: bool = False, ordinal: int = 0) -> External:
    """Read `__cuda_array_interface__`, versions 2 and 3 (PyTorch, CuPy, Numba, PyCUDA's GPUArray).

    Args:
        array: The array.
        writable: It will be written to.
        ordinal: The GPU that will use it.
    Raises:
        BackendError: the array has no such interface, a mask, a version or type that is not known, is
            read-only but `writable`, or lies on another GPU.
    """
    found = getattr(array, "__cuda_array_interface__", None)
    if not isinstance(found, dict):
        raise BackendError(
            f"A {type(array).__name__} is not a device array: it has no __cuda_array_interface__. "
            "Pass a NumPy array, or an array of PyTorch, CuPy, Numba or PyCUDA on the GPU."
        )
    version = found.get("version", 0)
    if version < 2:
        raise BackendError(
            f"__cuda_array_interface__ is of version {version}, expected 2 or 3. Update the package."
        )
    if found.get("mask") is not None:
        raise BackendError(
            "The device array has a mask, which is not supported. Write no-data into the pixels."
        )
    address, read_only = found["data"]
    if writable and read_only:
        raise BackendError("The device array is read-only, but it would be written to. Pass a writable one.")
    shape = tuple(int(side) for side in found["shape"])
    dtype = np.dtype(found["typestr"])
    strides = found.get("strides") or _c_strides(shape, dtype.itemsize)
    stream = found.get("stream")
    if stream == 0:
        # The interface's definition: 0 could mean two different default streams.
        raise BackendError("The device array names stream 0, which version 3 forbids. Update the package.")
    # PyTorch (version 2) and PyCUDA name none, though their work is in the legacy default stream, with which
    # a `Stream` is not ordered.
    stream = _DEFAULT_STREAM if stream is None else int(stream)
    if address:
        _check_place(int(address), ordinal)
    elif 0 not in shape:
        raise BackendError(
            f"The device array of shape {shape} has no address: it was freed, or never filled."
        )
    return External(int(address), shape, tuple(int(step) for step in strides), dtype, stream, array)


def follow(theirs: int, ours: int) -> None:
    """Hold our stream back until the work in theirs is done, both handles; a GPU's context must be current.

    PyCUDA cannot record an event in a stream that it did not make, so this goes through cuda-bindings.

    Raises:
        BackendError: the driver refuses, for instance because the other stream was destroyed.
    """
    driver = require("cuda.bindings.driver", extra="cuda", purpose="waiting for the stream of a device array")

    def call(name: str, *arguments: Any) -> Any:
        status, *results = getattr(driver, name)(*arguments)
        if int(status) != 0:
            raise BackendError(
                f"Waiting for stream {theirs:#x} of the device array failed: {name}: {status.name}. "
                "Keep the stream until the array was used, or synchronise it first."
            )
        return results[0] if results else None

    event = call("cuEventCreate", driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value)
    try:
        call("cuEventRecord", event, driver.CUstream(theirs))
        call("cuStreamWaitEvent", driver.CUstream(ours), event, 0)
    finally:
        call("cuEventDestroy", event)  # what waits for it still does


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for side in reversed(shape):
        strides.append(step)
        step *= max(side, 1)
    return tuple(reversed(strides))


def _check_place(address: int, ordinal: int) -> None:
    """Ask the driver where an address is: an address of another GPU would be an illegal access later."""
    driver = require("cuda.bindings.driver", extra="cuda", purpose="taking a device array without a copy")
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    with current_gpu(0):  # any context will do
        status, where = driver.cuPointerGetAttribute(kind, address)
    if int(status) != 0:
        raise BackendError(
            f"The device array's address {address:#x} is not known to the driver (cuPointerGetAttribute: "
            f"{status.name}). It was freed, or is not on a GPU."
        )
    if int(where) != ordinal:
        raise BackendError(
            f"The device array is on GPU {int(where)}, but this runs on GPU {ordinal}. Move it there first."
        )
