"""What a finding says: what differs, by how much, what it probably is, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hfd_edge.drift.portraits import Key, Kind
from hfd_edge.drift.training import Figure
from hfd_edge.sar.preprocessing import Preprocessing

# Beyond any gain of a sensor or a processor: digital numbers squared are 30 to 70 dB above sigma0.
_UNCALIBRATED_DB = 15.0
# Sigma0 of most ground lies below 1: as decibels below 0, and read as decibels very bright.
_LINEAR_DB = 5.0

_SHARES: dict[Kind, tuple[str, str]] = {
    "flat": (
        "of {of} has the largest value of all",
        "The receiver or a conversion probably saturated. Use the product from before, or a lower gain.",
    ),
    "bright": (
        "of {of} lies at or above the clip limit",
        "The gain is probably higher, or the ground unlike that of training. Check the calibration.",
    ),
    "dark": (
        "of {of} lies at or below the clip limit",
        "It is probably below the noise of the training data, or no-data that nobody declared. Check the "
        "calibration and the no-data value.",
    ),
    "share": (
        "is labelled {of}",
        "The ground is unlike that of training, or the labels are wrong. Check the mask by eye.",
    ),
}


@dataclass(frozen=True)
class Comparison:
    """What an image has, and what the training images had."""

    figures: Mapping[Key, float]
    training: Mapping[Key, Figure]
    preprocessing: Preprocessing

    @property
    def decibels(self) -> bool:
        """Whether levels are in dB; "stretched" products have none."""
        return self.preprocessing.logarithmic

    @property
    def unit(self) -> str:
        """Of levels, for texts."""
        return " dB" if self.decibels else ""

    def swapped(self, figure: Figure) -> bool:
        """Whether it is the ratio of two bands, and that of the same bands the other way round."""
        value = self.figures[figure.key]
        return figure.kind == "ratio" and abs(value + figure.median) < abs(value - figure.median) / 2

    def unit_mistaken(self, band: str) -> str | None:
        """What a band was probably given as, if not in the bundle's units, and what to do."""
        units = self.preprocessing.units
        level, width = self.factor("level", band), self.factor("width", band)
        if units == "sigma0_db" and self.figures["level", band] > -_LINEAR_DB and width < 0.5:
            return (
                "The values are probably linear power, but the bundle expects decibels. Convert them with "
                "hfd_edge.sar.intensity_to_db."
            )
        if units in ("stretched", "sigma0_db"):
            return None
        grain = self.figures.get(("looks", band), 0.0) - self.usual("looks", band)
        if width < 0.35 and grain > 1:  # a logarithm flattens everything, speckle too
            return (
                f"The values are probably decibels, but the bundle expects {units}. Convert them with "
                "hfd_edge.sar.db_to_intensity, or look for the product in linear units."
            )
        if 0.35 < width < 0.65 and abs(level - width) < 0.25:
            return (
                "The decibels are about half of what they should be: the values are probably the root of "
                f"what the bundle expects, {units}. Square them."
            )
        if 1.6 < width < 2.5 and abs(level - width) < 0.5:
            return (
                "The decibels are about twice what they should be: the values are probably the square of "
                f"what the bundle expects, {units}. Take their square root."
            )
        return None

    def usual(self, kind: Kind, of: str) -> float:
        """The median of training; infinite where there is none."""
        figure = self.training.get((kind, of))
        return math.inf if figure is None else figure.median

    def factor(self, kind: Kind, of: str) -> float:
        """How many times the median of training a figure is; 1 where that says nothing."""
        usual = self.usual(kind, of)
        return self.figures.get((kind, of), usual) / usual if usual and math.isfinite(usual) else 1.0


def explain(figure: Figure, comparison: Comparison) -> str:
    """Put a figure that is outside its limits into words."""
    value, unit, of = comparison.figures[figure.key], comparison.unit, figure.of
    usual = f"most training images {_usual(figure)}{unit}"
    match figure.kind:
        case "level":
            side = "above" if value > figure.median else "below"
            off = abs(value - figure.median)
            return (
                f"{of} lies {off:.1f}{unit} {side} training: its median is {value:.1f}{unit}, {usual}. "
                f"{_why_level(figure, comparison)}"
            )
        case "width":
            return (
                f"{of} spreads over {value:.1f}{unit} (10th to 90th percentile), {usual}. "
                f"{_why_width(figure, comparison)}"
            )
        case "ratio":
            first, second = figure.bands
            return f"{first} lies {value:.1f}{unit} above {second}, {usual}. {_why_ratio(figure, comparison)}"
        case "histogram":
            return (
                f"The histogram of {of} is {value:.1f}{unit} away from that of training, {usual}. The scene "
                "is probably of another sensor, mode, season or processing. Check its metadata, and some of "
                "the mask by eye."
            )
        case "looks":
            low, high = (f"{10**end:.1f}" for end in (figure.quantiles[0], figure.quantiles[-1]))
            what = "looks" if comparison.decibels else "for mean squared over variance"
            return (
                f"{of} has {10**value:.1f} {what} (median of 8 x 8 blocks), most training images {low} to "
                f"{high}. {_why_looks(figure, comparison)}"
            )
    what, why = _SHARES[figure.kind]
    most = f"{100 * figure.quantiles[0]:.1f} to {100 * figure.quantiles[-1]:.1f} %"
    return f"{100 * value:.1f} % {what.format(of=of)}, in most training images {most}. {why}"


def _usual(figure: Figure) -> str:
    return f"{figure.quantiles[0]:.1f} to {figure.quantiles[-1]:.1f}"


def _why_level(figure: Figure, comparison: Comparison) -> str:
    if not comparison.decibels:
        return "The stretch is probably another one. Make the product as the training data were made."
    if (mistaken := comparison.unit_mistaken(figure.of)) is not None:
        return mistaken
    off = comparison.figures[figure.key] - figure.median
    if off > _UNCALIBRATED_DB and figure.median < _LINEAR_DB:  # of sigma0, unlike that of digital numbers
        return "The scene is probably not calibrated to sigma0. Calibrate it as the training data were."
    return (
        "The gain is probably another one: another sensor, mode or calibration. Calibrate the scene as the "
        "training data were."
    )


def _why_width(figure: Figure, comparison: Comparison) -> str:
    if (mistaken := comparison.unit_mistaken(figure.of)) is not None:
        return mistaken
    if comparison.figures[figure.key] < figure.median:
        return (
            "The contrast is lower: probably another unit, strong smoothing, or one kind of ground only. "
            "Check the units, and the mask by eye."
        )
    return (
        "The contrast is higher: probably another unit, no-data that nobody declared, or more speckle. "
        "Check the units and the no-data value."
    )


def _why_ratio(figure: Figure, comparison: Comparison) -> str:
    if comparison.swapped(figure):
        return "The bands are probably swapped. Put them in the order of the bundle."
    return "One of them is probably of another polarisation or calibration. Check what they are."


def _why_looks(figure: Figure, comparison: Comparison) -> str:
    if comparison.figures[figure.key] > figure.median:
        return (
            "The scene is probably smoothed, multilooked more, or resampled from a coarser grid. Give it as "
            "the training data were, without a speckle filter before."
        )
    return "It has more speckle: probably another product level. Multilook it as the training data were."
