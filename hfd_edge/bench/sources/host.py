"""The host's CPU: package power by RAPL, clocks by cpufreq, temperature and throttling by the kernel.

Source: Linux kernel documentation, powercap, cpufreq and thermal sysfs; intel_rapl also serves AMD.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from pathlib import Path

from hfd_edge.bench.sources.base import (
    Counters,
    Source,
    choose_zone,
    need_number,
    read_number,
    read_text,
    thermal_zones,
    zone_celsius,
)

RAPL_FIX = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
"""Until the next start; the kernel shows it to root alone since CVE-2020-8694, which measured by it."""
_MAX_CORES = 8  # some drivers wake a core to read its clock
_FIRST_INTERVAL_S = 0.05
_LEAST_INTERVAL_S = 0.005  # the counter moves about once a millisecond
_MOST_INTERVAL_S = 1.0  # a longer mean would tell of the time before the runs
_ZONES = ("x86_pkg_temp", "cpu", "tj", "soc")
_CHIPS = ("coretemp", "k10temp", "zenpower")
_THROTTLE = re.compile(r"throttle|cpufreq|devfreq|^processor$", re.IGNORECASE)


_Energy = dict[Path, tuple[float, float]]
"""Joules of each package since some time, and when they were read, seconds."""


class HostSource(Source):
    """What a Linux kernel tells of its CPUs; nothing elsewhere."""

    name = "cpu"

    def __init__(self, root: Path) -> None:
        self._packages = [path.parent for path in sorted(root.glob("sys/class/powercap/intel-rapl:*/name"))]
        self._packages = [path for path in self._packages if _is_package(path)]
        self._before: _Energy = {}
        self._watts: float | None = None
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
        files = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus]
        self._clocks = [path for path in files if read_number(path) is not None][:_MAX_CORES]
        self._cpuinfo = root / "proc/cpuinfo"
        self._temperature = _temperature(root)
        self._counters = Counters(_counters(root))
        self._coolers = [
            (kind, folder / "cur_state")
            for folder in sorted(root.glob("sys/class/thermal/cooling_device*"))
            if _THROTTLE.search(kind := read_text(folder / "type") or "")
        ]

    def power_name(self) -> str:
        return f"rapl, {len(self._packages)} CPU package{'s' if len(self._packages) > 1 else ''}"

    def power_w(self) -> float | None:
        """Mean power of all CPU packages since the last call, or of a moment if that was long ago.

        It is that of every process, not of this one alone.

        Raises:
            PermissionError: only root may read it; says how to allow it.
        """
        if not self._packages:
            return None
        now = self._joules()
        if not self._before or _seconds(self._before, now) > _MOST_INTERVAL_S:
            self._before = now
            time.sleep(_FIRST_INTERVAL_S)
            now = self._joules()
        if _seconds(self._before, now) >= _LEAST_INTERVAL_S:
            self._watts = sum(_mean_watts(package, self._before[package], now[package]) for package in now)
            self._before = now
        return self._watts

    def temperature_c(self) -> float | None:
        return None if self._temperature is None else zone_celsius(self._temperature)

    def clock_mhz(self) -> float | None:
        if self._clocks:
            return statistics.fmean(need_number(path) for path in self._clocks) / 1000
        text = read_text(self._cpuinfo) or ""
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)
        return statistics.fmean(map(float, found)) if found else None

    def throttling(self) -> tuple[str, ...]:
        cooling = (kind for kind, path in self._coolers if (read_number(path) or 0) > 0)
        sentences = (f"The kernel holds clocks down because of heat ({kind})." for kind in cooling)
        return tuple(dict.fromkeys((*self._counters.grown(), *sentences)))

    def _joules(self) -> _Energy:
        try:
            return {
                path: (need_number(path / "energy_uj") / 1e6, time.monotonic()) for path in self._packages
            }
        except PermissionError as error:
            raise PermissionError(
                f"The CPU's power is not read: only root may read its energy counter. Allow it: {RAPL_FIX}"
            ) from error


def start(root: Path) -> HostSource:
    """The CPU's sensors; a virtual machine mostly shows a clock at the best."""
    return HostSource(root)


def _is_package(folder: Path) -> bool:
    """Whole packages alone: cores and memory are parts of them, "psys" is the platform around them."""
    return (read_text(folder / "name") or "").startswith("package")


def _seconds(before: _Energy, now: _Energy) -> float:
    return min(now[package][1] - before[package][1] for package in now)


def _mean_watts(package: Path, before: tuple[float, float], now: tuple[float, float]) -> float:
    joules = now[0] - before[0]
    if joules < 0:  # the counter went round
        joules += need_number(package / "max_energy_range_uj") / 1e6
    return joules / (now[1] - before[1])


def _temperature(root: Path) -> Path | None:
    zones = {name: path for name, path in thermal_zones(root) if zone_celsius(path) is not None}
    zone = choose_zone(zones, _ZONES)
    if zone is not None:
        return zones[zone]
    folders = sorted(root.glob("sys/class/hwmon/hwmon*"))
    chips = (folder / "temp1_input" for folder in folders if read_text(folder / "name") in _CHIPS)
    return next((path for path in chips if zone_celsius(path) is not None), None)


def _counters(root: Path) -> dict[Path, str]:
    folders = "sys/devices/system/cpu/cpu*/thermal_throttle"
    return {
        path: f"The CPU throttled: a {kind} grew too hot."
        for kind in ("core", "package")
        for path in root.glob(f"{folders}/{kind}_throttle_count")
    }
