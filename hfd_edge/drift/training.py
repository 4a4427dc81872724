"""How the figures of a network's training images spread, and from where on an image is unlike them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfd_edge.config import Strict
from hfd_edge.drift.portraits import Key, Kind, Portrait
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]
Five = tuple[float, float, float, float, float]

LEAST_IMAGES = 8
"""Fewer images say too little about how images differ."""
FALSE_ALARMS = 0.01
"""Share of images like the training images of which some figure may lie beyond its limits."""

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TAIL, _LEAST_TAIL = 0.1, 10
# Differences that no network minds, however alike the training images were: a share of the clip range, log10
# of a factor of looks, log of a factor of odds.
_SLACK_OF_RANGE, _SLACK_LOOKS, _SLACK_ODDS = 0.02, 0.1, 0.7
# Shares are compared by their odds; below one in a thousand they are all the same.
_SHARES: frozenset[Kind] = frozenset({"flat", "dark", "bright", "share"})
_LEAST_SHARE = 1e-3
# Too little of these is no fault.
_UPWARDS: frozenset[Kind] = _SHARES | {"histogram"}


class Figure(Strict):
    """One figure over the training images."""

    kind: Kind
    of: str = Field(description="Band, two neighbouring bands, or class.")
    quantiles: Five = Field(description="5, 25, 50, 75 and 95 %.")
    low: float | None = Field(description="Below this an image is unlike the training images.")
    high: float | None = Field(description="Above this it is.")

    @property
    def key(self) -> Key:
        """Kind and subject."""
        return self.kind, self.of

    @property
    def median(self) -> float:
        """Of the training images."""
        return self.quantiles[2]

    @property
    def bands(self) -> tuple[str, str]:
        """The two bands of a `ratio`."""
        first, second = self.of.split("/", 1)
        return first, second


class TrainingStatistics(Strict):
    """What the training images of a network looked like."""

    images: int = Field(ge=LEAST_IMAGES, description="Training images that were described.")
    pixels: int = Field(ge=0, description="Sampled valid pixels below which an image is too small to judge.")
    histogram: tuple[tuple[float, ...], ...] = Field(
        description="Share of the pixels by band and bin of equal width between the clip limits."
    )
    figures: tuple[Figure, ...]


def training_statistics(
    portraits: Iterable[tuple[Portrait, Mapping[Key, float]]],
    preprocessing: Preprocessing,
    *,
    false_alarms: float = FALSE_ALARMS,
) -> TrainingStatistics | None:
    """Measure how training images differ from each other, and set limits that images like them rarely cross.

    A limit continues the tail of a figure's distribution as an exponential one, to where it leaves the share
    `false_alarms` divided by the number of limits (Bonferroni). Shares take part by their log odds.

    Args:
        portraits: A portrait of each training image with the class shares of its labels, empty without.
        preprocessing: What the portraits were made with.
        false_alarms: Share of images, like the training images, that may cross any limit.
    Returns:
        None for fewer than `LEAST_IMAGES` images with valid pixels.
    Source: peaks over threshold with shape 0 (Pickands 1975; Coles, An Introduction to Statistical Modeling
        of Extreme Values, ch. 4).
    """
    seen = [(portrait, shares) for portrait, shares in portraits if portrait.pixels]
    if len(seen) < LEAST_IMAGES:
        return None
    histogram = np.mean([_normed(portrait.histogram) for portrait, _ in seen], axis=0)
    values = _by_figure(seen, histogram, preprocessing)
    chance = false_alarms / sum(1 if kind in _UPWARDS else 2 for kind, _ in values)
    # A scene shows at once what the images show one by one, so it spreads at least as far.
    widths = zip(seen[0][0].bands, _widths(histogram, preprocessing), strict=True)
    reach: dict[Key, float] = {("width", band): width for band, width in widths}
    scale = max(high - low for low, high in preprocessing.clip)
    return TrainingStatistics(
        images=len(seen),
        pixels=int(np.quantile([portrait.pixels for portrait, _ in seen], 0.05) / 2),
        histogram=tuple(tuple(round(share, 7) for share in band) for band in histogram.tolist()),
        figures=tuple(
            _figure(key, found, chance=chance, scale=scale, reach=reach.get(key))
            for key, found in values.items()
        ),
    )


def _by_figure(
    seen: list[tuple[Portrait, Mapping[Key, float]]], histogram: Array, preprocessing: Preprocessing
) -> dict[Key, list[float]]:
    """What the images have of each figure, where enough of them have it."""
    values: dict[Key, list[float]] = {}
    for portrait, shares in seen:
        # A new image is not in the histogram either.
        others = (len(seen) * histogram - _normed(portrait.histogram)) / (len(seen) - 1)
        found = {**portrait.figures, **shares, **distances(portrait, others, preprocessing)}
        for key, value in found.items():
            values.setdefault(key, []).append(value)
    return {key: found for key, found in values.items() if len(found) >= LEAST_IMAGES}


def distances(portrait: Portrait, histogram: Array, preprocessing: Preprocessing) -> dict[Key, float]:
    """How far the pixels of each band would have to move, on average, to give another histogram.

    Args:
        portrait: Of an image with valid pixels.
        histogram: Shares (bands, `BINS`).
        preprocessing: Its clip limits are those of the histograms.
    Returns:
        Wasserstein distance of order 1, dB (stored values for "stretched").
    """
    apart = np.abs(np.cumsum(_normed(portrait.histogram) - histogram, axis=1)).mean(axis=1)
    return {
        ("histogram", band): float(share * (high - low))
        for band, share, (low, high) in zip(portrait.bands, apart, preprocessing.clip, strict=True)
    }


def _normed(histogram: NDArray[np.int64]) -> Array:
    return np.asarray(histogram / histogram.sum(axis=1, keepdims=True))


def _widths(histogram: Array, preprocessing: Preprocessing) -> list[float]:
    """From the 10th to the 90th percentile of a histogram, by band."""
    found = []
    for shares, (low, high) in zip(histogram, preprocessing.clip, strict=True):
        tenth, ninetieth = np.searchsorted(np.cumsum(shares), (0.1, 0.9))
        found.append(float((ninetieth - tenth + 1) * (high - low) / len(shares)))
    return found


def _figure(key: Key, found: list[float], *, chance: float, scale: float, reach: float | None) -> Figure:
    kind, of = key
    values = np.array(found if reach is None else [*found, reach])
    quantiles = tuple(round(float(value), 5) for value in np.quantile(found, _QUANTILES))
    slack = _SLACK_OF_RANGE * scale
    if kind in _SHARES:
        values, slack = _log_odds(values), _SLACK_ODDS
    elif kind == "looks":
        slack = _SLACK_LOOKS
    high = _limit(values, chance) + slack
    return Figure(
        kind=kind,
        of=of,
        quantiles=cast("Five", quantiles),
        low=None if kind in _UPWARDS else round(-_limit(-values, chance) - slack, 5),
        high=round(_share(high) if kind in _SHARES else high, 5),
    )


def _limit(values: Array, chance: float) -> float:
    """What one more value is above with this probability; never less than the largest.

    The fewer values the tail has, the less is known of it: its mean counts one standard error longer.
    """
    ordered = np.sort(values)
    count = min(max(round(len(ordered) * _TAIL), _LEAST_TAIL), len(ordered) // 2)
    start = float(ordered[-count - 1])
    excess = (float(ordered[-count:].mean()) - start) * (1 + 1 / math.sqrt(count))
    return max(start + excess * math.log(max(count / len(ordered) / chance, 1.0)), float(ordered[-1]))


def _log_odds(shares: Array) -> Array:
    inside = np.clip(shares, _LEAST_SHARE, 1 - _LEAST_SHARE)
    return np.asarray(np.log(inside / (1 - inside)))


def _share(log_odds: float) -> float:
    """Back from log odds; 1, which no share is above, where they were cut off."""
    cut = math.log((1 - _LEAST_SHARE) / _LEAST_SHARE)
    return 1.0 if log_odds >= cut else 1 / (1 + math.exp(-log_odds))
