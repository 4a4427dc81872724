"""Zero copy or copies: which one a GPU that shares the CPU's memory does better, by measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hfd_edge.errors import BackendError

if TYPE_CHECKING:
    from hfd_edge.runtime.device import Device

_MODES = ("auto", "copy", "mapped")
_PROBE_BYTES = 4 << 20  # a tile of 1024 x 1024 float32
_REPEATS = 3
# From Xavier on, the CPU's caches stay coherent with the GPU; before, the CPU reads mapped memory uncached
# (CUDA for Tegra application note, "Memory Management").
_COHERENT = 72


def choose_memory(device: Device, wanted: str) -> tuple[str, str]:
    """Decide between "copy" and "mapped"; gives the mode and the reason.

    Raises:
        BackendError: `wanted` is unknown, or the GPU cannot do it.
    """
    if wanted not in _MODES:
        raise BackendError(f"memory is {wanted!r}, expected one of {', '.join(_MODES)}.")
    limits = device.limits
    if wanted == "mapped" and not limits.maps_host_memory:
        raise BackendError(
            f"memory='mapped' was asked for, but {limits.name} cannot map host memory. Use 'copy'."
        )
    if wanted != "auto":
        return wanted, "asked for"
    if not limits.integrated:
        return "copy", "the GPU has memory of its own"
    if not limits.maps_host_memory:
        return "copy", "the GPU cannot map host memory"
    if limits.compute_capability < _COHERENT:
        return "copy", f"the CPU does not cache mapped memory on sm_{limits.compute_capability}"
    return _probe(device)


def _probe(device: Device) -> tuple[str, str]:
    """Send a pattern both ways and take the times."""
    host = device._pin((_PROBE_BYTES,), np.uint8, mapped=True)
    back = device._pin((_PROBE_BYTES,), np.uint8, mapped=True)
    first, second = device.buffer(_PROBE_BYTES), device.buffer(_PROBE_BYTES)
    stream = device.stream()
    try:
        host.array[:] = np.arange(_PROBE_BYTES, dtype=np.uint32).astype(np.uint8)
        assert host.device_address is not None and back.device_address is not None
        stream.copy(first.address, host.device_address, _PROBE_BYTES)
        stream.copy(back.device_address, first.address, _PROBE_BYTES)
        stream.synchronize()
        if not np.array_equal(host.array, back.array):
            return "copy", "mapped memory came back changed"
        start, middle, end = (device.event(timing=True) for _ in range(3))
        copied, mapped = float("inf"), float("inf")
        for _ in range(_REPEATS):
            stream.record(start)
            stream.copy_in(first.address, host.array)
            stream.copy(second.address, first.address, _PROBE_BYTES)
            stream.record(middle)
            stream.copy(second.address, host.device_address, _PROBE_BYTES)
            stream.record(end)
            stream.synchronize()
            copied = min(copied, middle.ms_since(start))
            mapped = min(mapped, end.ms_since(middle))
    finally:
        for item in (host, back, first, second, stream):
            item.close()
    mode = "mapped" if mapped <= copied else "copy"
    return mode, f"4 MiB took {mapped:.2f} ms in place and {copied:.2f} ms with a copy"
