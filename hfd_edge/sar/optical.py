"""The optical camera of the simulator: colours, texture, illumination, haze, clouds and their shadows."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.sar.landscape import BUILDING, CROP, CROP_KINDS, ROOF_KINDS, Ground, SmoothNoise, Window

Array = NDArray[Any]

COLOURS = np.array(
    [
        (0.07, 0.15, 0.23),  # water
        (0.40, 0.40, 0.20),  # crop: see CROP_COLOURS
        (0.34, 0.44, 0.22),  # grass
        (0.09, 0.22, 0.10),  # forest
        (0.55, 0.50, 0.48),  # building: see ROOF_COLOURS
        (0.43, 0.43, 0.44),  # road
    ],
    np.float32,
)
"""Display reflectance (red, green, blue) per class, chosen by eye."""

CROP_COLOURS = np.array(
    [(0.22, 0.47, 0.13), (0.68, 0.60, 0.30), (0.45, 0.33, 0.23), (0.60, 0.62, 0.16)], np.float32
)
ROOF_COLOURS = np.array([(0.60, 0.30, 0.23), (0.56, 0.57, 0.61), (0.84, 0.82, 0.78)], np.float32)

_TONE = np.array([0.0, 0.16, 0.14, 0.15, 0.15, 0.10], np.float32)
_GRAIN = np.array([0.006, 0.020, 0.030, 0.045, 0.030, 0.015], np.float32)
_FURROW = 0.035
_CLOUD_SHARE = 0.35
_HAZE_COLOUR = np.array([0.70, 0.74, 0.80], np.float32)
_CLOUD_COLOUR = np.array([0.95, 0.96, 0.98], np.float32)


class Optics:
    """One exposure over a landscape: what light and air were like."""

    def __init__(self, rng: np.random.Generator, *, rows: int, cols: int, clouds: bool = True) -> None:
        """Draw the conditions; `clouds` lets some exposures have them."""
        self._gain = (rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
        self._tint = rng.normal(0, 0.012, (6, 3)).astype(np.float32)
        self._murk = np.float32(rng.uniform(0, 0.35))
        self._haze = float(rng.choice([0.02, 0.08, 0.16, 0.28], p=[0.35, 0.35, 0.2, 0.1]))
        self._veil = SmoothNoise(rng, rows=rows, cols=cols, spacing_px=128)
        self._cloud = SmoothNoise(rng, rows=rows, cols=cols, spacing_px=64, octaves=4)
        cloudy = rng.random() < _CLOUD_SHARE
        level = rng.uniform(1.0, 1.6)
        self._cloud_level = level if cloudy and clouds else None
        angle = rng.uniform(0, 2 * np.pi)
        self._sun = np.array([np.sin(angle), np.cos(angle)])

    def image(self, ground: Ground, window: Window, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Expose a window; uint8 (3, rows, cols). `rng` draws texture and sensor noise."""
        light = self._surface(ground, rng)
        light[self._shaded(ground.height_px)] *= np.float32(0.5)
        light *= self._gain
        haze = np.clip(self._haze * (1 + 0.5 * self._veil(window)), 0, 0.6)[..., None]
        light += haze * (_HAZE_COLOUR - light)
        if self._cloud_level is not None:
            self._overcast(light, window, self._cloud_level)
        light += 0.008 * rng.standard_normal(window.shape, np.float32)[..., None]
        counts = np.rint(np.clip(light, 0, 1) * np.float32(255)).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(counts, -1, 0))

    def _surface(self, ground: Ground, rng: np.random.Generator) -> Array:
        """Reflectance of the ground, float32 (rows, cols, 3)."""
        label, kind = ground.label, ground.kind
        table = COLOURS + self._tint
        table[0] += self._murk * (np.array([0.20, 0.17, 0.05], np.float32))  # silt
        varieties = np.repeat(table[:, None], max(CROP_KINDS, ROOF_KINDS), axis=1)
        varieties[CROP] = CROP_COLOURS + self._tint[CROP]
        varieties[BUILDING, :ROOF_KINDS] = ROOF_COLOURS + self._tint[BUILDING]
        light = varieties[label, kind]
        grain = rng.standard_normal(label.shape, np.float32)
        # Crowns and tufts are wider than a pixel: half of the texture is smoothed noise.
        grain = 0.6 * grain + 1.9 * cv2.GaussianBlur(grain, (5, 5), 1.0)
        brightness = 1 + _TONE[label] * ground.tone + np.float32(_FURROW) * ground.furrow * 2
        light *= brightness[..., None]
        light += (_GRAIN[label] * grain)[..., None]
        return light

    def _shaded(self, height_px: Array) -> Array:
        """Open ground that a building shades, bool; shadows are as long as buildings are high."""
        shaded = np.zeros(height_px.shape, bool)
        if not height_px.any():
            return shaded
        for step in range(1, int(height_px.max()) + 1):
            dy, dx = (int(value) for value in np.rint(step * self._sun))
            shifted = np.roll(height_px, (dy, dx), axis=(0, 1))  # what wraps stays within the margin
            shaded |= shifted >= step
        return shaded & (height_px == 0)

    def _overcast(self, light: Array, window: Window, level: float) -> None:
        """Lay shadows, then clouds, over the light."""
        dy, dx = (int(value) for value in np.rint(34 * self._sun))
        moved = Window(window.row0 - dy, window.row1 - dy, window.col0 - dx, window.col1 - dx)
        light *= 1 - np.float32(0.5) * _cover(self._cloud(moved), level)[..., None]
        cover = np.float32(0.97) * _cover(self._cloud(window), level)[..., None]
        light += cover * (_CLOUD_COLOUR - light)


def _cover(noise: Array, level: float) -> Array:
    """Opacity, 0 to 1, with a soft edge just above the level."""
    share = np.clip((noise - np.float32(level)) / np.float32(0.35), 0, 1)
    return share * share * (3 - 2 * share)
