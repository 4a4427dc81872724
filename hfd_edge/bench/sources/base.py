"""What every source of readings is, and how files below /sys are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_WHOLE = ("VDD_IN", "POM_5V_IN", "5V_IN", "VIN")
"""Rails that all the others of a module hang on: Orin NX and Nano, Nano, Xavier NX, Thor's carrier board."""
_PLAUSIBLE_C = (-40.0, 150.0)  # zones that are off say -256


class Unavailable(Exception):
    """A source is here, but cannot be read; the message says what to do about it."""


class Source:
    """Readings of one origin; None for what it does not have.

    Every method but `close` raises OSError or ValueError when a reading fails.
    """

    name = ""

    def power_name(self) -> str:
        """What the power is that of, for people."""
        return self.name

    def power_w(self) -> float | None:
        """Power now, watts."""
        return None

    def temperature_c(self) -> float | None:
        """Temperature now, degrees Celsius."""
        return None

    def clock_mhz(self) -> float | None:
        """Clock now, MHz."""
        return None

    def throttling(self) -> tuple[str, ...]:
        """A sentence for each reason for which clocks are held down now, or were since the last call."""
        return ()

    def close(self) -> None:
        """Let go of it."""


class Counters:
    """Files that count events: which of them grew since they were last looked at."""

    def __init__(self, sentences: Mapping[Path, str]) -> None:
        """
        Args:
            sentences: What it means that a file's number has grown. Unreadable files are left out.
        """
        found = {path: read_number(path) for path in sentences}
        self._last = {path: number for path, number in found.items() if number is not None}
        self._sentences = sentences

    def grown(self) -> tuple[str, ...]:
        """The sentences of the files that grew, each once."""
        sentences = []
        for path, before in self._last.items():
            now = read_number(path)
            if now is not None and now > before:
                sentences.append(self._sentences[path])
            self._last[path] = before if now is None else now
        return tuple(dict.fromkeys(sentences))


def read_text(path: Path) -> str | None:
    """A small file without white space and the NUL of the device tree at its ends; None if unreadable."""
    try:
        return path.read_text(errors="replace").strip(" \n\t\0")
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """A file that holds one number; None if it cannot be read or holds something else."""
    try:
        return need_number(path)
    except (OSError, ValueError):
        return None


def need_number(path: Path) -> float:
    """A file that holds one number. Raises OSError, ValueError."""
    return float(path.read_text())


def thermal_zones(root: Path) -> list[tuple[str, Path]]:
    """Types and files of the kernel's thermal zones, in their order."""
    folders = sorted(root.glob("sys/class/thermal/thermal_zone*"))
    return [(read_text(folder / "type") or "", folder / "temp") for folder in folders]


def zone_celsius(path: Path) -> float | None:
    """A zone's temperature; None where it is switched off, as those of idle parts of a Jetson are."""
    millidegrees = read_number(path)
    return None if millidegrees is None else plausible(millidegrees / 1000)


def plausible(celsius: float) -> float | None:
    """The temperature, or None for what zones that are off say."""
    return celsius if _PLAUSIBLE_C[0] < celsius < _PLAUSIBLE_C[1] else None


def choose_zone(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The first name that fits the first pattern that any fits; case does not matter."""
    known = list(names)
    for pattern in wanted:
        for name in known:
            if re.match(pattern, name, re.IGNORECASE):
                return name
    return None


def choose_rails(names: Iterable[str]) -> tuple[str, ...]:
    """The rails that make up a board's power: the one that feeds all, or else all of them.

    Which rails feed which is not documented for AGX modules; jetson-stats adds them up as well. The names go
    into the record, so that nobody takes the sum for power at the plug.
    """
    known = [name for name in names if name != "NC"]  # not connected
    return next(((whole,) for whole in _WHOLE if whole in known), tuple(known))
