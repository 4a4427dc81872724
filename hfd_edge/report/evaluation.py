"""Scores of a model, and of one model against another: console tables, and the difference as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfd_edge.comparison.difference import Difference, Gain, TileGain
from hfd_edge.errors import DatasetError, require
from hfd_edge.files import atomic_path
from hfd_edge.report.confusion import columns, shares
from hfd_edge.report.console import table

_MOST_COLUMNS = 12  # of a confusion matrix in a terminal
_SIZE, _DPI = (9.0, 3.9), 160  # inches, dots per inch
_INK, _MUTED, _GRID = "#1c2024", "#68707a", "#e3e6e9"
# Okabe and Ito's colours, which people with colour-blindness tell apart.
_FIRST, _SECOND, _UNSURE = "#0072b2", "#d55e00", "#8c8c8c"


def print_scores(scores: Mapping[str, Any], *, title: str) -> None:
    """Print what `hfd_edge.evaluation.measure` gives: the whole, each class, and what is taken for what."""
    whole = {name: value for name, value in scores.items() if not isinstance(value, (dict, list))}
    table(title, ["", ""], [[name, _figure(value)] for name, value in whole.items()])
    counts, classes = np.asarray(scores["confusion"], np.int64), list(scores["iou"])
    heads = {"IoU": "iou", "F1": "f1", "boundary IoU": "boundary_iou"}
    rows = [
        [name, *(scores[key][name] for key in heads.values()), int(pixels)]
        for name, pixels in zip(classes, counts.sum(1), strict=True)
    ]
    table("By class", ["class", *heads, "pixels"], rows)
    names = columns(classes, counts)
    if len(names) <= _MOST_COLUMNS:
        percent = 100 * shares(counts)
        cells = [
            [name, *(None if np.isnan(value) else round(float(value), 1) for value in row[: len(names)])]
            for name, row in zip(classes, percent, strict=True)
        ]
        table("Confusion: % of each class's pixels, by what the model said", ["truth", *names], cells)


def print_difference(result: Difference, *, first: str, second: str) -> None:
    """Print the difference of two sides, by class, and the tiles that speak most for and against it."""
    table(
        f"A minus B, mIoU: {_points(result.miou.points)} points",
        ["side", "models", "mIoU %, mean", "mIoU % of each"],
        [
            [name, text, f"{100 * np.mean(values):.2f}", ", ".join(f"{100 * value:.2f}" for value in values)]
            for name, text, values in (("A", first, result.first_miou), ("B", second, result.second_miou))
        ],
    )
    gains = [("mIoU", result.miou), *((f"IoU {name}", gain) for name, gain in result.iou.items())]
    table("Difference, points", ["", "A - B", "95 % interval", "A better in"],
          [[name, _points(gain.points), _interval(gain), _share(gain)] for name, gain in gains])  # fmt: skip
    heads = ["tile", "influence, points", "mIoU of the tile alone, A - B, points"]
    for text, tiles in (("for A", result.best()), ("for B", result.worst())):
        if tiles:
            table(f"Tiles that speak most {text}", heads, [_tile(tile) for tile in tiles])
    table("", [""], [[_how(result)]])


def plot_difference(result: Difference, path: Path, *, first: str, second: str) -> None:
    """Draw the resamples of the mIoU difference, and the difference of each class with its interval.

    Args:
        result: From `hfd_edge.comparison.difference.difference`.
        path: PNG to write, whole or not at all.
        first: Name of the first side.
        second: Name of the second side.
    Raises:
        DatasetError: there are fewer than five tiles, so nothing was resampled.
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    if result.draws is None:
        raise DatasetError(
            f"{len(result.tiles)} tiles are too few to resample, so there is no distribution to draw. Choose "
            "a split of at least five, or leave out --out."
        )
    # The figure is made without pyplot, which keeps global state and picks a window system.
    figures = require("matplotlib.figure", extra="train", purpose="Drawing the difference")
    agg = require("matplotlib.backends.backend_agg", extra="train", purpose="Drawing the difference")
    rows = 1 + len(result.iou)
    width, height = _SIZE[0], max(_SIZE[1], 1.5 + 0.34 * rows)
    figure = figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    for text, line, size in ((f"A  {first}", 0.24, 10.5), (f"B  {second}", 0.47, 10.5)):
        figure.text(0.03, 1 - line / height, _fitting(text), fontsize=size, fontweight="bold", color=_INK,
                    parse_math=False, va="center")  # fmt: skip
    names = ["mIoU", *result.iou]
    left = min(0.53 + 0.011 * max(map(len, names)), 0.72)
    bottom, tall = 0.62 / height, 1 - (0.62 + 1.0) / height
    _histogram(figure.add_axes((0.05, bottom, 0.42, tall)), result)
    _forest(figure.add_axes((left, bottom, 0.97 - left, tall)), names, [result.miou, *result.iou.values()])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _histogram(axes: Any, result: Difference) -> None:
    assert result.draws is not None
    points = 100 * result.draws.miou
    step = max(float(np.ptp(points)), 1e-3) / 40
    # Zero is an edge, so no bar holds differences of both signs.
    edges = step * np.arange(np.floor(points.min() / step), np.ceil(points.max() / step) + 2)
    counts, _ = np.histogram(points, edges)
    middles = (edges[1:] + edges[:-1]) / 2
    colours = [_FIRST if middle > 0 else _SECOND for middle in middles]
    axes.bar(middles, counts, width=np.diff(edges) * 0.92, color=colours)
    if result.miou.low_points is not None and result.miou.high_points is not None:
        axes.axvspan(result.miou.low_points, result.miou.high_points, color=_UNSURE, alpha=0.16, zorder=0)
    axes.axvline(0, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.axvline(result.miou.points, color=_INK, linewidth=1.4)
    axes.set_title(f"mIoU {_points(result.miou.points)} points {_interval(result.miou)}; A better in "
                   f"{_share(result.miou)} of resamples", loc="left", fontsize=8.5, color=_INK)  # fmt: skip
    axes.set_xlabel(f"A − B, mIoU points, {len(points)} resamples of {len(result.tiles)} tiles", fontsize=8.5,
                    color=_MUTED)  # fmt: skip
    axes.set_yticks([])
    _bare(axes, ("top", "right", "left"))


def _forest(axes: Any, names: Sequence[str], gains: Sequence[Gain]) -> None:
    for place, gain in enumerate(gains):
        if gain.points is None:
            axes.text(0, place, "does not occur", fontsize=8, color=_MUTED, va="center", ha="center")
            continue
        low, high = gain.low_points, gain.high_points
        colour = _UNSURE
        if low is not None and high is not None:
            colour = _FIRST if low > 0 else _SECOND if high < 0 else _UNSURE
            axes.plot([low, high], [place, place], color=colour, linewidth=4, alpha=0.35, zorder=2)
        axes.plot([gain.points], [place], "o", markersize=6, color=colour, zorder=3)
    axes.axvline(0, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title("by class, with 95 % intervals", loc="left", fontsize=8.5, color=_INK)
    axes.set_xlabel("A − B, IoU points", fontsize=8.5, color=_MUTED)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _bare(axes, ("top", "right", "left"))


def _bare(axes: Any, sides: Sequence[str]) -> None:
    axes.tick_params(colors=_INK, labelsize=8.5, length=0)
    for side in sides:
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _fitting(text: str) -> str:
    return text if len(text) <= 104 else f"{text[:101]}..."


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _interval(gain: Gain) -> str:
    if gain.low_points is None or gain.high_points is None:
        return "-"
    return f"[{gain.low_points:+.2f}, {gain.high_points:+.2f}]"


def _share(gain: Gain) -> str:
    return "-" if gain.share_above is None else f"{100 * gain.share_above:.1f} %"


def _tile(tile: TileGain) -> list[str]:
    return [tile.tile, f"{tile.influence_points:+.3f}", _points(tile.points)]


def _how(result: Difference) -> str:
    """What the interval stands for."""
    seeds = (len(result.first_miou), len(result.second_miou))
    text = f"{len(result.tiles)} tiles"
    if result.left_out:
        text += f" ({result.left_out} more left out: not all models could be scored on them)"
    if result.draws is None:
        return f"{text}: too few to resample, so there is no interval."
    text += ", drawn with replacement, the same ones for both sides"
    if max(seeds) == 1:
        return f"{text}. One seed a side: other seeds may differ by more than the interval says."
    return f"{text}; seeds too, " + ("in pairs." if result.paired else "each side's by itself.")
