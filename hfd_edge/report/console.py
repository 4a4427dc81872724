"""What people see in a terminal: progress on stderr, tables and JSON on stdout.

Progress and logs never go to stdout, so `hfd-edge ... --json | jq` always works.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any, Protocol, TextIO

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from hfd_edge.progress import Progress

_PLAIN_INTERVAL_S = 10.0
_NOTEWORTHY_S = 2.0
_PIPE_WIDTH = 160  # columns of a table that goes to a file: wide enough that paths stay on one line


class _Display(Protocol):
    """Shows one bar at a time."""

    def begin(self, done: float, total: float, text: str) -> None: ...
    def advance(self, done: float, total: float, text: str) -> None: ...
    def end(self, done: float, total: float, text: str, *, seconds: float) -> None: ...


@contextmanager
def bars(*, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """Give a `Progress` that draws on stderr; safe to call from several threads.

    A new total, a smaller `done` or another leading word of the text starts a new bar. On a terminal the
    running bar shows elapsed and remaining time and leaves one line behind when it ends. Elsewhere
    (a log file, CI) a plain line is printed about every 10 s and when work of more than 2 s ends.

    Args:
        stream: Where to draw; stderr by default.
        clock: Seconds that only grow; replaced in tests.
    """
    console = Console(file=stream or sys.stderr, highlight=False)
    if not console.is_terminal:
        tracker = _Tracker(_Lines(console.file, clock=clock), clock=clock)
        try:
            yield tracker
        finally:
            tracker.close()
        return
    live = RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=True,
        redirect_stdout=False,  # stdout carries results; it must not end up on stderr
        expand=True,
        speed_estimate_period=60.0,  # steps, validation and checkpoints alternate; 30 s jumps about
    )
    with live:
        tracker = _Tracker(_Bar(live), clock=clock)
        try:
            yield tracker
        finally:
            tracker.close()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table for people to stdout; columns of numbers are set right.

    Args:
        title: Heading; empty for none.
        columns: Column headings; when all are empty, no heading row is shown.
        rows: One value per column. Floats are shown with four digits, None as a dash; text is shown as
            it is, never read as markup.
    Raises:
        ValueError: a row has another number of values than there are columns.
    """
    view = Table(box=box.SIMPLE_HEAD, show_header=any(columns), show_edge=False, pad_edge=False)
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of table {title!r} has {len(row)} values for {len(columns)} columns")
    for position, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[position]) for row in rows)
        view.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(_cell(value)) for value in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=_PIPE_WIDTH)
    if title:  # not the table's own title, which would wrap at the table's width
        console.print(Text(title, style="bold"))
    console.print(view)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout; paths, NumPy scalars, arrays and dataclasses are converted.

    Raises:
        TypeError: a value has no JSON form.
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    # ASCII only: the reader's locale then never matters.
    text = json.dumps(dict(content), indent=2, allow_nan=False, default=_plain)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class _Tracker:
    """Turns calls of a `Progress` into bars that begin, advance and end."""

    def __init__(self, display: _Display, *, clock: Callable[[], float]) -> None:
        self._display = display
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, float, str] | None = None
        self._began = 0.0

    def __call__(self, done: float, total: float, text: str, /) -> None:
        with self._lock:
            if self._last is not None and _is_other_work(self._last, (done, total, text)):
                self._end()
            if self._last is None:
                self._began = self._clock()
                self._display.begin(done, total, text)
            self._last = (done, total, text)
            self._display.advance(done, total, text)

    def close(self) -> None:
        """End the running bar, if there is one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._last is not None:
            self._display.end(*self._last, seconds=self._clock() - self._began)
            self._last = None


class _Bar:
    """One live bar on a terminal; a finished one becomes a line above it."""

    def __init__(self, live: RichProgress) -> None:
        self._live = live
        self._task: Any = None

    def begin(self, done: float, total: float, text: str) -> None:
        # Only the running bar is live: dozens of finished ones would push it off the screen.
        self._task = self._live.add_task(text, total=max(total, 1e-9))
        self._live.update(self._task, completed=done)

    def advance(self, done: float, total: float, text: str) -> None:
        self._live.update(self._task, completed=done, description=text)

    def end(self, done: float, total: float, text: str, *, seconds: float) -> None:
        self._live.remove_task(self._task)
        mark, style = ("✓", "green") if done >= total else ("·", "yellow")
        line = Text.assemble((f"{mark} ", style), text, (f"  {duration(seconds)}", "dim"))
        if done < total:
            line.append(f"  stopped at {_percent(done, total)}", "yellow")
        self._live.console.print(line)


class _Lines:
    """Plain lines for logs."""

    def __init__(self, stream: TextIO | Any, *, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._began = 0.0
        self._began_at = 0.0
        self._printed = -math.inf

    def begin(self, done: float, total: float, text: str) -> None:
        self._began, self._began_at = self._clock(), done

    def advance(self, done: float, total: float, text: str) -> None:
        now = self._clock()
        if done >= total or now - self._printed < _PLAIN_INTERVAL_S:
            return
        elapsed, gained = now - self._began, done - self._began_at
        rest = f", {duration(elapsed * (total - done) / gained)} left" if gained > 0 and elapsed > 0 else ""
        self._print(f"{text} {_percent(done, total)} ({duration(elapsed)}{rest})")

    def end(self, done: float, total: float, text: str, *, seconds: float) -> None:
        if seconds >= _NOTEWORTHY_S or self._clock() - self._printed >= _PLAIN_INTERVAL_S:
            self._print(f"{text} {_percent(done, total)} ({duration(seconds)})")

    def _print(self, line: str) -> None:
        self._printed = self._clock()
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Say a time span as people do: "0.4 s", "42 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _is_other_work(last: tuple[float, float, str], new: tuple[float, float, str]) -> bool:
    return new[1] != last[1] or new[0] < last[0] or new[2].split()[:1] != last[2].split()[:1]


def _percent(done: float, total: float) -> str:
    # Rounded down: 100 % is said only when the work is done.
    return f"{math.floor(100 * min(done / total, 1.0)) if total > 0 else 100} %"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
