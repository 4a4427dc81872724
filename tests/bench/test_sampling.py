"""The sampler: readings beside timed runs, and what they add up to."""

from __future__ import annotations

import threading
import time

import pytest

from hfd_edge.bench import sampling
from hfd_edge.bench.result import Power, Sample
from hfd_edge.bench.sampling import Sampler
from hfd_edge.bench.sensors import Sensors
from hfd_edge.bench.sources.base import Source


class Meter(Source):
    """A power meter that a test turns."""

    name = "meter"

    def __init__(self) -> None:
        self.power: float | None = 10.0
        self.events: list[str] = []
        self.readings = threading.Event()
        self.count = 0

    def power_w(self) -> float | None:
        self.count += 1
        if self.count > 3:
            self.readings.set()
        if self.power is None:
            raise OSError("unplugged")
        return self.power

    def throttling(self) -> tuple[str, ...]:
        said, self.events = tuple(self.events), []
        return said


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def sensors(meter: Meter) -> Sensors:
    sensors = Sensors()
    sensors.add(lambda: meter)
    return sensors


def test_energy_of_a_megapixel(meter: Meter, sensors: Sensors) -> None:
    meter.power = 4.0
    sampler = Sampler(sensors, hz=200)
    assert sampler.idle(0.02) == 4.0
    meter.power = 12.0
    meter.count = 0
    meter.readings.clear()
    with sampler:
        assert meter.readings.wait(5)
    power = sampler.power(3.0)
    assert (power.source, power.idle_w, power.mean_w, power.peak_w) == ("meter", 4.0, 12.0, 12.0)
    assert power.energy_j_per_mpx == pytest.approx(4.0)
    assert len(power.samples) >= 3
    times = [sample.at_s for sample in power.samples]
    assert times == sorted(times) and times[0] >= 0


def test_the_mean_is_over_time_not_over_readings() -> None:
    # 10 W for 9 s, then 20 W for 1 s that was read ten times as often.
    samples = [Sample(at_s=0, power_w=10), Sample(at_s=9, power_w=10), Sample(at_s=9, power_w=20)]
    samples += [Sample(at_s=9 + n / 10, power_w=20) for n in range(1, 11)]
    assert sampling._mean_over_time(samples) == pytest.approx(11.0)
    assert sampling._mean_over_time([Sample(at_s=1, power_w=7)]) == 7
    assert sampling._mean_over_time([Sample(at_s=1, clock_mhz=7)]) is None


def test_throttling_before_the_block_does_not_count(meter: Meter, sensors: Sensors) -> None:
    sampler = Sampler(sensors, hz=100)
    meter.events = ["It was hot."]
    with sampler:
        pass
    assert sampler.throttled == ()
    with sampler:
        meter.events = ["It is hot."]
        time.sleep(0.05)
        meter.events = ["It is hot."]
    assert sampler.throttled == ("It is hot.",)
    with sampler:  # a new block starts afresh
        pass
    assert sampler.throttled == ()


def test_what_happens_at_the_very_end_is_seen(meter: Meter, sensors: Sensors) -> None:
    with Sampler(sensors, hz=0.01) as sampler:
        assert meter.count >= 0
        time.sleep(0.05)
        meter.events = ["It is hot."]
    assert sampler.throttled == ("It is hot.",)
    assert len(sampler.power(1).samples) == 2


def test_a_meter_that_fails_midway(meter: Meter, sensors: Sensors) -> None:
    with Sampler(sensors, hz=200) as sampler:
        assert meter.readings.wait(5)
        meter.power = None
        time.sleep(0.05)
    power = sampler.power(1.0)
    assert (power.mean_w, power.source) == (10.0, "meter")
    assert sensors.notes[0].startswith("meter no longer says its power (unplugged)")


def test_no_sensors_leave_no_figures() -> None:
    sampler = Sampler(Sensors(), hz=200)
    assert sampler.idle(0.01) is None
    with sampler:
        time.sleep(0.02)
    assert sampler.power(1.0) == Power()
    assert sampler.throttled == ()


def test_an_error_inside_the_block_stops_the_thread(sensors: Sensors) -> None:
    with pytest.raises(RuntimeError, match="model"), Sampler(sensors):
        raise RuntimeError("model")
    assert "sensors" not in {thread.name for thread in threading.enumerate()}
