"""Random crops, mirrors and brightness for training pairs, in NumPy and from one generator.

The same generator state gives the same result, which makes a resumed training bit-exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Flip = Literal["none", "vertical", "both"]


@dataclass(frozen=True)
class Sample:
    """One co-registered training tile.

    Attributes:
        sar: float32 (bands, rows, cols), standardised; 0 in every band at no-data.
        eo: float32 (bands, rows, cols), standardised, or None; with two dates the bands of the later one
            first, then those of the earlier one.
        label: uint8 (rows, cols).
        eo_dates: EO images in `eo`.
    """

    sar: Array
    eo: Array | None
    label: Array
    eo_dates: int = 1


def augment(
    sample: Sample,
    *,
    rng: np.random.Generator,
    crop_px: int,
    flip: Flip,
    eo_jitter: float,
    sar_gain: Sequence[float],
    ignore_index: int = 255,
) -> Sample:
    """Crop, mirror and brighten one tile; SAR, EO and label stay aligned.

    There is no rotation: layover and shadow point along the range axis, and 'vertical' keeps that axis
    (columns) while 'both' does not.

    Args:
        sample: Tile of any size.
        rng: Source of every random choice; each call draws equally often whatever the options are.
        crop_px: Side of the square result. Smaller tiles are padded at the bottom and the right: images
            with 0 (their mean, or no-data), labels with `ignore_index`.
        flip: Axes that may be mirrored, each with probability one half.
        eo_jitter: Contrast is scaled by 1 +- this and brightness shifted by +- this many standard
            deviations of the data set; all dates alike, so that what did not change still does not.
        sar_gain: Largest gain per SAR band in standardised units (dB over the band's standard
            deviation). One factor is drawn for all bands; no-data stays 0.
        ignore_index: Label of the padding.
    Returns:
        A new sample with contiguous arrays; the input is not changed.
    Raises:
        ValueError: sizes differ, or `sar_gain` does not fit the bands.
    """
    _check(sample, sar_gain)
    row_draw, col_draw, up, left, contrast, shift, gain = rng.random(7)
    rows, cols = sample.label.shape
    row0 = int(row_draw * (max(rows - crop_px, 0) + 1))
    col0 = int(col_draw * (max(cols - crop_px, 0) + 1))
    window = (slice(row0, row0 + crop_px), slice(col0, col0 + crop_px))
    mirror = (flip != "none" and up < 0.5, flip == "both" and left < 0.5)

    gains = np.asarray(sar_gain, np.float32) * np.float32(2 * gain - 1)
    sar = _cut(_gain(sample.sar[:, window[0], window[1]], gains), crop_px, mirror, fill=0)
    eo = None
    if sample.eo is not None:
        eo_window = sample.eo[:, window[0], window[1]]
        amounts = eo_jitter * (2 * contrast - 1), eo_jitter * (2 * shift - 1)
        jittered = _jitter(eo_window, *amounts, dates=sample.eo_dates)
        eo = _cut(jittered, crop_px, mirror, fill=0)
    label = _cut(sample.label[window], crop_px, mirror, fill=ignore_index)
    return replace(sample, sar=sar, eo=eo, label=label)


def _check(sample: Sample, sar_gain: Sequence[float]) -> None:
    shapes = {sample.sar.shape[1:], sample.label.shape}
    if sample.eo is not None:
        shapes.add(sample.eo.shape[1:])
    if len(shapes) != 1:
        raise ValueError(f"SAR, EO and label differ in size: {sorted(shapes)}")
    if len(sar_gain) != sample.sar.shape[0]:
        raise ValueError(f"sar_gain has {len(sar_gain)} values for {sample.sar.shape[0]} SAR bands")


def _gain(sar: Array, gains: Array) -> Array:
    """Add a gain (standardised dB) to the valid pixels."""
    if not gains.any():
        return sar
    valid = (sar != 0).any(axis=0)
    return sar + gains[:, None, None] * valid


def _jitter(eo: Array, contrast: float, shift: float, *, dates: int) -> Array:
    """Scale the contrast about each band's mean, the first date's for all, and shift the brightness."""
    if contrast == 0 and shift == 0:
        return eo
    mean = eo[: len(eo) // dates].mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    mean = np.tile(mean, (dates, 1, 1))
    return (eo - mean) * np.float32(1 + contrast) + mean + np.float32(shift)


def _cut(image: Array, crop_px: int, mirror: tuple[bool, bool], *, fill: int) -> Array:
    """Pad to the crop size, mirror, and copy into a contiguous array."""
    out = np.full((*image.shape[:-2], crop_px, crop_px), fill, image.dtype)
    out[..., : image.shape[-2], : image.shape[-1]] = image
    row_step, col_step = (-1 if on else 1 for on in mirror)
    return np.ascontiguousarray(out[..., ::row_step, ::col_step])
