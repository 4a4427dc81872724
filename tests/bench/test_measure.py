"""Warm-up and summaries on series of times that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from hfd_edge.bench.measure import SCENES, TILES, Run, WarmUp, spread, stages, warm_up


def play(times_ms: Iterable[float]) -> Callable[[], Run]:
    series = iter(times_ms)
    return lambda: Run(next(series))


def test_steady_runs_are_warm_after_two_windows_and_the_shortest_time() -> None:
    assert warm_up(play([125.0] * 10), TILES) == (10, None)
    assert warm_up(play([15.625] * 200), TILES) == (65, None), "a second for clocks to rise"


def test_runs_that_get_faster_are_not_warm_until_they_stay() -> None:
    falling = [200.0 * 0.9**index for index in range(20)] + [24.0] * 200
    runs, doubt = warm_up(play(falling), TILES)
    assert doubt is None
    assert runs >= 30, "both windows lie in the level part"


def test_runs_that_never_stay_are_not_warm() -> None:
    rising = (100.0 * 1.02**index for index in range(10_000))
    runs, doubt = warm_up(play(rising), TILES)
    assert doubt is not None
    assert doubt.startswith(f"not warmed up: {runs} runs in ")
    assert "still changed by +" in doubt
    assert "within 2%" in doubt
    assert "Wait until the machine is cool" in doubt


def test_noise_is_not_taken_for_a_trend() -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(20.0, 2.0, 5000)
        assert warm_up(play(noise), TILES)[1] is None


def test_a_slow_device_stops_at_the_longest_time_but_has_two_windows() -> None:
    runs, doubt = warm_up(play([9000.0 - 500.0 * index for index in range(12)]), TILES)
    assert runs == 10
    assert doubt is not None


def test_two_like_scenes_are_warm() -> None:
    assert warm_up(play([5000.0, 4900.0]), SCENES) == (2, None)
    runs, doubt = warm_up(play([5000.0, 4000.0, 3000.0, 2000.0, 1000.0]), SCENES)
    assert (runs, doubt is None) == (4, False)


def test_too_few_runs_to_tell() -> None:
    rule = WarmUp(window=2, least_s=100.0, most=4)
    assert "were too few to tell" in str(warm_up(play([1.0] * 9), rule)[1])


def test_spread_keeps_order_and_orders_quantiles() -> None:
    times = list(range(100, 0, -1))
    found = spread(times)
    assert found.samples_ms == tuple(map(float, times))
    assert (found.p50_ms, found.mean_ms, found.max_ms) == (50.5, 50.5, 100.0)
    assert found.p90_ms == pytest.approx(90.1)
    assert found.p95_ms == pytest.approx(95.05)
    assert found.p99_ms == pytest.approx(99.01)
    assert found.jitter_ms == pytest.approx(29.0115, abs=1e-4)
    assert spread([3.0]).jitter_ms == 0


def test_stages_are_in_the_order_of_the_road_and_begin_where_the_last_ended() -> None:
    runs = [
        Run(9, {"postprocess": 2.0, "preprocess": 1.0, "infer": 5.0, "bottle": 7.0}),
        Run(9, {"preprocess": 3.0, "postprocess": 2.0, "infer": 5.0}),
        Run(9, {"preprocess": 2.0, "infer": 5.0, "postprocess": 2.0}),
    ]
    found = stages(runs, one_by_one=True)
    assert [(stage.name, stage.p50_ms, stage.start_ms) for stage in found] == [
        ("preprocess", 2.0, 0.0),
        ("infer", 5.0, 2.0),
        ("postprocess", 2.0, 7.0),
    ]
    assert [stage.start_ms for stage in stages(runs, one_by_one=False)] == [None] * 3
    assert stages([Run(1.0)], one_by_one=True) == ()
