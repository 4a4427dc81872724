"""From a source of rows to a sink of labels, whatever the size, in memory for one row of tiles.

Scenes on disk and arrays in memory take the same road, so their labels are equal bit for bit. Rows are
read once, from top to bottom: compressed files need no second decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import RadiometryError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.logits import labels_rows
from hfd_edge.raster.scene import SceneReader
from hfd_edge.raster.tiling import LogitsBlender, TilePlan, mirrored
from hfd_edge.runtime.backends import Backend
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]

# Stored values that are read and preprocessed at a time, beside the strip they end up in.
_CHUNK_VALUES = 1 << 22


class RowSource(Protocol):
    """Stored SAR pixels that can be read by windows of rows."""

    @property
    def rows(self) -> int:
        """Height, pixels."""
        ...

    @property
    def cols(self) -> int:
        """Width, pixels."""
        ...

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def read(self, row0: int, row1: int) -> Array:
        """Stored values (bands, row1 - row0, cols)."""
        ...


class RowSink(Protocol):
    """Takes labels from top to bottom."""

    def write_rows(self, row0: int, labels: NDArray[np.uint8]) -> None:
        """Take labels (n, cols) of the rows from `row0` on."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """An image in memory, (bands, rows, cols)."""

    image: Array
    name: str = "The image"

    @property
    def rows(self) -> int:
        """Height, pixels."""
        return self.image.shape[1]

    @property
    def cols(self) -> int:
        """Width, pixels."""
        return self.image.shape[2]

    def read(self, row0: int, row1: int) -> Array:
        """Stored values of the rows, a view."""
        return self.image[:, row0:row1]


@dataclass(frozen=True)
class SceneSource:
    """A scene on disk; no-data that the file itself declares becomes NaN where the bundle expects another.

    Attributes:
        scene: The open scene.
        nodata: What the bundle's manifest calls no-data.
    """

    scene: SceneReader
    nodata: float | None

    @property
    def rows(self) -> int:
        """Height, pixels."""
        return self.scene.rows

    @property
    def cols(self) -> int:
        """Width, pixels."""
        return self.scene.cols

    @property
    def name(self) -> str:
        """The file."""
        return str(self.scene.path)

    def read(self, row0: int, row1: int) -> Array:
        """Stored values of the rows. Raises RasterError."""
        return self.scene.read_sar(row0, row1, nodata=self.nodata)


class ArraySink:
    """Collects labels in memory."""

    def __init__(self, *, rows: int, cols: int) -> None:
        self.labels: NDArray[np.uint8] = np.empty((rows, cols), np.uint8)

    def write_rows(self, row0: int, labels: NDArray[np.uint8]) -> None:
        """Take labels (n, cols) of the rows from `row0` on."""
        self.labels[row0 : row0 + len(labels)] = labels


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


@dataclass(frozen=True)
class TileCount:
    """What a run did.

    Attributes:
        tiles: Tiles that the network saw.
        skipped: Tiles without one valid pixel, which it did not need to see.
    """

    tiles: int
    skipped: int


def segment_rows(
    source: RowSource, sink: RowSink, *, backend: Backend, tiler: Tiler, progress: Progress = silent
) -> TileCount:
    """Segment everything that `source` holds.

    Args:
        source: Pixels; at least one row and column.
        sink: Gets the labels, from top to bottom, each row once.
        backend: Runs the network.
        tiler: Geometry and preprocessing of the bundle.
        progress: Called with tiles done and tiles in all.
    Raises:
        RadiometryError: the pixels are not in the units that the bundle expects.
        RasterError: the source cannot be read.
        BackendError: the network failed to run.
    """
    plan = TilePlan(source.rows, source.cols, tile_px=tiler.tile_px, overlap_px=tiler.overlap_px)
    blender = LogitsBlender(plan, classes=tiler.classes, stride=tiler.stride)
    strip = _Strip(source, plan, tiler.preprocessing)
    count = TileCount(0, 0)
    text = f"segment {source.name}"
    progress(0, plan.tiles, text)
    for tile_row in range(len(plan.row_origins)):
        strip.advance(tile_row)
        wanted = [col for col, origin in enumerate(plan.col_origins) if strip.any_valid(origin)]
        done = tile_row * len(plan.col_origins) + len(plan.col_origins) - len(wanted)
        for group in _groups(wanted, backend.batch):
            logits = backend.run(strip.tiles([plan.col_origins[col] for col in group]))
            for col, of_tile in zip(group, logits, strict=True):
                blender.add(col, of_tile)
            done += len(group)
            progress(done, plan.tiles, text)
        count = TileCount(count.tiles + len(wanted), count.skipped + len(plan.col_origins) - len(wanted))
        finished = blender.finished()
        labels = labels_rows(
            finished.logits,
            stride=tiler.stride,
            first=finished.first,
            start=finished.start,
            stop=finished.stop,
            cols=plan.cols,
        )
        labels[~strip.take_valid(finished.start, finished.stop)] = tiler.nodata_label
        sink.write_rows(finished.start, labels)
        blender.advance()
    progress(plan.tiles, plan.tiles, text)
    return count


class _Strip:
    """The preprocessed rows of one row of tiles; rows that the next one shares are kept."""

    def __init__(self, source: RowSource, plan: TilePlan, preprocessing: Preprocessing) -> None:
        self._source = source
        self._plan = plan
        self._preprocessing = preprocessing
        shape = (plan.tile_px, plan.padded_cols)
        self._pixels = np.zeros((preprocessing.bands, *shape), np.float32)
        self._valid = np.zeros(shape, bool)
        self._origin = 0
        self._ready = 0  # rows of the raster that are preprocessed
        self._raw: Array | None = None  # stored rows that the speckle filter of the next rows reads again
        self._raw_start = 0
        self._undecided = np.zeros((0, plan.cols), bool)  # validity of rows that have no labels yet
        self._undecided_start = 0

    def advance(self, tile_row: int) -> None:
        """Move down to a row of tiles and preprocess what is new in it."""
        plan = self._plan
        origin = plan.row_origins[tile_row]
        kept = self._ready - origin
        if tile_row:
            shift = origin - self._origin
            self._pixels[:, :kept] = self._pixels[:, shift : shift + kept].copy()
            self._valid[:kept] = self._valid[shift : shift + kept].copy()
        self._origin = origin
        end = min(origin + plan.tile_px, plan.rows)
        step = max(1, _CHUNK_VALUES // (plan.cols * self._preprocessing.bands))
        while self._ready < end:
            self._prepare(min(self._ready + step, end))
        used = end - origin
        self._pixels[:, used:] = self._pixels[:, mirrored(used, plan.tile_px)]
        self._valid[used:] = False

    def any_valid(self, col: int) -> bool:
        """Whether the tile that starts at this column has a valid pixel."""
        return bool(self._valid[:, col : col + self._plan.tile_px].any())

    def tiles(self, cols: list[int]) -> NDArray[np.float32]:
        """Copy the tiles that start at these columns into one batch."""
        size = self._plan.tile_px
        return np.stack([self._pixels[:, :, col : col + size] for col in cols])

    def take_valid(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Give the validity (stop - start, cols) of rows and forget them; each row is taken once."""
        count = stop - self._undecided_start
        taken = self._undecided[start - self._undecided_start : count]
        self._undecided, self._undecided_start = self._undecided[count:].copy(), stop
        return taken

    def _prepare(self, end: int) -> None:
        """Read and preprocess the rows from `_ready` to `end`."""
        halo = self._preprocessing.halo_px
        first, start = max(self._ready - halo, 0), self._ready
        raw = self._read(first, min(end + halo, self._plan.rows))
        try:
            pixels, valid = self._preprocessing(raw)
        except RadiometryError as error:
            raise RadiometryError(f"{self._source.name}: {error}") from error
        inner = slice(start - first, end - first)
        rows, cols = slice(start - self._origin, end - self._origin), self._plan.cols
        self._pixels[:, rows, :cols] = pixels[:, inner]
        self._pixels[:, rows, cols:] = pixels[:, inner][:, :, mirrored(cols, self._plan.padded_cols)]
        self._valid[rows, :cols] = valid[inner]
        self._undecided = np.concatenate((self._undecided, valid[inner]))
        self._ready = end

    def _read(self, first: int, end: int) -> Array:
        """Read rows, each of them once: what was read before is kept for one call."""
        known = self._raw_start + (0 if self._raw is None else self._raw.shape[1])
        if self._raw is None or known <= first:
            raw = self._source.read(first, end)
        elif known >= end:
            raw = self._raw[:, first - self._raw_start : end - self._raw_start]
        else:
            new = self._source.read(known, end)
            raw = np.concatenate((self._raw[:, first - self._raw_start :], new), axis=1)
        # Only the rows that a filter window can reach back to.
        kept = min(raw.shape[1], 2 * self._preprocessing.halo_px)
        self._raw, self._raw_start = raw[:, raw.shape[1] - kept :].copy(), end - kept
        return raw


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
