"""Sensors read at a steady rate beside the timed runs."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from hfd_edge.bench.result import Power, Sample
from hfd_edge.bench.sensors import Sensors


class Sampler:
    """Reads sensors in a thread for as long as its `with` block runs; may be entered again.

    Source of the rate: INA3221 on a Jetson averages over about 0.1 s, NVML over 0.02 to 1 s; reading more
    often shows the same value twice and takes time from the runs.
    """

    def __init__(self, sensors: Sensors, *, hz: float = 10) -> None:
        """
        Args:
            sensors: Used by no other thread inside the block.
            hz: Readings a second.
        """
        self._sensors, self._interval_s = sensors, 1 / hz
        self._samples: list[Sample] = []
        self._throttled: dict[str, None] = {}
        self._idle_w: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def idle(self, seconds: float) -> float | None:
        """Wait, and keep the mean power of that time as the idle power; to be called outside the block."""
        began, powers = time.monotonic(), []
        while (left := began + seconds - time.monotonic()) > 0:
            time.sleep(min(left, self._interval_s))
            powers.append(self._sensors.read().power_w)
        known = [power for power in powers if power is not None]
        self._idle_w = statistics.fmean(known) if known else None
        return self._idle_w

    def __enter__(self) -> Sampler:
        self._samples, self._throttled = [], {}
        self._sensors.throttling()  # what happened before is not these runs' fault
        self._stop.clear()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="sensors")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def throttled(self) -> tuple[str, ...]:
        """What the device said about throttling in the block, each once."""
        return tuple(self._throttled)

    def power(self, megapixels_per_second: float) -> Power:
        """What was measured in the last block; to be called after it.

        Args:
            megapixels_per_second: Throughput of the runs, for the energy a megapixel.
        """
        mean_w = _mean_over_time(self._samples)
        powers = [sample.power_w for sample in self._samples if sample.power_w is not None]
        per_mpx = mean_w / megapixels_per_second if mean_w is not None and megapixels_per_second > 0 else None
        return Power(
            source=self._sensors.power_source,
            idle_w=self._idle_w,
            mean_w=mean_w,
            peak_w=max(powers, default=None),
            energy_j_per_mpx=per_mpx,
            samples=tuple(self._samples),
        )

    def _sample(self) -> None:
        due = self._began
        while True:
            self._take()
            # Not "now + interval": a slow reading would shift all later ones, and lower the rate.
            due = max(due + self._interval_s, time.monotonic())
            if self._stop.wait(due - time.monotonic()):
                self._take()  # the end of the runs, and what throttled since the last reading
                return

    def _take(self) -> None:
        reading, at_s = self._sensors.read(), time.monotonic() - self._began
        if not reading.empty:
            self._samples.append(
                Sample(
                    at_s=at_s,
                    power_w=reading.power_w,
                    temperature_c=reading.temperature_c,
                    clock_mhz=reading.clock_mhz,
                )
            )
        sentence = self._sensors.throttling()
        if sentence is not None:
            self._throttled[sentence] = None


def _mean_over_time(samples: Sequence[Sample]) -> float | None:
    """Mean power, each reading weighted by the time that it stands for (trapezoids)."""
    known = [(sample.at_s, sample.power_w) for sample in samples if sample.power_w is not None]
    if not known:
        return None
    span_s = known[-1][0] - known[0][0]
    if span_s <= 0:
        return statistics.fmean(power for _, power in known)
    pairs = itertools.pairwise(known)
    return sum((after[0] - at) * (power + after[1]) / 2 for (at, power), after in pairs) / span_s
