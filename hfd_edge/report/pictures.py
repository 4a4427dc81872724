"""Colour pictures of SAR, EO and label arrays.

Every picture is uint8 RGB (3, rows, cols). Pixels without data, or without a label, are hatched: a flat
colour could be taken for a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Palette = Sequence[Sequence[int]]

PREDICTIONS = {
    "sar_only": "SAR only",
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8",
    "int8_fp16": "INT8+FP16",
}
"""Caption by variant, in the order in which predictions are shown."""

WRONG = (214, 40, 57)
AGREE = (184, 190, 196)
# Not blue, which is the colour of water in most palettes and stands beside these pictures.
BROKEN, CORRECTED, MOVED = WRONG, (0, 158, 115), (236, 170, 40)
"""Red, green and amber of `flip_picture`, of different lightness for people with colour-blindness."""
_HATCH_DARK, _HATCH_LIGHT = 26, 66
_HATCH_PERIOD_PX = 8
_STRETCH_SAMPLES = 1 << 20
_DARKEST_WHITE = 0.1


def sar_picture(values: Array, *, percentiles: tuple[float, float] = (2.0, 98.0)) -> Array:
    """Show SAR values as people in the field do.

    Two bands (VV, VH) become red = VV, green = VH, blue = VV - VH, which in dB is the ratio of the
    polarisations; one band is grey; of three and more the first three are red, green and blue. Each
    channel is stretched on its own, so colours compare within a picture, not between pictures.

    Args:
        values: Backscatter in dB, or stretched values, (bands, rows, cols); NaN marks no-data.
        percentiles: Share of valid pixels, in percent, that is shown black and white.
    Returns:
        RGB uint8 (3, rows, cols); pixels invalid in any band are hatched.
    Raises:
        ValueError: values are complex or have no (bands, rows, cols).
    """
    values = _bands(values, "SAR values")
    valid: Array = np.asarray(np.isfinite(values).all(0))
    channels = [values[0], values[1], values[0] - values[1]] if len(values) == 2 else list(values[:3])
    shown = [_stretch(channel, valid, percentiles) for channel in channels]
    return _hatched(np.stack(shown * 3 if len(shown) == 1 else shown), ~valid)


def eo_picture(values: Array) -> Array:
    """Show optical values, brightened alike in all bands so that dark products can be read.

    Zero is black and the 99.5th percentile of the valid values is white; hues are kept.

    Args:
        values: Reflectance-like values 0..1, (bands, rows, cols); the first three bands are red, green and
            blue, and one or two bands show the first as grey. NaN marks no-data.
    Returns:
        RGB uint8 (3, rows, cols); invalid pixels are hatched.
    Raises:
        ValueError: values are complex or have no (bands, rows, cols).
    """
    values = _bands(values, "EO values")
    invalid: Array = np.asarray(~np.isfinite(values).all(0))
    bands = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    known = bands[:, ~invalid].ravel()
    sample = known[:: max(1, known.size // _STRETCH_SAMPLES)]
    # A night scene or a black tile stays dark: noise is not blown up without limit.
    white = max(float(np.percentile(sample, 99.5)), _DARKEST_WHITE) if sample.size else 1.0
    scaled = np.clip(np.where(invalid, 0.0, bands) / white, 0.0, 1.0) * 255.0 + 0.5
    return _hatched(scaled.astype(np.uint8), invalid)


def label_picture(labels: Array, palette: Palette, *, void: int = 255) -> Array:
    """Show a label map in its palette.

    Args:
        labels: Class ids (rows, cols), integer; `void` marks pixels without a label, shown hatched.
        palette: One RGB colour per class.
        void: Label id of unknown or no-data pixels.
    Returns:
        RGB uint8 (3, rows, cols).
    Raises:
        ValueError: labels are not a map of integers, or hold an id that is neither class nor `void`.
    """
    labels = _label_map(labels)
    known = labels != void
    strange = labels[known & ((labels < 0) | (labels >= len(palette)))]
    if strange.size:
        raise ValueError(
            f"labels hold id {strange[0]}, but there are {len(palette)} colours and void is {void}"
        )
    colours = np.asarray(palette, np.uint8)
    return _hatched(np.moveaxis(colours[np.where(known, labels, 0)], -1, 0), ~known)


def difference_picture(first: Array, second: Array, *, void: int = 255) -> Array:
    """Show where two label maps disagree: red there, grey where they agree.

    Args:
        first: Class ids (rows, cols).
        second: Class ids, same shape.
        void: Pixels with this id in either map are hatched.
    Returns:
        RGB uint8 (3, rows, cols).
    Raises:
        ValueError: the shapes differ, or the arrays are not maps of integers.
    """
    first, second = _label_map(first), _label_map(second)
    if first.shape != second.shape:
        raise ValueError(f"label maps {first.shape} and {second.shape} differ in shape")
    picture = np.where(first != second, _colour(WRONG), _colour(AGREE))
    return _hatched(picture, (first == void) | (second == void))


def flip_picture(labels: Array, reference: Array, truth: Array, *, void: int = 255) -> Array:
    """Show where a label map differs from a reference's, and who is right there.

    Red: the reference is right and `labels` wrong. Green: the other way round. Amber: both are wrong, or the
    truth is not known. Grey: they agree, right or wrong.

    Args:
        labels: Class ids (rows, cols).
        reference: Class ids, same shape.
        truth: Class ids, same shape; `void` where unknown.
        void: Pixels with this id in both label maps are hatched: no data.
    Returns:
        RGB uint8 (3, rows, cols).
    Raises:
        ValueError: the shapes differ, or the arrays are not maps of integers.
    """
    labels, reference, truth = _label_map(labels), _label_map(reference), _label_map(truth)
    if not labels.shape == reference.shape == truth.shape:
        raise ValueError(f"label maps {labels.shape}, {reference.shape} and {truth.shape} differ in shape")
    differs, known = labels != reference, truth != void
    picture = np.where(differs, _colour(MOVED), _colour(AGREE))
    picture = np.where(differs & known & (labels == truth), _colour(CORRECTED), picture)
    picture = np.where(differs & known & (reference == truth), _colour(BROKEN), picture)
    return _hatched(picture, (labels == void) & (reference == void))


def shrink_values(values: Array, *, side_px: int) -> Array:
    """Average float values down until the longer side is at most `side_px`, leaving no-data out.

    Args:
        values: (bands, rows, cols), NaN marks no-data. Smaller arrays come back as they are.
        side_px: Longest side of the result.
    Returns:
        float32 (bands, rows, cols); a pixel is NaN where at most half of what it covers is valid.
    """
    rows, cols = _fit(values.shape[1], values.shape[2], side_px)
    if (rows, cols) == values.shape[1:]:
        return values
    shrunk = np.empty((len(values), rows, cols), np.float32)
    for band, target in zip(values, shrunk, strict=True):
        valid = np.isfinite(band)
        share = cv2.resize(valid.astype(np.float32), (cols, rows), interpolation=cv2.INTER_AREA)
        filled = np.where(valid, band, 0).astype(np.float32)
        total = cv2.resize(filled, (cols, rows), interpolation=cv2.INTER_AREA)
        # Demanding fully valid blocks would widen every no-data border by a pixel.
        np.divide(total, share, out=target, where=share > 0.5)
        target[share <= 0.5] = np.nan
    return shrunk


def shrink_labels(labels: Array, *, side_px: int) -> Array:
    """Pick labels on a regular grid until the longer side is at most `side_px`.

    Reads only the pixels it returns, so a memory-mapped mask of any size is fine. Labels are never mixed:
    the result holds ids of the input and no others.

    Args:
        labels: Class ids (rows, cols). Smaller maps come back as they are.
        side_px: Longest side of the result.
    """
    rows, cols = _fit(labels.shape[0], labels.shape[1], side_px)
    if (rows, cols) == labels.shape:
        return labels
    # Centres of the blocks that each result pixel stands for.
    at_rows = ((np.arange(rows) + 0.5) * labels.shape[0] / rows).astype(np.intp)
    at_cols = ((np.arange(cols) + 0.5) * labels.shape[1] / cols).astype(np.intp)
    return np.ascontiguousarray(labels[np.ix_(at_rows, at_cols)])


def png_bytes(picture: Array) -> bytes:
    """Encode a picture, uint8 RGB (3, rows, cols), as PNG.

    Raises:
        ValueError: the array is not uint8 (3, rows, cols), or has no pixels.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or len(picture) != 3 or not picture.size:
        raise ValueError(f"a picture is uint8 (3, rows, cols), but this is {picture.dtype} {picture.shape}")
    bgr = np.ascontiguousarray(np.moveaxis(picture[::-1], 0, -1))
    encoded, buffer = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not encoded:
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[2]} pixels cannot be a PNG")
    return bytes(buffer)


