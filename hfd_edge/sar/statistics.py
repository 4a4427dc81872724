"""What a frame looks like in a few numbers, to tell whether a network still sees what it was trained on.

The float64 definition; `kernels/stats.cu` computes the same on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.radiometry import to_intensity, valid_mask

Array = NDArray[Any]

BINS = 128
"""Bins of equal width between the clip limits of a band."""
BLOCK_PX = 8
"""Side of the blocks whose moments give the number of looks."""
LOG_ENL_LIMITS = (-1.0, 3.0)
"""log10 of the looks that are told apart: below is a block with one bright point, above a constant one."""


@dataclass(frozen=True)
class FrameStatistics:
    """A frame in a few numbers.

    Attributes:
        histogram: Valid pixels after the speckle filter by band and bin of equal width between the clip
            limits, int64 (bands, `BINS`); what is clipped counts in the outer bins.
        mean: Mean of these clipped values by band, in the units of `clip`; NaN without a valid pixel.
        variance: Their variance (n - 1) by band; NaN with fewer than two valid pixels.
        log_enl: log10 of the number of looks before the filter by band, within `LOG_ENL_LIMITS`; NaN where
            no block has an estimate. See `block_log_enl`.
    """

    histogram: NDArray[np.int64]
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    log_enl: tuple[float, ...]

    @property
    def valid(self) -> int:
        """Number of valid pixels; a pixel is valid in all bands or in none."""
        return int(self.histogram[0].sum())


def frame_statistics(image: Array, preprocessing: Preprocessing) -> FrameStatistics:
    """Describe a frame.

    Args:
        image: Stored pixels (bands, rows, cols) in the units of `preprocessing`.
        preprocessing: What the network's input goes through.
    Raises:
        RadiometryError: the pixels are not in those units, or the band count differs.
    """
    values = preprocessing.values(image).astype(np.float64)
    seen = np.isfinite(values[0])
    histogram = np.zeros((preprocessing.bands, BINS), np.int64)
    mean, variance = [], []
    for counts, band, (low, high) in zip(histogram, values, preprocessing.clip, strict=True):
        clipped = np.clip(band[seen], low, high)
        counts += np.histogram(clipped, BINS, (low, high))[0]
        mean.append(float(clipped.mean()) if clipped.size else math.nan)
        variance.append(float(clipped.var(ddof=1)) if clipped.size > 1 else math.nan)
    log_enl = np.clip(block_log_enl(linear_power(image, preprocessing)), *LOG_ENL_LIMITS)
    return FrameStatistics(histogram, tuple(mean), tuple(variance), tuple(map(float, log_enl)))


def linear_power(image: Array, preprocessing: Preprocessing) -> Array:
    """Linear power (bands, rows, cols) before any filter, NaN at no-data; "stretched" values as they are."""
    if preprocessing.units == "stretched":
        valid = valid_mask(image, units=preprocessing.units, nodata=preprocessing.nodata)
        return np.where(valid, image.astype(np.float32), np.float32(np.nan))
    return to_intensity(image, units=preprocessing.units, nodata=preprocessing.nodata)


def block_log_enl(power: Array) -> NDArray[np.float64]:
    """Median over blocks of 8 x 8 pixels of log10(mean^2 / variance), which is their number of looks.

    Most blocks of a SAR image are homogeneous, so the median is near the looks of the product; texture
    lowers it. For "stretched" products the same figure of the stored values still tells smooth from grainy
    images, though it is no number of looks.

    Args:
        power: Linear power (bands, rows, cols); NaN marks no-data. Blocks with no-data are left out.
    Returns:
        log10 of the looks (bands); NaN without a whole block of varying pixels.
    Source: Oliver & Quegan, Understanding Synthetic Aperture Radar Images (ENL of a homogeneous area).
    """
    bands, rows, cols = power.shape
    high, wide = rows // BLOCK_PX, cols // BLOCK_PX
    whole = power[:, : high * BLOCK_PX, : wide * BLOCK_PX]
    blocks = whole.reshape(bands, high, BLOCK_PX, wide, BLOCK_PX)
    mean = blocks.mean((2, 4), dtype=np.float64).reshape(bands, -1)
    variance = blocks.var((2, 4), dtype=np.float64, ddof=1).reshape(bands, -1)
    result = np.full(bands, np.nan)
    for band, (centre, spread) in enumerate(zip(mean, variance, strict=True)):
        usable = (centre > 0) & (spread > 0)  # NaN is neither
        if usable.any():
            result[band] = np.median(np.log10(centre[usable] ** 2 / spread[usable]))
    return result
