"""Scores of runs, checked against numbers computed another way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hfd_edge.config import DatasetConfig, read_toml, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError
from hfd_edge.hfdnet.run import Run
from hfd_edge.metrics import Details
from hfd_edge.raster.image import write_image
from hfd_edge.training.evaluate import evaluate_run, predict_labels
from hfd_edge.training.fit import train_student, train_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    from hfd_edge.config import Recipe

    recipe = Recipe.model_validate(
        {
            "network": {"encoder": "resnet10t", "channels": 16, "init": "random"},
            "training": {"epochs": 1, "batch": 4, "crop_px": 64},
            "distill": {"method": "none"},
        }
    )
    folder, out = PairFolder.open(pairs), tmp_path_factory.mktemp("runs")
    return {
        "teacher": train_teacher(folder, recipe, out / "teacher"),
        "student": train_student(folder, recipe, out / "student"),
    }


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_validation_during_training_equals_evaluation_afterwards(kind: str, runs, folder: PairFolder) -> None:
    scores = evaluate_run(runs[kind], folder, split="val")
    metrics = runs[kind].metrics()
    assert scores["miou"] == pytest.approx(metrics["miou"], abs=2e-3)
    assert scores["pixels"] == metrics["pixels"]
    assert scores["tiles"] == 2
    assert (scores["backend"], scores["precision"]) == ("torch", "fp32")
    assert set(scores["iou"]) == set(folder.config.classes)


def test_scores_against_a_plain_count(runs, folder: PairFolder) -> None:
    run = runs["student"]
    network = run.network()
    hits = total = 0
    for pair in folder.pairs("test"):
        pixels, valid = run.info.preprocessing(folder.load_sar(pair))
        padded = np.pad(pixels, ((0, 0), (0, 16), (0, 16)), mode="edge")
        with torch.no_grad():
            logits = network(torch.from_numpy(padded)[None])
            whole = torch.nn.functional.interpolate(logits, scale_factor=4.0, mode="bilinear")
        labels = whole.argmax(1)[0, :80, :80].numpy()
        truth = folder.load_label(pair)
        hits += int(((labels == truth) & valid & (truth != 255)).sum())
        total += int((truth != 255).sum())
    scores = evaluate_run(run, folder, split="test")
    assert scores["pixels"] == total
    assert scores["accuracy"] == pytest.approx(hits / total, abs=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (64, 31)])
def test_labels_of_any_size(size: tuple[int, int]) -> None:
    def network(pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[2] % 32 == pixels.shape[3] % 32 == 0
        small = torch.nn.functional.avg_pool2d(pixels, 4)
        return torch.cat((small, -small), 1)

    labels = predict_labels(network, np.full((2, 1, *size), -1.0, np.float32), device=CPU)
    assert labels.shape == (2, *size)
    assert labels.dtype == np.uint8
    assert (labels == 1).all()


def test_tiles_of_different_sizes_are_scored(runs, pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    folder = PairFolder.open(tmp_path / "data")
    pair = folder.pairs("test")[0]
    sar, label = folder.load_sar(pair), folder.load_label(pair)
    write_image(pair.sar, np.ascontiguousarray(sar[:, :50]))
    write_image(pair.label, np.ascontiguousarray(label[None, :50]))
    pair.eo.unlink()
    scores = evaluate_run(runs["student"], PairFolder.open(tmp_path / "data"))
    assert scores["tiles"] == 2
    assert scores["pixels"] <= 50 * 80 + 80 * 80
    assert evaluate_run(runs["teacher"], PairFolder.open(tmp_path / "data"))["tiles"] == 1


def test_pixels_without_sar_count_as_errors_where_the_truth_is_known(
    runs, pairs: Path, tmp_path: Path
) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    folder = PairFolder.open(tmp_path / "data")
    before = evaluate_run(runs["student"], folder)
    for pair in folder.pairs("test"):
        sar = folder.load_sar(pair)
        sar[:, :40] = 0.0  # the folder's no-data value
        write_image(pair.sar, sar)
    after = evaluate_run(runs["student"], PairFolder.open(tmp_path / "data"))
    assert after["pixels"] == before["pixels"]
    assert after["accuracy"] <= 0.55


def test_data_that_do_not_fit_are_refused(runs, pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    config = read_toml(pairs / "dataset.toml", DatasetConfig)

    def with_config(**changes) -> PairFolder:
        write_toml(tmp_path / "data" / "dataset.toml", config.model_copy(update=changes))
        return PairFolder.open(tmp_path / "data")

    other = with_config(classes=("sea", *config.classes[1:]))
    with pytest.raises(DatasetError, match=r"has classes \['sea'.*trained for \['water'"):
        evaluate_run(runs["student"], other)
    looks = with_config(sar=config.sar.model_copy(update={"looks": 1.0}))
    with pytest.raises(DatasetError, match=r"declares SAR input .*looks=1.0.*\[sar\]"):
        evaluate_run(runs["student"], looks)
    assert evaluate_run(runs["teacher"], looks)["tiles"] == 2  # a teacher does not look at SAR


def test_a_split_without_labels_is_refused(runs, pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test" / "label")
    with pytest.raises(DatasetError, match=r"Split 'test' .* no labelled pixel for a student \(0 pairs"):
        evaluate_run(runs["student"], PairFolder.open(tmp_path / "data"))


def test_confidences_against_a_plain_softmax(runs, folder: PairFolder) -> None:
    """ECE and outlines of a split, and the labels and counts of tiles, computed another way."""
    run = runs["student"]
    details, counts = Details(folder.config.classes), {}
    scores = evaluate_run(run, folder, details=details, counts=counts)
    plain = evaluate_run(run, folder)
    assert set(plain) < set(scores)
    assert all(scores[name] == plain[name] for name in plain), "confidences change no label"
    assert np.array_equal(sum(counts.values()), scores["confusion"])
    network, right, sure = run.network(), [], []
    for pair in folder.pairs("test"):
        pixels, valid = run.info.preprocessing(folder.load_sar(pair))
        padded = np.pad(pixels, ((0, 0), (0, 16), (0, 16)), mode="edge")
        with torch.no_grad():
            logits = torch.nn.functional.interpolate(
                network(torch.from_numpy(padded)[None]), scale_factor=4.0, mode="bilinear"
            )
        best = logits.softmax(1).max(1)
        truth = folder.load_label(pair)
        known = valid & (truth != 255)
        right.append((best.indices[0, :80, :80].numpy() == truth)[known])
        sure.append(best.values[0, :80, :80].numpy()[known])
    right, sure = np.concatenate(right), np.concatenate(sure)
    bins = np.ceil(sure * 15)
    expected = sum(
        abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in set(bins)
    )
    assert scores["ece"] == pytest.approx(expected, abs=2e-3)
    assert scores["ece"] > 0.01  # otherwise the line above says little


def test_a_pixel_without_data_has_no_confidence(runs, pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    folder = PairFolder.open(tmp_path / "data")
    for pair in folder.pairs("test"):
        sar = folder.load_sar(pair)
        sar[:, :40] = 0.0
        write_image(pair.sar, sar)
    details = Details(folder.config.classes)
    scores = evaluate_run(runs["student"], folder, details=details)
    assert details.calibration.pixels.sum() == scores["pixels"] - sum(row[-1] for row in scores["confusion"])
    assert sum(row[-1] for row in scores["confusion"]) > 1000


def test_a_teacher_is_calibrated_too(runs, folder: PairFolder) -> None:
    scores = evaluate_run(runs["teacher"], folder, details=Details(folder.config.classes))
    assert 0 <= scores["ece"] <= 1
