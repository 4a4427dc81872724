from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from hfd_edge.metrics import BoundaryConfusion, Calibration, Confusion, Details, flipped_share

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


class TestBoundaryConfusion:
    """Bands along outlines, by hand-made regions whose counts can be read off."""

    @staticmethod
    def square(offset: int = 0, side: int = 20, size: int = 64) -> np.ndarray:
        labels = np.zeros((size, size), np.uint8)
        labels[10 + offset : 10 + offset + side, 10:30] = 1
        return labels

    def test_equal_maps_score_one(self) -> None:
        boundary = BoundaryConfusion(("land", "water"))
        boundary.add(self.square(), self.square())
        assert boundary.iou == {"land": 1.0, "water": 1.0}
        assert boundary.miou == 1.0

    def test_counts_the_inner_band(self) -> None:
        boundary = BoundaryConfusion(("land", "water"), distance_px=2)
        boundary.add(self.square(), self.square())
        assert boundary.union[1] == 20 * 20 - 16 * 16  # a ring two pixels wide inside the square
        assert boundary.union[0] == 24 * 24 - 20 * 20  # and one outside; image borders are no outlines

    def test_against_the_definition(self) -> None:
        """Chessboard distance to the complement, pixel by pixel, on random regions."""
        rng = np.random.default_rng(4)
        truth = cv2.resize(rng.integers(0, 3, (8, 8)).astype(np.uint8), (40, 40), interpolation=0)
        truth[5:9, 30:38] = 255
        found = cv2.resize(rng.integers(0, 3, (8, 8)).astype(np.uint8), (40, 40), interpolation=0)
        boundary = BoundaryConfusion(("a", "b", "c"), distance_px=3)
        boundary.add(truth, found)
        known = truth != 255
        for label in range(3):
            bands = []
            for labels in (truth, found):
                mask = (labels == label) & known
                other = (labels != label) & known
                near = np.zeros_like(mask)
                for row, col in np.argwhere(mask):
                    window = other[max(row - 3, 0) : row + 4, max(col - 3, 0) : col + 4]
                    near[row, col] = window.any()
                bands.append(near)
            assert boundary.hits[label] == np.count_nonzero(bands[0] & bands[1])
            assert boundary.union[label] == np.count_nonzero(bands[0] | bands[1])

    def test_sees_a_shift_that_area_iou_forgives(self) -> None:
        area, boundary = Confusion(("land", "water")), BoundaryConfusion(("land", "water"))
        for score in (area, boundary):
            score.add(self.square(side=20), self.square(offset=2, side=20))
        assert area.iou["water"] > 0.8
        assert boundary.iou["water"] < 0.7

    def test_no_outline_at_all(self) -> None:
        boundary = BoundaryConfusion(("land", "water"))
        boundary.add(np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8))
        assert boundary.iou == {"land": None, "water": None}
        assert boundary.miou == 0.0

    def test_refuses_other_shapes_and_distances(self) -> None:
        with pytest.raises(ValueError, match="distance_px is 0, expected 1 or more"):
            BoundaryConfusion(("a", "b"), distance_px=0)
        with pytest.raises(ValueError, match=r"truth \(4, 4\) and prediction \(4, 5\) differ"):
            BoundaryConfusion(("a", "b")).add(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))


def test_f1_against_a_plain_count() -> None:
    rng = np.random.default_rng(3)
    truth, said = rng.choice([0, 1, 255], (30, 20)), rng.choice([0, 1, 255], (30, 20))
    confusion = Confusion(CLASSES)
    confusion.add(truth, said)
    known = truth != 255
    expected = {}
    for label, name in enumerate(CLASSES[:2]):
        right = (known & (truth == label) & (said == label)).sum()
        expected[name] = 2 * right / ((known & (truth == label)).sum() + (known & (said == label)).sum())
    assert confusion.f1 == {**{k: pytest.approx(v) for k, v in expected.items()}, "road": None}
    assert confusion.mf1 == pytest.approx(np.mean(list(expected.values())))


class TestCalibration:
    """Confidences whose error is known."""

    def test_hand_computed(self) -> None:
        calibration = Calibration(bins=5)
        truth = np.array([[0, 0, 0, 0, 255, 1]])
        said = np.array([[0, 0, 0, 1, 0, 255]])
        sure = np.array([[0.9, 0.9, 0.7, 0.7, 0.1, np.nan]], np.float32)
        calibration.add(truth, said, sure)
        # Two pixels at 0.9, both right; two at 0.7, one right; unknown truth and no data count for nothing.
        assert calibration.pixels.tolist() == [0, 0, 0, 2, 2]
        assert calibration.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.2)

    def test_tiles_add_up_to_the_definition(self) -> None:
        rng = np.random.default_rng(8)
        truth, said = rng.integers(0, 3, (6, 40, 40)), rng.integers(0, 3, (6, 40, 40))
        sure = rng.random((6, 40, 40))
        sure[0, 0, :3] = (0.0, 1.0, 1 / 3)
        calibration = Calibration()
        for tile in zip(truth, said, sure, strict=True):
            calibration.add(*tile)
        expected = 0.0
        for place in range(15):
            inside = (sure > place / 15) & (sure <= (place + 1) / 15) | ((place == 0) & (sure == 0))
            error = abs((truth == said)[inside].mean() - sure[inside].mean())
            expected += inside.sum() / sure.size * error
        assert calibration.ece == pytest.approx(expected)

    def test_nothing_seen_is_none(self) -> None:
        calibration = Calibration()
        assert calibration.ece is None
        calibration.add(np.array([255]), np.array([0]), np.array([0.5]))
        assert calibration.ece is None

    def test_faults(self) -> None:
        one = np.array([0])
        with pytest.raises(ValueError, match="bins is 0, expected 1 or more"):
            Calibration(bins=0)
        with pytest.raises(ValueError, match=r"confidence \(2,\) differ in shape"):
            Calibration().add(one, one, np.array([0.5, 0.5]))
        with pytest.raises(ValueError, match=r"from -3 to -3, expected probabilities .* softmax"):
            Calibration().add(one, one, np.array([-3.0]))
        with pytest.raises(ValueError, match="to inf, expected probabilities"):
            Calibration().add(one, one, np.array([np.inf]))
        Calibration().add(one, one, np.array([1 + 1e-6]))  # a softmax in float32


def test_details_are_json_and_agree_with_the_parts() -> None:
    confusion, details = Confusion(CLASSES), Details(CLASSES)
    truth = TestBoundaryConfusion.square()
    said = TestBoundaryConfusion.square(offset=2)
    for score in (confusion, details):
        score.add(truth, said)
    scores = json.loads(json.dumps(details.scores(confusion), allow_nan=False))
    assert scores["ece"] is None  # no confidences were given
    assert scores["confusion"] == confusion.counts.tolist()
    assert scores["boundary_iou"]["road"] is None
    assert scores["boundary_miou"] < scores["mf1"]
    assert scores["boundary_px"] == 3
    assert not set(scores) & set(confusion.scores())
