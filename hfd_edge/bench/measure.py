"""Runs until they are stable, and what a series of timed runs comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from hfd_edge.bench.result import STAGES, Spread, Stage


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        ms: Milliseconds from handing the pixels in to having the mask, on the host's clock.
        stages_ms: What its stages took.
        on_device: Whether the stages were timed by events on a GPU.
    """

    ms: float
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    on_device: bool = False

    @property
    def device_ms(self) -> float | None:
        """What the GPU's stages took together; None where no events were recorded."""
        return sum(self.stages_ms.values()) if self.on_device and self.stages_ms else None


@dataclass(frozen=True)
class WarmUp:
    """When runs count as warm.

    The median of the last w runs must be within `tolerance` of that of the w runs before them, where w is
    `window` runs or a quarter of all, whichever is more: noise alone then averages out, a trend does not.

    Attributes:
        window: Fewest runs of a window; two windows are the fewest runs of a warm-up.
        tolerance: Largest change of the median, as a share.
        least_s: Shortest warm-up, seconds: clocks rise for that long once there is work.
        most_s: Longest warm-up, seconds; what is not stable by then never is.
        most: Most runs.
    """

    window: int = 5
    tolerance: float = 0.02
    least_s: float = 1.0
    most_s: float = 15.0
    most: int = 5000

    def change(self, times_ms: Sequence[float]) -> float | None:
        """Change of the median from the last but one window to the last, as a share; None with too few."""
        width = max(self.window, len(times_ms) // 4)
        if len(times_ms) < 2 * width:
            return None
        before, after = median(times_ms[-2 * width : -width]), median(times_ms[-width:])
        return after / before - 1 if before > 0 else None

    def text(self) -> str:
        """The criterion in words."""
        return (
            f"medians of successive windows of {self.window} or more runs within {self.tolerance:.0%}, after "
            f"at least {2 * self.window} runs and {self.least_s:g} s, within {self.most_s:g} s or "
            f"{self.most} runs"
        )


TILES = WarmUp()
SCENES = WarmUp(window=1, tolerance=0.05, least_s=0.0, most_s=60.0, most=4)
"""A scene is many tiles after one another, so two of them show what ten tiles do."""


def warm_up(once: Callable[[], Run], rule: WarmUp) -> tuple[int, str | None]:
    """Run until the rule is met.

    Returns:
        Runs, and why they did not get stable; None where they did.
    """
    times: list[float] = []
    total_s, change = 0.0, None
    while len(times) < 2 * rule.window or (total_s < rule.most_s and len(times) < rule.most):
        times.append(once().ms)
        total_s += times[-1] / 1000
        if len(times) % rule.window == 0 and total_s >= rule.least_s:
            change = rule.change(times)
            if change is not None and abs(change) <= rule.tolerance:
                return len(times), None
    shown = "were too few to tell" if change is None else f"still changed by {change:+.1%}"
    return len(times), (
        f"not warmed up: {len(times)} runs in {total_s:.1f} s {shown}; expected {rule.text()}. "
        "Wait until the machine is cool and idle, and run it again."
    )


def spread(samples_ms: Sequence[float]) -> Spread:
    """Summarise times of runs, milliseconds, in the order in which they were taken."""
    times = np.asarray(samples_ms, np.float64)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(times, (50, 90, 95, 99)))
    return Spread(
        samples_ms=tuple(float(value) for value in times),
        mean_ms=float(times.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(times.max()),
        jitter_ms=float(times.std(ddof=1)) if len(times) > 1 else 0.0,
    )


def stages(runs: Sequence[Run], *, one_by_one: bool) -> tuple[Stage, ...]:
    """Summarise the stages that these runs tell apart, in the order of the road.

    Args:
        runs: At least one.
        one_by_one: Whether each stage waits for the one before, as those of a single tile do: it then begins
            where they end. Where stages overlap, nobody knows when one begins.
    """
    told = {name for run in runs for name in run.stages_ms}
    found, start = [], 0.0
    for name in filter(told.__contains__, STAGES):
        times = [run.stages_ms.get(name, 0.0) for run in runs]
        middle = median(times)
        found.append(
            Stage(
                name=name,
                mean_ms=float(np.mean(times)),
                p50_ms=middle,
                start_ms=start if one_by_one else None,
            )
        )
        start += middle
    return tuple(found)
