"""Scores of known predictors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.evaluate import evaluate
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError
from hfd_edge.metrics import Details
from hfd_edge.raster.image import write_image

MakeFolder = Callable[..., Path]


def test_perfect_constant_and_empty_predictions(make_folder: MakeFolder) -> None:
    folder = PairFolder.open(make_folder())
    truths = [folder.load_label(pair) for pair in folder.pairs("train")]
    known = sum(int((truth != 255).sum()) for truth in truths)

    answers = iter(truths)
    perfect = evaluate(lambda sar: next(answers), folder, split="train")
    assert perfect.accuracy == 1.0 and perfect.miou == 1.0
    assert perfect.pixels == known and perfect.tiles == 2

    constant = evaluate(lambda sar: np.zeros(sar.shape[1:], np.uint8), folder, split="train")
    zeros = sum(int((truth == 0).sum()) for truth in truths)
    assert constant.iou == {"water": zeros / known, "land": 0.0, "town": 0.0}

    nothing = evaluate(lambda sar: np.full(sar.shape[1:], 255, np.uint8), folder, split="train")
    assert nothing.accuracy == 0.0 and nothing.pixels == known, "no-data where truth is known is an error"


def test_predictor_gets_stored_sar_and_progress_counts_tiles(make_folder: MakeFolder) -> None:
    folder = PairFolder.open(make_folder())
    seen: list[np.ndarray] = []
    reports: list[tuple[float, float, str]] = []

    def predict(sar: np.ndarray) -> np.ndarray:
        seen.append(sar)
        return np.zeros(sar.shape[1:], np.uint8)

    evaluate(predict, folder, split="val", progress=lambda *report: reports.append(report))
    np.testing.assert_array_equal(seen[0], folder.load_sar(folder.pairs("val")[0]))
    assert reports[-1][:2] == (1, 1) and "mIoU" in reports[-1][2]


def test_unlabelled_pairs_are_left_out(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "train" / "label" / "b.png").unlink()
    confusion = evaluate(lambda sar: np.zeros(sar.shape[1:], np.uint8), PairFolder.open(root), split="train")
    assert confusion.tiles == 1


@pytest.mark.parametrize("remove", [True, False])
def test_split_without_a_labelled_pixel(make_folder: MakeFolder, remove: bool) -> None:
    root = make_folder()
    label = root / "val" / "label" / "c.png"
    if remove:
        label.unlink()
    else:
        write_image(label, np.full((24, 17), 255, np.uint8))
    with pytest.raises(
        DatasetError, match=rf"has no labelled pixel \({0 if remove else 1} label files.*--split"
    ):
        evaluate(lambda sar: np.zeros(sar.shape[1:], np.uint8), PairFolder.open(root), split="val")


def test_prediction_of_another_size(make_folder: MakeFolder) -> None:
    with pytest.raises(ValueError, match=r"truth \(24, 17\) and prediction \(24, 16\) differ"):
        evaluate(lambda sar: np.zeros((24, 16), np.uint8), PairFolder.open(make_folder()), split="val")


def test_counts_by_tile_and_details(make_folder: MakeFolder) -> None:
    folder = PairFolder.open(make_folder())
    counts: dict[str, np.ndarray] = {}
    details = Details(folder.config.classes)
    confusion = evaluate(
        lambda sar: np.zeros(sar.shape[1:], np.uint8), folder, split="train", counts=counts, details=details
    )
    assert list(counts) == [pair.name for pair in folder.pairs("train")]
    np.testing.assert_array_equal(sum(counts.values()), confusion.counts)
    pair = folder.pairs("train")[0]
    truth = folder.load_label(pair)
    assert counts[pair.name][1, 0] == (truth == 1).sum()
    assert details.boundary.union.sum() > 0
    assert details.scores(confusion)["ece"] is None
