"""Calibration tiles against the split that they stand for, as one PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hfd_edge.deploy.selection import Selection, Shares, Spread
from hfd_edge.errors import require
from hfd_edge.files import atomic_path

_DPI = 160
_COLUMNS = 2
_PANEL_INCHES = (4.4, 2.5)
_HEAD_INCHES, _CAPTION_INCHES, _FOOT_INCHES = 0.85, 0.6, 0.4
_INK, _MUTED, _GRID = "#1c2024", "#68707a", "#e3e6e9"
_SPLIT, _CHOSEN = "#c3cad1", "#1f5fbf"  # grey area and blue line: apart without colour vision, and in print

Panel = Callable[[Any], None]


def plot_coverage(selection: Selection, path: Path, *, title: str = "") -> None:
    """Draw backscatter, looks, class mix and no-data share: the split as an area, the tiles as a line.

    Args:
        selection: Chosen tiles with their coverage.
        path: PNG to write, whole or not at all.
        title: Heading; empty for none.
    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    # The figure is made without pyplot, which keeps global state and picks a window system.
    figures = require("matplotlib.figure", extra="report", purpose="Drawing the coverage")
    agg = require("matplotlib.backends.backend_agg", extra="report", purpose="Drawing the coverage")
    panels = _panels(selection)
    rows = -(-len(panels) // _COLUMNS)
    width = _COLUMNS * _PANEL_INCHES[0]
    height = rows * _PANEL_INCHES[1] + _HEAD_INCHES + _FOOT_INCHES
    figure = figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _dress(axes)
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _head(figure, selection, title, height)
    top, bottom = 1 - (_HEAD_INCHES + _CAPTION_INCHES) / height, _FOOT_INCHES / height
    figure.subplots_adjust(left=0.03, right=0.97, top=top, bottom=bottom, wspace=0.12, hspace=0.62)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _panels(selection: Selection) -> list[Panel]:
    coverage = selection.coverage
    panels = [
        _distribution(spread, f"Backscatter, {band}", "standardised network input, share of pixels")
        for band, spread in coverage.backscatter.items()
    ]
    if coverage.log_enl is not None:
        panels.append(_distribution(coverage.log_enl, "Looks", "log10 of the ENL, share of tiles"))
    if coverage.classes:
        panels.append(_bars(coverage.classes))
    panels.append(_distribution(coverage.nodata, "No-data", "share of a tile, share of tiles"))
    return panels


def _distribution(spread: Spread, heading: str, unit: str) -> Panel:
    def draw(axes: Any) -> None:
        edges = np.linspace(spread.low, spread.high, len(spread.split) + 1)
        axes.stairs(spread.split, edges, fill=True, color=_SPLIT, zorder=2)
        axes.stairs(spread.selection, edges, color=_CHOSEN, linewidth=1.6, zorder=3)
        axes.set_ylim(0, 1.08 * max(*spread.split, *spread.selection))
        axes.set_xlim(*_occupied(spread, edges))
        _caption(axes, heading, f"{unit}; distance {spread.distance:.2g}")

    return draw


def _bars(classes: dict[str, Shares]) -> Panel:
    def draw(axes: Any) -> None:
        places = np.arange(len(classes))
        axes.bar(places - 0.2, [shares.split for shares in classes.values()], 0.38, color=_SPLIT, zorder=2)
        axes.bar(
            places + 0.2, [shares.selection for shares in classes.values()], 0.38, color=_CHOSEN, zorder=2
        )
        names = [name if len(name) <= 12 else name[:11] + "…" for name in classes]
        axes.set_xticks(places, names, parse_math=False)
        if len(classes) > 5:
            axes.tick_params(axis="x", labelrotation=30)
        _caption(axes, "Classes", "share of labelled pixels")

    return draw


def _occupied(spread: Spread, edges: Any) -> tuple[float, float]:
    """The part of the axis that holds anything, with a bin to spare on either side."""
    used = np.flatnonzero(np.add(spread.split, spread.selection))
    first, last = max(int(used[0]) - 1, 0), min(int(used[-1]) + 2, len(edges) - 1)
    return float(edges[first]), float(edges[last])


def _head(figure: Any, selection: Selection, title: str, height: float) -> None:
    if title:
        figure.text(
            0.03, 1 - 0.3 / height, title, fontsize=12.5, fontweight="bold", color=_INK, va="center",
            parse_math=False,
        )  # fmt: skip
    count, split = f"{len(selection.tiles)} tiles by {selection.method}", f"split {selection.split}"
    line = 1 - 0.62 / height
    figure.text(0.03, line, count, fontsize=10.5, fontweight="bold", color=_CHOSEN, va="center")
    figure.text(
        0.527, line, f"all {selection.candidates} tiles of {split}", fontsize=10.5, color=_MUTED, va="center"
    )


def _dress(axes: Any) -> None:
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.tick_params(axis="y", labelleft=False)  # shares of bins: their shape is what counts
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _caption(axes: Any, heading: str, unit: str) -> None:
    axes.set_title(heading, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=19, parse_math=False)
    axes.text(0, 1.04, unit, transform=axes.transAxes, fontsize=9, color=_MUTED)
