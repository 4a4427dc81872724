"""How far optical images lie from their SAR images, estimated from the images alone.

Brightness of the two sensors has little in common, but edges of fields, shores and roads lie at the same
places. So gradient magnitudes are compared, by phase correlation in windows. Many windows show nothing that
both sensors see, and give a shift all the same; what chance gives is measured by correlating each SAR image
with the optical image of another pair, and only windows whose peak is higher than nearly all of those count.

On simulated pairs the estimate is off by up to half a pixel along the range: layover and shadow move edges
of SAR, and not of optical images.

Source: Kuglin and Hines (1975), The Phase Correlation Image Alignment Method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WINDOW_PX = 128
SMALLEST_PX = 48
"""Windows with a shorter side say nothing."""
CHANCE = 0.02
"""Share of windows of unrelated pairs whose peak is as high as what counts."""
LEAST_WINDOWS = 5
"""Fewer windows that count give no estimate."""
_LEAST_EXCESS = 3.0  # times more windows must count than chance alone gives
_BLUR_PX = 2.0  # speckle has no edges; structure of a few pixels has
_LEAST_VALID = 0.9
_LONGEST_SHARE = 0.25  # of the window: beyond, the Hanning window leaves too little in common


@dataclass(frozen=True)
class Peak:
    """Where two windows agree best.

    Attributes:
        cols: Pixels by which the second image lies to the right of the first.
        rows: Pixels by which it lies below.
        response: Height of the peak, 0 to 1.
    """

    cols: float
    rows: float
    response: float


@dataclass(frozen=True)
class Misregistration:
    """Shift of the optical against the SAR images of a split.

    Attributes:
        windows: Windows compared.
        peaks: Those that count.
        cols: Median shift to the right, pixels; None where too few windows count.
        rows: Median shift down, pixels.
        spread: Median distance of these shifts from their median, pixels.
    """

    windows: int
    peaks: tuple[Peak, ...]
    cols: float | None = None
    rows: float | None = None
    spread: float | None = None


def edges(values: Array) -> NDArray[np.float32]:
    """Gradient magnitude of an image's mean band, smoothed; NaN where the image is.

    Args:
        values: (bands, rows, cols): decibels, stretched or optical values; NaN marks no-data.
    Returns:
        (rows, cols).
    """
    valid = np.isfinite(values).all(0)
    if not valid.any():
        return np.full(valid.shape, np.nan, np.float32)
    grey = np.where(valid, values, 0).mean(0, dtype=np.float32)
    filled = np.where(valid, grey, np.median(grey[valid])).astype(np.float32)
    smooth = cv2.GaussianBlur(filled, (0, 0), _BLUR_PX)
    magnitude = cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    # The rim of no-data is an edge of one sensor alone.
    inner = cv2.erode(valid.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    return np.where(inner, magnitude, np.float32(np.nan))


def compare(first: Array, second: Array) -> list[Peak]:
    """Shifts between two edge maps (rows, cols), one for each window that holds enough.

    Raises:
        ValueError: the maps differ in size.
    """
    if first.shape != second.shape:
        raise ValueError(f"edge maps {first.shape} and {second.shape} differ in size")
    peaks = []
    for rows in _windows(first.shape[0]):
        for cols in _windows(first.shape[1]):
            one, two = _prepared(first[rows, cols]), _prepared(second[rows, cols])
            if one is None or two is None:
                continue
            hanning = cv2.createHanningWindow((one.shape[1], one.shape[0]), cv2.CV_32F)
            (x, y), response = cv2.phaseCorrelate(one, two, hanning)
            peaks.append(Peak(float(x), float(y), float(response)))
    return peaks


def summarise(
    peaks: Sequence[Peak], by_chance: Sequence[Peak], *, window_px: int = WINDOW_PX
) -> Misregistration:
    """Median and spread of the shifts that are more than chance.

    Args:
        peaks: Of pairs.
        by_chance: Of SAR images against optical images of other pairs; without any nothing can be said.
        window_px: Side of the windows; longer shifts than a quarter of it do not count.
    """
    if not peaks or not by_chance:
        return Misregistration(len(peaks), ())
    level = float(np.quantile([peak.response for peak in by_chance], 1 - CHANCE))
    longest = _LONGEST_SHARE * window_px
    sure = tuple(
        peak for peak in peaks if peak.response > level and max(abs(peak.cols), abs(peak.rows)) <= longest
    )
    if len(sure) < max(LEAST_WINDOWS, _LEAST_EXCESS * CHANCE * len(peaks)):
        return Misregistration(len(peaks), sure)
    shifts = np.array([(peak.cols, peak.rows) for peak in sure])
    cols, rows = np.median(shifts, axis=0)
    spread = np.median(np.hypot(shifts[:, 0] - cols, shifts[:, 1] - rows))
    return Misregistration(len(peaks), sure, float(cols), float(rows), float(spread))


def _windows(size: int) -> list[slice]:
    """Windows of `WINDOW_PX`, evenly spaced; a shorter side is one, down to `SMALLEST_PX`."""
    if size < SMALLEST_PX:
        return []
    count = max(1, round(size / WINDOW_PX))
    side = min(size, WINDOW_PX)
    starts = np.linspace(0, size - side, count).round().astype(int)
    return [slice(int(start), int(start) + side) for start in starts]


def _prepared(window: Array) -> NDArray[np.float32] | None:
    """Zero mean and unit deviation; None where there is too little to compare."""
    valid = np.isfinite(window)
    if valid.mean() < _LEAST_VALID:
        return None
    known = window[valid]
    mean, deviation = float(known.mean()), float(known.std())
    if deviation == 0:
        return None
    return ((np.where(valid, window, mean) - mean) / deviation).astype(np.float32)
