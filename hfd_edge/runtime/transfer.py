"""Stored pixels onto the device, labels back, and how long each stage took.

Where the GPU shares the CPU's memory and the device's memory mode is "mapped", both see the same bytes and
nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.runtime.device import Device, Stream, external
from hfd_edge.runtime.launch import PIXEL_TYPES, Plane, Speckle
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.radiometry import check_units

Array = NDArray[Any]


class Transfer:
    """Page-locked host memory and its counterpart on the device, which are one where memory is mapped."""

    def __init__(self, device: Device, nbytes: int) -> None:
        """Allocate, and clear the host's. Raises BackendError where there is no room."""
        self._host = device.pinned(nbytes, np.uint8)
        self._host.array[:] = 0
        self._buffer = None
        try:
            if self._host.device_address is None:
                self._buffer = device.buffer(nbytes)
        except BaseException:
            self._host.free()
            raise
        self.nbytes = nbytes

    @property
    def host(self) -> NDArray[np.uint8]:
        """The host's bytes."""
        return self._host.array

    @property
    def address(self) -> int:
        """Where kernels find it."""
        mapped = self._host.device_address
        if mapped is not None:
            return mapped
        assert self._buffer is not None
        return self._buffer.address

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The first of the host's bytes as an array."""
        return self.host[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def send(self, stream: Stream, nbytes: int) -> None:
        """Copy the first bytes to the device."""
        if self._buffer is not None:
            stream.copy_in(self._buffer.address, self.host[:nbytes])

    def fetch(self, stream: Stream, nbytes: int) -> None:
        """Copy the first bytes to the host."""
        if self._buffer is not None:
            stream.copy_out(self.host[:nbytes], self._buffer.address)

    def close(self) -> None:
        """Free it; the work that uses it must be done."""
        self._host.free()
        if self._buffer is not None:
            self._buffer.free()


class StageClock:
    """Takes the time of stages on streams, by events around them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: dict[str, Any] = {}
        self._open: dict[str, None] = {}  # as a set that keeps its order

    @contextmanager
    def stage(self, name: str, stream: Stream) -> Iterator[None]:
        """Time what is queued on the stream meanwhile. A stage's time is taken once until it is read."""
        if name not in self._marks:
            self._marks[name] = [self._device.event(timing=True) for _ in range(2)]
        begin, end = self._marks[name]
        stream.record(begin)
        yield
        stream.record(end)
        self._open[name] = None

    def read(self) -> dict[str, float]:
        """Milliseconds of the stages since the last time, whose work must be done."""
        stages, self._open = self._open, {}
        return {name: self._marks[name][1].ms_since(self._marks[name][0]) for name in stages}

    def close(self) -> None:
        """Free the events."""
        for marks in self._marks.values():
            for event in marks:
                event.close()


@dataclass(frozen=True, eq=False)
class DeviceImage:
    """Stored pixels (bands, rows, cols) in somebody else's device memory; can be cut by rows.

    Attributes:
        plane: Where they lie.
        shape: (bands, rows, cols).
        dtype: One that the speckle kernel reads.
        stream: CUstream handle of the work that makes them.
        owner: Keeps the memory.
    """

    plane: Plane
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    stream: int
    owner: object

    @classmethod
    def of(cls, array: Any, *, ordinal: int) -> DeviceImage:
        """Take an array with `__cuda_array_interface__`.

        Raises:
            BackendError: it cannot be read in place: its columns are not adjacent, its type is another, or
                see `device.external`.
        """
        found = external(array, ordinal=ordinal)
        size = found.dtype.itemsize
        if found.dtype.name not in PIXEL_TYPES or not found.dtype.isnative:
            raise BackendError(
                f"The device array holds {found.dtype}, but the kernels read {', '.join(PIXEL_TYPES)}. "
                "Convert it on the GPU, or pass a NumPy array."
            )
        band, row, col = found.strides
        if (col != size and found.shape[2] > 1) or row % size or band % size or min(row, band) < 0:
            raise BackendError(
                f"The device array has strides {found.strides} for elements of {size} bytes, but its columns "
                "must be adjacent. Make it contiguous as (bands, rows, cols)."
            )
        bands, rows, cols = found.shape
        plane = Plane(found.address, row // size, band // size)
        return cls(plane, (bands, rows, cols), found.dtype, found.stream, found.owner)

    def __getitem__(self, key: tuple[slice, slice]) -> DeviceImage:
        start, stop, _ = key[1].indices(self.shape[1])
        address = self.plane.address + start * self.plane.row_stride * self.dtype.itemsize
        plane = Plane(address, self.plane.row_stride, self.plane.band_stride)
        shape = (self.shape[0], max(stop - start, 0), self.shape[2])
        return DeviceImage(plane, shape, self.dtype, self.stream, self.owner)

    def copy(self) -> DeviceImage:
        """Itself: it stays where it is until its mask is there."""
        return self

    def to_host(self, stream: Stream) -> Array:
        """Copy the pixels, and wait for them."""
        bands, rows, _ = self.shape
        image = np.empty(self.shape, self.dtype)
        for band in range(bands):
            for row in range(rows):
                offset = band * self.plane.band_stride + row * self.plane.row_stride
                stream.copy_out(image[band, row], self.plane.address + offset * self.dtype.itemsize)
        stream.synchronize()
        return image


class Intake:
    """A block of stored pixels on its way through the speckle kernel.

    The host's copy is kept until the kernel has said whether it found values that cannot be in the bundle's
    units: only then is the block looked at on the host, to say which.

    Attributes:
        clock: Stages "copy_in" and "preprocess".
    """

    def __init__(self, device: Device, preprocessing: Preprocessing, speckle: Speckle) -> None:
        self._device = device
        self._preprocessing = preprocessing
        self._speckle = speckle
        self._faults = Transfer(device, 4)
        self._staging: Transfer | None = None
        self._image: Array | DeviceImage | None = None
        self._done = device.event()
        self.clock = StageClock(device)

    def start(
        self, raw: Array | DeviceImage, *, rows: tuple[int, int], out: Plane, valid: Plane, stream: Stream
    ) -> None:
        """Copy and preprocess a block; `settle` must have been called since the last one.

        Args:
            raw: Stored pixels (bands, rows, cols); on the host of any strides, and free once this returns.
            rows: First row to compute and the row after the last; see `launch.Speckle`.
            out: Network input, from the first of these rows on; `valid` likewise.
            stream: Where.
        Raises:
            RadiometryError: the type or the bands are not what the bundle expects.
            BackendError: there is no room, or the driver refuses.
        """
        image: Array | DeviceImage
        bands, height, cols = raw.shape
        # One pixel tells what the type and the number of bands do; the kernel looks at the values.
        self._check(np.zeros((bands, 1, 1), raw.dtype))
        with self.clock.stage("copy_in", stream):
            if isinstance(raw, DeviceImage):
                stream.follow(raw.stream)
                image, plane = raw, raw.plane
            else:
                image, plane = self._stage(raw, stream)
        with self.clock.stage("preprocess", stream):
            stream.fill(self._faults.address, 0, 4)
            self._speckle(
                stream,
                plane,
                dtype=image.dtype,
                shape=(bands, height, cols),
                rows=rows,
                out=out,
                valid=valid,
                faults=self._faults.address,
            )
            self._faults.fetch(stream, 4)
        stream.record(self._done)
        self._image = image

    def settle(self, stream: Stream) -> dict[str, float]:
        """Wait for the block, if there is one, and check it; gives the times of its stages.

        Args:
            stream: Where device memory is read if its values are at fault.
        Raises:
            RadiometryError: the pixels are not in the bundle's units.
            BackendError: the GPU failed.
        """
        if self._image is None:
            return {}
        self._done.synchronize()
        image, self._image = self._image, None
        bits = int(self._faults.view((), np.dtype("<u4")))
        if bits:
            if isinstance(image, DeviceImage):
                image = image.to_host(stream)
            self._check(image)
            raise BackendError(
                f"The speckle kernel found faults ({bits}) in {self._preprocessing.units} pixels, but the "
                "host finds none. One of them is wrong: run hfd-edge selftest, and report what it says."
            )
        return self.clock.read()

    def close(self) -> None:
        """Free it; its work must be done."""
        self._image = None
        self.clock.close()
        self._done.close()
        self._faults.close()
        if self._staging is not None:
            self._staging.close()

    def _check(self, image: Array) -> None:
        chain = self._preprocessing
        check_units(image, units=chain.units, bands=chain.bands, nodata=chain.nodata)

    def _stage(self, raw: Array, stream: Stream) -> tuple[Array, Plane]:
        """Copy host pixels to where the kernel reads them, in a type that it reads."""
        kind = raw.dtype
        if kind.name not in PIXEL_TYPES or not kind.isnative:
            kind = np.dtype(np.complex64 if kind.kind == "c" else np.float32)
        nbytes = raw.size * kind.itemsize
        if self._staging is None or self._staging.nbytes < nbytes:
            if self._staging is not None:
                self._staging.close()
                self._staging = None
            self._staging = Transfer(self._device, nbytes)
        staged = self._staging.view(raw.shape, kind)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(staged, raw, casting="unsafe")
        self._staging.send(stream, nbytes)
        return staged, Plane(self._staging.address, raw.shape[2], raw.shape[1] * raw.shape[2])


def quiesce(*streams: Stream) -> None:
    """Wait until nothing is under way, whether it failed or not."""
    for stream in streams:
        with suppress(BackendError):
            stream.synchronize()
