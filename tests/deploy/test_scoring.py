"""Scores of variants: equal to the runtime's, bounded, and honest about what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hfd_edge.bundle import Bundle
from hfd_edge.config import DatasetConfig, write_toml
from hfd_edge.datasets.evaluate import evaluate
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.scoring import Bench, Drop, Score
from hfd_edge.errors import DatasetError, ExportError
from hfd_edge.raster.image import write_image
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import CLASSES, PALETTE, SAR, TILE


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    """Images no larger than a tile, with no-data, unlabelled pixels and two ids of three."""
    root = tmp_path_factory.mktemp("small") / "pairs"
    rng = np.random.default_rng(5)
    for index, (rows, cols) in enumerate(((64, 64), (50, 64), (33, 41))):
        image = (10 ** (rng.normal(-12, 6, (2, rows, cols)) / 10)).astype(np.float32)
        image[:, :7, :9] = 0.0
        labels = rng.integers(0, 2, (1, rows, cols)).astype(np.uint8)
        labels[:, -4:] = 255
        write_image(root / "val" / "sar" / f"{index}.tif", image)
        write_image(root / "val" / "label" / f"{index}.png", labels)
    write_toml(
        root / "dataset.toml", DatasetConfig(name="s", classes=CLASSES, palette=PALETTE, sar=SAR, eo=None)
    )
    return PairFolder.open(root)


def test_the_reference_is_what_the_runtime_scores(bundle: Bundle, small: PairFolder) -> None:
    with Segmenter(bundle, backend="onnxruntime", precision="fp32") as segment:
        expected = evaluate(segment, small, split="val")
    reference = Bench(bundle, small).reference
    assert reference.iou == expected.iou
    assert (reference.miou, reference.accuracy) == (expected.miou, expected.accuracy)
    assert (reference.pixels, reference.tiles) == (expected.pixels, 3)
    assert (reference.flipped, reference.fidelity) == (0, 1)


def test_the_fp32_model_loses_nothing_and_a_changed_one_is_seen(bundle: Bundle, small: PairFolder) -> None:
    bench = Bench(bundle, small)
    model = onnx.load(bundle.model("fp32"))
    drop = bench.drop(model)
    assert (drop.miou_points, drop.flipped, drop.fidelity_points, drop.boundary_points) == (0, 0, 0, 0)
    bias = next(item for item in model.graph.initializer if item.name == "classifier.bias")
    values = numpy_helper.to_array(bias).copy()
    values[2] += 1e6  # every pixel becomes the third class
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    score = bench.score(model)
    assert score.miou == 0
    with Segmenter(bundle, backend="onnxruntime", precision="fp32") as segment:
        labels = [segment(small.load_sar(pair)) for pair in small.pairs("val")]
    valid = sum(int((found != 255).sum()) for found in labels)
    third = sum(int((found == 2).sum()) for found in labels)
    assert score.flipped == pytest.approx(1 - third / valid)
    assert bench.drop(model).miou_points == pytest.approx(100 * bench.reference.miou)


def test_large_images_are_cut_into_all_their_tiles(bundle: Bundle, folder: PairFolder) -> None:
    bench = Bench(bundle, folder)
    assert len(bench) == 2 * 4  # 80 x 72 pixels at 64
    assert bench.reference.pixels == 2 * 80 * 72
    assert bench.tile(0).shape == (2, TILE, TILE)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_limit_spreads_over_the_pairs(bundle: Bundle, folder: PairFolder, limit: int) -> None:
    seen: list[tuple[float, float]] = []
    bench = Bench(bundle, folder, limit=limit, progress=lambda done, total, _: seen.append((done, total)))
    assert len(bench) == limit
    assert seen == [(index, min(limit, 2)) for index in range(min(limit, 2))]


def test_a_smaller_bench_of_the_same_tiles(bundle: Bundle, folder: PairFolder) -> None:
    bench = Bench(bundle, folder)
    few = bench.first(2)
    assert (len(few), len(bench)) == (2, 8)
    assert (few.tile(1) == bench.tile(4)).all()
    assert few.reference.tiles == 2
    assert few.drop(bundle.model("fp32")).flipped == 0


def test_progress_counts_tiles(bundle: Bundle, small: PairFolder) -> None:
    seen: list[tuple[float, float, str]] = []
    Bench(bundle, small).score(bundle.model("fp32"), progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "scoring on val"), (2, 3, "scoring on val"), (3, 3, "scoring on val")]


def test_logits_that_are_not_finite(bundle: Bundle, small: PairFolder) -> None:
    model = onnx.load(bundle.model("fp32"))
    bias = next(item for item in model.graph.initializer if item.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0, 0], np.float32), bias.name))
    with pytest.raises(ExportError, match="logits that are not finite"):
        Bench(bundle, small).score(model)


def test_what_cannot_be_scored(bundle: Bundle, small: PairFolder, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'test'"):
        Bench(bundle, small, split="test")
    with pytest.raises(DatasetError, match="Scoring on 0 tiles"):
        Bench(bundle, small, limit=0)
    root = tmp_path / "blank"
    write_image(root / "val" / "sar" / "a.tif", np.ones((2, 40, 40), np.float32))
    write_image(root / "val" / "label" / "a.png", np.full((1, 40, 40), 255, np.uint8))
    (root / "dataset.toml").write_bytes((small.root / "dataset.toml").read_bytes())
    with pytest.raises(DatasetError, match="has no labelled pixel, so nothing can be scored"):
        Bench(bundle, PairFolder.open(root))
    other = (root / "dataset.toml").read_text().replace('"city"', '"town"')
    (root / "dataset.toml").write_text(other)
    with pytest.raises(DatasetError, match="town"):
        Bench(bundle, PairFolder.open(root))


def test_drops_name_the_class_that_loses_most() -> None:
    reference = Score(0.8, {"a": 0.9, "b": 0.7, "c": None}, 0.5, 0.95, 0.0, 1.0, 4, 100)
    score = replace(
        reference,
        miou=0.79,
        iou={"a": 0.91, "b": 0.67, "c": None},
        boundary_miou=0.52,
        flipped=0.03,
        fidelity=0.96,
    )
    drop = Drop.between(reference, score)
    assert drop.worst_class == "b"
    assert drop.miou_points == pytest.approx(1)
    assert drop.worst_class_points == pytest.approx(3)
    assert drop.boundary_points == pytest.approx(-2)
    assert drop.fidelity_points == pytest.approx(4)
    assert drop.flipped == 0.03
    gone = Drop.between(reference, replace(score, iou={"a": 0.91, "b": None, "c": None}))
    assert gone.worst_class_points == pytest.approx(70)  # a class that vanished is lost whole
