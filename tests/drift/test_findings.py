"""Planted faults, and what is said of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from hfd_edge.drift import DriftReport, TrainingStatistics, compare, portray_image

from .conftest import BANDS, CHAIN, learn, make_image

DECIBELS = dataclasses.replace(CHAIN, units="sigma0_db", nodata=None)


def check(image: np.ndarray, training: TrainingStatistics, **shares: float) -> DriftReport:
    portrait = portray_image(image, CHAIN, bands=BANDS)
    return compare(portrait, training, CHAIN, shares={("share", name): of for name, of in shares.items()})


FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
    "gain": (lambda image: image * 10, "level", r"vv lies \d+\.\d dB above training: .*gain is probably"),
    "loss": (lambda image: image / 10, "level", r"vv lies \d+\.\d dB below training: .*gain is probably"),
    "digital numbers": (lambda image: image * 1e5, "level", "probably not calibrated to sigma0"),
    "amplitude": (np.sqrt, "level", "probably the root of what the bundle expects, intensity. Square"),
    "squared": (np.square, "level", "probably the square of what the bundle expects, intensity. Take"),
    "decibels": (
        lambda image: 60 + 10 * np.log10(image),
        "level",
        "values are probably decibels, but the bundle expects intensity. Convert",
    ),
    "swapped": (
        lambda image: image[::-1],
        "ratio",
        r"vv lies -6\.\d dB above vh, most training images 5\.\d to 6\.\d dB. The bands are probably swapped",
    ),
    "one band": (
        lambda image: image * np.array([1, 2], np.float32)[:, None, None],
        "ratio",
        "One of them is probably of another polarisation or calibration",
    ),
    "saturated": (
        lambda image: np.minimum(image, np.quantile(image, 0.7, axis=(1, 2), keepdims=True)),
        "flat",
        r"30\.\d % of vv has the largest value of all, .*saturated",
    ),
    "smoothed": (
        lambda image: np.stack([cv2.blur(band, (3, 3)) for band in image]),
        "looks",
        r"vv has \d\d\.\d looks .*, most training images 4\.\d to 4\.\d.*probably smoothed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named(fault: str, training: TrainingStatistics) -> None:
    plant, kind, message = FAULTS[fault]
    image = make_image(500)
    assert check(image, training).findings == ()
    findings = check(np.ascontiguousarray(plant(image), np.float32), training).findings
    first = findings[0]
    assert first.kind == kind
    assert re.search(message, first.message), first.message
    assert (first.low is not None and first.value < first.low) or (
        first.high is not None and first.value > first.high
    )


def test_only_what_was_trained_with_sigma0_can_lack_the_calibration(training: TrainingStatistics) -> None:
    """Neither a scene far below, nor training data that were digital numbers themselves."""
    (below, *_) = check(make_image(500) / np.float32(1e3), training).findings
    assert "The gain is probably another one" in below.message
    numbers = learn(scale=1e5)
    portrait = portray_image(make_image(500) * np.float32(1e8), CHAIN, bands=BANDS)
    (above, *_) = compare(portrait, numbers, CHAIN).findings
    assert "lies 3" in above.message and "The gain is probably another one" in above.message


def test_fewer_looks_are_named(training: TrainingStatistics) -> None:
    findings = {finding.kind: finding for finding in check(make_image(500, looks=1), training).findings}
    assert "more speckle" in findings["looks"].message
    assert "width" not in findings  # it follows


def test_a_swap_is_said_once(training: TrainingStatistics) -> None:
    findings = check(make_image(500)[::-1], training).findings
    assert [finding.kind for finding in findings] == ["ratio"]


def test_linear_values_declared_as_decibels() -> None:
    training = learn(DECIBELS, units="sigma0_db")
    portrait = portray_image(make_image(500), DECIBELS, bands=BANDS)
    first = compare(portrait, training, DECIBELS).findings[0]
    assert first.kind == "level"
    assert "probably linear power, but the bundle expects decibels" in first.message


def test_stretched_products_have_no_decibels() -> None:
    chain = dataclasses.replace(CHAIN, units="stretched", nodata=None, clip=((0.0, 1.0), (0.0, 1.0)))
    training = learn(chain)
    portrait = portray_image(make_image(500) + np.float32(0.5), chain, bands=BANDS)
    first = compare(portrait, training, chain).findings[0]
    assert "dB" not in first.message
    assert "The stretch is probably another one" in first.message


def test_class_shares(training: TrainingStatistics) -> None:
    image = make_image(500)
    assert check(image, training, water=0.25, soil=0.75).findings == ()
    (finding,) = check(image, training, water=1.0, soil=0.0).findings
    assert (finding.kind, finding.of) == ("share", "water")
    assert finding.message.startswith("100.0 % is labelled water, in most training images 11.0 to 28.5 %.")
    # What goes wrong at the input explains any labels.
    assert {found.kind for found in check(image * 30, training, water=1.0, soil=0.0).findings} == {"level"}


def test_too_little_to_judge(training: TrainingStatistics) -> None:
    report = check(make_image(500, rows=40, cols=40) * 1000, training)
    assert report.findings == ()
    assert report.unjudged is not None
    assert report.unjudged.startswith("1600 valid pixels were sampled, but it takes 8192")
    assert report.figures["level vv"] > 10
    assert check(np.zeros((2, 200, 200), np.float32), training).unjudged is not None


def test_a_large_scene_of_all_kinds_of_ground_is_like_its_parts(training: TrainingStatistics) -> None:
    parts = [np.concatenate([make_image(10 * row + col) for col in range(6)], axis=2) for row in range(6)]
    assert check(np.concatenate(parts, axis=1), training).findings == ()
