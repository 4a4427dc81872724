"""Geometry of the scatter: where circles, ticks and labels lie."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hfd_edge.report.chart import HEIGHT, WIDTH, Point, scatter


def point(x: float, y: float, *, size: float = 4.0, label: str = "INT8+FP16, 4.7 MB") -> Point:
    return Point(label=label, kind="int8", x=x, y=y, size=size)


def box(label: dict[str, Any]) -> tuple[float, float, float, float]:
    """What a label covers, by a narrower estimate than the layout's."""
    width = 5.5 * len(label["text"])
    left = label["x"] - {"start": 0.0, "middle": width / 2, "end": width}[label["anchor"]]
    return left, label["y"] - 9, left + width, label["y"] + 2


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def test_right_is_slower_up_is_better_and_area_is_size() -> None:
    chart = scatter([point(100, 70, size=16), point(200, 69, size=4), point(50, 69.5, size=1)])
    by_radius = sorted(chart["circles"], key=lambda circle: -circle["r"])
    assert chart["circles"] == by_radius, "small circles are drawn over large ones"
    large, middle, small = by_radius
    assert (large["r"], middle["r"], small["r"]) == (20, 10, 5)
    assert small["x"] < large["x"] < middle["x"]
    assert large["y"] < small["y"] < middle["y"], "the y axis of SVG points down"
    zero = chart["left"]
    assert (middle["x"] - zero) == pytest.approx(2 * (large["x"] - zero), abs=0.2), "time starts at zero"


def test_ticks_are_round_numbers_at_their_places() -> None:
    chart = scatter([point(100, 70.0), point(200, 69.0)], lines=[(69.5, "limit")])
    assert [text for _, text in chart["x_ticks"]] == ["0", "50", "100", "150", "200"]
    places = {text: x for x, text in chart["x_ticks"]}
    assert places["100"] == pytest.approx(next(c["x"] for c in chart["circles"] if c["y"] < 150))
    for position, text in chart["y_ticks"]:
        assert chart["top"] - 1 <= position <= chart["bottom"] + 1
        assert float(text) * 2 == round(float(text) * 2), "steps of a half"
    ((line, text),) = chart["lines"]
    heights = sorted(circle["y"] for circle in chart["circles"])
    assert text == "limit"
    assert line == pytest.approx(sum(heights) / 2, abs=0.1)


def test_noise_is_not_blown_up() -> None:
    """Two variants that differ by a hundredth of a point lie side by side."""
    chart = scatter([point(100, 70.00), point(200, 70.01)])
    first, second = (circle["y"] for circle in chart["circles"])
    assert abs(first - second) < 3


@pytest.mark.parametrize(
    "points",
    [
        [point(100, 70, size=14), point(103, 70.01, size=7), point(199, 69.9), point(190, 69.91)],
        [point(100, 70), point(100, 70)],
        [point(200 + 3 * index, 70 - 0.01 * index, size=index + 1) for index in range(6)],
        [point(5, 3)],
    ],
)
def test_labels_stay_inside_and_apart(points: list[Point]) -> None:
    chart = scatter(points)
    boxes = [box(label) for label in chart["labels"]]
    assert [label["text"] for label in chart["labels"]] == [one.label for one in points]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
    assert not any(overlap(*pair) for pair in itertools.combinations(boxes, 2))


def test_one_point_and_none() -> None:
    assert len(scatter([point(0.0, 0.0, size=0)])["circles"]) == 1
    with pytest.raises(ValueError, match="at least one point"):
        scatter([])
