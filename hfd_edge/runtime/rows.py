"""Rasters of any height in memory for one row of tiles: what an engine of rows does, and the CPU's.

`hfd_edge.runtime.scene.RowDriver` knows the geometry and drives; an engine holds the preprocessed strip, runs
the network, blends and labels. `TileRow` (`hfd_edge.raster.tiling`) is what they talk about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.raster.logits import labels_rows
from hfd_edge.raster.tiling import LogitsBlender, TilePlan, TileRow, mirrored
from hfd_edge.runtime.aside import Stages
from hfd_edge.runtime.backends import Backend
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]
Ran = Callable[[int], None]


def nobody(_tiles: int) -> None:
    """Is not interested in how many tiles are done."""


@dataclass(frozen=True)
class Tiler:
    """How a raster becomes tiles for the network, and their logits labels again.

    Attributes:
        preprocessing: Stored pixels to network input.
        classes: Number of classes.
        stride: Pixels per logit.
        tile_px: Side of the tiles.
        overlap_px: Least overlap of neighbouring tiles.
        nodata_label: Label of invalid pixels.
    """

    preprocessing: Preprocessing
    classes: int
    stride: int
    tile_px: int
    overlap_px: int
    nodata_label: int

    def plan(self, *, rows: int, cols: int) -> TilePlan:
        """Lay out the tiles of a raster."""
        return TilePlan(rows, cols, tile_px=self.tile_px, overlap_px=self.overlap_px)


class Decided(Protocol):
    """Labels of the pixel rows `start` to `stop`, which may still be in the making on a device.

    Attributes:
        start: First pixel row.
        stop: Pixel row after the last one; equal to `start` is possible.
        tiles: Tiles of this row of tiles with a valid pixel. Read it after `labels`.
        skipped: Tiles without one, whose logits mean nothing. Read it after `labels`.
    """

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def tiles(self) -> int: ...
    @property
    def skipped(self) -> int: ...

    def labels(self) -> NDArray[np.uint8]:
        """Wait for the labels (stop - start, cols); the caller owns the array.

        Called once, in the order of `RowEngine.segment`.

        Raises:
            RadiometryError: the pixels are not in the units that the bundle expects, where the engine
                finds that out only now.
            BackendError: the network failed to run.
        """
        ...


class RowEngine(Protocol):
    """Segments one raster from top to bottom; made by `Pipeline.rows`, one for each raster.

    The driver keeps to this order: `prepare` rows until the tiles of the next row of tiles are full
    (`origin + used` rows were appended, and never more), then `segment` it, and so on. So a strip of
    tile_px rows is all that an engine must hold. After the last row of tiles comes nothing but `close`.
    Both calls may return before the work is done; up to two `Decided` wait for their `labels` while the
    next rows are prepared and segmented.

    Attributes:
        stages_ms: Time of each stage of the work so far, by its name.
    """

    @property
    def stages_ms(self) -> Mapping[str, float]: ...

    def prepare(self, raw: Array, *, above: int, below: int) -> None:
        """Append rows to the raster.

        The result must be `Preprocessing.__call__(raw)` without the `above` first and `below` last rows:
        borders replicate at the edges of `raw`, which are those of the raster where it ends.

        Args:
            raw: Stored pixels (bands, above + n + below, cols) in host memory, any strides and dtype; not
                read any more once this returns, because the caller may change it.
            above: Rows at the top that were appended before and are only read again by the speckle
                filter: its halo, or what there is of it below the top of the raster.
            below: Rows at the bottom that will be appended later, likewise.
        Raises:
            RadiometryError: the pixels are not in the units that the bundle expects (a device may say so
                later, in `Decided.labels`).
            BackendError: the device failed.
        """
        ...

    def segment(self, row: TileRow, *, ran: Ran = nobody) -> Decided:
        """Run the network on a row of tiles, blend it with those above, and label what that decides.

        Rows of the strip below `row.used` are filled with the mirror image (`tiling.mirrored`); columns
        right of the raster likewise. Rows from `row.following` on are kept for the next row of tiles.

        Args:
            row: The next row of tiles.
            ran: Is told numbers of tiles, as the network or the device's queue is through with them; they
                add up to all tiles of the row. What it raises stops the work.
        Raises:
            BackendError: the network failed to run.
        """
        ...

    def close(self) -> None:
        """Free what the raster needed, wherever it stands; more than once is allowed."""
        ...


@dataclass(frozen=True, eq=False)
class DecidedRows:
    """Labels that are there already; see `Decided`."""

    start: int
    stop: int
    tiles: int
    skipped: int
    values: NDArray[np.uint8]

    def labels(self) -> NDArray[np.uint8]:
        """Give the labels (stop - start, cols)."""
        return self.values


class CpuRows:
    """Rows on the CPU, or on whatever `Backend.run` uses; see `RowEngine`."""

    def __init__(self, backend: Backend, tiler: Tiler, *, cols: int) -> None:
        self._backend = backend
        self._tiler = tiler
        # The height is not known; a plan of one row of tiles gives the columns.
        self._plan = tiler.plan(rows=1, cols=cols)
        self._blender = LogitsBlender(self._plan, classes=tiler.classes, stride=tiler.stride)
        bands, size = tiler.preprocessing.bands, tiler.tile_px
        self._pixels = np.zeros((bands, size, self._plan.padded_cols), np.float32)
        self._valid = np.zeros((size, self._plan.padded_cols), bool)
        self._tiles = np.empty((backend.batch, bands, size, size), np.float32)
        self._filled = 0  # rows of the strip that are preprocessed
        self._undecided = np.zeros((0, cols), bool)  # validity of rows that have no labels yet
        self._stages = Stages()

    @property
    def stages_ms(self) -> dict[str, float]:
        """Time of "preprocess", "infer" and "postprocess" so far; the last is all that is neither."""
        return dict(self._stages.ms)

    def prepare(self, raw: Array, *, above: int, below: int) -> None:
        """Preprocess rows into the strip; see `RowEngine.prepare`. Raises RadiometryError."""
        with self._stages.timed("preprocess"):
            cols = self._plan.cols
            rows = slice(self._filled, self._filled + raw.shape[1] - above - below)
            pixels, valid = self._pixels[:, rows], self._valid[rows, :cols]
            self._tiler.preprocessing.into(pixels[:, :, :cols], valid, raw, above=above)
            if cols < self._plan.padded_cols:
                pixels[:, :, cols:] = pixels[:, :, mirrored(cols, self._plan.padded_cols)]
            self._undecided = np.concatenate((self._undecided, valid))
            self._filled = rows.stop

    def segment(self, row: TileRow, *, ran: Ran = nobody) -> DecidedRows:
        """Segment a row of tiles at once; see `RowEngine.segment`. Raises BackendError."""
        size = self._tiler.tile_px
        with self._stages.timed("postprocess"):
            self._pixels[:, row.used :] = self._pixels[:, mirrored(row.used, size)]
            self._valid[row.used :] = False
            origins = self._plan.col_origins
            wanted = [col for col, left in enumerate(origins) if self._valid[:, left : left + size].any()]
            self._blender.begin(row)
        skipped = len(origins) - len(wanted)
        if skipped:
            ran(skipped)
        for group in _groups(wanted, self._backend.batch):
            self._run(group)
            ran(len(group))
        with self._stages.timed("postprocess"):
            labels = self._label()
            self._move(row.following - row.origin)
        return DecidedRows(row.start, row.stop, len(wanted), skipped, labels)

    def close(self) -> None:
        """Nothing to free: memory goes with the object."""

    def _run(self, group: list[int]) -> None:
        """Run the network on tiles of the current row and blend them in."""
        tiles = self._tiles[: len(group)]
        with self._stages.timed("infer"):
            for tile, col in zip(tiles, group, strict=True):
                left = self._plan.col_origins[col]
                tile[:] = self._pixels[:, :, left : left + self._tiler.tile_px]
            batch = self._backend.run(tiles)
        with self._stages.timed("postprocess"):
            for col, logits in zip(group, batch, strict=True):
                self._blender.add(col, logits)

    def _label(self) -> NDArray[np.uint8]:
        done = self._blender.finished()
        labels = labels_rows(
            done.logits,
            stride=self._tiler.stride,
            first=done.first,
            start=done.start,
            stop=done.stop,
            cols=self._plan.cols,
        )
        labels[~self._undecided[: len(labels)]] = self._tiler.nodata_label
        self._undecided = self._undecided[len(labels) :].copy()
        return labels

    def _move(self, shift: int) -> None:
        """Keep the rows of the strip that the next row of tiles shares."""
        kept = self._tiler.tile_px - shift
        self._pixels[:, :kept] = self._pixels[:, shift:]
        self._valid[:kept] = self._valid[shift:]
        self._filled = kept


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
