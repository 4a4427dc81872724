"""A Jetson's own sensors, as files below /sys.

Source: Jetson Linux Developer Guide, Platform Power and Performance (INA3221, over-current events, thermal
zones), releases 32 to 38; Linux kernel documentation, ina3221 and ina238.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfd_edge.bench.sources.base import (
    Counters,
    Source,
    choose_rails,
    choose_zone,
    need_number,
    read_number,
    read_text,
    thermal_zones,
    zone_celsius,
)

_BOARD = re.compile(r"jetson|\borin\b|\bthor\b|xavier", re.IGNORECASE)
_GPU = re.compile(r"ga10b|gv11b|gp10b|gm20b|\bgpu\b")  # Orin, Xavier, TX2, Nano; the newer kernels say gpu
_EVENTS = {
    1: "The Jetson throttled: its supply voltage fell too low (OC1).",
    2: "The Jetson throttled: its mean power went over the limit of the power mode (OC2).",
    3: "The Jetson throttled: its power peaked over the module's limit (OC3).",
}


@dataclass(frozen=True)
class Rail:
    """A supply whose power is measured: the product of some files times a factor is watts."""

    name: str
    chip: str
    files: tuple[Path, ...]
    factor: float

    def watts(self) -> float:
        """Power now. Raises OSError, ValueError."""
        return math.prod(need_number(path) for path in self.files) * self.factor


class TegraSource(Source):
    """Module power by INA3221 or INA238, GPU clock, temperatures, and events that throttle."""

    name = "jetson"

    def __init__(self, root: Path, *, gpu: bool) -> None:
        rails = {rail.name: rail for rail in _rails(root)}
        self._rails = [rails[name] for name in choose_rails(rails)]
        clock = gpu_clock(root) if gpu else None
        self._clock = None if clock is None else clock / "cur_freq"
        zones = dict(reversed(thermal_zones(root)))  # of two zones of a name the first
        readable = [name for name, path in zones.items() if zone_celsius(path) is not None]
        zone = choose_zone(sorted(readable), (("gpu",) if gpu else ("cpu",)) + ("tj", "thermal"))
        self._zone = None if zone is None else zones[zone]
        self._events = Counters(_events(root))

    def power_name(self) -> str:
        return f"{self._rails[0].chip} {' + '.join(rail.name for rail in self._rails)}"

    def power_w(self) -> float | None:
        return sum(rail.watts() for rail in self._rails) if self._rails else None

    def temperature_c(self) -> float | None:
        return None if self._zone is None else zone_celsius(self._zone)

    def clock_mhz(self) -> float | None:
        return None if self._clock is None else need_number(self._clock) / 1e6

    def throttling(self) -> tuple[str, ...]:
        return self._events.grown()


def start(root: Path, *, gpu: bool) -> TegraSource | None:
    """The sensors of a Jetson; None on other machines."""
    return None if board(root) is None else TegraSource(root, gpu=gpu)


def board(root: Path) -> str | None:
    """Name in the device tree, "NVIDIA Jetson AGX Orin Developer Kit"; None on other machines."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        name = read_text(root / path)
        if name and _BOARD.search(name):
            return name
    return None


def gpu_clock(root: Path) -> Path | None:
    """Folder with cur_freq, min_freq and max_freq of the integrated GPU, Hz."""
    folders = sorted(root.glob("sys/class/devfreq/*"))
    return next((folder for folder in folders if _GPU.search(folder.name)), None)


def _rails(root: Path) -> Iterator[Rail]:
    for rail in _all_rails(root):
        try:
            rail.watts()
        except (OSError, ValueError):  # a channel without a resistor
            continue
        yield rail


def _all_rails(root: Path) -> Iterator[Rail]:
    """INA3221 since JetPack 5 (mV, mA), then that of JetPack 4 (mW), then Thor's INA238 (microwatts)."""
    known = {folder: read_text(folder / "name") for folder in sorted(root.glob("sys/class/hwmon/hwmon*"))}
    folders = [folder for folder, chip in known.items() if chip == "ina3221"]
    for folder in folders or sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*")):
        for channel in (1, 2, 3):  # 7 is the sum of the shunt voltages
            files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
            yield Rail(read_text(folder / f"in{channel}_label") or "NC", "ina3221", files, 1e-6)
    for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        for channel in (0, 1, 2):
            name = read_text(folder / f"rail_name_{channel}") or "NC"
            yield Rail(name, "ina3221", (folder / f"in_power{channel}_input",), 1e-3)
    for folder, chip in known.items():
        if chip == "ina238":
            yield Rail("VIN", "ina238", (folder / "power1_input",), 1e-6)


def _events(root: Path) -> dict[Path, str]:
    """Counters of over-current events that slow the module down; of heat the host's cooling devices tell."""
    return {
        folder / f"oc{number}_event_cnt": sentence
        for folder in root.glob("sys/class/hwmon/hwmon*")
        if read_text(folder / "name") == "soctherm_oc"
        for number, sentence in _EVENTS.items()
        if read_number(folder / f"oc{number}_throt_en") != 0
    }
