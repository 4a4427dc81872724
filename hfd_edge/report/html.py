"""The report of a demo run: one HTML file that needs no network, no script and no other file.

Pictures are embedded as PNG, the chart is inline SVG, styles are inline. The page follows the reader's
light or dark setting, fits a phone, and prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.report.console import duration
from hfd_edge.report.page import cell, css, encoded, legend, signed, write_page
from hfd_edge.report.pictures import PREDICTIONS, TilePictures

Array = NDArray[Any]

VARIANTS = {"teacher": "Teacher", "sar_only": "SAR only", "fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
"""Heading by variant, in the order of every table and chart."""

INT8_LIMIT_POINTS = 1.0
NOT_BUILT = "not built"


@dataclass(frozen=True)
class ScenePictures:
    """Thumbnails of a whole scene, uint8 RGB (3, rows, cols) each; see `pictures.shrink_values`.

    `note` stands beside the caption of the SAR picture, for example "4096 x 4096 pixels".
    """

    sar: Array
    mask: Array
    note: str = ""


@dataclass(frozen=True)
class DemoReport:
    """Everything that the report says; plain values, nothing is computed from files but the curves.

    Attributes:
        title: Heading of the page.
        machine: The machine that ran it, in words: processor, cores, system, versions.
        seconds: Wall-clock time of the whole run.
        classes: Class names, in label order.
        palette: One RGB colour per class.
        summary: What summary.json holds: `miou` by variant (keys of `VARIANTS`, 0 to 1; None or absent:
            not built), `engines` (list of target, precision, bytes, seconds), `scene` (megapixels, seconds;
            or None), `bundle` (path).
        iou: IoU by class by variant, 0 to 1; a variant may be absent, a class may be None (not in the split).
        tiles: Test tiles as pictures.
        scene: Thumbnails of the segmented scene.
        curves: PNG files of training curves by caption.
        built: What was made, one sentence each.
        not_verified: What this run could not check (everything that needs a GPU), one sentence each.
        commands: Command lines to go on with, by what they do.
        data: What the data are, in a sentence or two.
        pictures_note: How SAR pictures are to be read.
        created: When, as text.
    """

    title: str
    machine: str
    seconds: float
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    summary: Mapping[str, Any]
    iou: Mapping[str, Mapping[str, float | None]]
    tiles: Sequence[TilePictures] = ()
    scene: ScenePictures | None = None
    curves: Mapping[str, Path] = field(default_factory=dict)
    built: Sequence[str] = ()
    not_verified: Sequence[str] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    pictures_note: str = (
        "SAR is shown in false colour: red is VV, green VH and blue their difference in dB, "
        "stretched for each picture."
    )
    created: str = ""


def render(report: DemoReport, path: Path) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Raises:
        ValueError: palette and classes differ in length, or a picture is not uint8 (3, rows, cols).
        MissingExtraError: jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    write_page("report.html.j2", path, _context(report))


def _context(report: DemoReport) -> dict[str, Any]:
    """Everything the template prints, already in words: it holds layout and no arithmetic."""
    miou = {key: _score(report.summary.get("miou") or {}, key) for key in VARIANTS}
    return {
        "report": report,
        "title": report.title,
        "duration": duration(report.seconds),
        "legend": legend(report.classes, report.palette),
        "variants": VARIANTS,
        "figures": _figures(report, miou),
        "verdict": _verdict(miou),
        "miou": {key: _percent(value) for key, value in miou.items()},
        "table": _table(report),
        "charts": _charts(report, miou),
        "tiles": [_tile(tile) for tile in report.tiles],
        "scene": [] if report.scene is None else _scene(report.scene),
        "scene_text": _scene_text(report.summary.get("scene")),
        "curves": {text: encoded(Path(png).read_bytes()) for text, png in report.curves.items()},
        "engines": [_engine(engine) for engine in report.summary.get("engines") or []],
        "not_built": NOT_BUILT,
    }


def _figures(report: DemoReport, miou: Mapping[str, float | None]) -> list[dict[str, str]]:
    """The four numbers a reader looks for first."""
    gain, drop = _difference(miou, "fp32", "sar_only"), _difference(miou, "int8", "fp32")
    scene = report.summary.get("scene")
    shown = miou["int8"] if miou["int8"] is not None else miou["fp32"]
    precision = "INT8" if miou["int8"] is not None else "FP32"
    rate = None if not scene or not scene["seconds"] else scene["megapixels"] / scene["seconds"]
    return [
        _figure(f"{precision} student", shown, "% mIoU", "on test tiles, from SAR alone", 100),
        _figure("Distillation", gain, "points", "FP32 student against the same network without a teacher"),
        _figure(
            "Quantisation",
            drop,
            "points",
            f"INT8 against FP32; at most {INT8_LIMIT_POINTS:.1f} may be lost",
            limits=(-INT8_LIMIT_POINTS, math.inf),
        ),
        _figure("Scene", rate, "Mpx/s", "file to file, on this machine's processor", 1),
    ]


def _figure(
    name: str,
    value: float | None,
    unit: str,
    text: str,
    scale: float | None = None,
    *,
    limits: tuple[float, float] = (0.0, 0.0),
) -> dict[str, str]:
    """One headline number; without `scale` it is a signed difference, bad below and good above `limits`."""
    if value is None:
        return {"name": name, "value": NOT_BUILT, "unit": "", "text": text, "mood": "absent"}
    if scale is not None:
        return {"name": name, "value": f"{value * scale:.1f}", "unit": unit, "text": text, "mood": "plain"}
    low, high = limits
    rounded = round(value, 1)
    mood = "bad" if rounded < low else "good" if rounded > high else "plain"
    return {"name": name, "value": signed(value), "unit": unit, "text": text, "mood": mood}


def _verdict(miou: Mapping[str, float | None]) -> str:
    """What the numbers say, whichever way they went."""
    gain, drop = _difference(miou, "fp32", "sar_only"), _difference(miou, "int8", "fp32")
    sentences = []
    if gain is not None:
        points = f"{abs(gain):.1f} mIoU points against the same network trained on labels alone."
        if round(gain, 1) == 0:
            sentences.append("Distillation made no difference to the same network trained on labels alone.")
        else:
            sentences.append(f"Distillation {'gained' if gain > 0 else 'lost'} {points}")
    if drop is not None:
        inside = "within" if round(drop, 1) >= -INT8_LIMIT_POINTS else "outside"
        if round(drop, 1) == 0:
            sentences.append("INT8 makes no difference to FP32.")
        elif drop > 0:
            sentences.append(f"INT8 adds {drop:.1f} points to FP32.")
        else:
            sentences.append(
                f"INT8 costs {-drop:.1f} points against FP32, {inside} the limit of {INT8_LIMIT_POINTS:.1f}."
            )
    if sentences:
        sentences.append("One seed and a short budget: read small differences as noise.")
    return " ".join(sentences)


def _table(report: DemoReport) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "colour": css(colour),
            "scores": {key: _class_text(report, key, name) for key in VARIANTS},
        }
        for name, colour in zip(report.classes, report.palette, strict=True)
    ]


def _charts(report: DemoReport, miou: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """One small bar chart per class, the mean first; a bar's value is its length, 0 to 1."""
    mean = [(VARIANTS[key], key, value, _percent(value)) for key, value in miou.items()]
    charts = [_chart("Mean (mIoU)", None, mean)]
    for name, colour in zip(report.classes, report.palette, strict=True):
        bars = [
            (label, key, _score(report.iou.get(key) or {}, name), _class_text(report, key, name))
            for key, label in VARIANTS.items()
        ]
        charts.append(_chart(name, css(colour), bars))
    return charts


