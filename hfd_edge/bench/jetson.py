"""What a Jetson says about itself: JetPack, power mode, clocks.

Source: Jetson Linux Developer Guide, releases 32 to 38 (nvpmodel, jetson_clocks, device tree).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hfd_edge.bench.programs import ask
from hfd_edge.bench.sources.base import read_number, read_text
from hfd_edge.bench.sources.tegra import gpu_clock

_JETPACK = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
"""Jetson Linux releases and the JetPack that brings them."""
_MODE = re.compile(r"NV Power Mode\s*:\s*(\S+)")
_MODES = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_SHOWN = re.compile(r"^(?:cpu\d+|GPU)\b.*?MinFreq=(\d+) MaxFreq=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class PowerMode:
    """Power mode of nvpmodel.

    Attributes:
        name: "15W", "MAXN_SUPER"; None where it cannot be told, then `fault` says why.
        fault: What stands in the way; "" otherwise.
        unlimited: Number of the mode without a power limit, if the board has one and it is not this one.
    """

    name: str | None
    fault: str = ""
    unlimited: int | None = None


def jetpack(root: Path = Path("/")) -> str | None:
    """JetPack and Jetson Linux, "JetPack 6.2.1+b38, Jetson Linux 36.4.4"; None where neither can be told.

    The package nvidia-jetpack is not part of every image; the release of Jetson Linux tells the major number.
    """
    status = read_text(root / "var/lib/dpkg/status") or ""
    package = re.search(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)", status, re.MULTILINE)
    release = re.search(r"R(\d+) .*?REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    known = [f"Jetson Linux {release[1]}.{release[2]}"] if release else []
    if package:
        return ", ".join([f"JetPack {package[1]}", *known])
    if release and release[1] in _JETPACK:
        return f"JetPack {_JETPACK[release[1]]}, {known[0]}"
    return known[0] if known else None


def power_mode(root: Path = Path("/")) -> PowerMode:
    """Ask nvpmodel, which needs no root for that, though it may complain on stderr."""
    answer = ask("nvpmodel", "-q")
    if answer is None:
        return PowerMode(None, "nvpmodel is not on PATH")
    found = _MODE.search(answer.text)  # also in what it says before it fails for want of a permission
    if found is None:
        return PowerMode(None, answer.fault or f"nvpmodel -q says {answer.text.strip()[:60]!r}")
    modes = {
        name: int(number) for number, name in _MODES.findall(read_text(root / "etc/nvpmodel.conf") or "")
    }
    unlimited = [number for name, number in modes.items() if "MAXN" in name]
    limited = bool(unlimited) and "MAXN" not in found[1]
    return PowerMode(found[1], unlimited=max(unlimited) if limited else None)


def clocks_locked(root: Path = Path("/")) -> bool | None:
    """Whether jetson_clocks holds CPU and GPU at their highest clocks; None where it cannot be told.

    jetson_clocks itself only answers root; what it does can be read by anyone: least and highest clock are
    the same.
    """
    cpus = root.glob("sys/devices/system/cpu/cpu*/cpufreq")
    pairs = [_pair(path / "scaling_min_freq", path / "scaling_max_freq") for path in cpus]
    gpu = gpu_clock(root)
    if gpu is not None:
        pairs.append(_pair(gpu / "min_freq", gpu / "max_freq"))
    known = [pair for pair in pairs if pair is not None]
    if not known:
        answer = ask("jetson_clocks", "--show")
        known = [(float(low), float(high)) for low, high in _SHOWN.findall(answer.text if answer else "")]
    return all(low == high for low, high in known) if known else None


def _pair(low: Path, high: Path) -> tuple[float, float] | None:
    least, most = read_number(low), read_number(high)
    return None if least is None or most is None else (least, most)
