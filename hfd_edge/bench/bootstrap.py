"""How far the ratio of two latencies could be chance: the same runs taken again would give another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BenchError

LEAST_RUNS = 20
"""Below that a resampled series is hardly another one: the bounds are then those of all single runs."""
LEAST_TAIL_RUNS = 100
"""A 99th percentile of fewer runs is the slowest of them, about which resampling says nothing."""

_DRAWS = 2000
_SEED = 0
_CHUNK = 1 << 20  # resampled values at a time: 8 MB
_PERCENT = (2.5, 97.5)

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """Where a ratio lies in 95 of 100 repetitions of both measurements; `low` <= `high`."""

    low: float
    high: float


def ratio_bounds(old: Sequence[float], new: Sequence[float]) -> dict[str, Bounds | None]:
    """Bounds of new / old for the median, the 99th percentile and the mean of repeated runs.

    Runs that follow each other are alike (clocks, caches, other work on the machine), so whole stretches
    are drawn, on a circle, each as long as the series itself asks for; single runs would give bounds that
    are much too narrow. Bounds are percentiles of the resampled ratios. BCa's correction needs a jackknife,
    which is inconsistent for quantiles; the percentile method needs none and gives a ratio and its
    logarithm the same bounds. What differs between two starts of a process is in neither series: the
    tolerance of a gate has to leave room for it. Of two equal series (first-order autocorrelation 0.5, 3 % of
    runs slower by a third, spread 3 %) the bounds of the median hold 1 in 83 % of cases with 20 runs, 89 %
    with 100, 94 % with 300; those of none lie wholly above 1.05.

    Args:
        old: Milliseconds, in the order of the runs; positive.
        new: The same of the other side.
    Returns:
        "p50", "p99" and "mean"; "p99" is None when a side has fewer than LEAST_TAIL_RUNS runs.
    Raises:
        BenchError: a side is empty, or a time is not positive.
    Sources: Politis and Romano, "A circular block-resampling procedure for stationary data" (1992); Efron
        and Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13 (percentile interval) and 11.6
        (the jackknife of a median).
    """
    first, second = (np.asarray(side, np.float64) for side in (old, new))
    if not (first.size and second.size and min(first.min(), second.min()) > 0):
        raise BenchError(
            f"Times of repeated runs must be there and positive; found {first.size} and {second.size} runs, "
            f"the shortest {min((*old, *new), default=None)}. Measure again."
        )
    tail = min(first.size, second.size) >= LEAST_TAIL_RUNS
    if min(first.size, second.size) < LEAST_RUNS:
        whole = Bounds(float(second.min() / first.max()), float(second.max() / first.min()))
        return {"p50": whole, "p99": None, "mean": whole}
    generator = np.random.default_rng(_SEED)
    ratios = 1 / _resampled(first, generator)
    ratios *= _resampled(second, generator)
    low, high = np.percentile(ratios, _PERCENT, axis=1)
    bounds = [Bounds(float(one), float(other)) for one, other in zip(low, high, strict=True)]
    return {"p50": bounds[0], "p99": bounds[1] if tail else None, "mean": bounds[2]}


def _resampled(series: Series, generator: np.random.Generator) -> Series:
    """Median, 99th percentile and mean (3, draws) of series made of stretches of this one."""
    count, length = series.size, block_length(series)
    results = np.empty((3, _DRAWS))
    step = max(1, _CHUNK // count)
    for start in range(0, _DRAWS, step):
        rows = min(step, _DRAWS - start)
        begins = generator.integers(0, count, (rows, math.ceil(count / length), 1))
        places = (begins + np.arange(length)).reshape(rows, -1)[:, :count] % count
        drawn = series[places]
        results[:2, start : start + rows] = np.percentile(drawn, (50, 99), axis=1)
        results[2, start : start + rows] = drawn.mean(1)
    return results


def block_length(series: Series) -> int:
    """Runs that a stretch needs so that stretches are independent of each other.

    At least the cube root of their number and at most a quarter of it; for series of LEAST_RUNS or more.
    Ranks stand for the times: one very slow run would hide how the others hang together.

    Source: Politis and White, "Automatic block-length selection for the dependent bootstrap" (2004), and its
        correction by Patton, Politis and White (2009), circular bootstrap.
    """
    count = series.size
    least: int = math.ceil(count ** (1 / 3))  # short series hide that they hang together
    ranks = np.unique(series, return_inverse=True)[1].astype(np.float64)
    ranks -= ranks.mean()
    lags = np.correlate(ranks, ranks, "full")[count - 1 :] / count
    if not lags[0]:  # all times are one
        return least
    correlation = lags / lags[0]
    quiet = max(5, math.ceil(math.sqrt(math.log10(count))))  # so many lags in a row have to be negligible
    small = np.abs(correlation) < 2 * math.sqrt(math.log10(count) / count)
    last = next((lag for lag in range(count - quiet) if small[lag + 1 : lag + 1 + quiet].all()), count // 4)
    window = np.arange(1, min(2 * last, count - 1) + 1)
    if window.size == 0:
        return least
    weight = np.clip(2 * (1 - window / (2 * last)), 0, 1)
    bend = 2 * float((weight * window * lags[window]).sum())
    level = float(lags[0] + 2 * (weight * lags[window]).sum())
    wanted = (1.5 * count * (bend / level) ** 2) ** (1 / 3) if level else count
    return max(least, min(math.ceil(wanted), count // 4))
