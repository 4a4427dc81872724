"""Cutting a raster into overlapping tiles, and blending what a network says of them, row by row.

Tile origins are multiples of 32, the largest stride of the encoders: a tile then samples its features on
the same lattice as the whole image would, so tiled and whole prediction differ only near tile borders,
where convolutions saw padding. Blending gives those borders no weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATTICE_PX = 32
DEFAULT_OVERLAP_PX = 256

# Share of the overlap, on either side, that is discarded; the middle quarter is the cross-fade.
_MARGIN = 3 / 8


def default_overlap(tile_px: int) -> int:
    """Choose an overlap: 256 pixels, or up to half the tile where that is less; a multiple of 32.

    The zeros around a tile, which convolutions see, reach about 100 pixels into it (preset s): with 256
    pixels of overlap, labels of tiles of 512 equal those of one whole image on more than 99.5 % of pixels;
    `benchmarks/parity.py` measures it for a given network.
    """
    return min(DEFAULT_OVERLAP_PX, tile_px // 2 // LATTICE_PX * LATTICE_PX)


def mirrored(size: int, padded: int) -> NDArray[np.intp]:
    """Where the pixels from `size` to `padded` are taken from: a raster goes on as its own mirror image.

    Speckle stays speckle that way, as with `numpy.pad(mode="symmetric")`. Repeating the last row and column
    would draw streaks, which cost 2 points of mIoU on simulated images of half the tile's side.
    """
    position = np.arange(size, padded) % (2 * size)
    return np.minimum(position, 2 * size - 1 - position)


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of a raster lie.

    Attributes:
        rows: Height of the raster, pixels.
        cols: Width of the raster, pixels.
        tile_px: Side of the square tiles; a multiple of 32.
        overlap_px: Least overlap of neighbours; a multiple of 32, at most half a tile.
    """

    rows: int
    cols: int
    tile_px: int
    overlap_px: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"a raster of {self.rows} x {self.cols} pixels cannot be tiled")
        if self.tile_px < LATTICE_PX or self.tile_px % LATTICE_PX:
            raise ValueError(f"tile_px is {self.tile_px}, expected a multiple of {LATTICE_PX}")
        if self.overlap_px % LATTICE_PX or not 0 <= self.overlap_px <= self.tile_px // 2:
            raise ValueError(
                f"overlap_px is {self.overlap_px}, expected a multiple of {LATTICE_PX} from 0 to half the "
                f"tile ({self.tile_px // 2})"
            )

    @cached_property
    def row_origins(self) -> tuple[int, ...]:
        """First row of each row of tiles, rising, multiples of 32."""
        return self._origins(self._last(self.rows))

    @cached_property
    def col_origins(self) -> tuple[int, ...]:
        """First column of each column of tiles, rising, multiples of 32."""
        return self._origins(self._last(self.cols))

    @property
    def padded_rows(self) -> int:
        """Height that the tiles cover; the raster plus at most 31 rows, or one tile."""
        return self._last(self.rows) + self.tile_px

    @property
    def padded_cols(self) -> int:
        """Width that the tiles cover."""
        return self._last(self.cols) + self.tile_px

    @property
    def tile_rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self._last(self.rows) // self._step) + 1

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.row_origins) * len(self.col_origins)

    @property
    def settled(self) -> int:
        """Rows of tiles that stay as they are, weights included, however many rows the raster gains."""
        return max(0, (self._last(self.rows) - self._settled_after) // self._step + 1)

    @property
    def settling_px(self) -> int:
        """Least rows from the origin of a row of tiles to the end of the raster that settle it."""
        return self.tile_px + self._settled_after - LATTICE_PX + 1

    def tile_row(self, index: int, *, stride: int) -> TileRow:
        """Describe a row of tiles, without looking at any but its neighbours.

        Args:
            index: From 0, the topmost.
            stride: Pixels per logit.
        """
        # Tiles next but one overlap where the last row of tiles is moved back, others never.
        near = range(max(0, index - 2), min(index + 3, self.tile_rows))
        origins = [min(other * self._step, self._last(self.rows)) for other in near]
        weights = blend_weights(
            tuple(other - origins[0] for other in origins),
            tile_px=self.tile_px,
            overlap_px=self.overlap_px,
            stride=stride,
        )
        place = near.index(index)
        origin, last = origins[place], index == self.tile_rows - 1
        following = self.padded_rows if last else origins[place + 1]
        # Pixels below the centre of a logit interpolate with the next one, which is not finished.
        behind = stride // 2
        return TileRow(
            index=index,
            origin=origin,
            following=following,
            used=min(self.tile_px, self.rows - origin),
            shift=origin - origins[place - 1] if index else 0,
            weights=weights[place],
            first=origin // stride - (1 if index else 0),
            start=origin - behind if index else 0,
            stop=self.rows if last else following - behind,
        )

    @property
    def _step(self) -> int:
        return self.tile_px - self.overlap_px

    @property
    def _settled_after(self) -> int:
        """How far the last row of tiles must be below another, for good, to leave its weights alone.

        As its regular neighbour, or so far that nowhere both count. While the raster grows, it moves from one
        to the other in steps of the lattice.
        """
        apart = self.tile_px - int(2 * _MARGIN * self.overlap_px)
        return self._step if self._step + LATTICE_PX >= apart else _on_lattice(apart)

    def _last(self, length: int) -> int:
        # The last tile is moved back so that it ends with the raster, rounded up to the lattice.
        return max(0, _on_lattice(length - self.tile_px))

    def _origins(self, last: int) -> tuple[int, ...]:
        return (*range(0, last, self._step), last)


@dataclass(frozen=True, eq=False)
class TileRow:
    """One row of tiles of a raster, top to bottom, and the pixel rows that it decides.

    Attributes:
        index: From 0, the topmost.
        origin: First pixel row of its tiles; a multiple of 32.
        following: Origin of the next row of tiles; the end of the tiles for the last.
        used: Pixel rows of its tiles that the raster has; below them the tiles hold its mirror image.
        shift: Pixel rows from the origin of the row of tiles before to this one's; 0 for the topmost.
        weights: How much its tiles count, (tile_px / stride,), float32.
        first: Row of the whole map of logits that `FinishedRows.logits` starts with.
        start: First pixel row that was not decided before.
        stop: Pixel row after the last one that is decided with this row of tiles.
    """

    index: int
    origin: int
    following: int
    used: int
    shift: int
    weights: NDArray[np.float32]
    first: int
    start: int
    stop: int

    def finished(self, stride: int) -> slice:
        """Rows that are final in a band of logits whose row 0 is the last logits row above `origin`.

        They are rows `first` and following of the whole map. Row 0 is among them where interpolation
        needs it: everywhere but in the topmost row of tiles.
        """
        return slice(0 if self.index else 1, 1 + (self.following - self.origin) // stride)


def _on_lattice(length: int) -> int:
    """Round up to a multiple of 32."""
    return -(-length // LATTICE_PX) * LATTICE_PX


def blend_weights(
    origins: tuple[int, ...], *, tile_px: int, overlap_px: int, stride: int
) -> NDArray[np.float32]:
    """Compute how much each tile counts along one axis; the weights of a position sum to 1.

    The outer 3/8 of the overlap count nothing, since padding reached into them; the middle quarter is a
    linear ramp. Where the raster itself ends a tile counts fully up to its border.

    Args:
        origins: First pixel of each tile.
        tile_px: Side of the tiles.
        overlap_px: Least overlap of neighbours.
        stride: Pixels per logit.
    Returns:
        Weights (tiles, tile_px / stride); weights of a tile in two dimensions are the outer product.
    """
    size = tile_px // stride
    centers = (np.arange(size) + 0.5) * stride
    margin, ramp = _MARGIN * overlap_px, (1 - 2 * _MARGIN) * overlap_px
    weights = np.ones((len(origins), size))
    if ramp:
        rising = np.clip((centers - margin) / ramp, 0, 1)
        weights[1:] = rising
        weights[:-1] = np.minimum(weights[:-1], rising[::-1])
    starts = [origin // stride for origin in origins]
    total = np.zeros(starts[-1] + size)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + size]
    return weights.astype(np.float32)


@dataclass(frozen=True)
class FinishedRows:
    """Logits that no later tile changes, and the pixel rows that they decide.

    Attributes:
        logits: (classes, n, w), rows `first` to `first + n` of the whole map; a view that is valid until
            the blender advances. It starts one row early where interpolation needs it.
        first: Row of the whole map that `logits` starts with.
        start: First pixel row that was not decided before.
        stop: Pixel row after the last one that is decided now.
    """

    logits: NDArray[np.float32]
    first: int
    start: int
    stop: int


class LogitsBlender:
    """Adds up the logits of overlapping tiles, one row of tiles at a time.

    Memory is that of one row of tiles at logits resolution. Use: `add` the tiles of a row, read
    `finished`, `advance`, and so on for each row of the plan. Tiles that are left out (no data) count as
    zero logits. Where the height is not known yet, `begin` each row of tiles instead of `advance`.
    """

    def __init__(self, plan: TilePlan, *, classes: int, stride: int) -> None:
        self.plan = plan
        self.stride = stride
        self._col_weights = blend_weights(
            plan.col_origins, tile_px=plan.tile_px, overlap_px=plan.overlap_px, stride=stride
        )
        self._size = plan.tile_px // stride
        # Row 0 keeps the last logits row of the row of tiles before.
        self._band = np.zeros((classes, 1 + self._size, plan.padded_cols // stride), np.float32)
        self._row = plan.tile_row(0, stride=stride)

    def begin(self, row: TileRow) -> None:
        """Go on to this row of tiles; the topmost, or the one after the current."""
        count = row.shift // self.stride
        if count:
            kept = self._band[:, count:].copy()
            self._band[:, : kept.shape[1]] = kept
            self._band[:, kept.shape[1] :] = 0
        self._row = row

    def add(self, tile_col: int, logits: NDArray[np.floating[Any]]) -> None:
        """Add the logits (classes, tile_px / stride, tile_px / stride) of a tile of the current row.

        Raises:
            ValueError: the shape is another.
        """
        expected = (self._band.shape[0], self._size, self._size)
        if logits.shape != expected:
            raise ValueError(f"logits of a tile are {logits.shape}, expected {expected}")
        row_weights, col_weights = self._row.weights, self._col_weights[tile_col]
        rows, cols = _support(row_weights), _support(col_weights)
        weights = row_weights[rows, np.newaxis] * col_weights[cols]
        left = self.plan.col_origins[tile_col] // self.stride
        target = self._band[:, 1 + rows.start : 1 + rows.stop, left + cols.start : left + cols.stop]
        target += logits[:, rows, cols] * weights

    def finished(self) -> FinishedRows:
        """Give what the current row of tiles finishes, once all its tiles were added."""
        row = self._row
        return FinishedRows(
            logits=self._band[:, row.finished(self.stride)],
            first=row.first,
            start=row.start,
            stop=row.stop,
        )

    def advance(self) -> None:
        """Go on to the next row of tiles of the plan; after the last there is nothing to do."""
        following = self._row.index + 1
        if following < self.plan.tile_rows:
            self.begin(self.plan.tile_row(following, stride=self.stride))


def _support(weights: NDArray[np.float32]) -> slice:
    """The range of non-zero weights; the rest of a tile need not be touched."""
    indices = np.flatnonzero(weights)
    return slice(int(indices[0]), int(indices[-1]) + 1)
