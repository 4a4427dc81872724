"""What the CUDA driver says about the GPU, without a CUDA package.

The builder must know which GPU it compiles for and how much memory is free, and the loader whether an engine
fits, also where neither PyCUDA nor torch is installed. Five driver calls through ctypes tell it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# CUdevice_attribute in cuda.h of the CUDA toolkit.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """The first GPU.

    Attributes:
        compute_capability: 87 is sm_87.
        free_bytes: Memory that is free now; on Jetson, of the memory shared with the CPU.
        total_bytes: All of it.
    """

    compute_capability: int
    free_bytes: int
    total_bytes: int


def find_gpu() -> Gpu | None:
    """Ask the driver about the first GPU; None where there is no driver or no GPU."""
    driver, device = _driver(), ctypes.c_int()
    if not _start(driver, device, 0):
        return None
    major, minor = _attribute(driver, device, _MAJOR), _attribute(driver, device, _MINOR)
    if major is None or minor is None:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _primary_context(driver, device) as current:
        if not current or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) != 0:
            return None
    return Gpu(compute_capability=10 * major + minor, free_bytes=free.value, total_bytes=total.value)


@contextmanager
def current_gpu(ordinal: int) -> Iterator[bool]:
    """Make a GPU's primary context current in this thread; gives whether that was possible."""
    driver, device = _driver(), ctypes.c_int()
    if not _start(driver, device, ordinal):
        yield False
        return
    with _primary_context(driver, device) as current:
        yield current


def _start(driver: Any, device: ctypes.c_int, ordinal: int) -> bool:
    """Initialise the driver, and find a device."""
    return (
        driver is not None
        and driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), ordinal) == 0
    )


def _driver() -> Any:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _attribute(driver: Any, device: ctypes.c_int, attribute: int) -> int | None:
    value = ctypes.c_int()
    return value.value if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) == 0 else None


@contextmanager
def _primary_context(driver: Any, device: ctypes.c_int) -> Iterator[bool]:
    """Make the context that TensorRT and torch share current, for as long as the question takes."""
    context = ctypes.c_void_p()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        yield False
        return
    pushed = driver.cuCtxPushCurrent_v2(context) == 0
    try:
        yield pushed
    finally:
        if pushed:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        driver.cuDevicePrimaryCtxRelease_v2(device)


def pop_context() -> None:
    """Take the topmost context off this thread's stack."""
    driver = _driver()
    if driver is not None:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
