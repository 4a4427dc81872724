"""A comparison of variants as tables in the terminal and as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfd_edge.comparison import Comparison, EngineRow, Row
from hfd_edge.report.chart import HEIGHT, WIDTH, Point, scatter
from hfd_edge.report.console import table
from hfd_edge.report.disagreement import DisagreementPictures
from hfd_edge.report.page import cell, css, legend, signed, write_page
from hfd_edge.report.pictures import AGREE, BROKEN, CORRECTED, MOVED, PREDICTIONS

LIMIT_POINTS = 0.5
"""mIoU that a variant may lose against FP32 before the page calls it a loss: the project's own bound."""

_FLIPS = (
    (BROKEN, "right with FP32, wrong with the variant"),
    (CORRECTED, "wrong with FP32, right with the variant"),
    (MOVED, "both wrong, or truth not known"),
    (AGREE, "same label"),
)
_CAUTION = (
    "Variants ran as ONNX models on this machine. A GPU engine adds up in another order, so its labels can "
    "differ on a few more pixels.",
    "Latency is this CPU's, for the network alone. It says nothing about a Jetson or a desktop GPU, where "
    "INT8 and FP16 have their own units; a busy machine makes it longer.",
    "The scores come from one split. The bounds in brackets hold in 95 of 100 splits of such tiles "
    "(bootstrap over tiles); neighbouring tiles of one scene are alike, so the true bounds are wider.",
)


def print_tables(comparison: Comparison) -> None:
    """Print the comparison for people: variants, IoU by class, engines, and what did not run."""
    variants = [
        [
            name_of(row, comparison),
            100 * row.miou,
            None if index == 0 else -row.drop_points,
            _bounds(row),
            100 * row.boundary_miou,
            100 * row.accuracy,
            100 * row.flipped,
            row.bytes / 1e6,
            row.latency_ms,
        ]
        for index, row in enumerate(comparison.rows)
    ]
    columns = ("variant", "mIoU", "change", "95 %", "boundary", "accuracy", "flipped", "MB", "ms")
    table(_title(comparison), columns, [[_rounded(value) for value in row] for row in variants])
    names = [name_of(row, comparison) for row in comparison.rows]
    by_class = [
        [name, *(_rounded(_hundred(row.iou[name])) for row in comparison.rows)] for name in comparison.classes
    ]
    print()
    table("IoU by class, %", ("class", *names), by_class)
    if comparison.engines:
        engines = [
            [engine.name, engine.bytes / 1e6, _rounded(_mega(engine.weights_bytes)), engine.not_run or "yes"]
            for engine in comparison.engines
        ]
        print()
        table("Engines", ("engine", "MB", "weights MB", "run here"), engines)
    if comparison.not_run:
        refused = [[row.precision, row.backend, row.reason] for row in comparison.not_run]
        print()
        table("Not run", ("variant", "backend", "why"), refused)


