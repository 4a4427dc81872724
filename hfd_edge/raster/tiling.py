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
        return self._origins(self.rows)

    @cached_property
    def col_origins(self) -> tuple[int, ...]:
        """First column of each column of tiles, rising, multiples of 32."""
        return self._origins(self.cols)

    @property
    def padded_rows(self) -> int:
        """Height that the tiles cover; the raster plus at most 31 rows, or one tile."""
        return self.row_origins[-1] + self.tile_px

    @property
    def padded_cols(self) -> int:
        """Width that the tiles cover."""
        return self.col_origins[-1] + self.tile_px

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.row_origins) * len(self.col_origins)

    def _origins(self, length: int) -> tuple[int, ...]:
        # The last tile is moved back so that it ends with the raster, rounded up to the lattice.
        last = max(0, -(-(length - self.tile_px) // LATTICE_PX) * LATTICE_PX)
        return (*range(0, last, self.tile_px - self.overlap_px), last)


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
    zero logits.
    """

    def __init__(self, plan: TilePlan, *, classes: int, stride: int) -> None:
        self.plan = plan
        self.stride = stride
        sizes = {"tile_px": plan.tile_px, "overlap_px": plan.overlap_px, "stride": stride}
        self._row_weights = blend_weights(plan.row_origins, **sizes)
        self._col_weights = blend_weights(plan.col_origins, **sizes)
        self._size = plan.tile_px // stride
        # Row 0 keeps the last logits row of the row of tiles before.
        self._band = np.zeros((classes, 1 + self._size, plan.padded_cols // stride), np.float32)
        self._tile_row = 0

    def add(self, tile_col: int, logits: NDArray[np.floating[Any]]) -> None:
        """Add the logits (classes, tile_px / stride, tile_px / stride) of a tile of the current row.

        Raises:
            ValueError: the shape is another.
        """
        expected = (self._band.shape[0], self._size, self._size)
        if logits.shape != expected:
            raise ValueError(f"logits of a tile are {logits.shape}, expected {expected}")
        row_weights, col_weights = self._row_weights[self._tile_row], self._col_weights[tile_col]
        rows, cols = _support(row_weights), _support(col_weights)
        weights = row_weights[rows, np.newaxis] * col_weights[cols]
        left = self.plan.col_origins[tile_col] // self.stride
        target = self._band[:, 1 + rows.start : 1 + rows.stop, left + cols.start : left + cols.stop]
        target += logits[:, rows, cols] * weights

    def finished(self) -> FinishedRows:
        """Give what the current row of tiles finishes, once all its tiles were added."""
        origin, following = self._bounds()
        halo = 1 if self._tile_row else 0
        first, count = origin // self.stride, (following - origin) // self.stride
        last = self._tile_row == len(self.plan.row_origins) - 1
        # Pixels below the centre of a logit interpolate with the next one, which is not finished.
        behind = self.stride // 2
        return FinishedRows(
            logits=self._band[:, 1 - halo : 1 + count],
            first=first - halo,
            start=origin - behind if self._tile_row else 0,
            stop=self.plan.rows if last else following - behind,
        )

    def advance(self) -> None:
        """Go on to the next row of tiles."""
        origin, following = self._bounds()
        count = (following - origin) // self.stride
        kept = self._band[:, count:].copy()
        self._band[:, : kept.shape[1]] = kept
        self._band[:, kept.shape[1] :] = 0
        self._tile_row += 1

    def _bounds(self) -> tuple[int, int]:
        origins = (*self.plan.row_origins, self.plan.padded_rows)
        return origins[self._tile_row], origins[self._tile_row + 1]


def _support(weights: NDArray[np.float32]) -> slice:
    """The range of non-zero weights; the rest of a tile need not be touched."""
    indices = np.flatnonzero(weights)
    return slice(int(indices[0]), int(indices[-1]) + 1)
