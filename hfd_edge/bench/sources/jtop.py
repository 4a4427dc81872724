"""jetson-stats, whose service reads what the files of this process do not show, as in some containers."""

from __future__ import annotations

import importlib
from typing import Any

from hfd_edge.bench.sources.base import Source, Unavailable


class JtopSource(Source):
    """Total power of the board as jtop adds it up."""

    name = "jtop"

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def power_w(self) -> float | None:
        if not self._reader.is_alive():  # it then repeats its last value
            raise OSError("its service has gone away")
        try:
            return float(self._reader.power["tot"]["power"]) / 1000
        except (KeyError, TypeError, IndexError) as error:  # before release 4 it was a tuple
            raise ValueError(f"jtop says {self._reader.power!r} instead of its total power") from error

    def close(self) -> None:
        self._reader.close()


def start() -> JtopSource | None:
    """Ask the service of jetson-stats; None where it is not installed.

    Raises:
        Unavailable: it is installed, but its service does not answer.
    """
    try:
        package = importlib.import_module("jtop")
    except ImportError:
        return None
    reader = package.jtop(interval=0.1)
    try:
        reader.start()
    except Exception as error:  # its own class, whose place has moved between releases
        raise Unavailable(
            f"jtop does not answer ({error}). Start it: sudo systemctl restart jtop.service; "
            "and join its group: sudo usermod -aG jtop $USER"
        ) from error
    return JtopSource(reader)
