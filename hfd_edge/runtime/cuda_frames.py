"""Frames that one tile holds: the shortest road from stored pixels to labels on the GPU.

A frame of exactly the tile's size is preprocessed straight into the network's input; a smaller one goes on as
its own mirror image. Its labels come straight from the network's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import RadiometryError
from hfd_edge.runtime.cuda_parts import Parts, whole_rows
from hfd_edge.runtime.launch import Plane
from hfd_edge.runtime.transfer import DeviceImage, StageClock, Transfer


class FrameSlot:
    """Memory for one frame under way, used again and again."""

    def __init__(self, parts: Parts) -> None:
        """Allocate. Raises BackendError where there is no room."""
        self._parts = parts
        self._held: list[Any] = []  # all that `close` must free
        ports, device = parts.backend.ports, parts.device
        self._tiles = max(1, parts.backend.least)
        size = parts.tiler.tile_px
        self._shape = (0, 0)
        try:
            self._intake = self._keep(parts.intake())
            self._input = self._keep(device.buffer(ports.input_bytes(self._tiles)))
            self._pixels = self._keep(device.buffer(ports.input_bytes(1)))
            self._valid = self._keep(device.buffer(size * size))
            self._logits = self._keep(device.buffer(ports.logits_bytes(self._tiles)))
            self._labels: Transfer = self._keep(Transfer(device, size * size))
            self._clock = self._keep(StageClock(device))
            self._prepared, self._labelled, self._done = (self._keep(device.event()) for _ in range(3))
            # What the network sees of a batch beside the one tile, and the padding beside narrow frames.
            for buffer in (self._input, self._labels):
                parts.infer.fill(buffer.address, 0, buffer.nbytes)
            parts.infer.synchronize()
        except BaseException:
            self.close()
            raise

    def start(self, image: NDArray[Any] | DeviceImage) -> None:
        """Put all the work for a frame in the queues; `finish` must have been called since the last one.

        Args:
            image: Stored pixels (bands, rows, cols), at most a tile's sides.
        Raises:
            RadiometryError: the type or the bands are not what the bundle expects.
            BackendError: the network or the driver refuses.
        """
        parts = self._parts
        size = parts.tiler.tile_px
        self._shape = rows, cols = int(image.shape[1]), int(image.shape[2])
        whole = rows == cols == size
        pixels = Plane((self._input if whole else self._pixels).address, size, size * size)
        valid = Plane(self._valid.address, size)
        with _naming():
            self._intake.start(image, rows=(0, rows), out=pixels, valid=valid, stream=parts.load)
        parts.load.record(self._prepared)
        parts.infer.wait(self._prepared)
        with self._clock.stage("infer", parts.infer):
            if not whole:
                parts.cut(
                    parts.infer,
                    pixels,
                    half=parts.backend.ports.input_half,
                    shape=(parts.tiler.preprocessing.bands, rows, cols),
                    first_row=0,
                    origins=(0,),
                    tile_px=size,
                    out_address=self._input.address,
                )
            parts.backend.enqueue(self._input.address, self._logits.address, self._tiles, parts.infer)
        with self._clock.stage("postprocess", parts.infer):
            self._label(valid)
        parts.infer.record(self._labelled)
        parts.unload.wait(self._labelled)
        with self._clock.stage("copy_out", parts.unload):
            self._labels.fetch(parts.unload, rows * whole_rows(cols))
        parts.unload.record(self._done)

    def finish(self) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Wait for the mask (rows, cols), a copy, and the milliseconds of the stages.

        Raises:
            RadiometryError: the pixels are not in the bundle's units.
            BackendError: the GPU failed.
        """
        self._done.synchronize()
        with _naming():
            stages = self._intake.settle(self._parts.load)
        rows, cols = self._shape
        labels = self._labels.view((rows, whole_rows(cols)), np.dtype(np.uint8))
        return labels[:, :cols].copy(), stages | self._clock.read()

    def close(self) -> None:
        """Free the memory; the work that uses it must be done."""
        for item in self._held:
            item.close()

    def _label(self, valid: Plane) -> None:
        parts, tiler = self._parts, self._parts.tiler
        (rows, cols), side = self._shape, tiler.tile_px // tiler.stride
        parts.labels(
            parts.infer,
            Plane(self._logits.address, side, side * side),
            half=parts.backend.ports.output_half,
            classes=tiler.classes,
            height=side,
            width=side,
            stride=tiler.stride,
            first=0,
            start=0,
            stop=rows,
            cols=cols,
            valid=valid,
            nodata_label=tiler.nodata_label,
            out=Plane(self._labels.address, whole_rows(cols)),
        )

    def _keep(self, item: Any) -> Any:
        self._held.append(item)
        return item


@contextmanager
def _naming() -> Iterator[None]:
    """Begin errors about pixels as those about larger images do."""
    try:
        yield
    except RadiometryError as error:
        raise RadiometryError(f"The image: {error}") from error