@dataclass(frozen=True)
class TilePictures:
    """One tile as a row of pictures; make it with `tile_pictures`.

    Attributes:
        name: Name of the tile.
        sar: SAR, RGB uint8 (3, rows, cols).
        eo: Optical image, RGB; None when the pair has none.
        truth: Reference labels, RGB; None when there are none.
        predictions: RGB by variant (keys of `PREDICTIONS`); None for a variant that was not built.
        errors: Where the last variant that was built is wrong, RGB; None without truth or variants.
        errors_of: The variant that `errors` is about.
        accuracy: Share of labelled pixels that are right, 0 to 1, by variant.
    """

    name: str
    sar: Array
    eo: Array | None
    truth: Array | None
    predictions: Mapping[str, Array | None]
    errors: Array | None = None
    errors_of: str | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)


def tile_pictures(
    name: str,
    *,
    sar: Array,
    eo: Array | None,
    truth: Array | None,
    predictions: Mapping[str, Array | None],
    palette: Palette,
    void: int = 255,
) -> TilePictures:
    """Draw everything that is known of one tile.

    Args:
        name: Name of the tile.
        sar: Values for `sar_picture`, (bands, rows, cols).
        eo: Values for `eo_picture`, or None.
        truth: Class ids (rows, cols), or None.
        predictions: Class ids (rows, cols) by variant (keys of `PREDICTIONS`); None or absent: not built.
        palette: One RGB colour per class.
        void: Label id of unknown pixels, left out of accuracy.
    Raises:
        ValueError: a shape does not fit, an id is out of range, or a variant is unknown.
    """
    if unknown := sorted(set(predictions) - set(PREDICTIONS)):
        raise ValueError(f"unknown variants {unknown}; expected some of {sorted(PREDICTIONS)}")
    built = {key: predictions[key] for key in PREDICTIONS if predictions.get(key) is not None}
    accuracy, errors, errors_of = {}, None, None
    for key, labels in built.items():
        if truth is not None and labels is not None:
            errors, errors_of = difference_picture(labels, truth, void=void), key
            if (known := truth != void).any():
                accuracy[key] = float(np.mean(labels[known] == truth[known]))
    return TilePictures(
        name=name,
        sar=sar_picture(sar),
        eo=None if eo is None else eo_picture(eo),
        truth=None if truth is None else label_picture(truth, palette, void=void),
        predictions={
            key: None if (labels := built.get(key)) is None else label_picture(labels, palette, void=void)
            for key in PREDICTIONS
        },
        errors=errors,
        errors_of=errors_of,
        accuracy=accuracy,
    )


