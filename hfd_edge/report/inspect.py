"""A data folder as one HTML page, with its charts as PNG beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfd_edge.config import DatasetConfig
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.inspect import BandFacts, Inspection, SplitFacts
from hfd_edge.datasets.layout import UNLABELLED
from hfd_edge.datasets.registration import Misregistration
from hfd_edge.errors import require
from hfd_edge.files import atomic_path
from hfd_edge.report.console import table
from hfd_edge.report.page import MINUS, cell, encoded, legend, require_templates, write_page
from hfd_edge.report.pictures import eo_picture, label_picture, sar_picture, shrink_labels, shrink_values
from hfd_edge.report.tiles import display_values

PAGE_NAME = "inspect.html"
SIDE_PX = 384
"""Longest side of a sample picture."""
_DPI = 160
_PANEL_INCHES = (4.4, 3.0)
_INK, _MUTED, _GRID = "#1c2024", "#68707a", "#e3e6e9"
SPLIT_COLOURS = ("#1f5fbf", "#d08a1d", "#1a7445", "#b08cc9")
"""Train, val, test, unlabelled; of different lightness. Each histogram has a line style of its own, too."""
_STYLES = ("-", "--", ":", "-.")
_SHOWN_SHIFTS = 0.95

Draw = Callable[[Any], None]


def write_inspection(folder: PairFolder, inspection: Inspection, out: Path, *, samples: int = 2) -> Path:
    """Write the page and its charts.

    Args:
        folder: The folder that was inspected.
        inspection: What was found.
        out: Folder to write to: inspect.html and one PNG for each chart.
        samples: Tiles of each split to show.
    Returns:
        The page.
    Raises:
        DatasetError: a tile cannot be read any more.
        MissingExtraError: matplotlib or jinja2 is not installed.
        StorageError: a file cannot be written.
    """
    require_templates()
    out, config = Path(out), folder.config
    charts = []
    for name, caption, draw in _charts(inspection, config):
        _write_chart(out / f"{name}.png", draw)
        charts.append({"caption": caption, "png": encoded((out / f"{name}.png").read_bytes())})
    findings = inspection.findings
    context = {
        "title": f"Data of {folder.root.name}",
        "not_built": "none",
        "facts": _head(folder, inspection),
        "splits": [_split_row(name, facts) for name, facts in inspection.splits.items()],
        "legend": legend(config.classes, config.palette),
        "classes": config.classes,
        "class_rows": _class_rows(inspection, config),
        "bands": _band_rows(inspection),
        "charts": charts,
        "tiles": [tile for name in inspection.splits for tile in _samples(folder, name, samples)],
        "findings": findings,
        "shift_notes": [
            _shift_text(name, facts.misregistration)
            for name, facts in inspection.splits.items()
            if facts.misregistration is not None
        ],
    }
    write_page("inspect.html.j2", out / PAGE_NAME, context)
    return out / PAGE_NAME


def print_inspection(inspection: Inspection, config: DatasetConfig) -> None:
    """Print what was found as tables to stdout, findings one a line."""
    splits = list(inspection.splits)
    columns = ["split", "pairs", "EO %", "label %", "no-data %", "ignored %", "EO shift px", "spread px"]
    rows = [list(_split_row(name, facts).values()) for name, facts in inspection.splits.items()]
    table("Splits", columns, rows)
    classes = [[row["name"], *row["shares"]] for row in _class_rows(inspection, config)]
    table("Share of labelled pixels, %", ["class", *splits], classes)
    bands = [[row["name"], *row["medians"], *row["looks"]] for row in _band_rows(inspection)]
    table(
        "Median of each band, and looks of SAR", ["band", *splits, *(f"looks {one}" for one in splits)], bands
    )
    for finding in inspection.findings or ():
        print(f"{finding.level}: {finding.text}")


def _head(folder: PairFolder, inspection: Inspection) -> list[tuple[str, str, bool]]:
    config = folder.config
    eo = "none" if config.eo is None else f"{', '.join(config.eo.bands)}; {config.eo.scale:g} stands for 1"
    nodata = "" if config.sar.nodata is None else f", no-data {config.sar.nodata:g}"
    looks = "" if config.sar.units == "stretched" else f", {config.sar.looks:g} looks"
    facts = [
        ("Folder", str(folder.root), True),
        (
            "SAR",
            f"{', '.join(config.sar.bands)}; {config.sar.units}{looks}{nodata}",
            False,
        ),
        ("EO", eo, False),
        ("Pairs read", str(sum(split.read for split in inspection.splits.values())), False),
    ]
    if folder.scheme is not None:
        facts.append(("Split scheme", folder.scheme, False))
    return [*facts, ("Source", config.source, True)] if config.source else facts


def _split_row(name: str, facts: SplitFacts) -> dict[str, str]:
    shift = facts.misregistration or Misregistration(0, ())
    known = shift.cols is not None and shift.rows is not None
    return {
        "name": name,
        "pairs": str(facts.pairs),
        "eo": _percent(facts.with_eo / max(facts.read, 1)),
        "label": _percent(facts.with_label / max(facts.read, 1)),
        "nodata": _percent(facts.nodata),
        "ignored": "–" if facts.ignored is None else _percent(facts.ignored),
        "shift": f"{_number(shift.cols or 0)}, {_number(shift.rows or 0)}" if known else "–",
        "spread": "–" if shift.spread is None else f"{shift.spread:.1f}",
    }


def _class_rows(inspection: Inspection, config: DatasetConfig) -> list[dict[str, Any]]:
    colours = dict(legend(config.classes, config.palette))
    return [
        {
            "name": name,
            "colour": colours[name],
            "shares": [
                _percent(facts.classes[name]) if facts.classes else "–"
                for facts in inspection.splits.values()
            ],
        }
        for name in config.classes
    ]


def _band_rows(inspection: Inspection) -> list[dict[str, Any]]:
    """One row for each band: its median in each split, and for SAR the looks."""
    rows = []
    for kind, digits in (("sar", 1), ("eo", 3)):
        for band in dict.fromkeys(
            band for facts in inspection.splits.values() for band in getattr(facts, kind)
        ):
            found = [getattr(facts, kind).get(band) for facts in inspection.splits.values()]
            rows.append(
                {
                    "name": f"{kind.upper()} {band}",
                    "medians": ["–" if one is None else _number(one.median, digits) for one in found],
                    "looks": [
                        "–" if one is None or one.looks is None else f"{one.looks:.1f}" for one in found
                    ],
                }
            )
    return rows


def _shift_text(name: str, shift: Misregistration) -> str:
    if shift.cols is None or shift.rows is None or shift.spread is None:
        return (
            f"{name}: no estimate. Of {shift.windows} windows {len(shift.peaks)} agree better than unrelated "
            "images do, which is too few."
        )
    side = "left" if shift.cols < 0 else "right"
    place = "above" if shift.rows < 0 else "below"
    return (
        f"{name}: EO lies {abs(shift.cols):.1f} px to the {side} of SAR and {abs(shift.rows):.1f} {place} "
        f"(median of {len(shift.peaks)} of {shift.windows} windows, spread {shift.spread:.1f})."
    )


def _samples(folder: PairFolder, name: str, count: int) -> list[dict[str, Any]]:
    """Evenly spaced tiles of a list: SAR, EO and label."""
    pairs, config = folder.unlabelled if name == UNLABELLED else folder.pairs(name), folder.config
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    tiles = []
    for pair in (pairs[index] for index in chosen):
        values = display_values(folder.load_sar(pair), units=config.sar.units, nodata=config.sar.nodata)
        cells = [
            cell("SAR", sar_picture(shrink_values(values, side_px=SIDE_PX)), f"SAR image of {pair.name}")
        ]
        if pair.eo is not None:
            image = eo_picture(shrink_values(folder.load_eo(pair), side_px=SIDE_PX))
            cells.append(cell("EO", image, f"Optical image of {pair.name}"))
        if pair.label is not None:
            ids = shrink_labels(folder.load_label(pair), side_px=SIDE_PX)
            picture = label_picture(ids, config.palette, void=config.ignore_index)
            cells.append(cell("Label", picture, f"Labels of {pair.name}", pixels=True))
        tiles.append({"name": f"{name}: {pair.name}", "cells": cells})
    return tiles


def _charts(inspection: Inspection, config: DatasetConfig) -> list[tuple[str, str, Draw]]:
    """File name, caption and drawing of every chart."""
    splits = inspection.splits
    charts: list[tuple[str, str, Draw]] = []
    if any(facts.classes for facts in splits.values()):
        charts.append(("classes", "Share of labelled pixels by class, %", _class_bars(splits, config)))
    unit = "stored values" if config.sar.units == "stretched" else "dB"
    for kind, what in (("sar", unit), ("eo", "share of full scale")):
        for band in dict.fromkeys(band for facts in splits.values() for band in getattr(facts, kind)):
            found = {
                name: getattr(facts, kind)[band]
                for name, facts in splits.items()
                if band in getattr(facts, kind)
            }
            charts.append(
                (f"{kind}-{_plain(band)}", f"{kind.upper()} {band}, {what}", _histograms(found, list(splits)))
            )
    shifts = {name: facts.misregistration for name, facts in splits.items() if facts.misregistration}
    if any(shift.peaks for shift in shifts.values()):
        charts.append(("shift", "Shift of EO against SAR by window, pixels", _scatter(shifts, list(splits))))
    return charts


def _class_bars(splits: Mapping[str, SplitFacts], config: DatasetConfig) -> Draw:
    def draw(axes: Any) -> None:
        order = list(splits)
        labelled = {name: facts.classes for name, facts in splits.items() if facts.classes}
        places = np.arange(len(config.classes))
        height = 0.8 / len(labelled)
        for index, (name, known) in enumerate(labelled.items()):
            shares = [100 * known[one] for one in config.classes]
            axes.barh(places + (index - (len(labelled) - 1) / 2) * height, shares, 0.9 * height, label=name,
                      color=_colour(order.index(name)), zorder=2)  # fmt: skip
        names = [name if len(name) <= 14 else name[:13] + "…" for name in config.classes]
        axes.set_yticks(places, names, parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
        axes.legend(fontsize=9, frameon=False)

    return draw


def _histograms(found: Mapping[str, BandFacts], order: Sequence[str]) -> Draw:
    def draw(axes: Any) -> None:
        for name, band in found.items():
            index = order.index(name)
            edges = np.linspace(band.low, band.high, len(band.shares) + 1)
            axes.stairs(band.shares, edges, label=name, color=_colour(index), linewidth=1.6,
                        linestyle=_STYLES[index % len(_STYLES)])  # fmt: skip
        axes.tick_params(axis="y", labelleft=False)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9, frameon=False)

    return draw


def _scatter(shifts: Mapping[str, Misregistration], order: Sequence[str]) -> Draw:
    def draw(axes: Any) -> None:
        axes.axhline(0, color=_GRID, linewidth=1)
        axes.axvline(0, color=_GRID, linewidth=1)
        for name, shift in shifts.items():
            if shift.peaks:
                colour = _colour(order.index(name))
                points = [(peak.cols, peak.rows) for peak in shift.peaks]
                axes.scatter(
                    *zip(*points, strict=True), s=14, alpha=0.5, color=colour, linewidths=0, label=name
                )
            if shift.cols is not None:
                axes.plot(shift.cols, shift.rows, marker="+", markersize=14, markeredgewidth=2.2,
                          color=_colour(order.index(name)))  # fmt: skip
        every = [max(abs(peak.cols), abs(peak.rows)) for shift in shifts.values() for peak in shift.peaks]
        reach = max(1.2 * float(np.quantile(every, _SHOWN_SHIFTS)), 1.0)  # a few strays would hide the rest
        axes.set_xlim(-reach, reach)
        axes.set_ylim(reach, -reach)
        axes.set_aspect("equal")
        axes.set_xlabel("to the right", fontsize=9, color=_MUTED)
        axes.set_ylabel("down", fontsize=9, color=_MUTED)
        axes.legend(fontsize=9, frameon=False)

    return draw


def _write_chart(path: Path, draw: Draw) -> None:
    # The figure is made without pyplot, which keeps global state and picks a window system.
    figures = require("matplotlib.figure", extra="report", purpose="Drawing the data")
    agg = require("matplotlib.backends.backend_agg", extra="report", purpose="Drawing the data")
    figure = figures.Figure(figsize=_PANEL_INCHES, dpi=_DPI, facecolor="white", layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    draw(axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _colour(index: int) -> str:
    return SPLIT_COLOURS[index % len(SPLIT_COLOURS)]


def _plain(band: str) -> str:
    """A band's name as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in band)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _number(value: float, digits: int = 1) -> str:
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text
