"""Simulated pairs of SAR and optical images with known land cover.

Classes that light tells apart easily and radar does not: road and calm water are both smooth and dark,
crops and grass overlap in backscatter, and buildings appear displaced towards the radar. Shapes and
texture still give them away, so a SAR network gains from learning what to look at.

A scene of any size is rendered in blocks of rows that fit without seams, from one seed. The radar looks
along the rows from the left: near range is column 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import SarInput
from hfd_edge.sar.landscape import BUILDING, CLASSES, CROP, WATER, Ground, Landscape, SmoothNoise, Window
from hfd_edge.sar.optical import Optics
from hfd_edge.sar.radiometry import check_looks

Array = NDArray[Any]

__all__ = [
    "CLASSES",
    "CROP_SIGMA0_DB",
    "INCIDENCE_DEG",
    "NESZ_DB",
    "NODATA_LABEL",
    "PALETTE",
    "SAR_INPUT",
    "SIGMA0_DB",
    "SceneRenderer",
    "SimulatedScene",
    "lay_over",
    "observe",
    "simulate_scene",
]

PALETTE = (
    (38, 98, 190),
    (226, 196, 88),
    (154, 205, 98),
    (28, 104, 48),
    (204, 62, 58),
    (120, 120, 128),
)
"""RGB colour per class, in the order of CLASSES."""

NODATA_LABEL = 255
LOOKS = 4.0
NESZ_DB = -24.0
"""Thermal noise as sigma0. Sentinel-1 IW is specified at -22 dB and mostly does better (ESA, Sentinel-1
Product Definition)."""

INCIDENCE_DEG = 38.0
SAR_INPUT = SarInput(bands=("vv", "vh"), units="intensity", looks=LOOKS, nodata=0.0)

SIGMA0_DB: dict[str, tuple[float, float]] = {
    "water": (-21.0, -29.0),
    "crop": (-11.5, -18.5),
    "grass": (-12.5, -19.5),
    "forest": (-9.5, -14.8),
    "building": (-8.0, -15.5),
    "road": (-18.0, -26.5),
}
"""Mean sigma0 per class, (VV, VH) in dB: rounded values chosen as typical of C band at about 38 degrees. For
natural surfaces and roads compare Ulaby and Dobson (1989), Handbook of Radar Scattering Statistics for
Terrain. Crops vary by kind."""

CROP_SIGMA0_DB = ((-11.0, -17.6), (-12.6, -19.6), (-13.2, -21.4), (-9.8, -16.4))
"""As SIGMA0_DB, per kind of crop: young cereal, ripe cereal, ploughed soil, broad-leaved crop."""

_WALL_GAIN = 1.5
_CORNER_GAIN = 6.0  # wall and street form a dihedral: about 8 dB over the roof
_NODATA_SHARE = 0.3
_BLOCK_ROWS = 256
_MARGIN_ROWS = 8
_MARGIN_COLS = 16


@dataclass(frozen=True)
class SimulatedScene:
    """One co-registered pair and its truth.

    Attributes:
        sar: float32 (2, rows, cols), sigma0 VV and VH, linear power; 0 beyond the swath and nowhere else.
        eo: uint8 (3, rows, cols), red, green, blue.
        label: uint8 (rows, cols), position in CLASSES; 255 beyond the swath.
    """

    sar: Array
    eo: Array
    label: Array


class SceneRenderer:
    """A scene of any size, rendered in blocks of rows: memory does not grow with the rows."""

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        seed: int,
        looks: float = LOOKS,
        nesz_db: float = NESZ_DB,
        clouds: bool = True,
        nodata: bool = True,
    ) -> None:
        """Lay out the scene.

        Args:
            rows: Height, pixels.
            cols: Width (range direction), pixels.
            seed: Equal seeds and sizes give equal scenes; 0 or more.
            looks: Number of looks of the speckle.
            nesz_db: Thermal noise floor as sigma0, dB.
            clouds: Whether scenes may have clouds.
            nodata: Whether scenes may reach beyond the swath.
        Raises:
            RadiometryError: looks is not positive and finite.
            ValueError: rows, cols or seed out of range.
        """
        if rows < 1 or cols < 1 or seed < 0:
            raise ValueError(f"rows {rows}, cols {cols} and seed {seed} must be at least 1, 1 and 0")
        check_looks(looks)
        self.rows, self.cols, self.looks, self.nesz_db = rows, cols, looks, nesz_db
        self._seed = seed
        self._land = Landscape(np.random.default_rng([seed, 0]), rows=rows, cols=cols)
        self._optics = Optics(np.random.default_rng([seed, 1]), rows=rows, cols=cols, clouds=clouds)
        rng = np.random.default_rng([seed, 2])
        self._sigma0_db = _class_table(rng)
        self._moisture = SmoothNoise(rng, rows=rows, cols=cols, spacing_px=128, octaves=2)
        self._border = _Border(rng, rows=rows, cols=cols) if nodata else None

    def blocks(self) -> Iterator[tuple[int, SimulatedScene]]:
        """Render all; (first row, block) from top to bottom."""
        for row0 in range(0, self.rows, _BLOCK_ROWS):
            window, ground = self._ground(row0)
            sar, label = self._radar(window, ground, row0)
            eo = self._optics.image(ground, window.grown(_MARGIN_ROWS, _MARGIN_COLS), self._rng(row0, 1))
            yield row0, SimulatedScene(sar=sar, eo=np.ascontiguousarray(_core(eo)), label=label)

    def radar_blocks(self) -> Iterator[tuple[int, Array, Array]]:
        """Render SAR and label only; (first row, sar, label) from top to bottom."""
        for row0 in range(0, self.rows, _BLOCK_ROWS):
            window, ground = self._ground(row0)
            yield row0, *self._radar(window, ground, row0)

    def _ground(self, row0: int) -> tuple[Window, Ground]:
        """A block's window, and the ground of it and its margin."""
        window = Window(row0, min(row0 + _BLOCK_ROWS, self.rows), 0, self.cols)
        return window, self._land.ground(window.grown(_MARGIN_ROWS, _MARGIN_COLS))

    def _radar(self, window: Window, ground: Ground, row0: int) -> tuple[Array, Array]:
        wide = window.grown(_MARGIN_ROWS, _MARGIN_COLS)
        sigma0 = self._backscatter(ground, wide)
        seen = lay_over(sigma0, ground.height_px, incidence_deg=INCIDENCE_DEG)
        sar = observe(_core(seen), looks=self.looks, nesz_db=self.nesz_db, rng=self._rng(row0, 0))
        label = np.ascontiguousarray(_core(ground.label))
        if self._border is not None:
            beyond = self._border.beyond(window)
            sar[:, beyond] = 0
            label[beyond] = NODATA_LABEL
        return sar, label

    def _backscatter(self, ground: Ground, window: Window) -> Array:
        """sigma0 of the ground before any radar effect, linear power, float32 (2, rows, cols)."""
        shared = ground.offset_db + np.where(ground.label == WATER, 0, 0.6 * self._moisture(window))
        db = np.moveaxis(self._sigma0_db[ground.label, ground.kind], -1, 0) + shared
        return np.exp(db * np.float32(math.log(10) / 10), dtype=np.float32)

    def _rng(self, row0: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, 3, row0, stream])


