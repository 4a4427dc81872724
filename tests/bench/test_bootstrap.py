"""Bounds of a ratio of latencies: they hold the truth, and runs that hang together do not fool them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hfd_edge.bench.bootstrap import LEAST_RUNS, LEAST_TAIL_RUNS, block_length, ratio_bounds
from hfd_edge.errors import BenchError


def series(rng: np.random.Generator, *, runs: int = 200, rho: float = 0.5, median_ms: float = 30.0) -> Any:
    """Times of which each depends on the one before: first-order autocorrelation rho, spread 3 %."""
    noise = rng.normal(size=runs + 50)
    values = np.zeros(runs + 50)
    for place in range(1, runs + 50):
        values[place] = rho * values[place - 1] + np.sqrt(1 - rho**2) * noise[place]
    return median_ms * np.exp(0.03 * values[50:])


def test_bounds_of_equal_series_hold_one() -> None:
    rng = np.random.default_rng(0)
    held = {"p50": 0, "p99": 0, "mean": 0}
    for _ in range(40):
        for name, bounds in ratio_bounds(series(rng), series(rng)).items():
            assert bounds is not None
            held[name] += bounds.low <= 1 <= bounds.high
    assert min(held.values()) >= 33, held


def test_runs_that_hang_together_widen_the_bounds() -> None:
    """Were single runs drawn, order would not matter and both bounds would be equally narrow."""
    rng = np.random.default_rng(1)
    old, new = series(rng, rho=0.95, runs=400), series(rng, rho=0.95, runs=400)
    ordered = ratio_bounds(old, new)["mean"]
    mixed = ratio_bounds(rng.permutation(old), rng.permutation(new))["mean"]
    assert ordered is not None
    assert mixed is not None
    assert ordered.high - ordered.low > 2 * (mixed.high - mixed.low)


def test_stretches_grow_with_autocorrelation() -> None:
    rng = np.random.default_rng(2)
    lengths = [block_length(series(rng, rho=rho, runs=500)) for rho in (0.0, 0.6, 0.95)]
    assert lengths[0] == 8, "the cube root of 500"
    assert lengths[0] < lengths[1] < lengths[2] <= 125
    strays = series(rng, rho=0.95, runs=500)
    strays[::100] *= 20
    assert block_length(strays) > lengths[1], "strays do not hide how the others hang together"


@pytest.mark.parametrize("values", [np.full(40, 7.0), np.arange(1.0, 41.0), np.tile((1.0, 2.0), 20)])
def test_odd_series_have_a_length(values: Any) -> None:
    assert 4 <= block_length(values) <= 10


def test_a_slower_side_lies_above_one() -> None:
    rng = np.random.default_rng(3)
    bounds = ratio_bounds(series(rng), series(rng, median_ms=33.0))
    for found in bounds.values():
        assert found is not None
        assert 1.05 < found.low < 1.1 < found.high < 1.15
    back = ratio_bounds(series(rng, median_ms=33.0), series(rng))["p50"]
    assert back is not None
    assert back.high < 0.95


def test_figures_are_those_of_the_statistic_named() -> None:
    """A tail that grows moves the 99th percentile and hardly the median."""
    rng = np.random.default_rng(4)
    old, new = series(rng, rho=0.0), series(rng, rho=0.0)
    new[::20] *= 3
    found = ratio_bounds(old, new)
    assert found["p50"] is not None
    assert found["p50"].high < 1.05
    assert found["p99"] is not None
    assert found["p99"].low > 2


def test_few_runs_give_the_bounds_of_all_of_them() -> None:
    found = ratio_bounds([10.0, 11.0, 12.0], [11.0] * (LEAST_RUNS + 1))
    assert found["p50"] == found["mean"]
    assert found["p50"] is not None
    assert (found["p50"].low, found["p50"].high) == pytest.approx((11 / 12, 11 / 10))
    assert found["p99"] is None


def test_the_tail_needs_a_hundred_runs_on_both_sides() -> None:
    rng = np.random.default_rng(5)
    many, few = series(rng, runs=LEAST_TAIL_RUNS), series(rng, runs=LEAST_TAIL_RUNS - 1)
    assert ratio_bounds(many, many)["p99"] is not None
    assert ratio_bounds(many, few)["p99"] is None
    assert ratio_bounds(few, many)["p99"] is None


def test_the_same_runs_give_the_same_bounds() -> None:
    rng = np.random.default_rng(6)
    old, new = series(rng), series(rng)
    assert ratio_bounds(old, new) == ratio_bounds(old.tolist(), new.tolist())


def test_times_must_be_there_and_positive() -> None:
    with pytest.raises(BenchError, match="found 0 and 1 runs, the shortest 1.0. Measure again"):
        ratio_bounds([], [1.0])
    with pytest.raises(BenchError, match="must be there and positive.*the shortest 0.0"):
        ratio_bounds([1.0, 0.0], [1.0])
