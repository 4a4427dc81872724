"""What about an image is unlike the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hfd_edge.drift.portraits import Key, Kind, Portrait
from hfd_edge.drift.training import Figure, TrainingStatistics, distances
from hfd_edge.drift.words import Comparison, explain
from hfd_edge.sar.preprocessing import Preprocessing

# Causes first.
_ORDER: tuple[Kind, ...] = (
    *("ratio", "level", "width", "flat", "bright", "dark", "looks", "histogram", "share"),
)


@dataclass(frozen=True)
class Finding:
    """Something about an image that is unlike the training images.

    Attributes:
        kind: Which figure, see `hfd_edge.drift.portraits.Kind`.
        of: Its band, bands or class.
        value: What the image has.
        low: Least that is like the training images; None where there is no limit.
        high: Most that is.
        message: What differs, by how much, what it probably is, and what to do.
    """

    kind: Kind
    of: str
    value: float
    low: float | None
    high: float | None
    message: str


@dataclass(frozen=True)
class DriftReport:
    """An image against the training images.

    Attributes:
        findings: What is unlike them, causes first and without what only follows from them; empty where
            nothing is.
        figures: All figures of the image, by "kind of", for example "level vv".
        pixels: Valid pixels that were looked at.
        unjudged: Why there are no findings whatever the image is; None where it was judged.
    """

    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    pixels: int = 0
    unjudged: str | None = None


def compare(
    portrait: Portrait,
    training: TrainingStatistics,
    preprocessing: Preprocessing,
    *,
    shares: Mapping[Key, float] | None = None,
) -> DriftReport:
    """Compare an image with the training images.

    Args:
        portrait: The image.
        training: What the bundle's manifest says of the training images.
        preprocessing: The bundle's.
        shares: Class shares of the image's labels, if there are labels.
    """
    figures = dict(portrait.figures) | dict(shares or {})
    if portrait.pixels:
        figures |= distances(portrait, np.array(training.histogram), preprocessing)
    texts = {f"{kind} {of}": value for (kind, of), value in figures.items()}
    if portrait.pixels < max(training.pixels, 1):
        why = (
            f"{portrait.pixels} valid pixels were sampled, but it takes {training.pixels} to tell whether an "
            "image is like the training images."
        )
        return DriftReport((), texts, portrait.pixels, why)
    usual = {figure.key: figure for figure in training.figures}
    comparison = Comparison(figures, usual, preprocessing)
    strange = [figure for figure in training.figures if _outside(figure, figures.get(figure.key))]
    findings = tuple(
        Finding(
            figure.kind, figure.of, figures[figure.key], figure.low, figure.high, explain(figure, comparison)
        )
        for figure in _causes(strange, comparison)
    )
    return DriftReport(findings, texts, portrait.pixels)


def _outside(figure: Figure, value: float | None) -> bool:
    if value is None:
        return False
    low, high = figure.low, figure.high
    return (low is not None and value < low) or (high is not None and value > high)


def _causes(strange: list[Figure], comparison: Comparison) -> list[Figure]:
    """Leave out what only follows from something else."""
    swapped = {band for figure in strange if comparison.swapped(figure) for band in figure.bands}
    grainy = {figure.of for figure in strange if figure.kind == "looks"}
    moved = {figure.of for figure in strange if figure.kind in ("level", "width")}
    consequences: Mapping[Kind, set[str]] = {
        "level": swapped,
        "width": swapped | {of for of in grainy if comparison.unit_mistaken(of) is None},
        # Of stretched values it depends on the level, and of decibels that are half or twice what they are.
        "looks": {of for of in moved if not comparison.decibels or comparison.unit_mistaken(of) is not None},
        "histogram": swapped | moved,
        "bright": swapped | moved,
        "dark": swapped | moved,
    }
    kept = [figure for figure in strange if figure.of not in consequences.get(figure.kind, ())]
    kept = [
        figure
        for figure in kept
        if figure.kind != "ratio" or comparison.swapped(figure) or not moved & set(figure.bands)
    ]
    # A network that sees what it does not know may give any classes.
    causes = [figure for figure in kept if figure.kind != "share"] or kept
    return sorted(causes, key=lambda figure: _ORDER.index(figure.kind))
