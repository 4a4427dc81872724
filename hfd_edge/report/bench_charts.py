"""Charts of a benchmark as geometry for inline SVG: histograms, bars on lanes, lines over time.

Each is laid out in a view box 320 wide, so that text stays readable in one column of a phone and in three
of a desktop; the template only draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfd_edge.report.chart import ticks

WIDTH = 320
_LEFT, _RIGHT, _TOP = 8.0, WIDTH - 8.0, 6.0
_BINS = 32
_TALL = 76.0  # plot of a histogram and of a line
_AXIS = 20.0  # room below a plot for its numbers
_FAR = 4.0  # a run so many times further from the median than the 95th percentile is not drawn to scale
_FLAT = 0.01  # a spread below this share of the median is the clock's noise: it must not fill the plot
_LANE, _BAR = 19.0, 12.0
_GUTTER = 150.0  # at most, for the names of lanes
_CHARACTER = 7.0  # width of a letter, generously: fonts differ


@dataclass(frozen=True)
class Lane:
    """A bar on a line of its own; `kind` is the CSS class that colours it, `text` says its value."""

    name: str
    kind: str
    start: float
    length: float
    text: str


def histogram(samples_ms: Sequence[float], *, p50_ms: float, p99_ms: float) -> dict[str, Any]:
    """How often a run took how long.

    One stray run would squeeze all others into one bar, so runs far beyond the 95th percentile are counted in
    a last bar, set off from the others and named in `note`.

    Args:
        samples_ms: At least one time; positive.
        p50_ms: Marked by a line.
        p99_ms: Marked by a dashed line, unless it lies among the strays.
    Returns:
        `bars` (x, y, w, h, kind), `marks` (x, kind), `x_ticks` (x, text), `left`, `right`, `top`,
        `bottom`, `height`, `note`.
    """
    values = np.asarray(samples_ms, np.float64)
    reach = p50_ms + _FAR * max(float(np.percentile(values, 95)) - p50_ms, _FLAT / 2 * p50_ms)
    strays = values[values > reach]
    low, high = float(values.min()), float(values[values <= reach].max())
    if high - low < _FLAT * p50_ms:
        low, high = p50_ms * (1 - _FLAT / 2), p50_ms * (1 + _FLAT / 2)
    right = _RIGHT - 24 if strays.size else _RIGHT
    bottom = _TOP + _TALL

    def at(value: float) -> float:
        return round(_LEFT + (right - _LEFT) * (value - low) / (high - low), 1)

    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    bars = [(at(left), at(end) - at(left) - 1, int(count), "") for count, left, end in _zip(counts, edges)]
    if strays.size:
        bars.append((right + 14, 10, strays.size, "stray"))
    tallest = max(count for *_, count, _ in bars)
    return {
        "bars": [_upright(bar, bottom, tallest) for bar in bars if bar[2]],
        "marks": [(at(value), kind) for value, kind in ((p50_ms, "p50"), (p99_ms, "p99")) if value <= high],
        "x_ticks": [(at(tick), f"{tick:g}") for tick in ticks(low, high, about=4)],
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "bottom": bottom,
        "height": bottom + _AXIS,
        "note": _stray_note(strays, high),
    }


def _zip(counts: Any, edges: Any) -> Any:
    return zip(counts, edges[:-1], edges[1:], strict=True)


def _upright(bar: tuple[float, float, int, str], bottom: float, tallest: int) -> dict[str, Any]:
    x, width, count, kind = bar
    tall = max(_TALL * count / tallest, 2.0)  # a single run must be seen beside hundreds
    return {"x": x, "y": round(bottom - tall, 1), "w": round(width, 1), "h": round(tall, 1), "kind": kind}


def _stray_note(strays: Any, high: float) -> str:
    if not strays.size:
        return ""
    runs = f"{strays.size} {'run' if strays.size == 1 else 'runs'} beyond {high:.4g} ms"
    return f"{runs}, the slowest {strays.max():.4g} ms, in the bar set off at the right"


def lanes(bars: Sequence[Lane], *, high: float) -> dict[str, Any]:
    """Bars one below the other on one axis that begins at zero, names at the left and values at the right.

    Args:
        bars: From top to bottom; at least one.
        high: End of the axis; the same for charts that are to be compared.
    Returns:
        `bars` (name, kind, x, y, w, h, text, text_y), `x_ticks` (x, text), `left`, `right`, `top`, `bottom`,
        `height`.
    """

    left = min(10 + _CHARACTER * max(len(bar.name) for bar in bars), _GUTTER)
    right = WIDTH - 10 - _CHARACTER * max(len(bar.text) for bar in bars)

    def at(value: float) -> float:
        return round(left + (right - left) * min(value / high, 1.0), 1)

    drawn = []
    for place, bar in enumerate(bars):
        x, end, y = at(bar.start), at(bar.start + bar.length), _TOP + place * _LANE
        shape = {"x": x, "y": y, "w": round(max(end - x, 1.0), 1), "h": _BAR, "text_y": y + _BAR - 2}
        drawn.append({"name": bar.name, "kind": bar.kind, "text": bar.text, **shape})
    bottom = _TOP + len(bars) * _LANE
    return {
        "bars": drawn,
        "x_ticks": [(at(tick), f"{tick:g}") for tick in ticks(0.0, high, about=4)],
        "left": left,
        "right": right,
        "top": _TOP,
        "bottom": bottom,
        "height": bottom + _AXIS,
    }


def line(points: Sequence[tuple[float, float]], *, base: float | None = None) -> dict[str, Any]:
    """A value over time; the upright axis begins at zero.

    Args:
        points: Seconds and value, in order; at least one.
        base: A level to mark, for example the power at rest.
    Returns:
        `path` (points of a polyline), `base` (y or None), `x_ticks`, `y_ticks` (position, text), `left`,
        `right`, `top`, `bottom`, `height`.
    """
    left, bottom = 34.0, _TOP + _TALL
    end = max(points[-1][0], 1e-3)
    high = 1.15 * max(*(value for _, value in points), base or 0.0, 1e-3)

    def at(second: float, value: float) -> tuple[float, float]:
        x = left + (_RIGHT - left) * second / end
        return round(x, 1), round(bottom - (bottom - _TOP) * value / high, 1)

    places = [at(*point) for point in points]
    if len(places) == 1:  # one reading stands for the whole time
        places = [(left, places[0][1]), (_RIGHT, places[0][1])]
    return {
        "path": " ".join(f"{x},{y}" for x, y in places),
        "base": None if base is None else at(0.0, base)[1],
        "x_ticks": [(at(tick, 0.0)[0], f"{tick:g}") for tick in ticks(0.0, end, about=4)],
        "y_ticks": [(at(0.0, tick)[1], f"{tick:g}") for tick in ticks(0.0, high, about=3)],
        "left": left,
        "right": _RIGHT,
        "top": _TOP,
        "bottom": bottom,
        "height": bottom + _AXIS,
    }
