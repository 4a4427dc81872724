"""Geometry of a benchmark's charts: where bars and lines lie, and what is said of runs that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hfd_edge.report.bench_charts import WIDTH, Lane, histogram, lanes, line

from ..benches import make_samples


def drawn(samples: Any) -> dict[str, Any]:
    return histogram(samples, p50_ms=float(np.median(samples)), p99_ms=float(np.percentile(samples, 99)))


def at(chart: dict[str, Any], value: float) -> float:
    """Where a value lies, read off two ticks."""
    (x0, low), *_, (x1, high) = [(x, float(text)) for x, text in chart["x_ticks"]]
    return float(x0 + (x1 - x0) * (value - low) / (high - low))


def test_every_run_is_in_a_bar() -> None:
    samples = np.repeat((10.0, 11.0, 12.0, 14.0), (4, 8, 2, 1))
    chart = drawn(samples)
    bars = sorted(chart["bars"], key=lambda bar: bar["x"])
    heights = [bar["h"] for bar in bars]
    assert np.array(heights) / heights[1] * 8 == pytest.approx([4, 8, 2, 1], abs=0.05)
    assert [bar["y"] + bar["h"] for bar in bars] == pytest.approx([chart["bottom"]] * 4)
    for bar, value in zip(bars, (10, 11, 12, 14), strict=True):
        assert bar["x"] - 0.6 <= at(chart, value) <= bar["x"] + bar["w"] + 2
    assert [kind for _, kind in chart["marks"]] == ["p50", "p99"]
    assert chart["marks"][0][0] == pytest.approx(at(chart, 11), abs=0.2)
    assert chart["note"] == ""


def test_strays_are_counted_and_named() -> None:
    samples = make_samples(100.0)
    samples[[7, 80, 120]] = 250.0, 300.0, 1000.0
    chart = drawn(samples)
    (stray,) = [bar for bar in chart["bars"] if bar["kind"] == "stray"]
    others = [bar for bar in chart["bars"] if bar["kind"] != "stray"]
    assert stray["x"] > max(bar["x"] + bar["w"] for bar in others) + 8, "set off"
    assert "3 runs beyond" in chart["note"]
    assert "the slowest 1000 ms" in chart["note"]
    assert len(others) > 15, "the others still fill the plot"
    assert [kind for _, kind in chart["marks"]] == ["p50"], "the 99th percentile lies among the strays"
    samples[[80, 120]] = 100.0
    assert drawn(samples)["note"].startswith("1 run beyond")


@pytest.mark.parametrize("samples", [[30.0], [30.0] * 50, [30.0, 30.01], [0.004, 0.005]])
def test_noise_of_the_clock_does_not_fill_the_plot(samples: list[float]) -> None:
    chart = drawn(samples)
    assert chart["x_ticks"]
    for bar in chart["bars"]:
        assert chart["left"] - 1 <= bar["x"] < bar["x"] + bar["w"] <= WIDTH
        assert 0 < bar["h"] <= chart["bottom"]
    if samples[0] == 30.0:
        assert len(chart["bars"]) <= 2


def test_lanes_share_an_axis_from_zero() -> None:
    chart = lanes(
        [Lane("infer", "infer", 10, 80, "80.0 ms"), Lane("postprocess", "postprocess", 90, 0.01, "0.01 ms")],
        high=100,
    )
    first, second = chart["bars"]
    unit = (chart["right"] - chart["left"]) / 100
    assert first["x"] == pytest.approx(chart["left"] + 10 * unit, abs=0.1)
    assert first["w"] == pytest.approx(80 * unit, abs=0.2)
    assert first["y"] + first["h"] < second["y"]
    assert second["w"] == 1.0, "a stage that takes next to nothing is still there"
    assert chart["x_ticks"][0] == (chart["left"], "0")
    assert chart["left"] >= 6 * len("postprocess")
    assert WIDTH - chart["right"] >= 6 * len("80.0 ms")


def test_lines() -> None:
    chart = line([(0.0, 4.0), (1.0, 10.0), (2.0, 5.0)], base=2.0)
    places = [tuple(map(float, place.split(","))) for place in chart["path"].split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x0, x2) == (chart["left"], chart["right"])
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 < y2 < y0 < chart["base"] < chart["bottom"], "up is more"
    assert (chart["bottom"] - y1) == pytest.approx(2 * (chart["bottom"] - y2), abs=0.2), (
        "zero is at the bottom"
    )
    assert line([(0.0, 4.0)])["path"].count(",") == 2, "one reading is a level"
    assert line([(0.0, 0.0), (1.0, 0.0)])["base"] is None