def render(
    comparison: Comparison,
    path: Path,
    *,
    palette: Sequence[Sequence[int]],
    pictures: Sequence[DisagreementPictures] = (),
    machine: str = "",
    created: str = "",
) -> None:
    """Write the page, whole or not at all.

    Args:
        comparison: What `hfd_edge.comparison.compare` gave.
        path: HTML file to write.
        palette: One RGB colour per class.
        pictures: Tiles that differ, from `draw_disagreements`.
        machine: The machine that ran it, in words.
        created: When, as text.
    Raises:
        ValueError: palette and classes differ in length.
        MissingExtraError: jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    reference, others = comparison.rows[0], comparison.rows[1:]
    context = {
        "legend": legend(comparison.classes, palette),
        "title": f"{comparison.name}: variants side by side",
        "comparison": comparison,
        "facts": _facts(comparison, machine, created),
        "figures": _figures(comparison),
        "sentences": [_sentence(row, reference, comparison) for row in others],
        "chart": _chart(comparison),
        "width": WIDTH,
        "height": HEIGHT,
        "rows": [_table_row(row, comparison) for row in comparison.rows],
        "class_columns": [name_of(row, comparison) for row in comparison.rows],
        "class_rows": _class_rows(comparison, palette),
        "flips": [(css(colour), text) for colour, text in _FLIPS],
        "tiles": [_tile(tile, comparison) for tile in pictures],
        "engines": [_engine(engine) for engine in comparison.engines],
        "caution": _CAUTION,
        "not_built": "no picture",
    }
    write_page("comparison.html.j2", path, context)


def name_of(row: Row, comparison: Comparison) -> str:
    """What a row is called: its precision, and its backend where there are several."""
    return _name(row.precision, row.backend, comparison)


def _name(precision: str, backend: str, comparison: Comparison) -> str:
    several = len({row.backend for row in comparison.rows}) > 1
    caption = PREDICTIONS.get(precision, precision)
    return f"{caption} {backend}" if several else caption


def _title(comparison: Comparison) -> str:
    backends = " and ".join(dict.fromkeys(row.backend for row in comparison.rows))
    threads = f"{comparison.threads} thread{'' if comparison.threads == 1 else 's'}"
    return (
        f"{comparison.name} on {comparison.split}, {_tiles(comparison)}, {backends}; "
        f"percent; ms: median of one {comparison.tile_px} px tile on the CPU, {threads}"
    )


def _tiles(comparison: Comparison) -> str:
    return f"{comparison.tiles} tile{'' if comparison.tiles == 1 else 's'}"


def _facts(comparison: Comparison, machine: str, created: str) -> list[tuple[str, str, bool]]:
    """Name, text, and whether it takes a line of its own."""
    scheme = f", scheme {comparison.scheme}" if comparison.scheme else ""
    data = (
        f"{comparison.data}, split {comparison.split}{scheme}: {_tiles(comparison)}, "
        f"{comparison.pixels / 1e6:.1f} million labelled pixels"
    )
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    facts = [("Bundle", comparison.bundle, True), ("Data", data, True), ("Machine", machine, True)]
    facts += [("Software", versions, True), ("CPU threads", str(comparison.threads), False)]
    return [fact for fact in [*facts, ("Made", created, False)] if fact[1]]


def _figures(comparison: Comparison) -> list[dict[str, str]]:
    """Four numbers about the smallest variant, the one that a device would rather run."""
    reference, others = comparison.rows[0], comparison.rows[1:]
    if not others:
        return []
    row = min(others, key=lambda other: other.bytes)
    worst = ""
    if row.worst_class_drop_points is not None:
        worst = f"worst class {row.worst_class}: {signed(-row.worst_class_drop_points, digits=2)}"
    change = _figure(
        f"{name_of(row, comparison)}: mIoU against FP32",
        signed(-row.drop_points, digits=2),
        unit="points",
        text=worst,
        mood="bad" if row.drop_points > LIMIT_POINTS else "plain",
    )
    ways = f"{_share(row.broken)} % from right to wrong, {_share(row.corrected)} % from wrong to right"
    flipped = _figure("Pixels that change", _share(row.flipped), unit="%", text=ways)
    before = f"FP32 has {reference.bytes / 1e6:.1f} MB"
    size = _figure("Size", f"{row.bytes / 1e6:.1f}", unit="MB", text=before)
    if row.latency_ms is None or reference.latency_ms is None:
        return [change, flipped, size, _figure("Time on this CPU", "not measured", mood="absent")]
    against = f"a tile; FP32 takes {reference.latency_ms:.0f} ms"
    time = _figure("Time on this CPU", f"{row.latency_ms:.0f}", unit="ms", text=against)
    return [change, flipped, size, time]


def _figure(name: str, value: str, *, unit: str = "", text: str = "", mood: str = "plain") -> dict[str, str]:
    return {"name": name, "value": value, "unit": unit, "text": text, "mood": mood}


def _sentence(row: Row, reference: Row, comparison: Comparison) -> str:
    """What a row's numbers say, whichever way they went."""
    points = abs(round(row.drop_points, 2))
    if points == 0:
        text = "keeps FP32's mIoU"
    elif row.drop_points < 0:
        text = f"gains {points:.2f} mIoU points on FP32"
    else:
        inside = "within" if row.drop_points <= LIMIT_POINTS else "more than"
        text = f"loses {points:.2f} mIoU points against FP32, {inside} the limit of {LIMIT_POINTS:g}"
    if row.drop_low_points is not None:
        text += f" ({_bounds(row)} with other tiles like these)"
    text += f", and labels {_share(row.flipped)} % of the pixels differently"
    if row.latency_ms and reference.latency_ms:
        ratio = row.latency_ms / reference.latency_ms
        text += f"; it takes {ratio:.2f} times as long on this CPU"
    return f"{name_of(row, comparison)} {text}."