def _bands(values: Array, what: str) -> Array:
    if values.ndim != 3 or not values.size:
        raise ValueError(f"{what} must be (bands, rows, cols), but the shape is {values.shape}")
    if np.iscomplexobj(values):
        raise ValueError(f"{what} are complex; show their dB, 10 log10 |value|^2")
    return values.astype(np.float32, copy=False)


def _label_map(labels: Array) -> Array:
    if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "ui":
        raise ValueError(
            f"a label map must be integers (rows, cols), but this is {labels.dtype} {labels.shape}"
        )
    return labels


def _stretch(channel: Array, valid: Array, percentiles: tuple[float, float]) -> Array:
    """Scale between two percentiles of the valid pixels to 0..255; a constant channel is mid-grey."""
    known = channel[valid]
    if not known.size:
        return np.zeros(channel.shape, np.uint8)
    # Percentiles sort; a regular sample of a million is as good as all pixels of a scene.
    low, high = np.percentile(known[:: max(1, known.size // _STRETCH_SAMPLES)], percentiles)
    if high <= low:
        return np.where(valid, 128, 0).astype(np.uint8)
    scaled = (np.where(valid, channel, low) - low) * (255.0 / (high - low)) + 0.5
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _hatched(picture: Array, where: Array) -> Array:
    rows, cols = where.shape
    stripes = np.add.outer(np.arange(rows), np.arange(cols)) % _HATCH_PERIOD_PX < 2
    hatch = np.where(stripes, _HATCH_LIGHT, _HATCH_DARK).astype(np.uint8)
    return np.where(where, hatch, picture)


def _colour(rgb: tuple[int, int, int]) -> Array:
    return np.array(rgb, np.uint8)[:, None, None]


def _fit(rows: int, cols: int, side_px: int) -> tuple[int, int]:
    """Largest size of the same shape whose longer side is at most `side_px`; never larger than it was."""
    if side_px < 1:
        raise ValueError(f"side_px is {side_px}, but must be at least 1")
    scale = min(1.0, side_px / max(rows, cols))
    return max(1, round(rows * scale)), max(1, round(cols * scale))
