"""Speckle filters for CPUs: float32 pixels, OpenCV sums, blocks that stay in cache.

Defined by `hfd_edge.sar.speckle`; only the arithmetic differs. Three choices carry the accuracy:

- Window sums are direct separable sums (`sepFilter2D`), not running sums (`boxFilter`), which carry the
  rounding of a bright target along the rest of its row and column. So every output pixel depends on its own
  window alone, bit for bit, whatever the blocks or tiles.
- Boxcar, Lee and Kuan add up in single precision. The variance, as mean square minus squared mean, then has
  an error of a few 1e-7 of the squared mean, wherever the bright targets stand. That is small against the
  variance of the speckle itself, 1 / looks, and both formulas are written so that nothing else amplifies it:
  I + k (m - I), k = Cu^2 / Ci^2, never cancels. Measured error: 2e-6 at 4 looks, below 1e-5 up to
  `_SINGLE_LOOKS`; beyond, they add up in double precision. Squares must fit the type: of powers outside
  1e-16 to 1e17 (-160 to 170 dB) windows may be taken for constant.
- The other filters add up in double precision: their formulas amplify the variance's error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.sar import speckle

Array = NDArray[Any]
Pixels = NDArray[np.float32]
Doubles = NDArray[np.float64]

_BLOCK_PX = (288, 576)
"""Rows and columns computed at a time: each array of sums is 1.3 MB at the most, near enough to the
processor, and the halo adds little to the work. A block of `Preprocessing` fits in with its halo."""

_SINGLE_LOOKS = 64.0
"""Looks up to which single-precision sums keep the result within 1e-5."""

_HALF_WINDOWS: tuple[tuple[tuple[int, int, int], ...], ...] = (
    tuple((row, 0, 4) for row in range(7)),
    tuple((row, 3, 4) for row in range(7)),
    tuple((row, 0, 7) for row in range(4)),
    tuple((row, 0, 7) for row in range(3, 7)),
    tuple((row, 0, 7 - row) for row in range(7)),
    tuple((row, 6 - row, row + 1) for row in range(7)),
    tuple((row, row, 7 - row) for row in range(7)),
    tuple((row, 0, row + 1) for row in range(7)),
)
"""The 28 pixels of each half of a 7 x 7 window as runs (row, first col, length): left, right, top, bottom,
top left, bottom right, top right, bottom left."""


class _Block(NamedTuple):
    """Pixels of one band, 0 where invalid; `valid` is None when every pixel is valid."""

    power: Pixels
    valid: NDArray[np.bool_] | None


class _Moments(NamedTuple):
    mean: Doubles
    variance: Doubles


_Formula = Callable[[_Block, int, float], Array]


def despeckle(intensity: Array, *, filter: str, window_px: int, looks: float) -> Pixels:
    """Run a speckle filter at the speed that scenes need.

    Args:
        intensity: Backscatter (bands, rows, cols), linear power, not dB. Every non-finite value is
            no-data: left out of windows.
        filter: Name in `hfd_edge.sar.FILTERS`.
        window_px: Odd side of the square window, pixels; 7 for "refined_lee". Borders replicate.
        looks: Equivalent number of looks; not used by "boxcar", "frost" and "refined_lee".
    Returns:
        Filtered intensity, float32, same shape and units; NaN where the input is not finite. Working
        memory is some tens of MB, whatever the image.
    Raises:
        RadiometryError: intensity holds negative values (it is probably in dB), there is no such filter,
            or an option is out of range.
    """
    speckle.check_options(filter, window_px=window_px, looks=looks)
    values = speckle.checked_intensity(intensity)
    result = np.empty(values.shape, np.float32)
    for source, target in zip(values, result, strict=True):
        for top in range(0, source.shape[0], _BLOCK_PX[0]):
            for left in range(0, source.shape[1], _BLOCK_PX[1]):
                _filter_block(source, target, (top, left), _FILTERS[filter], window_px // 2, looks)
    return result


def _filter_block(
    source: Array, target: Pixels, corner: tuple[int, int], formula: _Formula, radius: int, looks: float
) -> None:
    """Filter one block of a band into its place in `target`."""
    spans = [
        (start, min(start + size, total), max(start - radius, 0))
        for start, size, total in zip(corner, _BLOCK_PX, source.shape, strict=True)
    ]
    block = _block(source[tuple(slice(before, stop + radius) for _, stop, before in spans)])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        filtered = formula(block, radius, looks)
    inside = tuple(slice(start - before, stop - before) for start, stop, before in spans)
    into = target[tuple(slice(start, stop) for start, stop, _ in spans)]
    into[...] = filtered[inside]
    if block.valid is not None:
        np.copyto(into, np.float32(np.nan), where=~block.valid[inside])


def _block(values: Array) -> _Block:
    with np.errstate(over="ignore"):
        power = np.ascontiguousarray(values, np.float32)
    valid = np.isfinite(power)
    if valid.all():
        return _Block(power, None)
    return _Block(np.where(valid, power, np.float32(0)), valid)


def _boxcar(block: _Block, radius: int, looks: float) -> Array:
    mean = _box_sum(block.power, radius, np.float32)
    mean /= _box_count(block, radius, np.float32)
    return mean


def _lee(block: _Block, radius: int, looks: float) -> Array:
    return _towards_mean(block, radius, 1.0 / looks, 1.0)


def _kuan(block: _Block, radius: int, looks: float) -> Array:
    return _towards_mean(block, radius, 1.0 / looks, 1.0 / (1.0 + 1.0 / looks))


def _towards_mean(block: _Block, radius: int, cu2: float, scale: float) -> Array:
    """I + (1 - scale (1 - k)) (m - I) with k = min(Cu^2 / Ci^2, 1), full windows; see the module."""
    kind = np.float32 if cu2 * _SINGLE_LOOKS >= 1.0 else np.float64
    power = block.power
    total = _box_sum(power, radius, kind)
    squares = _box_sum(np.multiply(power, power, dtype=kind), radius, kind)
    count = _box_count(block, radius, kind)
    mean = total / count
    total *= mean
    # n - 1 times the variance; rounding may leave less than nothing of a constant area, and no matter what.
    spread = cv2.absdiff(squares, total, dst=squares)
    total *= cu2 * (count - 1.0) / count
    total /= spread
    # 0 / 0, where every pixel is 0 or there is but one, counts as constant too.
    part = np.fmin(total, 1.0, out=total)
    if scale != 1.0:
        part *= scale
        part += 1.0 - scale
    mean -= power
    mean *= part
    mean += power
    return mean


def _gamma_map(block: _Block, radius: int, looks: float) -> Doubles:
    mean, variance = _box_moments(block, radius)
    ci2, cu2 = _ci2(mean, variance), 1.0 / looks
    alpha = (1.0 + cu2) / (ci2 - cu2)
    scaled = (alpha - looks - 1.0) * mean
    root = mean * block.power
    root *= alpha
    root *= 4.0 * looks
    root += scaled * scaled
    np.sqrt(root, out=root)
    root += scaled
    root /= alpha
    root *= 0.5
    np.copyto(root, block.power, where=ci2 >= 2.0 * cu2)
    np.copyto(root, mean, where=ci2 <= cu2)
    return root


def _frost(block: _Block, radius: int, looks: float) -> Doubles:
    mean, variance = _box_moments(block, radius)
    exponent = _ci2(mean, variance)
    exponent *= -speckle.FROST_DAMPING
    padded = _pad(block.power, radius)
    padded_valid = None if block.valid is None else _pad(block.valid.astype(np.float32), radius)
    total, weights = np.zeros_like(exponent), np.zeros_like(exponent)
    for distance, offsets in _rings(radius).items():
        weight = np.exp(exponent * distance)
        total += weight * _offset_sum(padded, offsets, exponent.shape)
        if padded_valid is None:
            weights += weight * len(offsets)
        else:
            weights += weight * _offset_sum(padded_valid, offsets, exponent.shape)
    total /= weights
    return total


def _refined_lee(block: _Block, radius: int, looks: float) -> Doubles:
    """See `speckle.refined_lee`; sums of half windows come from shared horizontal run sums."""
    power = _pad(block.power, radius).astype(np.float64)
    squares = np.square(power)
    count = None if block.valid is None else _pad(block.valid.astype(np.float64), radius)
    side, cu2 = _edge_and_noise(power, squares, count)
    mean = _half_sum(power, side)
    variance = _half_sum(squares, side)
    n: Doubles | float = 28.0 if count is None else _half_sum(count, side)
    half = _to_moments(mean, variance, n)
    return _shrink(block.power, half, cu2, 1.0 / (1.0 + cu2))


_FILTERS: Mapping[str, _Formula] = {
    "boxcar": _boxcar,
    "lee": _lee,
    "kuan": _kuan,
    "frost": _frost,
    "gamma_map": _gamma_map,
    "refined_lee": _refined_lee,
}


def _shrink(power: Pixels, window: _Moments, cu2: Doubles | float, scale: Doubles | float) -> Doubles:
    """m + scale * max(1 - Cu^2 / Ci^2, 0) * (I - m), in the memory of the moments."""
    mean, weight = window
    ratio = np.square(mean)
    ratio *= cu2
    np.divide(ratio, weight, out=weight)
    np.subtract(1.0, weight, out=weight)
    # m = v = 0 leaves NaN here; fmax makes it 0, so the result is m.
    np.fmax(weight, 0.0, out=weight)
    weight *= scale
    weight *= np.subtract(power, mean, out=ratio)
    mean += weight
    return mean


def _ci2(mean: Doubles, variance: Doubles) -> Doubles:
    """v / m^2 in the memory of the variance; 0 where m = 0."""
    np.divide(variance, np.square(mean), out=variance)
    np.copyto(variance, 0.0, where=mean <= 0)
    return variance


def _box_moments(block: _Block, radius: int) -> _Moments:
    total = _box_sum(block.power, radius, np.float64)
    squares = _box_sum(np.multiply(block.power, block.power, dtype=np.float64), radius, np.float64)
    return _to_moments(total, squares, _box_count(block, radius, np.float64))


def _to_moments(total: Doubles, squares: Doubles, count: Doubles | float) -> _Moments:
    """Mean and unbiased variance from sums, in their memory."""
    mean = total / count
    total *= mean
    squares -= total
    squares /= np.maximum(count - 1.0, 1.0)
    np.maximum(squares, 0.0, out=squares)
    return _Moments(mean, squares)


def _box_count(block: _Block, radius: int, kind: type[np.floating[Any]]) -> Any:
    if block.valid is None:
        # An array too: of a number, Python would round what follows in double precision, and a pixel would
        # depend on no-data elsewhere in its block.
        return np.full((1, 1), (2 * radius + 1) ** 2, kind)
    # At least 1: windows without a valid pixel belong to no-data pixels, whose result is dropped.
    return np.maximum(_box_sum(block.valid.astype(np.float32), radius, kind), 1.0)


def _box_sum(values: Array, radius: int, kind: type[np.floating[Any]]) -> Array:
    ones = np.ones(2 * radius + 1)
    depth = cv2.CV_32F if kind is np.float32 else cv2.CV_64F
    return np.asarray(cv2.sepFilter2D(values, depth, ones, ones, borderType=cv2.BORDER_REPLICATE))


def _pad(values: Array, radius: int) -> Array:
    return np.asarray(cv2.copyMakeBorder(values, *(radius,) * 4, borderType=cv2.BORDER_REPLICATE))


def _rings(radius: int) -> dict[float, list[tuple[int, int]]]:
    """Offsets of a window grouped by distance to its centre; each ring shares one weight."""
    rings: dict[float, list[tuple[int, int]]] = defaultdict(list)
    for row in range(2 * radius + 1):
        for col in range(2 * radius + 1):
            rings[math.hypot(row - radius, col - radius)].append((row, col))
    return rings


def _offset_sum(padded: Array, offsets: list[tuple[int, int]], shape: tuple[int, ...]) -> Doubles:
    rows, cols = shape
    total = np.zeros(shape)
    for row, col in offsets:
        total += padded[row : row + rows, col : col + cols]
    return total


def _edge_and_noise(
    power: Doubles, squares: Doubles, count: Doubles | None
) -> tuple[NDArray[np.intp], Doubles]:
    """Index into `_HALF_WINDOWS` and noise Cu^2 per pixel, from arrays padded by 3."""
    kernel = np.ones(3)
    n = None if count is None else cv2.sepFilter2D(count, cv2.CV_64F, kernel, kernel)
    total = cv2.sepFilter2D(power, cv2.CV_64F, kernel, kernel)
    moments = _to_moments(
        total, cv2.sepFilter2D(squares, cv2.CV_64F, kernel, kernel), 9.0 if n is None else n
    )
    mean = moments.mean
    ci2 = _ci2(*moments)
    if n is not None:
        ci2[n < 2] = np.inf
    views = [
        (slice(row, power.shape[0] - 6 + row), slice(col, power.shape[1] - 6 + col))
        for row in (1, 3, 5)
        for col in (1, 3, 5)
    ]
    noise = _mean_of_smallest([ci2[view].copy() for view in views], masked=n is not None)
    return _edge_side([mean[view] for view in views]), noise


def _mean_of_smallest(values: list[Doubles], *, masked: bool) -> Doubles:
    """Mean of the five smallest of nine, infinite ones left out; works in the memory of `values`."""
    # Four rounds of bubbling the largest to the end: 26 exchanges on whole arrays, where a sort along the
    # axis would take each pixel's nine values from nine places.
    spare = np.empty_like(values[0])
    for last in range(8, 4, -1):
        for i in range(last):
            np.minimum(values[i], values[i + 1], out=spare)
            np.maximum(values[i], values[i + 1], out=values[i + 1])
            values[i], spare = spare, values[i]
    if not masked:
        return np.asarray(sum(values[:5]) / 5.0)
    total, known = np.zeros_like(spare), np.zeros_like(spare)
    for value in values[:5]:
        finite = np.isfinite(value)
        total += np.where(finite, value, 0.0)
        known += finite
    return total / np.maximum(known, 1.0)


def _edge_side(means: list[Doubles]) -> NDArray[np.intp]:
    """Half window to use, from the nine sub-window means in row order; NaN for one without valid pixels."""
    centre = means[4]
    m = [np.where(np.isnan(mean), centre, mean) for mean in means]
    best = np.full(centre.shape, -1.0)
    side = np.zeros(centre.shape, np.intp)
    edges = (((0, 3, 6), (2, 5, 8)), ((0, 1, 2), (6, 7, 8)), ((0, 1, 3), (8, 7, 5)), ((2, 1, 5), (6, 7, 3)))
    middles = ((3, 5), (1, 7), (0, 8), (2, 6))
    for index, ((one, other), (first, second)) in enumerate(zip(edges, middles, strict=True)):
        gradient = np.abs(sum(m[i] for i in one) - sum(m[i] for i in other))
        nearer = _distance(means[second], centre) < _distance(means[first], centre)
        larger = gradient > best
        np.copyto(side, 2 * index + nearer, where=larger)
        np.copyto(best, gradient, where=larger)
    return side


def _distance(mean: Doubles, centre: Doubles) -> Doubles:
    """|mean - centre|, infinite where the sub-window has no valid pixel."""
    distance = np.abs(mean - centre)
    distance[np.isnan(mean)] = np.inf
    return distance


def _half_sum(padded: Doubles, side: NDArray[np.intp]) -> Doubles:
    """Sum over the half window that `side` names per pixel, from an array padded by 3."""
    rows, cols = side.shape
    runs = [padded]
    for length in range(1, 7):
        runs.append(runs[-1][:, :-1] + padded[:, length:])
    result = np.empty(side.shape)
    total = np.empty(side.shape)
    for index, half in enumerate(_HALF_WINDOWS):
        total[...] = 0.0
        for row, col, length in half:
            total += runs[length - 1][row : row + rows, col : col + cols]
        np.copyto(result, total, where=side == index)
    return result
