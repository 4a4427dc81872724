"""Made-up land: districts of fields, meadows, forest and town, with rivers, lakes and roads.

A landscape of any size is held as seeds, coarse grids and polylines; pixels are made window by window, and
the same pixel comes out of every window that holds it EDGE_PX or more inside. Sizes are in pixels and, at
10 m, larger than life: roads and buildings must survive the stride of a network that is trained in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WATER, CROP, GRASS, FOREST, BUILDING, ROAD = range(6)
CLASSES = ("water", "crop", "grass", "forest", "building", "road")

CROP_KINDS = 4
ROOF_KINDS = 3

EDGE_PX = 2
"""Width of a window's rim on which buildings may differ from what other windows show."""

_FARM, _MEADOW, _WOOD, _TOWN = range(4)
_USE_SHARES = np.array([0.36, 0.18, 0.18, 0.28])
_DISTRICT_PX = 104
_LINE_PX = 64  # more than the longest segment of a line and its width
_CUBIC_SPREAD = 0.857  # what cubic interpolation (a = -0.75) keeps of white noise, along two axes
_TABLE = 4096  # power of two: hashed parcels index tables of random attributes


@dataclass(frozen=True)
class Window:
    """Rows row0..row1 and columns col0..col1 (ends excluded); may reach beyond the landscape."""

    row0: int
    row1: int
    col0: int
    col1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.row1 - self.row0, self.col1 - self.col0

    def grown(self, rows: int, cols: int) -> Window:
        """This window with a margin on each side."""
        return Window(self.row0 - rows, self.row1 + rows, self.col0 - cols, self.col1 + cols)


@dataclass(frozen=True)
class Ground:
    """What lies in a window; every field has shape (rows, cols).

    Attributes:
        label: uint8 class id.
        kind: uint8 variety within the class: crop 0..CROP_KINDS-1, roof 0..ROOF_KINDS-1.
        tone: float32, -1..1, how light a parcel, roof or district is.
        offset_db: float32, how much brighter than its class a parcel or district is to radar, dB.
        height_px: float32, building height in pixels; 0 elsewhere.
        furrow: float32, -1..1, plough lines within crops; 0 elsewhere.
    """

    label: Array
    kind: Array
    tone: Array
    offset_db: Array
    height_px: Array
    furrow: Array


