"""Which class is taken for which: a confusion matrix as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import require
from hfd_edge.files import atomic_path

NO_LABEL = "no label"
"""Heads the column of pixels that were given none (no data), which is shown where there are some."""

_DPI = 160
_INK, _MUTED = "#1c2024", "#68707a"
# Inches. Cells shrink with the number of classes; the text goes before it becomes too small to read.
_LARGEST_CELL, _SMALLEST_CELL, _MATRIX = 1.0, 0.24, 8.0
_ROOM_FOR_COUNTS, _ROOM_FOR_SHARES = 0.55, 0.4
_LETTER, _MARGIN, _TOP = 0.085, 0.35, 0.55


def shares(counts: Sequence[Sequence[int]] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide each row of confusion counts by its sum; NaN in rows of classes without a pixel."""
    rows = np.asarray(counts, np.float64)
    total = rows.sum(1, keepdims=True)
    return np.asarray(np.divide(rows, total, out=np.full(rows.shape, np.nan), where=total > 0))


def columns(classes: Sequence[str], counts: NDArray[np.int64]) -> list[str]:
    """Name the columns that are worth showing: the classes, and `NO_LABEL` where there are such pixels."""
    return [*classes, NO_LABEL] if counts[:, -1].any() else list(classes)


def plot_confusion(
    counts: Sequence[Sequence[int]] | NDArray[np.int64], path: Path, *, classes: Sequence[str], title: str
) -> None:
    """Draw a confusion matrix: rows are truth, columns what the model said, colours the share of the row.

    Args:
        counts: Pixels (classes, classes + 1), the last column those that were given no label; see
            `hfd_edge.metrics.Confusion`.
        path: PNG to write, whole or not at all.
        classes: Class names.
        title: Heading.
    Raises:
        ValueError: the shape is another.
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    matrix = np.asarray(counts, np.int64)
    if matrix.shape != (len(classes), len(classes) + 1):
        raise ValueError(f"counts are {matrix.shape}, expected {(len(classes), len(classes) + 1)}")
    # The figure is made without pyplot, which keeps global state and picks a window system.
    figures = require("matplotlib.figure", extra="train", purpose="Drawing the confusion matrix")
    agg = require("matplotlib.backends.backend_agg", extra="train", purpose="Drawing the confusion matrix")
    heads = columns(classes, matrix)
    cell = float(np.clip(_MATRIX / len(heads), _SMALLEST_CELL, _LARGEST_CELL))
    beside = _MARGIN + _LETTER * max(map(len, heads)) + 0.25
    width = beside + cell * len(heads) + _MARGIN
    upright = max(map(len, heads)) * _LETTER > 0.95 * cell
    below = beside if upright else 0.7
    height = _TOP + cell * len(classes) + below
    width = max(width, _MARGIN + 0.1 * len(title))
    figure = figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    # Offset by inches, so that names have the same room beside few classes and many.
    box = (beside / width, below / height, cell * len(heads) / width, cell * len(classes) / height)
    axes = figure.add_axes(box)
    place = {"x": 0.15 / width, "y": 1 - 0.3 / height}
    figure.text(**place, s=title, fontsize=11.5, fontweight="bold", color=_INK, parse_math=False)
    _draw(axes, matrix[:, : len(heads)], shares(matrix)[:, : len(heads)], cell)
    axes.set_xticks(range(len(heads)), heads, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set_xlabel("model", color=_MUTED, fontsize=9)
    axes.set_ylabel("truth", color=_MUTED, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw(axes: Any, counts: NDArray[np.int64], share: NDArray[np.float64], cell: float) -> None:
    axes.set_facecolor("#f0f1f2")  # a class without a pixel has no shares, which is not 0 %
    axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, col in np.argwhere(counts > 0):
        if cell < _ROOM_FOR_SHARES:
            break
        text = (
            f"{100 * share[row, col]:.1f} %" if cell >= _ROOM_FOR_COUNTS else f"{100 * share[row, col]:.0f}"
        )
        if cell >= _ROOM_FOR_COUNTS:
            text += f"\n{short(counts[row, col])}"
        colour = "white" if share[row, col] > 0.55 else _INK
        axes.text(col, row, text, ha="center", va="center", fontsize=8.5, color=colour, linespacing=1.5)
    axes.set_xticks(np.arange(counts.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(counts.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, colors=_INK, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def short(count: int) -> str:
    """A count in few letters: "812", "46.1 k", "3.25 M"."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= 0.9995 * size:  # three digits of it round up to 1
            return f"{count / size:.3g}{unit}"
    return str(int(count))
