"""tegrastats, where a Jetson's files cannot be read: power, temperature and clock from its lines.

Source: Jetson Linux Developer Guide, tegrastats utility; lines of JetPack 4 to 7.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

from hfd_edge.bench.sources.base import Source, Unavailable, choose_rails, choose_zone, plausible

_INTERVAL_MS = 100
_FIRST_LINE_S = 3.0
_STALE_S = 5.0
# "VDD_IN 5765mW/5700mW" or "VDD_IN 5765mW" since JetPack 5, "POM_5V_IN 2591/2591" in JetPack 4; never
# "RAM 2246/3964MB".
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*|5V_IN) (-?\d+)(?:mW(?:/-?\d+mW)?|/-?\d+)(?=\s|$)")
_ZONE = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b")
_CLOCK = re.compile(r"\bGR3D_FREQ \d+%@\[?(\d+)")  # "61%@1300" or, a number a cluster, "61%@[1300,1300]"


@dataclass(frozen=True)
class Line:
    """What one line says; None and () for what it does not."""

    power_w: float | None
    rails: tuple[str, ...]
    temperature_c: float | None
    clock_mhz: float | None


def parse(line: str) -> Line:
    """Read a line of tegrastats, of any JetPack."""
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line)}
    counted = choose_rails(rails)
    zones = {name: plausible(float(celsius)) for name, celsius in _ZONE.findall(line)}
    zones = {name: celsius for name, celsius in zones.items() if celsius is not None}
    zone = choose_zone(zones, ("gpu", "tj", "thermal"))
    clock = _CLOCK.search(line)
    return Line(
        power_w=sum(rails[name] for name in counted) if counted else None,
        rails=counted,
        temperature_c=None if zone is None else zones[zone],
        clock_mhz=None if clock is None else float(clock[1]),
    )


class TegrastatsSource(Source):
    """A tegrastats that runs until it is closed."""

    name = "tegrastats"

    def __init__(self, program: str) -> None:
        """Start it and wait for its first line. Raises Unavailable: it gives none."""
        self._last, self._heard = Line(None, (), None, None), 0.0
        self._first = threading.Event()
        try:
            self._process = subprocess.Popen(
                [program, "--interval", str(_INTERVAL_MS)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"tegrastats cannot be started: {error.strerror or error}.") from error
        self._reader = threading.Thread(target=self._listen, daemon=True, name="tegrastats")
        self._reader.start()
        self._first.wait(_FIRST_LINE_S)
        if self._last.power_w is None:
            self.close()
            raise Unavailable(
                f"tegrastats named no power within {_FIRST_LINE_S:g} s. See what it says: sudo tegrastats"
            )

    def power_name(self) -> str:
        return f"tegrastats {' + '.join(self._last.rails)}"

    def power_w(self) -> float | None:
        return self._fresh().power_w

    def temperature_c(self) -> float | None:
        return self._fresh().temperature_c

    def clock_mhz(self) -> float | None:
        return self._fresh().clock_mhz

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=1)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self) -> None:
        for text in self._process.stdout or ():
            line = parse(text)
            if line.power_w is not None:
                self._last, self._heard = line, time.monotonic()
                self._first.set()
        self._first.set()  # it ended: nobody needs to wait any longer

    def _fresh(self) -> Line:
        silent_s = time.monotonic() - self._heard
        if silent_s > _STALE_S:
            raise OSError(f"tegrastats has been silent for {silent_s:.0f} s")
        return self._last


def start() -> TegrastatsSource | None:
    """Start tegrastats; None where it is not on PATH. Raises Unavailable."""
    program = shutil.which("tegrastats")
    return None if program is None else TegrastatsSource(program)