def _chart(
    name: str, colour: str | None, bars: Sequence[tuple[str, str, float | None, str]]
) -> dict[str, Any]:
    spoken = ", ".join(f"{label} {text}" for label, _, _, text in bars)
    keys = ("label", "key", "value", "text")
    return {
        "name": name,
        "colour": colour,
        "bars": [dict(zip(keys, bar, strict=True)) for bar in bars],
        "spoken": f"IoU of {name}: {spoken}",
    }


def _class_text(report: DemoReport, variant: str, name: str) -> str:
    """A class's IoU; a dash where the variant was built, but the class is in neither truth nor labels."""
    scores = report.iou.get(variant)
    return NOT_BUILT if not scores else _percent(_score(scores, name), absent="–")


def _tile(tile: TilePictures) -> dict[str, Any]:
    cells = [cell("SAR", tile.sar, f"SAR image of {tile.name}")]
    if tile.eo is not None:
        cells.append(cell("EO", tile.eo, f"Optical image of {tile.name}"))
    if tile.truth is not None:
        cells.append(cell("Truth", tile.truth, f"Reference labels of {tile.name}", pixels=True))
    if tile.errors is not None and tile.errors_of is not None:
        variant = VARIANTS[tile.errors_of]
        alt = f"Where the {variant} student is wrong on {tile.name}, in red"
        cells.append(cell(f"{variant} errors", tile.errors, alt, pixels=True))
    for key, caption in PREDICTIONS.items():
        if key not in VARIANTS:  # a variant that the demo does not make is not "not built"
            continue
        picture = tile.predictions.get(key)
        right = f"{100 * tile.accuracy[key]:.1f} % right" if key in tile.accuracy else ""
        alt = f"Labels of {tile.name} predicted by {caption}"
        cells.append(cell(caption, picture, alt, note=right, pixels=True))
    return {"name": tile.name, "cells": cells}


def _scene(scene: ScenePictures) -> list[dict[str, Any]]:
    return [
        cell("SAR", scene.sar, "Overview of the SAR scene", note=scene.note),
        cell("Mask", scene.mask, "Overview of the predicted mask, in class colours", pixels=True),
    ]


def _scene_text(scene: Mapping[str, Any] | None) -> str:
    if not scene:
        return f"Scene: {NOT_BUILT}."
    rate = scene["megapixels"] / scene["seconds"] if scene["seconds"] else math.inf
    return f"{scene['megapixels']:.1f} megapixels in {duration(scene['seconds'])}: {rate:.1f} Mpx/s."


def _engine(engine: Mapping[str, Any]) -> dict[str, str]:
    return {
        "target": str(engine["target"]),
        "precision": str(engine["precision"]).upper(),
        "size": f"{engine['bytes'] / 1e6:.1f} MB",
        "seconds": duration(engine["seconds"]),
    }


def _score(scores: Mapping[str, Any], key: str) -> float | None:
    value = scores.get(key)
    return None if value is None or not np.isfinite(value) else float(value)


def _difference(miou: Mapping[str, float | None], of: str, against: str) -> float | None:
    """Points of mIoU between two variants; None when one of them was not built."""
    first, second = miou[of], miou[against]
    return None if first is None or second is None else 100 * (first - second)


def _percent(value: float | None, *, absent: str = NOT_BUILT) -> str:
    return absent if value is None else f"{100 * value:.1f}"
