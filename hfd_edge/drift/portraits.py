"""An image in a few figures, from patches of it that are taken as its rows go by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.statistics import BINS, BLOCK_PX, block_log_enl, linear_power

Array = NDArray[Any]

Kind = Literal["level", "width", "ratio", "looks", "flat", "dark", "bright", "histogram", "share"]
"""What a figure says, of a band, of a band and the next one (`ratio`), or of a class (`share`).

- `level`: median after the speckle filter, dB (stored values for "stretched"), not clipped;
- `width`: from the 10th to the 90th percentile of the same;
- `ratio`: median of the difference of two bands;
- `looks`: log10 of the number of looks before the filter (`block_log_enl`);
- `flat`: share of pixels at the largest value of all: large where a receiver or a conversion saturated;
- `dark` and `bright`: shares at or beyond the clip limits;
- `histogram`: distance of the clipped histogram from that of all training images;
- `share`: share of the labels.
"""
Key = tuple[Kind, str]

_PATCH_PX = 64
_LEAST_PATCHES, _MOST_PATCHES = 16, 100
# One pixel of 32 suffices for medians and shares, and from 2048 x 2048 pixels on costs less than 1 % of what
# the network does.
_SAMPLED = 32
# Ranking costs more than all else, and so many pixels give percentiles as well.
_RANKED = 1 << 16


class PatchSampler:
    """Takes square patches, spread evenly over an image, from rows that go by once from top to bottom.

    Memory is that of at most 100 patches of 64 x 64 pixels, whatever the size of the image.
    """

    def __init__(self, *, rows: int, cols: int) -> None:
        """Choose the patches of an image of this size; of a small one, all that fit."""
        high, wide = (max(1, side // _PATCH_PX) for side in (rows, cols))
        wanted = min(max(high * wide // _SAMPLED, _LEAST_PATCHES), _MOST_PATCHES, high * wide)
        down = min(max(round(math.sqrt(wanted * rows / cols)), math.ceil(wanted / wide), 1), high, wanted)
        self._size = (min(rows, _PATCH_PX), min(cols, _PATCH_PX))
        self._tops = _spread(rows, self._size[0], down)
        self._lefts = _spread(cols, self._size[1], max(1, wanted // down))
        self._patches: list[list[Array]] = []

    def take(self, row0: int, raw: Array) -> None:
        """Copy what falls into patches from rows (bands, n, cols), of which the first is `row0`."""
        if not self._patches:
            shape = (raw.shape[0], *self._size)
            self._patches = [[np.zeros(shape, raw.dtype) for _ in self._lefts] for _ in self._tops]
        for top, patches in zip(self._tops, self._patches, strict=True):
            first, last = max(top, row0), min(top + self._size[0], row0 + raw.shape[1])
            if first < last:
                for left, patch in zip(self._lefts, patches, strict=True):
                    columns = slice(left, left + self._size[1])
                    patch[:, first - top : last - top] = raw[:, first - row0 : last - row0, columns]

    @property
    def patches(self) -> list[Array]:
        """The patches (bands, up to 64, up to 64), as stored."""
        return [patch for row in self._patches for patch in row]


@dataclass(frozen=True)
class Portrait:
    """What an image looks like.

    Attributes:
        figures: By kind and subject. What cannot be told is missing.
        histogram: Sampled pixels by band and bin of equal width between the clip limits, int64 (bands,
            `BINS`); what is clipped counts in the outer bins.
        pixels: Valid pixels that were sampled.
    """

    figures: Mapping[Key, float]
    histogram: NDArray[np.int64]
    pixels: int

    @property
    def bands(self) -> list[str]:
        """Names of the bands, in order; empty without a valid pixel."""
        return [of for kind, of in self.figures if kind == "level"]


def portray(patches: Sequence[Array], preprocessing: Preprocessing, *, bands: Sequence[str]) -> Portrait:
    """Describe an image by patches of it.

    Args:
        patches: Stored pixels (bands, rows, cols), all of one size, in the units of `preprocessing`. Borders
            of the speckle filter replicate at their edges.
        preprocessing: What the network's input goes through.
        bands: Names of the bands.
    Raises:
        RadiometryError: the pixels are not in those units, or the band count differs.
    """
    values = _joined([preprocessing.values(patch) for patch in patches])
    valid = values[:, np.isfinite(values).all(axis=0)]
    histogram = np.zeros((len(bands), BINS), np.int64)
    figures: dict[Key, float] = {}
    if valid.size == 0:
        return Portrait(figures, histogram, 0)
    some = valid[:, :: max(1, valid.shape[1] // _RANKED)]
    percentiles = np.percentile(some, (10, 50, 90), axis=1)
    for index, (name, (low, high)) in enumerate(zip(bands, preprocessing.clip, strict=True)):
        tenth, middle, ninetieth = percentiles[:, index].tolist()
        histogram[index] = _histogram(valid[index], low, high)
        figures["level", name] = middle
        figures["width", name] = ninetieth - tenth
        figures["dark", name] = float(np.mean(valid[index] <= np.float32(low)))
        figures["bright", name] = float(np.mean(valid[index] >= np.float32(high)))
    for (first, above), (second, below) in pairwise(zip(bands, some, strict=True)):
        figures["ratio", f"{first}/{second}"] = float(np.median(above - below))
    power = [linear_power(patch, preprocessing) for patch in patches]
    for name, band in zip(bands, _joined(power), strict=True):
        seen = band[np.isfinite(band)]
        figures["flat", name] = float(np.mean(seen == seen.max())) if seen.size else 0.0
    for name, looks in zip(bands, block_log_enl(_whole_blocks(power)), strict=True):
        if math.isfinite(looks):
            figures["looks", name] = float(looks)
    return Portrait(figures, histogram, valid.shape[1])


def portray_image(image: Array, preprocessing: Preprocessing, *, bands: Sequence[str]) -> Portrait:
    """Describe an image in memory, (bands, rows, cols); see `portray`. Raises RadiometryError."""
    sampler = PatchSampler(rows=image.shape[1], cols=image.shape[2])
    sampler.take(0, image)
    return portray(sampler.patches, preprocessing, bands=bands)


def class_shares(counts: NDArray[np.int64], classes: Sequence[str]) -> dict[Key, float]:
    """Shares of the classes from counts of the labels 0 to 255; labels that are no class do not count."""
    known = counts[: len(classes)]
    total = int(known.sum())
    if total == 0:
        return {}
    return {("share", name): count / total for name, count in zip(classes, known.tolist(), strict=True)}


def _histogram(values: Array, low: float, high: float) -> NDArray[np.int64]:
    """Counts by bin of equal width; what lies outside counts in the outer ones."""
    codes = (np.clip(values, low, high) - np.float32(low)) * np.float32(BINS / (high - low))
    return np.bincount(np.minimum(codes, BINS - 1).astype(np.uint8), minlength=BINS)


def _spread(side: int, size: int, count: int) -> list[int]:
    """Starts of `count` windows at equal distances, from one end to the other."""
    return [int(start) for start in np.linspace(0, side - size, count)] if count > 1 else [(side - size) // 2]


def _joined(patches: Sequence[Array]) -> Array:
    """All pixels of the patches, (bands, pixels)."""
    return np.concatenate([patch.reshape(len(patch), -1) for patch in patches], axis=1)


def _whole_blocks(patches: Sequence[Array]) -> Array:
    """The patches below each other, without what would give a block pixels of two patches."""
    high, wide = (side // BLOCK_PX * BLOCK_PX for side in patches[0].shape[1:])
    return np.concatenate([patch[:, :high, :wide] for patch in patches], axis=1)
