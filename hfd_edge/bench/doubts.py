"""Reasons why figures cannot be trusted, a sentence each that begins with its kind."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from hfd_edge.bench.measure import Run, spread
from hfd_edge.environment import allowed_cores

DRIFT = 0.10
"""Largest change of the median from the first third of the timed runs to the last, as a share."""
OTHERS = 0.10
"""Largest share of the cores' time that other programs may use meanwhile."""
SWITCHES_HZ = 200.0
"""Involuntary context switches a second and core beyond which others must be running: a scheduler that has
something else to run switches each 3 to 4 ms."""
_UNSYNCHRONISED = 0.98  # share of the device's time that a wait on the host must reach; events have 0.5 us
_THIRD = 3  # runs of a third, at least
_SHORT_S = 0.5  # /proc/stat counts in steps of 10 ms
_HELD = 0.01  # share of the time in which a quota may hold threads back


def drift_doubt(times_ms: Sequence[float]) -> str | None:
    """Say whether the machine became slower or faster while it was timed."""
    third = len(times_ms) // 3
    if third < _THIRD:
        return None
    change = median(times_ms[-third:]) / median(times_ms[:third]) - 1
    if abs(change) <= DRIFT:
        return None
    kind, fix = (
        ("throttled", "It is hot, or short of power: cool it, lock its clocks, and run it again.")
        if change > 0
        else ("not warmed up", "Clocks or caches came up meanwhile: lock the clocks, and run it again.")
    )
    return (
        f"{kind}: the last third of the runs took {abs(change):.0%} {'more' if change > 0 else 'less'} time "
        f"than the first, at most {DRIFT:.0%} allowed. {fix}"
    )


def jitter_doubt(times_ms: Sequence[float], *, most: float) -> str | None:
    """Say whether the standard deviation is more than this share of the mean."""
    found = spread(times_ms)
    share = found.jitter_ms / found.mean_ms
    if share <= most:
        return None
    return (
        f"noisy: the runs vary by {share:.1%} of their mean (standard deviation), at most {most:.1%} "
        "allowed. Close other programs, lock the clocks, or raise --max-jitter."
    )


def synchronisation_doubt(runs: Sequence[Run], *, gpu: bool) -> str | None:
    """Say whether the host may have stopped its clock before the GPU was done."""
    if not gpu:
        return None
    if any(run.device_ms is None for run in runs):
        return (
            "not synchronised: this backend records no events on the GPU, so nothing shows that it was done "
            "when the clock stopped. Build a TensorRT engine to measure the GPU."
        )
    waited, worked = sum(run.ms for run in runs), sum(run.device_ms or 0.0 for run in runs)
    if waited >= _UNSYNCHRONISED * worked:
        return None
    return (
        f"not synchronised: the host waited {waited:.1f} ms for masks on which the GPU worked for "
        f"{worked:.1f} ms. The mask was handed out too early: report this as a fault."
    )


class OtherLoad:
    """Watches, in a `with` block, what else uses the cores that this process may use, and whether a quota of
    its container takes them away."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cores = allowed_cores()

    def __enter__(self) -> OtherLoad:
        self._began = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = self._now()

    def doubt(self) -> str | None:
        """Say whether other programs were running. Read it after the block."""
        wall_s, own_s, busy_s, switches, _ = self._spent()
        if wall_s < _SHORT_S:
            return None
        others = (busy_s - own_s) / (wall_s * len(self._cores))
        if others > OTHERS:
            return (
                f"other load: other programs used {others:.0%} of the {len(self._cores)} cores, at most "
                f"{OTHERS:.0%} allowed. Stop them, and run it again."
            )
        # In a container that does not show the machine's own counters, only this tells.
        rate = switches / (wall_s * len(self._cores))
        if busy_s <= 0 and rate > SWITCHES_HZ:
            return (
                f"other load: the system took the cores away {rate:.0f} times a second, at most "
                f"{SWITCHES_HZ:.0f} allowed. Stop other programs, and run it again."
            )
        return None

    def quota_doubt(self) -> str | None:
        """Say whether a CPU quota held this process back. Read it after the block."""
        wall_s, *_, held_s = self._spent()
        if held_s <= _HELD * wall_s:
            return None
        return (
            f"throttled: the CPU quota of this container (cgroup) held threads back for {held_s:.2f} s in "
            f"{wall_s:.1f} s. Raise the quota, or pass --threads with no more than it allows."
        )

    def _spent(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in zip(self._began, self._ended, strict=True))

    def _now(self) -> tuple[float, float, float, float, float]:
        """Wall clock, time of this process, time of all programs (seconds), switches that it did not ask
        for, time for which a quota held it back (seconds)."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        own_s = own.ru_utime + own.ru_stime
        return time.monotonic(), own_s, self._busy_s(), float(own.ru_nivcsw), self._held_s()

    def _held_s(self) -> float:
        """Time that threads of this process's control groups have waited for their quota; 0 without one.

        Source: the kernel's cgroup-v2.rst (throttled_usec) and sched-bwc.rst (throttled_time, ns).
        """
        held_s = 0.0
        with suppress(OSError, ValueError):
            for line in (self._root / "proc" / "self" / "cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if controllers and "cpu" not in controllers.split(","):
                    continue
                mount = self._root / "sys" / "fs" / "cgroup" / controllers
                group = mount / path.strip("/")
                # A group above may have the quota; in a container the path may lead nowhere, the mount is it.
                for folder in (group, *group.parents):
                    if mount not in (folder, *folder.parents):
                        break
                    with suppress(OSError, ValueError):
                        text = (folder / "cpu.stat").read_text()
                        found = {name: int(value) for name, value in map(str.split, text.splitlines())}
                        held_s += found.get("throttled_usec", 0) / 1e6 + found.get("throttled_time", 0) / 1e9
        return held_s

    def _busy_s(self) -> float:
        """Time in which the cores of this process were not idle; 0 where nobody says."""
        allowed = {f"cpu{core}" for core in self._cores}
        busy = 0
        with suppress(OSError, ValueError):
            for line in (self._root / "proc" / "stat").read_text().splitlines():
                name, *fields = line.split()
                if name in allowed:
                    ticks = [int(value) for value in fields[:8]]
                    busy += sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for disks
        return busy / os.sysconf("SC_CLK_TCK")
