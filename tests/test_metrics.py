from __future__ import annotations

import json

import numpy as np
import pytest

from hfd_edge.metrics import Confusion, flipped_share

CLASSES = ("land", "water", "road")


def test_hand_computed_scores() -> None:
    confusion = Confusion(CLASSES)
    confusion.add(np.array([[0, 0, 1], [1, 1, 255]]), np.array([[0, 1, 1], [1, 0, 2]]))
    assert confusion.pixels == 5
    assert confusion.iou == {"land": pytest.approx(1 / 3), "water": pytest.approx(1 / 2), "road": None}
    assert confusion.miou == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert confusion.accuracy == pytest.approx(3 / 5)


def test_one_matrix_over_all_tiles_is_not_the_mean_of_tiles() -> None:
    confusion = Confusion(CLASSES[:2])
    confusion.add(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    confusion.add(np.array([[1]], np.uint8), np.array([[0]], np.uint8))
    assert confusion.iou["land"] == pytest.approx(16 / 17)
    assert confusion.iou["water"] == 0.0
    assert confusion.tiles == 2


def test_no_data_prediction_on_known_truth_is_an_error() -> None:
    confusion = Confusion(CLASSES[:2])
    confusion.add(np.array([0, 0, 1, 1], np.uint8), np.array([0, 255, 1, 1], np.uint8))
    assert confusion.accuracy == pytest.approx(3 / 4)
    assert confusion.iou["land"] == pytest.approx(1 / 2)
    assert confusion.pixels == 4


def test_agrees_with_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 255], (31, 17)).astype(np.uint8)
    prediction = rng.integers(0, 3, (31, 17)).astype(np.uint8)
    confusion = Confusion(CLASSES)
    confusion.add(truth, prediction)
    for label, name in enumerate(CLASSES):
        t, p = (truth == label), (prediction == label) & (truth != 255)
        assert confusion.iou[name] == pytest.approx((t & p).sum() / (t | p).sum())


def test_nothing_labelled_gives_zero_not_nan() -> None:
    confusion = Confusion(CLASSES)
    confusion.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert (confusion.miou, confusion.accuracy, confusion.pixels) == (0.0, 0.0, 0)
    json.dumps(confusion.scores(), allow_nan=False)


def test_faults() -> None:
    confusion = Confusion(CLASSES)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion.add(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="truth holds label 7, but there are 3 classes"):
        confusion.add(np.array([7], np.uint8), np.array([0], np.uint8))
    with pytest.raises(ValueError, match="truth holds label -1, but there are 3 classes"):
        confusion.add(np.array([-1, 2]), np.array([0, 0]))


def test_flipped_share() -> None:
    assert flipped_share(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])) == 0.25
    assert flipped_share(np.array([]), np.array([])) == 0.0
