"""A table of trainings as one picture: a dot for each seed, and how far the gain over SAR alone is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from hfd_edge.comparison.ablation import REFERENCE, Line, markdown
from hfd_edge.errors import require
from hfd_edge.files import atomic_path, write_text

_WIDTH, _LINE_HEIGHT, _SPLIT_HEIGHT, _DPI = 8.0, 0.3, 0.95, 160  # inches, dots per inch
_LABEL_LETTERS = 42
"""Letters that fit into the left margin."""
_INK, _MUTED, _GRID = "#1c2024", "#68707a", "#e3e6e9"
# Okabe and Ito's colours, which people with colour-blindness tell apart.
_COLOURS = {"teacher": "#d55e00", REFERENCE: "#1c2024", "baseline": "#68707a", "distilled": "#0072b2"}


def write_table(lines: Sequence[Line], path: Path, *, title: str, missing: int = 0) -> str:
    """Write lines beside a result file, with its name, as a Markdown table and as a picture.

    Args:
        lines: From `hfd_edge.comparison.ablation.summarise`; without any there is no picture.
        path: The result file.
        title: Heading of both.
        missing: Runs that are not finished.
    Returns:
        The Markdown.
    Raises: as `plot_ablation`.
    """
    text = markdown(lines, title=title, missing=missing)
    write_text(path.with_suffix(".md"), text)
    if lines:  # none as long as no seed has all its folds
        plot_ablation(lines, path.with_suffix(".png"), title=title)
    return text


def plot_ablation(lines: Sequence[Line], path: Path, *, title: str) -> None:
    """Draw one panel a split: configurations from the best to the worst, mIoU to the right.

    A large dot is the mean over the seeds, small ones are the seeds. The bar is the 95 % interval of the
    gain, taken over the seeds that both have and set off from the dashed line, the mean of the reference:
    where it does not touch the line, the difference is more than chance.

    Args:
        lines: From `hfd_edge.comparison.ablation.summarise`; at least one.
        path: PNG to write, whole or not at all.
        title: Heading.
    Raises:
        ValueError: there are no lines.
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    if not lines:
        raise ValueError("there are no lines to draw; finish at least one run")
    # The figure is made without pyplot, which keeps global state and picks a window system.
    figures = require("matplotlib.figure", extra="report", purpose="Drawing the ablation")
    agg = require("matplotlib.backends.backend_agg", extra="report", purpose="Drawing the ablation")
    panels = [
        [line for line in lines if line.split == split] for split in dict.fromkeys(x.split for x in lines)
    ]
    heights = [_SPLIT_HEIGHT + _LINE_HEIGHT * len(panel) for panel in panels]
    total = sum(heights) + 0.5
    figure = figures.Figure(figsize=(_WIDTH, total), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    figure.text(0.02, 1 - 0.28 / total, title, fontsize=12, fontweight="bold", color=_INK, parse_math=False)
    top = total - 0.5
    for panel, height in zip(panels, heights, strict=True):
        # Inches, so that rows are as far apart in a panel of three as in one of thirty.
        box = (0.37, (top - height + 0.5) / total, 0.6, _LINE_HEIGHT * len(panel) / total)
        _draw(figure.add_axes(box), sorted(panel, key=lambda line: line.mean))
        top -= height
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw(axes: Any, panel: Sequence[Line]) -> None:
    references = [line for line in panel if line.is_reference]
    for position, line in enumerate(panel):
        colour = _COLOURS.get(line.method.partition(":")[0], _COLOURS["distilled"])
        if line.low is not None and line.high is not None and references:
            ends = [100 * references[0].mean + gain for gain in (line.low, line.high)]
            axes.plot(ends, [position] * 2, color=colour, linewidth=5, alpha=0.25, zorder=2)
        seeds = [100 * miou for miou in line.miou]
        axes.plot(seeds, [position] * len(seeds), "o", markersize=3, color=colour, alpha=0.6, zorder=3)
        axes.plot([100 * line.mean], [position], "o", markersize=6.5, color=colour, zorder=4)
    if references:
        axes.axvline(100 * references[0].mean, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    labels = ["\n".join(wrap(line.label, _LABEL_LETTERS)) for line in panel]
    axes.set_yticks(range(len(panel)), labels, parse_math=False, linespacing=1.0)
    axes.set_ylim(-0.6, len(panel) - 0.4)
    axes.set_title(f"Split {panel[0].split}", loc="left", fontsize=10, color=_INK, pad=6, parse_math=False)
    axes.set_xlabel(f"test mIoU, %   (dashed: {REFERENCE}; bar: 95 % interval of the gain)", fontsize=8.5,
                    color=_MUTED)  # fmt: skip
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    for label in axes.get_yticklabels():
        label.set_color(_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