def simulate_scene(
    *,
    rows: int,
    cols: int,
    seed: int,
    looks: float = LOOKS,
    nesz_db: float = NESZ_DB,
    clouds: bool = True,
    nodata: bool = True,
) -> SimulatedScene:
    """Simulate one whole scene; see `SceneRenderer` for arguments and errors."""
    renderer = SceneRenderer(
        rows=rows, cols=cols, seed=seed, looks=looks, nesz_db=nesz_db, clouds=clouds, nodata=nodata
    )
    scenes = [scene for _, scene in renderer.blocks()]
    if len(scenes) == 1:
        return scenes[0]
    return SimulatedScene(
        sar=np.concatenate([scene.sar for scene in scenes], axis=1),
        eo=np.concatenate([scene.eo for scene in scenes], axis=1),
        label=np.concatenate([scene.label for scene in scenes], axis=0),
    )


def observe(
    sigma0: Array, *, looks: float = LOOKS, nesz_db: float = NESZ_DB, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Look at backscatter through a radar: thermal noise adds power, speckle multiplies it.

    Signal and noise are both circular Gaussian, so their sum is speckled as one: intensity is
    gamma-distributed with mean sigma0 + NESZ and shape L, independent per pixel and band.

    Args:
        sigma0: Linear power, any shape.
        looks: Number of looks L.
        nesz_db: Noise-equivalent sigma0, dB; -inf for a radar without noise.
        rng: Source of the speckle.
    Returns:
        Measured intensity, float32, same shape; always positive where sigma0 + NESZ is.
    Raises:
        RadiometryError: looks is not positive and finite.
    Source: Oliver and Quegan (2004), Understanding Synthetic Aperture Radar Images, chapter 4.
    """
    check_looks(looks)
    noise = np.float32(10 ** (nesz_db / 10))
    speckle = rng.standard_gamma(looks, size=sigma0.shape, dtype=np.float32)
    # The smallest draws underflow for few looks, and zero would read as no-data.
    np.maximum(speckle, np.float32(1e-12), out=speckle)
    speckle *= (sigma0 + noise) * np.float32(1 / looks)
    return speckle


def lay_over(sigma0: Array, height_px: Array, *, incidence_deg: float) -> NDArray[np.float32]:
    """Put buildings where a radar sees them, looking along the rows from column 0.

    A point at height h returns as early as the ground h / tan(incidence) nearer to the radar, so roof and
    wall are laid over that ground; wall and ground form a bright corner; and h tan(incidence) of ground
    behind gets no signal.

    Args:
        sigma0: Linear power per footprint pixel, (bands, rows, cols).
        height_px: Building height in pixels, (rows, cols); 0 is open ground.
        incidence_deg: Incidence angle.
    Returns:
        Power as seen, float32, same shape; 0 where nothing returns. What leaves at column 0 is lost.
    """
    built = height_px > 0
    seen = np.array(sigma0, np.float32, order="C")
    if not built.any():
        return seen
    slope = math.tan(math.radians(incidence_deg))
    shadow = np.rint(height_px * np.float32(slope))
    dark = built.copy()
    for step in range(1, int(shadow.max()) + 1):
        dark[:, step:] |= shadow[:, :-step] >= step
    seen[:, dark] = 0
    layover = np.rint(height_px / np.float32(slope)).astype(np.int64)
    for returns in _building_returns(built, layover):
        _add(seen, sigma0, returns)
    return seen


@dataclass(frozen=True)
class _Returns:
    """Power that arrives elsewhere: at (row, place), `gain` times that of (row, source)."""

    row: Array
    place: Array
    source: Array
    gain: float | Array = 1.0


def _building_returns(built: Array, layover: Array) -> list[_Returns]:
    """Where roofs, walls and the corners at their feet appear."""
    row, col = np.nonzero(built)
    roof = _Returns(row, col - layover[row, col], col)
    faces_radar = built.copy()
    faces_radar[:, 1:] &= ~built[:, :-1]
    row, col = np.nonzero(faces_radar)
    reach = layover[row, col]
    corner = _Returns(row, col - 1, col, _CORNER_GAIN)
    walls = []
    for step in range(1, int(layover.max()) + 1):
        lit = reach >= step
        walls.append(_Returns(row[lit], col[lit] - step, col[lit], _WALL_GAIN / reach[lit]))
    return [roof, corner, *walls]


def _add(seen: Array, sigma0: Array, returns: _Returns) -> None:
    """Add returns to each band; what falls before column 0 is lost."""
    inside = returns.place >= 0
    row, source = returns.row[inside], returns.source[inside]
    at = (row, returns.place[inside])
    gain = np.broadcast_to(returns.gain, inside.shape)[inside]
    for band, power in zip(seen, sigma0, strict=True):
        # add.at, because two roofs of different height may land on one pixel
        np.add.at(band, at, (gain * power[row, source]).astype(np.float32))


def _class_table(rng: np.random.Generator) -> Array:
    """sigma0 of this scene, dB, float32 (classes, kinds, polarisations)."""
    table = np.array([SIGMA0_DB[name] for name in CLASSES])
    table += rng.normal(0, 0.4, table.shape)
    wind_db = rng.normal(0.5, 2.2)  # waves raise VV most; calm water mirrors the signal away
    table[WATER] += np.clip(wind_db, -2.5, 5.0) * np.array([1.0, 0.45])
    kinds = np.repeat(table[:, None], len(CROP_SIGMA0_DB), axis=1)
    kinds[CROP] = np.array(CROP_SIGMA0_DB) + rng.normal(0, 0.7, (len(CROP_SIGMA0_DB), 1))
    kinds[BUILDING] += np.array([0.0, 1.0, -1.5, 0.0])[:, None]
    return kinds.astype(np.float32)


class _Border:
    """The ragged end of the swath on one side of some scenes; measured from that side in pixels."""

    def __init__(self, rng: np.random.Generator, *, rows: int, cols: int) -> None:
        present = rng.random() < _NODATA_SHARE
        self._side = int(rng.integers(4))
        self._rows, self._cols = rows, cols
        along, across = (rows, cols) if self._side < 2 else (cols, rows)
        start, end = rng.uniform(-0.08, 0.22, 2) * min(across, 1024)
        # Bursts end at different columns: the edge has steps of a few pixels.
        steps = np.repeat(rng.normal(0, 1.5, -(-along // 24)), 24)[:along]
        self._depth = np.linspace(start, end, along) + steps if present else np.full(along, -1.0)

    def beyond(self, window: Window) -> NDArray[np.bool_]:
        """Pixels of a window outside the swath."""
        y = np.arange(window.row0, window.row1)
        x = np.arange(window.col0, window.col1)
        if self._side < 2:
            distance = x if self._side == 0 else self._cols - 1 - x
            return np.asarray(distance[None, :] < self._depth[y][:, None])
        distance = y if self._side == 2 else self._rows - 1 - y
        return np.asarray(distance[:, None] < self._depth[x][None, :])


def _core(image: Array) -> Array:
    """An image without the margin."""
    return image[..., _MARGIN_ROWS:-_MARGIN_ROWS, _MARGIN_COLS:-_MARGIN_COLS]
