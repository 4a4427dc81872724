"""Power, temperature and clock of whatever machine this is, and whether it throttles."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hfd_edge.bench.sources import host, jtop, nvml, tegra, tegrastats
from hfd_edge.bench.sources.base import Source, Unavailable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What the sensors say now; None where there is no such sensor, or it has failed.

    Attributes:
        power_w: Power of what `Sensors.power_source` names, watts.
        temperature_c: Of the GPU, or of the CPU, degrees Celsius.
        clock_mhz: Of the GPU, or the mean of the CPU's cores.
    """

    power_w: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing could be read."""
        return self == Reading()


class Sensors:
    """For each value the first source that has it; a source that fails is never replaced by another.

    Power from one sensor continued by that of another would be a step that no device made. Reading never
    raises. One thread at a time may use it.
    """

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._ask: dict[str, tuple[Source, Callable[[], float | None]]] = {}
        self._power_source: str | None = None
        self._notes: list[str] = []

    @property
    def power_source(self) -> str | None:
        """Where the power comes from, for example "ina3221 VDD_IN"; None for nowhere."""
        return self._power_source

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about sensors that are here but could not be read, or failed later, with what to do."""
        return tuple(self._notes)

    def add(self, start: Callable[[], Source | None], *, readings: bool = True) -> bool:
        """Start a source, and use it for what no earlier one has.

        Args:
            start: Starts it.
            readings: False to ask it for nothing but throttling.
        Returns:
            False when it is here, but cannot be read.
        """
        try:
            source = start()
        except Unavailable as error:
            self._notes.append(str(error))
            return False
        if source is None:
            return True
        self._sources.append(source)
        if not readings:
            return True
        asked = {
            "power_w": source.power_w,
            "temperature_c": source.temperature_c,
            "clock_mhz": source.clock_mhz,
        }
        for field, ask in asked.items():
            if field not in self._ask and self._try(ask) is not None:
                self._ask[field] = (source, ask)
                if field == "power_w":
                    self._power_source = source.power_name()
        return True

    def read(self) -> Reading:
        """Read everything now. A sensor that fails is left out from then on, and a note says so."""
        return Reading(**{field: self._read(field) for field in tuple(self._ask)})

    def throttling(self) -> str | None:
        """Why clocks are held down now, or were since the last call; None when the device says nothing."""
        sentences: list[str] = []
        for source in self._sources:
            try:
                sentences += source.throttling()
            except (OSError, ValueError) as error:
                self._lose(source, "throttling", error)
        return " ".join(dict.fromkeys(sentences)) or None

    def close(self) -> None:
        """Stop every source; more than once is allowed."""
        for source in self._sources:
            source.close()
        self._sources, self._ask = [], {}

    def _try(self, ask: Callable[[], float | None]) -> float | None:
        try:
            return ask()
        except PermissionError as error:
            self._notes.append(str(error))
        except (OSError, ValueError):
            pass  # a sensor that has never worked is as good as none
        return None

    def _read(self, field: str) -> float | None:
        source, ask = self._ask[field]
        try:
            return ask()
        except (OSError, ValueError) as error:
            del self._ask[field]
            self._lose(source, field.rsplit("_", 1)[0], error)
            return None

    def _lose(self, source: Source, what: str, error: Exception) -> None:
        note = f"{source.name} no longer says its {what} ({error}); the figures end there."
        if note not in self._notes:
            self._notes.append(note)
            _log.warning("%s", note)


def open_sensors(root: Path = Path("/"), *, gpu: bool = True) -> Sensors:
    """Find what this machine can measure; what is absent reads as None.

    Order: a Jetson's own sensors; where they have no power, NVML, jtop and tegrastats; then the CPU, unless
    there is a GPU that does the work and cannot be read: what the CPU takes meanwhile is not its power.

    Args:
        root: Below it lie sys, proc and dev; another folder in tests.
        gpu: Whether the work runs on the GPU. Otherwise a graphics card is left alone, and clock and
            temperature are the CPU's.
    """
    sensors = Sensors()
    sensors.add(lambda: tegra.start(root, gpu=gpu))
    readable = True
    if gpu:
        for start in (lambda: nvml.start(root), jtop.start, tegrastats.start):
            if sensors.power_source is None:
                readable &= sensors.add(start)
    sensors.add(lambda: host.start(root), readings=readable)
    return sensors
