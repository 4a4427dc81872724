"""Rasters of any height on the GPU, in memory for two rows of tiles.

While the network works on a row of tiles in one strip, the next rows are preprocessed into the other. The
host waits for the preprocessing of a row of tiles alone, to learn which of its tiles hold no data; its labels
are waited for only when they are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.raster.tiling import TileRow, blend_weights
from hfd_edge.runtime.cuda_parts import Parts, whole_rows
from hfd_edge.runtime.device import Buffer, Event
from hfd_edge.runtime.launch import Plane
from hfd_edge.runtime.ports import ALIGNMENT
from hfd_edge.runtime.rows import Ran, nobody
from hfd_edge.runtime.transfer import DeviceImage, Intake, StageClock, Transfer

# Blocks of stored pixels that may be on their way: one is copied while another is preprocessed.
_INTAKES = 2
# Rows of tiles under way, and one whose labels nobody has taken yet; see `RowEngine`.
_OUTS = 3


class CudaDecided:
    """Labels in the making; see `Decided`."""

    def __init__(self, out: _Out, row: TileRow, tiles: int, skipped: int) -> None:
        self.start, self.stop = row.start, row.stop
        self.tiles, self.skipped = tiles, skipped
        self._out: _Out | None = out
        self._labels: NDArray[np.uint8] | None = None

    def labels(self) -> NDArray[np.uint8]:
        """Wait for the labels (stop - start, cols). Raises BackendError."""
        if self._out is not None:
            self._labels = self._out.take(self.stop - self.start)
            self._out = None
        assert self._labels is not None
        return self._labels


class _Out:
    """Where the labels of one row of tiles go, and its weights come from."""

    def __init__(self, parts: Parts, *, cols: int) -> None:
        tiler = parts.tiler
        self._cols = cols
        self._pitch = whole_rows(cols)
        self.owner: CudaDecided | None = None
        self.clock = StageClock(parts.device)
        self.stages: dict[str, float] = {}
        self.done = parts.device.event()
        self.labels = Transfer(parts.device, (tiler.tile_px + tiler.stride) * self._pitch)
        self.weights = Transfer(parts.device, tiler.tile_px // tiler.stride * 4)
        parts.infer.fill(self.labels.address, 0, self.labels.nbytes)

    def take(self, rows: int) -> NDArray[np.uint8]:
        self.done.synchronize()
        self.owner = None
        for stage, spent in self.clock.read().items():
            self.stages[stage] = self.stages.get(stage, 0.0) + spent
        return self.labels.view((rows, self._pitch), np.dtype(np.uint8))[:, : self._cols].copy()

    def close(self) -> None:
        for item in (self.clock, self.done, self.labels, self.weights):
            item.close()


class _Strip:
    """Preprocessed rows and their validity, which begins a few rows higher: those have no labels yet."""

    def __init__(self, parts: Parts, *, cols: int) -> None:
        size, bands = parts.tiler.tile_px, parts.tiler.preprocessing.bands
        self._itemsize = parts.itemsize
        self._pitch = whole_rows(cols)
        self.band_stride = size * self._pitch
        self.behind = parts.tiler.stride // 2
        self.pixels: Buffer = parts.device.buffer(bands * self.band_stride * self._itemsize)
        self.valid: Buffer = parts.device.buffer((self.behind + size) * self._pitch)
        self.free: Event = parts.device.event()  # nobody reads it any more
        for buffer in (self.pixels, self.valid):  # the padding beside rows, which is copied with them
            parts.load.fill(buffer.address, 0, buffer.nbytes)

    def pixels_from(self, row: int) -> Plane:
        address = self.pixels.address + row * self._pitch * self._itemsize
        return Plane(address, self._pitch, self.band_stride)

    def valid_from(self, row: int) -> Plane:
        """Validity from a row on, which may be negative down to -`behind`."""
        return Plane(self.valid.address + (self.behind + row) * self._pitch, self._pitch)

    def close(self) -> None:
        for item in (self.pixels, self.valid, self.free):
            item.close()


class CudaRows:
    """Rows on the GPU; see `RowEngine`. Once a raster is done, it can take another with `restart`.

    Attributes:
        cols: Width of the rasters, pixels.
    """

    def __init__(self, parts: Parts, *, cols: int) -> None:
        """Allocate. Raises BackendError where there is no room."""
        self.cols = cols
        self._parts = parts
        tiler, device, ports = parts.tiler, parts.device, parts.backend.ports
        plan = tiler.plan(rows=1, cols=cols)  # the height is not known; one row of tiles gives the columns
        self._origins = plan.col_origins
        self._pitch = whole_rows(cols)
        self._size = tiler.tile_px // tiler.stride
        self._width = plan.padded_cols // tiler.stride
        self._held: list[Any] = []
        try:
            self._strips = [self._keep(_Strip(parts, cols=cols)) for _ in range(2)]
            self._valid = self._keep(device.pinned((tiler.tile_px, self._pitch), np.uint8))
            self._intakes: list[Intake] = [self._keep(parts.intake()) for _ in range(_INTAKES)]
            self._outs: list[_Out] = [self._keep(_Out(parts, cols=cols)) for _ in range(_OUTS)]
            self._prepared: Event = self._keep(device.event())
            batch, least = parts.backend.batch, parts.backend.least
            self._tiles: Buffer = self._keep(device.buffer(ports.input_bytes(batch)))
            self._logits: Buffer = self._keep(device.buffer(ports.logits_bytes(len(self._origins) + least)))
            self._aside: Buffer | None = None
            if ports.logits_bytes(batch) % ALIGNMENT:  # of small tiles in float16
                self._aside = self._keep(device.buffer(ports.logits_bytes(batch)))
            nbytes = tiler.classes * (1 + self._size) * self._width * 4
            self._bands: list[Buffer] = [self._keep(device.buffer(nbytes)) for _ in range(2)]
            self._weights = self._keep(Transfer(device, 4 * len(self._origins) * self._size))
            self._set_up()
        except BaseException:
            self._sound = False
            self.close()
            raise
        self.restart()

    def restart(self) -> None:
        """Begin another raster; the last one must be done (`quiet`)."""
        self._filled = 0  # rows of the strip that are preprocessed, or will be
        self._blocks = 0  # blocks of stored pixels so far
        self._sound = True
        self._stages: dict[str, float] = {}
        for out in self._outs:
            out.stages = {}

    @property
    def stages_ms(self) -> dict[str, float]:
        """Time of each stage so far, summed over blocks and rows of tiles."""
        total = dict(self._stages)
        for out in self._outs:
            for stage, spent in out.stages.items():
                total[stage] = total.get(stage, 0.0) + spent
        return total

    @property
    def quiet(self) -> bool:
        """Whether all labels were taken; at most a copy is left in stream `load`, before all that follows."""
        return self._sound and self._filled == 0 and all(out.owner is None for out in self._outs)

    def prepare(self, raw: NDArray[Any] | DeviceImage, *, above: int, below: int) -> None:
        """Preprocess rows into the strip; see `RowEngine.prepare`. Raises RadiometryError, BackendError."""
        rows = raw.shape[1] - above - below
        intake = self._intakes[self._blocks % _INTAKES]
        self._sound, self._blocks = False, self._blocks + 1
        self._settle(intake)
        load, strip, filled = self._parts.load, self._strips[0], self._filled
        valid = strip.valid_from(filled)
        intake.start(raw, rows=(above, above + rows), out=strip.pixels_from(filled), valid=valid, stream=load)
        load.copy_out(self._valid.array[filled : filled + rows], valid.address)
        self._filled += rows
        self._sound = True

    def segment(self, row: TileRow, *, ran: Ran = nobody) -> CudaDecided:
        """Put the work for a row of tiles in the queues; see `RowEngine.segment`.

        Raises:
            RadiometryError: the pixels are not in the bundle's units.
            BackendError: the network or the driver refuses.
        """
        parts, self._sound = self._parts, False
        parts.load.record(self._prepared)
        self._prepared.synchronize()
        for intake in self._intakes:
            self._settle(intake)
        wanted = [
            column
            for column, left in enumerate(self._origins)
            if self._valid.array[: row.used, left : min(left + parts.tiler.tile_px, self.cols)].any()
        ]
        out = self._outs[row.index % _OUTS]
        if out.owner is not None:
            out.owner.labels()  # its caller will find them there
        parts.infer.wait(self._prepared)
        with out.clock.stage("infer", parts.infer):
            self._run(row, wanted)
        with out.clock.stage("postprocess", parts.infer):
            self._blend(row, wanted, out)
            self._label(row, out)
        parts.infer.record(self._strips[0].free)
        parts.unload.wait(self._strips[0].free)
        with out.clock.stage("copy_out", parts.unload):
            out.labels.fetch(parts.unload, max(1, row.stop - row.start) * self._pitch)
        parts.unload.record(out.done)
        self._move(row.following - row.origin)
        decided = out.owner = CudaDecided(out, row, len(wanted), len(self._origins) - len(wanted))
        self._sound = True
        ran(len(self._origins))
        return decided

    def close(self) -> None:
        """Free the memory, once nothing is under way."""
        if self._held:
            self._parts.quiesce()
        while self._held:
            self._held.pop().close()

    def _keep(self, item: Any) -> Any:
        self._held.append(item)
        return item

    def _set_up(self) -> None:
        """Send the weights of the columns, and clear what a batch may hold beside its tiles."""
        parts, tiler = self._parts, self._parts.tiler
        weights = blend_weights(
            self._origins, tile_px=tiler.tile_px, overlap_px=tiler.overlap_px, stride=tiler.stride
        )
        self._weights.view(weights.shape, weights.dtype)[:] = weights
        self._weights.send(parts.infer, weights.nbytes)
        parts.infer.fill(self._tiles.address, 0, self._tiles.nbytes)
        for stream in (parts.infer, parts.load):
            stream.synchronize()

    def _settle(self, intake: Intake) -> None:
        for stage, spent in intake.settle(self._parts.load).items():
            self._stages[stage] = self._stages.get(stage, 0.0) + spent

    def _run(self, row: TileRow, wanted: list[int]) -> None:
        """Cut the wanted tiles and compute their logits, batch by batch."""
        parts, backend = self._parts, self._parts.backend
        for start in range(0, len(wanted), backend.batch):
            group = wanted[start : start + backend.batch]
            parts.cut(
                parts.infer,
                self._strips[0].pixels_from(0),
                half=backend.ports.input_half,
                shape=(parts.tiler.preprocessing.bands, row.used, self.cols),
                first_row=0,
                origins=[self._origins[column] for column in group],
                tile_px=parts.tiler.tile_px,
                out_address=self._tiles.address,
            )
            logits = self._logits.address + backend.ports.logits_bytes(start)
            aside = self._aside if logits % ALIGNMENT else None
            target = logits if aside is None else aside.address
            backend.enqueue(self._tiles.address, target, max(len(group), backend.least), parts.infer)
            if aside is not None:
                parts.infer.copy(logits, target, backend.ports.logits_bytes(len(group)))

    def _blend(self, row: TileRow, wanted: list[int], out: _Out) -> None:
        """Add the tiles' logits to the band of those above."""
        parts, stride = self._parts, self._parts.tiler.stride
        out.weights.view(row.weights.shape, row.weights.dtype)[:] = row.weights
        out.weights.send(parts.infer, row.weights.nbytes)
        previous, band = self._bands
        parts.blend(
            parts.infer,
            previous.address if row.index else None,
            row.shift // stride,
            self._logits.address,
            half=parts.backend.ports.output_half,
            classes=parts.tiler.classes,
            size=self._size,
            origins=[self._origins[column] // stride for column in wanted],
            columns=wanted,
            row_weights_address=out.weights.address,
            col_weights_address=self._weights.address,
            band_address=band.address,
            band_cols=self._width,
        )
        self._bands.reverse()

    def _label(self, row: TileRow, out: _Out) -> None:
        """Label the rows that this row of tiles decides."""
        tiler, strip = self._parts.tiler, self._strips[0]
        finished = row.finished(tiler.stride)
        self._parts.labels(
            self._parts.infer,
            Plane(
                self._bands[0].address + finished.start * self._width * 4,
                self._width,
                (1 + self._size) * self._width,
            ),
            half=False,
            classes=tiler.classes,
            height=finished.stop - finished.start,
            width=self._width,
            stride=tiler.stride,
            first=row.first,
            start=row.start,
            stop=row.stop,
            cols=self.cols,
            valid=strip.valid_from(row.start - row.origin),
            nodata_label=tiler.nodata_label,
            out=Plane(out.labels.address, self._pitch),
        )

    def _move(self, shift: int) -> None:
        """Copy what the next row of tiles shares into the other strip, once nobody reads that one."""
        kept = self._parts.tiler.tile_px - shift
        self._strips.reverse()
        self._filled = kept
        load, (target, source) = self._parts.load, self._strips
        load.wait(target.free)
        pitch_bytes = self._pitch * self._parts.itemsize
        # Tiles that do not overlap share no pixels; rows without labels there are all the same.
        for band in range(self._parts.tiler.preprocessing.bands if kept else 0):
            offset = band * target.band_stride * self._parts.itemsize
            load.copy(
                target.pixels.address + offset,
                source.pixels.address + offset + shift * pitch_bytes,
                kept * pitch_bytes,
            )
        rows = kept + target.behind
        load.copy(target.valid.address, source.valid.address + shift * self._pitch, rows * self._pitch)
        self._valid.array[:kept] = self._valid.array[shift:].copy()
