"""The float64 definition of every speckle filter: the reference that fast paths are measured against.

Written to be read next to the formulas, not to be fast; `hfd_edge.sar.fast` is the path for real scenes.

All filters take linear intensity (bands, rows, cols) and treat bands alone. Every non-finite value is
no-data: left out of windows, and NaN in the result. Borders replicate. Window statistics over the n valid
pixels: m = mean, v = sum (I - m)^2 / (n - 1) (0 for n = 1), Ci^2 = v / m^2, Cu^2 = 1 / L (L = looks). Where
m = 0 or v = 0 the window is constant and the result is m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hfd_edge.errors import RadiometryError
from hfd_edge.sar.radiometry import check_looks

Array = NDArray[Any]
Offsets = tuple[tuple[int, int], ...]

REFINED_LEE_WINDOW_PX = 7
FROST_DAMPING = 2.0

_SUBWINDOW_CENTRES = (-2, 0, 2)


class _Moments(NamedTuple):
    valid: Array
    mean: Array
    variance: Array


def boxcar(intensity: Array, *, window_px: int) -> Array:
    """Average each window.

    Args:
        intensity: Backscatter (bands, rows, cols), linear power, not dB; NaN marks no-data.
        window_px: Odd side of the square window, pixels. Borders replicate.
    Returns:
        Filtered intensity, float64, same shape and units; NaN where the input is not finite.
    Raises:
        RadiometryError: intensity holds negative values (it is probably in dB), or an option is out of
            range.
    """
    return despeckle(intensity, filter="boxcar", window_px=window_px, looks=1.0)


def lee(intensity: Array, *, window_px: int, looks: float) -> Array:
    """Filter speckle with Lee's local-statistics estimator.

    W = 1 - Cu^2 / Ci^2 where Ci^2 > Cu^2, else 0; result m + W (I - m).

    Args:
        intensity: As `boxcar`.
        window_px: As `boxcar`.
        looks: Equivalent number of looks; 1 for single-look.
    Returns:
        As `boxcar`.
    Raises:
        RadiometryError: as `boxcar`.
    Source: Lee (1980), eqs. 8-13.
    """
    return despeckle(intensity, filter="lee", window_px=window_px, looks=looks)


def kuan(intensity: Array, *, window_px: int, looks: float) -> Array:
    """Filter speckle with Kuan's estimator: Lee's with the weight W / (1 + Cu^2).

    Args, Returns, Raises: as `lee`.
    Source: Kuan, Sawchuk, Strand & Chavel (1985).
    """
    return despeckle(intensity, filter="kuan", window_px=window_px, looks=looks)


def frost(intensity: Array, *, window_px: int) -> Array:
    """Filter speckle with Frost's adaptive exponential kernel.

    Weights exp(-K Ci^2 d), d the Euclidean distance to the centre in pixels, K = 2; the centre's Ci^2
    serves the whole window.

    Args, Returns, Raises: as `boxcar`.
    Source: Frost, Stiles, Shanmugan & Holtzman (1982).
    """
    return despeckle(intensity, filter="frost", window_px=window_px, looks=1.0)


def gamma_map(intensity: Array, *, window_px: int, looks: float) -> Array:
    """Filter speckle with the maximum a posteriori estimate under a gamma-distributed scene.

    m where Ci <= Cu; I where Ci >= sqrt(2) Cu; between, with alpha = (1 + Cu^2) / (Ci^2 - Cu^2) and
    b = alpha - L - 1: (b m + sqrt(b^2 m^2 + 4 alpha L m I)) / (2 alpha).

    Args, Returns, Raises: as `lee`.
    Source: Lopes, Nezry, Touzi & Laur (1990).
    """
    return despeckle(intensity, filter="gamma_map", window_px=window_px, looks=looks)


def refined_lee(intensity: Array) -> Array:
    """Filter speckle inside the half of a 7 x 7 window that lies on the pixel's side of an edge.

    Nine 3 x 3 means at stride 2 give four gradients (columns, rows, two diagonals). The largest in
    magnitude, the first of equals, says where the edge runs; of the two half windows along it (28 pixels,
    with the centre line) the one whose sub-window mean is closer to the centre's is kept. Noise Cu^2 is the
    mean of the five smallest sub-window v / m^2; then Kuan's estimator on the half window. So it needs no
    number of looks.

    A sub-window without a valid pixel makes no gradient and is never the closer one; one with fewer than
    two is left out of the noise estimate.

    Args, Returns, Raises: as `boxcar`; the window is always 7 x 7.
    Source: Lee (1981); the sub-window rules are those published for ESA SNAP's "Refined Lee".
    """
    return despeckle(intensity, filter="refined_lee", window_px=REFINED_LEE_WINDOW_PX, looks=1.0)


def despeckle(
    intensity: Array,
    *,
    filter: str,
    window_px: int,
    looks: float,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Run a filter by name; same options as `hfd_edge.sar.fast.despeckle`.

    Args:
        intensity: As `boxcar`.
        filter: Name in `FILTERS`.
        window_px: As `boxcar`; 7 for "refined_lee".
        looks: Equivalent number of looks; not used by "boxcar", "frost" and "refined_lee".
        dtype: float64, or float32 to learn what plain single precision costs: the yardstick for the
            tolerance of faster paths.
    Returns:
        As `boxcar`, in `dtype`.
    Raises:
        RadiometryError: as `boxcar`, or there is no such filter.
    """
    check_options(filter, window_px=window_px, looks=looks)
    values = checked_intensity(intensity).astype(dtype)
    values[~np.isfinite(values)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        result = _FORMULAS[filter](values, window_px // 2, looks)
    result[np.isnan(values)] = np.nan
    return np.asarray(result, dtype)


def check_options(filter: str, *, window_px: int, looks: float) -> None:
    """Refuse options that no filter can run with. Raises RadiometryError."""
    if filter not in FILTERS:
        raise RadiometryError(f'There is no speckle filter "{filter}". Choose one of {", ".join(FILTERS)}.')
    if window_px < 3 or window_px % 2 == 0:
        raise RadiometryError(f"window_px is {window_px}, but must be odd and at least 3.")
    if filter == "refined_lee" and window_px != REFINED_LEE_WINDOW_PX:
        raise RadiometryError(
            f"window_px is {window_px}, but refined_lee is defined on {REFINED_LEE_WINDOW_PX} x "
            f"{REFINED_LEE_WINDOW_PX} pixels. Set window_px = {REFINED_LEE_WINDOW_PX}."
        )
    check_looks(looks)


def checked_intensity(intensity: Array) -> Array:
    """Refuse what is not linear intensity (bands, rows, cols). Raises RadiometryError."""
    values = np.asarray(intensity)
    if values.ndim != 3 or values.size == 0:
        raise RadiometryError(
            f"Intensity has shape {values.shape}, but (bands, rows, cols) with at least one pixel was "
            "expected."
        )
    if values.dtype.kind not in "uif":
        raise RadiometryError(
            f"Intensity is {values.dtype}, but real linear power was expected. "
            "Convert complex samples with hfd_edge.sar.complex_to_intensity."
        )
    if values.dtype.kind != "u" and (lowest := np.fmin.reduce(values, axis=None)) < 0:
        raise RadiometryError(
            f"Intensity holds negative values (lowest {float(lowest):.6g}), but linear power is never "
            "negative: it is probably in dB. Convert it with hfd_edge.sar.db_to_intensity, and set no-data "
            "pixels to NaN."
        )
    return values


def _boxcar(intensity: Array, radius: int, looks: float) -> Array:
    return _box_moments(intensity, radius).mean


def _lee(intensity: Array, radius: int, looks: float) -> Array:
    window = _box_moments(intensity, radius)
    return _shrink(intensity, window, _weight(window, 1.0 / looks))


def _kuan(intensity: Array, radius: int, looks: float) -> Array:
    window = _box_moments(intensity, radius)
    return _shrink(intensity, window, _weight(window, 1.0 / looks) / (1.0 + 1.0 / looks))


def _frost(intensity: Array, radius: int, looks: float) -> Array:
    ci2 = _ci2(_box_moments(intensity, radius))
    padded = _pad(intensity, radius)
    total, weights = np.zeros_like(intensity), np.zeros_like(intensity)
    for row, col in _box(radius):
        pixel = _shifted(padded, radius, row, col)
        weight = np.where(np.isnan(pixel), 0, np.exp(-FROST_DAMPING * ci2 * math.hypot(row, col)))
        total += weight * np.nan_to_num(pixel)
        weights += weight
    return np.asarray(total / weights)


def _gamma_map(intensity: Array, radius: int, looks: float) -> Array:
    window = _box_moments(intensity, radius)
    mean, ci2, cu2 = window.mean, _ci2(window), 1.0 / looks
    alpha = (1.0 + cu2) / (ci2 - cu2)
    b = alpha - looks - 1.0
    root = np.sqrt(np.square(b * mean) + 4.0 * alpha * looks * mean * intensity)
    result = np.where(ci2 >= 2.0 * cu2, intensity, (b * mean + root) / (2.0 * alpha))
    return np.where(ci2 <= cu2, mean, result)


def _refined_lee(intensity: Array, radius: int, looks: float) -> Array:
    padded = _pad(intensity, radius)
    subwindows = [
        [_moments(padded, radius, _moved(_box(1), row, col)) for col in _SUBWINDOW_CENTRES]
        for row in _SUBWINDOW_CENTRES
    ]
    means = np.array([[window.mean for window in row] for row in subwindows])
    side = _edge_side(means)
    half = _Moments(*(np.zeros_like(intensity) for _ in range(3)))
    for index, offsets in enumerate(_half_windows(radius)):
        for chosen, candidate in zip(half, _moments(padded, radius, offsets), strict=True):
            np.copyto(chosen, candidate, where=side == index, casting="same_kind")
    cu2 = _local_noise(np.array([window for row in subwindows for window in row]))
    return _shrink(intensity, half, _weight(half, cu2) / (1.0 + cu2))


_FORMULAS: Mapping[str, Callable[[Array, int, float], Array]] = {
    "boxcar": _boxcar,
    "lee": _lee,
    "kuan": _kuan,
    "frost": _frost,
    "gamma_map": _gamma_map,
    "refined_lee": _refined_lee,
}

FILTERS: tuple[str, ...] = tuple(_FORMULAS)
"""Every filter by the name that recipes use; run them with `despeckle`."""


def _edge_side(means: Array) -> Array:
    """Index into `_half_windows` per pixel, from sub-window means (3, 3, bands, rows, cols)."""
    centre = means[1, 1]
    distance = np.where(np.isnan(means), np.inf, np.abs(means - centre))
    m = np.where(np.isnan(means), centre, means)
    gradients = np.abs(
        [
            (m[0, 0] + m[1, 0] + m[2, 0]) - (m[0, 2] + m[1, 2] + m[2, 2]),
            (m[0, 0] + m[0, 1] + m[0, 2]) - (m[2, 0] + m[2, 1] + m[2, 2]),
            (m[0, 0] + m[0, 1] + m[1, 0]) - (m[2, 2] + m[2, 1] + m[1, 2]),
            (m[0, 2] + m[0, 1] + m[1, 2]) - (m[2, 0] + m[2, 1] + m[1, 0]),
        ]
    )
    sides = (((1, 0), (1, 2)), ((0, 1), (2, 1)), ((0, 0), (2, 2)), ((0, 2), (2, 0)))
    second_closer = np.array([distance[second] < distance[first] for first, second in sides])
    return np.asarray(
        np.choose(np.argmax(gradients, axis=0), [2 * i + s for i, s in enumerate(second_closer)])
    )


def _half_windows(radius: int) -> tuple[Offsets, ...]:
    """Halves left, right, top, bottom, top left, bottom right, top right, bottom left; each with its edge."""
    box = _box(radius)
    return (
        tuple((row, col) for row, col in box if col <= 0),
        tuple((row, col) for row, col in box if col >= 0),
        tuple((row, col) for row, col in box if row <= 0),
        tuple((row, col) for row, col in box if row >= 0),
        tuple((row, col) for row, col in box if row + col <= 0),
        tuple((row, col) for row, col in box if row + col >= 0),
        tuple((row, col) for row, col in box if row <= col),
        tuple((row, col) for row, col in box if row >= col),
    )


def _local_noise(subwindows: Array) -> Array:
    """Mean of the five smallest Ci^2 of sub-windows (9, 3 moments, bands, rows, cols)."""
    usable = subwindows[:, 0] >= 2
    ci2 = np.sort(np.where(usable, _ci2(_Moments(*np.moveaxis(subwindows, 1, 0))), np.inf), axis=0)[:5]
    known = np.isfinite(ci2)
    return np.asarray(
        np.where(known, ci2, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1).astype(ci2.dtype)
    )


def _shrink(intensity: Array, window: _Moments, weight: Array) -> Array:
    return window.mean + weight * (intensity - window.mean)


def _weight(window: _Moments, cu2: Array | float) -> Array:
    """1 - Cu^2 / Ci^2 where Ci^2 > Cu^2, else 0."""
    ci2 = _ci2(window)
    return np.where(ci2 > cu2, 1.0 - cu2 / ci2, 0).astype(ci2.dtype)


def _ci2(window: _Moments) -> Array:
    return np.where(window.mean > 0, window.variance / np.square(window.mean), 0)


def _box_moments(intensity: Array, radius: int) -> _Moments:
    return _moments(_pad(intensity, radius), radius, _box(radius))


def _moments(padded: Array, radius: int, offsets: Iterable[tuple[int, int]]) -> _Moments:
    """Number, mean and unbiased variance of the valid pixels at `offsets` from each pixel; two passes."""
    views = [_shifted(padded, radius, row, col) for row, col in offsets]
    count, total = np.zeros_like(views[0]), np.zeros_like(views[0])
    for view in views:
        valid = ~np.isnan(view)
        count += valid
        total += np.where(valid, view, 0)
    mean = total / count
    squares = np.zeros_like(mean)
    for view in views:
        squares += np.where(np.isnan(view), 0, np.square(view - mean))
    return _Moments(count, mean, np.where(count > 1, squares / (count - 1), 0))


def _pad(intensity: Array, radius: int) -> Array:
    return np.pad(intensity, ((0, 0), (radius, radius), (radius, radius)), mode="edge")


def _shifted(padded: Array, radius: int, row: int, col: int) -> Array:
    rows, cols = padded.shape[1] - 2 * radius, padded.shape[2] - 2 * radius
    return padded[:, radius + row : radius + row + rows, radius + col : radius + col + cols]


def _box(radius: int) -> Offsets:
    side = range(-radius, radius + 1)
    return tuple((row, col) for row in side for col in side)


def _moved(offsets: Offsets, row: int, col: int) -> Offsets:
    return tuple((row + r, col + c) for r, c in offsets)