class SmoothNoise:
    """Smooth random field with mean 0 and standard deviation near 1, sampled in any window."""

    _PAD = 4

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        rows: int,
        cols: int,
        spacing_px: int,
        octaves: int = 1,
    ) -> None:
        """Draw the grids: octave n has a grid of spacing_px / 2^n and half the weight of the one before."""
        self._spacings = [spacing_px >> octave for octave in range(octaves)]
        self._grids = [
            rng.standard_normal(
                (-(-rows // s) + 2 * self._reach(s), -(-cols // s) + 2 * self._reach(s)), np.float32
            )
            for s in self._spacings
        ]
        weights = 0.5 ** np.arange(octaves)
        self._weights = weights / np.sqrt(np.sum(weights**2)) / _CUBIC_SPREAD

    def __call__(self, window: Window) -> Array:
        """float32 (rows, cols) of the window, which may reach 64 pixels beyond the landscape."""
        total = np.zeros(window.shape, np.float32)
        for spacing, grid, weight in zip(self._spacings, self._grids, self._weights, strict=True):
            total += np.float32(weight) * self._octave(window, spacing, grid)
        return total

    def _reach(self, spacing: int) -> int:
        """Cells beyond the landscape: the margin of windows and the support of the interpolation."""
        return -(-64 // spacing) + self._PAD

    def _octave(self, window: Window, spacing: int, grid: Array) -> Array:
        reach = self._reach(spacing)
        row_cell = window.row0 // spacing - 2
        row_end = -(-window.row1 // spacing) + 2
        col_cell = window.col0 // spacing - 2
        col_end = -(-window.col1 // spacing) + 2
        cells = grid[row_cell + reach : row_end + reach, col_cell + reach : col_end + reach]
        # Rows first, while the array is narrow; whole cells, so that each window interpolates alike.
        tall = cv2.resize(cells, (cells.shape[1], cells.shape[0] * spacing), interpolation=cv2.INTER_CUBIC)
        top = window.row0 - row_cell * spacing
        tall = tall[top : top + window.shape[0]]
        wide = cv2.resize(tall, (cells.shape[1] * spacing, tall.shape[0]), interpolation=cv2.INTER_CUBIC)
        left = window.col0 - col_cell * spacing
        return wide[:, left : left + window.shape[1]]


@dataclass(frozen=True)
class _Line:
    """A river or road: int32 points (n, 2) as x, y and the width at each, pixels."""

    points: Array
    widths: Array


class Landscape:
    """One made-up landscape; equal arguments give equal land."""

    def __init__(self, rng: np.random.Generator, *, rows: int, cols: int) -> None:
        """Draw everything that `ground` needs; rows and cols in pixels."""
        self.rows, self.cols = rows, cols
        self._districts = _Districts(rng, rows=rows, cols=cols)
        self._warp = [SmoothNoise(rng, rows=rows, cols=cols, spacing_px=32, octaves=2) for _ in range(2)]
        self._relief = SmoothNoise(rng, rows=rows, cols=cols, spacing_px=128, octaves=4)
        self._growth = SmoothNoise(rng, rows=rows, cols=cols, spacing_px=64, octaves=4)
        self._lake_level = rng.uniform(1.1, 2.3)
        self._copse_level = rng.uniform(1.0, 1.95)
        self._rivers = _rivers(rng, rows, cols)
        self._roads = _roads(rng, rows, cols)
        self._table = rng.random((_TABLE, 6), dtype=np.float32)

    def ground(self, window: Window) -> Ground:
        """Make the pixels of a window."""
        y, x = np.mgrid[window.row0 : window.row1, window.col0 : window.col1].astype(np.float32)
        district = self._districts.at(y + 5 * self._warp[0](window), x + 5 * self._warp[1](window))
        use, u, v = self._districts.local(district, y, x)
        ground = self._plain(district, use)
        self._fields(ground, district, use, u, v)
        self._town(ground, district, use, u, v)
        self._wild(ground, use, window)
        _demolish_slivers(ground)
        return ground

    def _plain(self, district: Array, use: Array) -> Ground:
        """Every district as one even area of grass or forest."""
        values = self._districts.values
        return Ground(
            label=np.where(use == _WOOD, np.uint8(FOREST), np.uint8(GRASS)),
            kind=np.zeros(use.shape, np.uint8),
            tone=values["tone"][district],
            offset_db=values["offset_db"][district],
            height_px=np.zeros(use.shape, np.float32),
            furrow=np.zeros(use.shape, np.float32),
        )

    def _fields(self, ground: Ground, district: Array, use: Array, u: Array, v: Array) -> None:
        """Cut farm districts into rows of parcels of random length, each with a crop, some fallow."""
        at = np.nonzero(use == _FARM)
        if not at[0].size:
            return
        d, u, v = district[at].astype(np.int64), u[at], v[at]
        width = self._districts.values["parcel_px"][d]
        row = np.floor(v / width).astype(np.int64)
        strip = self._table[_hash(row, d, 1)]
        column = np.floor(u / (width * (0.9 + 2.2 * strip[:, 0])) + 8 * strip[:, 1]).astype(np.int64)
        parcel = self._table[_hash(row, column, d)]
        crop = parcel[:, 0] > 0.16
        ground.label[at] = np.where(crop, CROP, GRASS)
        ground.kind[at] = (parcel[:, 1] * CROP_KINDS).astype(np.uint8)
        ground.tone[at] = 2 * parcel[:, 2] - 1
        ground.offset_db[at] = 4.4 * (parcel[:, 3] - 0.5)
        ground.furrow[at] = np.where(crop, np.sin(v * np.float32(2 * np.pi / 3.7)), 0)

    def _town(self, ground: Ground, district: Array, use: Array, u: Array, v: Array) -> None:
        """Lay a street grid over town districts, with one building on most lots and gardens between."""
        at = np.nonzero(use == _TOWN)
        if not at[0].size:
            return
        d, u, v = district[at].astype(np.int64), u[at], v[at]
        lot_px = self._districts.values["lot_px"][d]
        i, j = np.floor(u / lot_px).astype(np.int64), np.floor(v / lot_px).astype(np.int64)
        lu, lv = u - i * lot_px, v - j * lot_px
        lot = self._table[_hash(i, j, d)]
        street = ((lu < 4) & (i % 2 == 0)) | ((lv < 4) & (j % 3 == 0))
        built = (
            (lu > 5.5 + 2.5 * lot[:, 0])
            & (lu < lot_px - 1 - 3 * lot[:, 1])
            & (lv > 5.5 + 2.5 * lot[:, 2])
            & (lv < lot_px - 1 - 4 * lot[:, 3])
            & (lot[:, 4] > 0.13)
            & ~street
        )
        ground.label[at] = np.where(built, BUILDING, np.where(street, ROAD, GRASS))
        ground.kind[at] = (lot[:, 5] * ROOF_KINDS).astype(np.uint8)
        ground.tone[at] = np.where(built, 2 * lot[:, 2] - 1, ground.tone[at])
        # Walls that face the radar return most; a street grid at 45 degrees to it turns the corners away.
        turn = np.abs(np.sin(2 * self._districts.values["angle"][d]))
        ground.offset_db[at] = np.where(built, 4 * (lot[:, 4] - 0.56) - 4.5 * turn, ground.offset_db[at])
        height = self._districts.values["height_px"][d] * (0.7 + 0.6 * lot[:, 0])
        ground.height_px[at] = np.where(built, height, 0)

    def _wild(self, ground: Ground, use: Array, window: Window) -> None:
        """Clearings and copses with ragged edges, rivers, country roads over them, lakes over all."""
        growth = self._growth(window)
        open_land = (use == _FARM) | (use == _MEADOW)
        _paint(ground, (use == _WOOD) & (growth < -1.07), GRASS, flat=False)
        _paint(ground, open_land & (growth > self._copse_level), FOREST, flat=False)
        _paint(ground, _drawn(self._rivers, window), WATER)
        _paint(ground, _drawn(self._roads, window), ROAD)
        _paint(ground, self._relief(window) > self._lake_level, WATER)


class _Districts:
    """Voronoi cells around jittered seeds, each with a land use, an orientation and sizes."""

    _PAD = 3

    def __init__(self, rng: np.random.Generator, *, rows: int, cols: int) -> None:
        self._height = -(-rows // _DISTRICT_PX) + 2 * self._PAD
        self._width = -(-cols // _DISTRICT_PX) + 2 * self._PAD
        count = self._height * self._width
        cell = np.stack(np.divmod(np.arange(count), self._width), axis=1) - self._PAD
        self._seeds = ((cell + rng.uniform(0.08, 0.92, (count, 2))) * _DISTRICT_PX).astype(np.float32)
        # A small scene shows a few land uses, a large one all of them in their usual shares.
        inside = max(rows * cols / _DISTRICT_PX**2, 4)
        shares = rng.dirichlet(_USE_SHARES * inside)
        self._use = rng.choice(4, size=count, p=shares).astype(np.uint8)
        self.values = {
            "angle": rng.uniform(0, np.pi, count).astype(np.float32),
            "tone": rng.uniform(-1, 1, count).astype(np.float32),
            "offset_db": rng.normal(0, 1.1, count).clip(-2.2, 2.2).astype(np.float32),
            "parcel_px": rng.uniform(18, 40, count).astype(np.float32),
            "lot_px": rng.uniform(15, 25, count).astype(np.float32),
            "height_px": rng.uniform(1.0, 3.2, count).astype(np.float32),
        }

    def at(self, y: Array, x: Array) -> Array:
        """Index of the nearest seed, int32, among those of the 3 x 3 cells around each pixel."""
        row = np.floor(y * np.float32(1 / _DISTRICT_PX)).astype(np.int32) + self._PAD
        col = np.floor(x * np.float32(1 / _DISTRICT_PX)).astype(np.int32) + self._PAD
        centre = row * self._width + col
        best = np.full(y.shape, np.inf, np.float32)
        nearest = np.zeros(y.shape, np.int32)
        seed_y, seed_x = np.ascontiguousarray(self._seeds.T)
        for step in (row * self._width + col for row in (-1, 0, 1) for col in (-1, 0, 1)):
            index = centre + step
            distance = np.square(y - seed_y[index]) + np.square(x - seed_x[index])
            closer = distance < best
            np.copyto(best, distance, where=closer)
            np.copyto(nearest, index, where=closer)
        return nearest

    def local(self, district: Array, y: Array, x: Array) -> tuple[Array, Array, Array]:
        """Land use, and coordinates u, v along and across the orientation of each pixel's district."""
        angle = self.values["angle"]
        cos, sin = np.cos(angle)[district], np.sin(angle)[district]
        return self._use[district], x * cos + y * sin, y * cos - x * sin


def _hash(a: Array, b: Array, c: Array | int) -> Array:
    """Row of the attribute table for three integers, the same at every pixel of a parcel."""
    mixed = a * 73856093 ^ b * 19349663 ^ c * 83492791
    return (mixed ^ (mixed >> 13) ^ (mixed >> 27)) & (_TABLE - 1)


def _paint(ground: Ground, where: Array, label: int, *, flat: bool = True) -> None:
    """Give pixels another class, without building or furrow; `flat` drops the parcel's tone as well."""
    ground.label[where] = label
    ground.height_px[where] = 0
    ground.furrow[where] = 0
    if flat:
        ground.tone[where] = 0
        ground.offset_db[where] = 0


def _demolish_slivers(ground: Ground) -> None:
    """Turn what district borders, roads and water left of a building into grass, where below 3 pixels."""
    built = (ground.label == BUILDING).astype(np.uint8)
    whole = cv2.morphologyEx(built, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _paint(ground, (built > whole), GRASS)


def _drawn(lines: Sequence[_Line], window: Window) -> Array:
    """Pixels of a window that the lines cover, bool."""
    # OpenCV draws a clipped line a little differently, so every segment drawn fits the canvas whole.
    wide = window.grown(_LINE_PX, _LINE_PX)
    canvas = np.zeros(wide.shape, np.uint8)
    origin = np.array([wide.col0, wide.row0])
    limit = np.array(wide.shape[::-1]) - _LINE_PX
    for line in lines:
        points = line.points - origin
        reach = line.widths.max() + 2
        ends = np.stack([points[:-1], points[1:]])
        near = (ends.max(axis=0) > _LINE_PX - reach).all(axis=1) & (ends.min(axis=0) < limit + reach).all(
            axis=1
        )
        for index in np.flatnonzero(near):
            start, end = ends[:, index].tolist()
            cv2.line(canvas, start, end, 1, thickness=int(line.widths[index]))
    return canvas[_LINE_PX:-_LINE_PX, _LINE_PX:-_LINE_PX].astype(bool)


def _rivers(rng: np.random.Generator, rows: int, cols: int) -> list[_Line]:
    """Meandering rivers right across the landscape: none or one in a small one, more in a large one."""
    count = rng.poisson(0.3 + (rows + cols) / 3000)
    return [
        _walk(rng, rows, cols, step_px=6, meander=rng.uniform(0.5, 1.0), width=(5, 13)) for _ in range(count)
    ]


def _roads(rng: np.random.Generator, rows: int, cols: int) -> list[_Line]:
    """Country roads, nearly straight."""
    count = 1 + rng.poisson(0.6 + (rows + cols) / 700)
    return [_walk(rng, rows, cols, step_px=28, meander=0.09, width=(3, 5)) for _ in range(count)]


def _walk(
    rng: np.random.Generator,
    rows: int,
    cols: int,
    *,
    step_px: float,
    meander: float,
    width: tuple[int, int],
) -> _Line:
    """Walk through a random point both ways until outside; the heading swings about one direction."""
    diagonal = float(np.hypot(rows, cols))
    steps = int(1.6 * diagonal / step_px) + 2
    angle = rng.uniform(0, 2 * np.pi)
    phase = np.cumsum(step_px / rng.uniform(28, 70, 2 * steps))
    swing = meander * np.sin(phase + rng.uniform(0, 2 * np.pi)) + 0.25 * meander * rng.standard_normal(
        2 * steps
    )
    heading = angle + swing
    points = np.cumsum(step_px * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    through = rng.uniform(0.1, 0.9, 2) * (cols, rows)
    points += through - points[steps]
    low, high = width
    base = rng.uniform(low, high)
    widths = base * (1 + 0.25 * np.sin(0.4 * phase)) if meander > 0.3 else np.full(2 * steps, base)
    return _Line(points=np.rint(points).astype(np.int32), widths=np.rint(widths).astype(np.int32))
