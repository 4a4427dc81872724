"""Which layers INT8 hurts: a chart and a table of the ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfd_edge.deploy.sensitivity import LayerEffect, Sensitivity
from hfd_edge.errors import require
from hfd_edge.files import atomic_path
from hfd_edge.report.console import table

_SHOWN = 24
_DPI = 200
_WIDTH_PX, _ROW_PX, _MARGIN_PX = 1600, 52, 400
_INK, _MUTED, _GRID, _ACCENT, _SECOND = "#1c2024", "#68707a", "#e3e6e9", "#1f5fbf", "#d55e00"
_PURPOSE = "Drawing the sensitivity of layers"


def plot_sensitivity(found: Sensitivity, path: Path, *, title: str = "") -> None:
    """Draw the layers that cost most: alone in INT8, and what leaving them out of INT8 wins.

    Args:
        found: The measurement.
        path: PNG to write, whole or not at all.
        title: Heading; empty for none.
    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    figures = require("matplotlib.figure", extra="report", purpose=_PURPOSE)
    agg = require("matplotlib.backends.backend_agg", extra="report", purpose=_PURPOSE)
    shown = found.layers[:_SHOWN]
    height = _MARGIN_PX + _ROW_PX * len(shown)
    figure = figures.Figure(figsize=(_WIDTH_PX / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw(axes, found, shown)
    figure.text(0.02, 1 - 72 / height, title, fontsize=12.5, fontweight="bold", color=_INK, parse_math=False)
    note = (
        f"{len(shown)} of {len(found.layers)} layers, points of mIoU against FP32's labels, "
        f"{found.tiles} {found.split} tiles. All in INT8: {found.all_int8.fidelity_points:.2f}"
    )
    figure.text(0.02, 1 - 124 / height, note, fontsize=9, color=_MUTED)
    figure.subplots_adjust(left=0.36, right=0.97, top=1 - 230 / height, bottom=130 / height)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def show_sensitivity(found: Sensitivity) -> None:
    """Print the ranking as a table on stdout, the layer that costs most first."""
    drop = found.all_int8
    title = (
        f"INT8 sensitivity on {found.tiles} {found.split} tiles. All layers in INT8: mIoU "
        f"{drop.miou_points:+.2f} points lost, {drop.flipped:.2%} flipped"
    )
    columns = ["layer", "operator", "one only: lost", "flipped", "mIoU", "left out: won", "mIoU"]
    table(title, columns, [_row(found, effect) for effect in found.layers])


def _row(found: Sensitivity, effect: LayerEffect) -> list[str]:
    one, out = effect.one_only, effect.leave_one_out
    return [
        effect.layer,
        effect.operator,
        f"{one.fidelity_points:.3f}",
        f"{one.flipped:.3%}",
        f"{one.miou_points:+.3f}",
        f"{_won(found, effect):+.3f}",
        f"{found.all_int8.miou_points - out.miou_points:+.3f}",
    ]


def _won(found: Sensitivity, effect: LayerEffect) -> float:
    """Fidelity points that come back when this layer alone leaves INT8."""
    return found.all_int8.fidelity_points - effect.leave_one_out.fidelity_points


def _draw(axes: Any, found: Sensitivity, shown: tuple[LayerEffect, ...]) -> None:
    rows = range(len(shown))
    costs = [effect.one_only.fidelity_points for effect in shown]
    axes.barh(rows, costs, height=0.62, color=_ACCENT, label="lost when it alone is INT8", zorder=2)
    wins = [_won(found, effect) for effect in shown]
    axes.plot(
        wins, rows, "o", color=_SECOND, markersize=4.5, label="won back when it alone leaves INT8", zorder=3
    )
    axes.axvline(0, color=_MUTED, linewidth=0.8, zorder=1)
    axes.set_yticks(list(rows), [effect.layer for effect in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=8.5, labelcolor=_INK
    )
