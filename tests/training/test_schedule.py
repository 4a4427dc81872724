"""Learning rate and ramp at the steps that matter."""

from __future__ import annotations

import pytest

from hfd_edge.training.schedule import Schedule


def test_rate_warms_up_then_decays_and_is_never_zero() -> None:
    schedule = Schedule(total=100, learning_rate=1.0, warmup=0.1, power=1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.96 * 0.5)
    assert max(rates) == rates[9] == pytest.approx(0.91)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.01)


def test_power_bends_the_decay() -> None:
    schedule = Schedule(total=10, learning_rate=2.0, warmup=0.0, power=0.9)
    assert schedule.rate(0) == 2.0
    assert schedule.rate(5) == pytest.approx(2.0 * 0.5**0.9)


@pytest.mark.parametrize(("ramp", "expected"), [(0.0, [1, 1, 1]), (0.5, [0.2, 1, 1]), (1.0, [0.1, 0.5, 1])])
def test_distillation_rises(ramp: float, expected: list[float]) -> None:
    schedule = Schedule(total=10, learning_rate=1.0, warmup=0.0, power=1.0, ramp=ramp)
    assert [schedule.distillation(step) for step in (0, 4, 9)] == pytest.approx(expected)


def test_one_step_is_enough() -> None:
    schedule = Schedule(total=1, learning_rate=1.0, warmup=0.05, power=0.9, ramp=0.1)
    assert schedule.rate(0) == 1.0
    assert schedule.distillation(0) == 1.0
