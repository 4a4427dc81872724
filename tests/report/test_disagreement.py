"""Pictures of the tiles that differ, on thresholds whose labels are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.comparison import compare
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.report import disagreement
from hfd_edge.report.disagreement import densest, draw_disagreements
from hfd_edge.report.pictures import BROKEN, CORRECTED, MOVED, label_picture

Make = Callable[..., Bundle]


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfd_edge.comparison.latency.RUNS", 2)


def is_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((picture == np.array(colour)[:, None, None]).all(0))


def test_pictures_show_what_differs(make_thresholds: Make, threshold_data: Path) -> None:
    bundle, folder = make_thresholds(), PairFolder.open(threshold_data)
    comparison = compare(bundle, folder, threads=1)
    drawn = draw_disagreements(bundle, folder, comparison, count=7)
    names = [picture.found.tile for picture in drawn]
    assert names == [tile.name for tile in comparison.rows[2].most_flipped]
    pairs = {pair.name: pair for pair in folder.pairs("test")}
    assert [picture.found.tile for picture in drawn if picture.eo is None] == ["tile_3"]
    for picture in drawn:
        assert (picture.found.precision, picture.part) == ("int8", "")
        image = folder.load_sar(pairs[picture.found.tile])[0]
        truth = folder.load_label(pairs[picture.found.tile])
        for shown, threshold in ((picture.reference, 100), (picture.variant, 120)):
            labels = np.where(image == 0, 255, image > threshold).astype(np.uint8)
            np.testing.assert_array_equal(shown, label_picture(labels, folder.config.palette))
        between, known = (image > 100) & (image <= 120), truth != 255
        expected = ((BROKEN, known & (image > 110)), (CORRECTED, known & (image <= 110)), (MOVED, ~known))
        for colour, where in expected:
            np.testing.assert_array_equal(is_colour(picture.flips, colour), between & where)


def test_several_variants_each_beside_fp32(make_thresholds: Make, threshold_data: Path) -> None:
    """Tiles are drawn by variant, but come back in the order of disagreement."""
    folder = PairFolder.open(threshold_data)
    # FP16 differs below 100, of which the first tiles have most; INT8 above, of which the last ones have.
    thresholds = {"fp32": 100.0, "fp16": 82.0, "int8": 114.0}
    bundle = make_thresholds(thresholds)
    comparison = compare(bundle, folder, threads=1)
    drawn = draw_disagreements(bundle, folder, comparison, count=7)
    first, *later = [picture.found.precision for picture in drawn]
    assert first in later[later.index("int8") :], "the variants alternate, or this test says nothing"
    shares = [picture.found.flipped for picture in drawn]
    assert shares == sorted(shares, reverse=True)
    pairs = {pair.name: pair for pair in folder.pairs("test")}
    for picture in drawn:
        threshold = thresholds[picture.found.precision]
        image = folder.load_sar(pairs[picture.found.tile])[0]
        labels = np.where(image == 0, 255, image > threshold).astype(np.uint8)
        np.testing.assert_array_equal(picture.variant, label_picture(labels, folder.config.palette))


def test_large_tiles_show_the_part_that_differs(
    make_thresholds: Make, threshold_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disagreement, "SIDE_PX", 16)
    bundle, folder = make_thresholds(), PairFolder.open(threshold_data)
    (picture,) = draw_disagreements(bundle, folder, compare(bundle, folder, threads=1), count=1)
    for shown in (picture.sar, picture.eo, picture.truth, picture.reference, picture.variant, picture.flips):
        assert shown is not None
        assert shown.shape == (3, 16, 16)
    assert picture.part.endswith("of 40 x 50")
    words = picture.part.split()
    top, left = int(words[1]), int(words[5])
    pair = next(pair for pair in folder.pairs("test") if pair.name == picture.found.tile)
    image = folder.load_sar(pair)[0]
    between = ((image > 100) & (image <= 120)).astype(int)
    sums = np.lib.stride_tricks.sliding_window_view(between, (16, 16)).sum((2, 3))
    assert sums[top, left] == sums.max()


def test_nothing_to_draw(make_thresholds: Make, threshold_data: Path) -> None:
    bundle, folder = make_thresholds({"fp32": 100, "fp16": 100}), PairFolder.open(threshold_data)
    assert draw_disagreements(bundle, folder, compare(bundle, folder, threads=1)) == []


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (40, 5), (33, 47)])
def test_densest_window(shape: tuple[int, int]) -> None:
    where = np.random.default_rng(3).random(shape) < 0.1
    rows, cols = densest(where, side_px=8)
    size = (min(shape[0], 8), min(shape[1], 8))
    assert where[rows, cols].shape == size
    sums = np.lib.stride_tricks.sliding_window_view(where.astype(int), size).sum((2, 3))
    assert where[rows, cols].sum() == sums.max()