def _chart(comparison: Comparison) -> dict[str, Any] | None:
    timed = [row for row in comparison.rows if row.latency_ms is not None]
    if not timed:
        return None
    points = [
        Point(
            label=f"{name_of(row, comparison)}, {row.bytes / 1e6:.1f} MB",
            kind=row.precision,
            x=row.latency_ms or 0.0,
            y=100 * row.miou,
            size=row.bytes,
        )
        for row in timed
    ]
    best = 100 * comparison.rows[0].miou
    limit = f"{LIMIT_POINTS:g} points below FP32"
    spoken = "; ".join(f"{point.label}, {point.y:.2f} % mIoU, {point.x:.0f} ms" for point in points)
    return {**scatter(points, lines=[(best - LIMIT_POINTS, limit)]), "spoken": spoken}


def _table_row(row: Row, comparison: Comparison) -> dict[str, str]:
    first = row is comparison.rows[0]
    return {
        "name": name_of(row, comparison),
        "kind": row.precision,
        "miou": f"{100 * row.miou:.2f}",
        "change": "–" if first else signed(-row.drop_points, digits=2),
        "mood": "loss" if row.drop_points > LIMIT_POINTS else "",
        "boundary": f"{100 * row.boundary_miou:.2f}",
        "accuracy": f"{100 * row.accuracy:.2f}",
        "flipped": "–" if first else _share(row.flipped),
        "size": f"{row.bytes / 1e6:.1f}",
        "latency": "–" if row.latency_ms is None else f"{row.latency_ms:.0f}",
        "p90": "–" if row.latency_p90_ms is None else f"{row.latency_p90_ms:.0f}",
    }


def _class_rows(comparison: Comparison, palette: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """A row per class: IoU of each variant, and how it changed against FP32."""
    reference = comparison.rows[0]
    rows = []
    for name, colour in zip(comparison.classes, palette, strict=True):
        cells = []
        for index, row in enumerate(comparison.rows):
            before, after = reference.iou[name], row.iou[name]
            known = index > 0 and before is not None and after is not None
            change = signed(100 * ((after or 0.0) - (before or 0.0)), digits=2) if known else ""
            cells.append(("–" if after is None else f"{100 * after:.2f}", change))
        rows.append({"name": name, "colour": css(colour), "cells": cells})
    return rows


def _tile(tile: DisagreementPictures, comparison: Comparison) -> dict[str, Any]:
    found = tile.found
    name = _name(found.precision, found.backend, comparison)
    cells = [cell("SAR", tile.sar, f"SAR image of {found.tile}")]
    if tile.eo is not None:
        cells.append(cell("EO", tile.eo, f"Optical image of {found.tile}"))
    cells += [
        cell("Truth", tile.truth, f"Reference labels of {found.tile}", pixels=True),
        cell("FP32", tile.reference, f"Labels of {found.tile} predicted by FP32", pixels=True),
        cell(name, tile.variant, f"Labels of {found.tile} predicted by {name}", pixels=True),
        cell(
            "Difference",
            tile.flips,
            f"Where {name} and FP32 differ on {found.tile}, and which of them is right",
            pixels=True,
        ),
    ]
    part = f" Shown: {tile.part}." if tile.part else ""
    text = f"{name} labels {_share(found.flipped)} % of this tile differently.{part}"
    return {"name": found.tile, "text": text, "cells": cells}


def _engine(engine: EngineRow) -> dict[str, str]:
    capabilities = ", ".join(f"sm_{capability}" for capability in engine.compute_capabilities)
    state = f"Not run here: {engine.not_run.rstrip('.')}." if engine.not_run else "Ran here, see above."
    if engine.current is False:
        state = f"Out of date: built from another {engine.precision} model. {state}"
    return {
        "name": engine.name,
        "compiler": " ".join(part for part in (engine.flavour, engine.version) if part) or "–",
        "gpus": capabilities or "–",
        "size": f"{engine.bytes / 1e6:.1f}",
        "weights": _optional_mb(engine.weights_bytes),
        "activations": _optional_mb(engine.activation_bytes),
        "state": state,
    }


def _share(share: float) -> str:
    """A share as percent with two digits; what is there is never shown as nothing."""
    return "<0.01" if 0 < share < 0.00005 else f"{100 * share:.2f}"


def _optional_mb(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.1f}"


def _mega(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _bounds(row: Row) -> str:
    """The change of mIoU as an interval, points."""
    if row.drop_low_points is None or row.drop_high_points is None:
        return "-"
    return f"{signed(-row.drop_high_points, digits=2)} to {signed(-row.drop_low_points, digits=2)}"


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
