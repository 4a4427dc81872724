"""Training curves: losses, and accuracy on the validation split, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfd_edge.errors import require
from hfd_edge.files import atomic_path

SIZE_PX = (960, 1360)
"""Width and height of the PNG. Upright, so that several runs stand side by side and a phone can show one."""

_DPI = 200
_NOT_LOSSES = {"epoch", "step", "loss", "miou", "iou", "lr", "seconds", "accuracy"}
_INK, _MUTED, _GRID, _ACCENT = "#1c2024", "#68707a", "#e3e6e9", "#1f5fbf"
# Okabe and Ito's colours, which people with colour-blindness tell apart; the accent leads.
_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b58900", "#7a5195", "#8c8c8c")
_LOG_RATIO = 30.0

Series = tuple[str, list[float], str, float]  # name, values, colour, line width


def plot_curves(history: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Draw loss terms and validation IoU over epochs, with the best epoch marked.

    Args:
        history: One mapping per epoch with `epoch`, `loss`, `miou`, `iou` (by class) and any further
            numbers, which are taken as terms of the loss. Missing, None and NaN values leave gaps.
        path: PNG to write, whole or not at all.
        title: Heading; empty for none.
    Raises:
        ValueError: history is empty.
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    if not history:
        raise ValueError("history is empty: there are no epochs to draw; train for at least one")
    # The figure is made without pyplot, which keeps global state and picks a window system.
    figures = require("matplotlib.figure", extra="report", purpose="Drawing training curves")
    agg = require("matplotlib.backends.backend_agg", extra="report", purpose="Drawing training curves")
    figure = figures.Figure(figsize=(SIZE_PX[0] / _DPI, SIZE_PX[1] / _DPI), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    losses, accuracy = figure.subplots(2, 1)
    epochs = [float(row.get("epoch", position)) for position, row in enumerate(history)]
    _draw_losses(losses, epochs, history)
    _draw_accuracy(accuracy, epochs, history)
    if title:
        figure.text(0.085, 0.968, title, fontsize=12.5, fontweight="bold", color=_INK)
    figure.subplots_adjust(left=0.085, right=0.80, top=0.865 if title else 0.925, bottom=0.068, hspace=0.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def plot_run_curves(run: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw `plot_curves` to curves.png in a run folder: what trainings take as `on_epoch`."""
    plot_curves(history, run / "curves.png")


def best_epoch(history: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Epoch and validation mIoU of the first best row; None when no row has an mIoU."""
    scored = [
        (_number(row.get("miou")), float(row.get("epoch", position))) for position, row in enumerate(history)
    ]
    known = [(miou, epoch) for miou, epoch in scored if not math.isnan(miou)]
    if not known:
        return None
    miou, epoch = max(known, key=lambda pair: pair[0])
    return epoch, miou


def _draw_losses(axes: Any, epochs: list[float], history: Sequence[Mapping[str, Any]]) -> None:
    names = [key for row in history for key, value in row.items() if _is_loss(key, value)]
    terms = list(dict.fromkeys(names))
    series: list[Series] = [("total", [_number(row.get("loss")) for row in history], _ACCENT, 2.2)]
    for position, name in enumerate(terms):
        colour = _COLOURS[position % len(_COLOURS)]
        short = name.removeprefix("loss_").removesuffix("_loss")
        series.append((short, [_number(row.get(name)) for row in history], colour, 1.4))
    known = [value for _, values, _, _ in series for value in values if not math.isnan(value)]
    if known and min(known) > 0 and max(known) / min(known) > _LOG_RATIO:
        axes.set_yscale("log")
    elif known and min(known) >= 0:
        axes.set_ylim(0, max(known) * 1.06 or 1.0)
    _draw(axes, epochs, series, heading="Training loss", unit="mean over the epoch")


def _draw_accuracy(axes: Any, epochs: list[float], history: Sequence[Mapping[str, Any]]) -> None:
    classes = list(dict.fromkeys(name for row in history for name in (row.get("iou") or {})))
    series: list[Series] = [("mIoU", [_number(row.get("miou")) for row in history], _ACCENT, 2.4)]
    for position, name in enumerate(classes):
        values = [_number((row.get("iou") or {}).get(name)) for row in history]
        series.append((name, values, _COLOURS[position % len(_COLOURS)], 1.0))
    best = best_epoch(history)
    unit = "0 to 1" if best is None else f"best mIoU {best[1]:.3f} at epoch {best[0]:g}"
    axes.set_ylim(0, 1.0)
    _draw(axes, epochs, series, heading="Validation IoU", unit=unit)
    if best is not None:
        axes.axvline(best[0], color=_ACCENT, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.plot([best[0]], [best[1]], "o", markersize=8, color=_ACCENT, markeredgecolor="white", zorder=5)


def _draw(axes: Any, epochs: list[float], series: list[Series], *, heading: str, unit: str) -> None:
    ticker = require("matplotlib.ticker", extra="report", purpose="Drawing training curves")
    for _name, values, colour, width in reversed(series):
        # A lone point between gaps has no line; a marker keeps it visible.
        marker = "o" if sum(not math.isnan(value) for value in values) < 3 else None
        axes.plot(epochs, values, color=colour, linewidth=width, marker=marker, markersize=4, zorder=3)
    axes.set_title(heading, loc="left", fontsize=11.5, fontweight="bold", color=_INK, pad=22)
    axes.text(0, 1.035, unit, transform=axes.transAxes, fontsize=10, color=_MUTED)
    axes.set_xlabel("epoch", fontsize=10, color=_MUTED)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    span = (epochs[-1] - epochs[0]) or 1.0
    axes.set_xlim(epochs[0] - 0.02 * span, epochs[-1] + 0.02 * span)
    _label_ends(axes, series)


def _label_ends(axes: Any, series: list[Series]) -> None:
    """Name each line at its right end, pushed apart where they would touch: no legend to look up."""
    ends = []
    for name, values, colour, width in series:
        known = [value for value in values if not math.isnan(value)]
        if known:
            # Log axes place a value by its logarithm, so the position is asked of the axes.
            height = axes.transAxes.inverted().transform(axes.transData.transform((0.0, known[-1])))[1]
            ends.append((float(height), name, colour, width > 2))
    ends.sort(key=lambda end: end[0])
    heights = spread([end[0] for end in ends], gap=0.085)
    for (_, name, colour, bold), height in zip(ends, heights, strict=True):
        short = name if len(name) <= 12 else name[:11] + "…"
        axes.text(
            1.02, height, short, transform=axes.transAxes, fontsize=9.5, color=colour,
            va="center", fontweight="bold" if bold else "normal", parse_math=False,
        )  # fmt: skip


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Push ascending positions apart until neighbours are `gap` apart, moving them as little as needed.

    Clusters that come to touch are merged and centred on the mean of what they wanted.
    """
    clusters: list[tuple[float, int]] = []  # centre, members
    for height in heights:
        centre, members = height, 1
        while clusters and centre - gap * members / 2 < clusters[-1][0] + gap * clusters[-1][1] / 2:
            before, count = clusters.pop()
            centre = (centre * members + before * count) / (members + count)
            members += count
        clusters.append((centre, members))
    return [
        centre + gap * (position - (members - 1) / 2)
        for centre, members in clusters
        for position in range(members)
    ]


def _is_loss(key: str, value: Any) -> bool:
    return key not in _NOT_LOSSES and isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """A finite float, or NaN, which matplotlib leaves out."""
    if value is None:
        return math.nan
    number = float(value)
    return number if math.isfinite(number) else math.nan
