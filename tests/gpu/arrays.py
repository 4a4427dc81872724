"""NumPy arrays on a GPU and back, for tests of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hfd_edge.runtime.device import Buffer, Device
from hfd_edge.runtime.launch import Plane

GUARD = 0xA5


class Arrays:
    """Puts arrays on a device; keeps the buffers until it is collected."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.stream()
        self._buffers: list[Buffer] = []

    def put(self, array: NDArray[Any]) -> int:
        """Copy to the device; gives the address."""
        array = np.ascontiguousarray(array)
        address = self.room(array.nbytes)
        self.stream.copy_in(address, array)
        self.stream.synchronize()  # the array may be gone afterwards
        return address

    def plane(self, array: NDArray[Any], *, pad: int = 0, shift: int = 0) -> Plane:
        """Copy (bands, rows, cols) or (rows, cols), with `pad` columns that nobody may read into a result.

        Args:
            array: What to copy.
            pad: Columns between rows.
            shift: Elements before the first one.
        """
        wide = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, pad)], constant_values=GUARD)
        flat = np.concatenate([np.full(shift, GUARD, array.dtype), wide.ravel()])
        rows, cols = wide.shape[-2:]
        return Plane(self.put(flat) + shift * array.itemsize, cols, rows * cols if array.ndim == 3 else 0)

    def room(self, nbytes: int) -> int:
        """Device memory; its content is undefined."""
        self._buffers.append(self.device.buffer(nbytes))
        return self._buffers[-1].address

    def get(self, address: int, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Copy from the device, when all that was enqueued is done."""
        found = np.empty(shape, dtype)
        self.stream.copy_out(found, address)
        self.stream.synchronize()
        return found
