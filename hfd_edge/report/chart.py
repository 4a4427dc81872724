"""A scatter of accuracy over latency whose circles grow with size; geometry for an inline SVG.

The template only draws: every coordinate is computed here, in units of a 400 wide view box, which at a
phone's width and at a page's leaves the labels readable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 400, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 16, 44
_LARGEST_RADIUS = 20.0
_CHARACTER, _LINE = 6.3, 13.0  # size of the labels' text, generously: fonts differ
_LEAST_SPAN = 1.0  # points on the y axis: less would make noise look like a finding

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One circle.

    Attributes:
        label: Text beside it.
        kind: CSS class that colours it.
        x: Milliseconds.
        y: Percent.
        size: What its area stands for; any unit.
    """

    label: str
    kind: str
    x: float
    y: float
    size: float


def scatter(points: Sequence[Point], *, lines: Sequence[tuple[float, str]] = ()) -> dict[str, Any]:
    """Lay out a scatter.

    Args:
        points: Circles; at least one.
        lines: Horizontal lines: value on the y axis, and text.
    Returns:
        `x_ticks`, `y_ticks` and `lines` (position and text), `circles` (x, y, r, kind) and `labels` (x, y,
        anchor, text); the corners of the plot as `left`, `top`, `right`, `bottom`.
    Raises:
        ValueError: there are no points.
    """
    if not points:
        raise ValueError("a scatter needs at least one point")
    high_x = max(point.x for point in points) * 1.15 or 1.0
    values = [*(point.y for point in points), *(value for value, _ in lines)]
    low, high = _span(values)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def at_x(value: float) -> float:
        return round(_LEFT + (right - _LEFT) * value / high_x, 1)

    def at_y(value: float) -> float:
        return round(bottom - (bottom - _TOP) * (value - low) / (high - low), 1)

    largest = max(point.size for point in points) or 1.0
    circles = [
        {
            "x": at_x(point.x),
            "y": at_y(point.y),
            "r": round(_LARGEST_RADIUS * math.sqrt(point.size / largest), 1),
            "kind": point.kind,
        }
        for point in points
    ]
    return {
        "left": _LEFT,
        "top": _TOP,
        "right": right,
        "bottom": bottom,
        "x_ticks": [(at_x(tick), f"{tick:g}") for tick in ticks(0.0, high_x)],
        "y_ticks": [(at_y(tick), f"{tick:g}") for tick in ticks(low, high)],
        "lines": [(at_y(value), text) for value, text in lines],
        # Small circles are drawn last: a large one must not hide them.
        "circles": sorted(circles, key=lambda circle: -float(str(circle["r"]))),
        "labels": _labels([point.label for point in points], circles),
    }


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max(high - low, _LEAST_SPAN) / 2
    return middle - 1.35 * half, middle + 1.35 * half


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers between two values: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _labels(texts: Sequence[str], circles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put each label beside its circle, where it covers least of the others."""
    taken: list[Box] = []
    for circle in circles:
        x, y, radius = circle["x"], circle["y"], circle["r"]
        taken.append((x - radius, y - radius, x + radius, y + radius))
    labels = []
    for text, circle in zip(texts, circles, strict=True):
        places = _places(len(text) * _CHARACTER, circle)
        label, box = min(places, key=lambda place: _cost(place[1], taken))
        taken.append(box)
        labels.append({**label, "text": text})
    return labels


def _places(width: float, circle: dict[str, Any]) -> list[tuple[dict[str, Any], Box]]:
    """Where a label of this width may stand: right, left, above, below, and further off each way."""
    places: list[tuple[dict[str, Any], Box]] = []
    x, y = circle["x"], circle["y"]
    for gap in (circle["r"] + 4, circle["r"] + 4 + _LINE, circle["r"] + 4 + 2 * _LINE):
        for anchor, at, top in (
            ("start", x + gap, y - _LINE / 2),
            ("end", x - gap, y - _LINE / 2),
            ("middle", x, y - gap - _LINE),
            ("middle", x, y + gap),
        ):
            left = at - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            label = {"x": round(at, 1), "y": round(top + _LINE * 0.78, 1), "anchor": anchor}
            places.append((label, (left, top, left + width, top + _LINE)))
    return places


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Area that a label shares with what is there already; leaving the plot is worst."""
    left, top, right, bottom = box
    outside = max(_LEFT - left, 0) + max(right - WIDTH, 0)
    outside += max(2 - top, 0) + max(bottom - (HEIGHT - _BOTTOM), 0)
    shared = 0.0
    for other_left, other_top, other_right, other_bottom in taken:
        width = min(right, other_right) - max(left, other_left)
        height = min(bottom, other_bottom) - max(top, other_top)
        shared += max(width, 0) * max(height, 0)
    return shared + 1000 * outside
