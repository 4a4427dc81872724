"""Limits that images like the training images rarely cross."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hfd_edge.drift import TrainingStatistics, compare, portray_image, training_statistics
from hfd_edge.drift.training import _limit

from .conftest import BANDS, CHAIN, learn, make_image


def test_survives_json(training: TrainingStatistics) -> None:
    text = training.model_dump_json()
    assert TrainingStatistics.model_validate(json.loads(text)) == training
    assert "NaN" not in text
    assert training.images == 40
    assert training.pixels == 128 * 128 // 2


def test_quantiles_and_histogram_are_those_of_the_images(training: TrainingStatistics) -> None:
    figures = {figure.key: figure for figure in training.figures}
    levels = [np.median(10 * np.log10(make_image(seed)[0].astype(float))) for seed in range(40)]
    np.testing.assert_allclose(
        figures["level", "vv"].quantiles, np.quantile(levels, (0.05, 0.25, 0.5, 0.75, 0.95)), atol=2e-3
    )
    water = figures["share", "water"]
    assert water.low is None
    assert water.quantiles[0] == pytest.approx(0.11, abs=0.01)
    assert water.high is not None and 0.3 < water.high < 1
    np.testing.assert_allclose(np.sum(training.histogram, axis=1), 1, atol=1e-4)


def test_few_images_tell_nothing() -> None:
    assert learn(count=7) is None
    assert learn(count=8) is not None
    empty = portray_image(np.zeros((2, 64, 64), np.float32), CHAIN, bands=BANDS)
    assert training_statistics([(empty, {})] * 20, CHAIN) is None


def test_no_training_image_and_hardly_any_other_raises_an_alarm(training: TrainingStatistics) -> None:
    def alarms(seeds: range) -> int:
        return sum(
            bool(compare(portray_image(make_image(seed), CHAIN, bands=BANDS), training, CHAIN).findings)
            for seed in seeds
        )

    assert alarms(range(40)) == 0
    assert alarms(range(1000, 1150)) <= 1


def test_limits_follow_the_spread() -> None:
    narrow, wide = np.random.default_rng(0).normal(size=(2, 200)) * [[1.0], [3.0]]
    assert _limit(wide, 1e-3) > 2 * _limit(narrow, 1e-3)
    assert _limit(narrow, 1e-4) > _limit(narrow, 1e-3) > narrow.max()
    # Near the exact value of 3.09, from 200 values.
    assert 2.6 < _limit(narrow, 1e-3) < 3.6
    assert _limit(narrow, 0.9) == narrow.max()


def test_the_same_image_many_times_leaves_room_for_what_nobody_minds() -> None:
    portrait = portray_image(make_image(0), CHAIN, bands=BANDS)
    training = training_statistics([(portrait, {})] * 10, CHAIN)
    assert training is not None
    louder = portray_image(make_image(0) * np.float32(1.1), CHAIN, bands=BANDS)
    assert compare(louder, training, CHAIN).findings == ()
    much = portray_image(make_image(0) * np.float32(1.5), CHAIN, bands=BANDS)
    assert {finding.kind for finding in compare(much, training, CHAIN).findings} == {"level"}
