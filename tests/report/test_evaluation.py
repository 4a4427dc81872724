"""Pictures and tables of scores: what they show is what they were given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.comparison.difference import difference
from hfd_edge.errors import DatasetError
from hfd_edge.report.confusion import NO_LABEL, columns, plot_confusion, shares, short
from hfd_edge.report.evaluation import plot_difference, print_difference, print_scores

CLASSES = ("dry", "flood")


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is not a PNG"
    return image


def near(image: np.ndarray, rgb: tuple[int, int, int]) -> int:
    return int((np.abs(image[..., ::-1].astype(int) - rgb).max(-1) < 12).sum())


def side(*, wrong: int, tiles: int = 8) -> dict[str, np.ndarray]:
    """Tiles with the same share of wrong pixels, all of the class flood; sizes differ."""
    return {
        f"tile_{t}": np.array([[100 * (t + 1), 0, 0], [wrong * (t + 1), (100 - wrong) * (t + 1), 0]])
        for t in range(tiles)
    }


def test_shares_are_of_rows() -> None:
    found = shares([[3, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found[0], [0.75, 0.25, 0.0])
    assert np.isnan(found[1]).all()


def test_the_column_of_no_label_is_shown_where_it_is_used() -> None:
    assert columns(CLASSES, np.array([[1, 0, 0], [0, 1, 0]])) == ["dry", "flood"]
    assert columns(CLASSES, np.array([[1, 0, 0], [0, 1, 4]])) == ["dry", "flood", NO_LABEL]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (812, "812"), (46_120, "46.1 k"), (3_254_000, "3.25 M"), (2 * 10**9, "2 G")]
)
def test_short_counts(count: int, text: str) -> None:
    assert short(count) == text


def test_the_diagonal_is_dark_and_the_order_is_that_of_the_rows(tmp_path: Path) -> None:
    """Matplotlib's darkest blue is full marks; a swapped matrix has it off the diagonal."""
    dark = (8, 48, 107)
    for name, counts in (("right", [[9, 0, 0], [0, 9, 0]]), ("swapped", [[0, 9, 0], [9, 0, 0]])):
        plot_confusion(counts, tmp_path / f"{name}.png", classes=CLASSES, title="t")
    for name, falling in (("right", True), ("swapped", False)):
        rows, cols = np.nonzero(
            np.abs(read(tmp_path / f"{name}.png")[..., ::-1].astype(int) - dark).max(-1) < 12
        )
        assert rows.size > 5000
        assert (np.corrcoef(rows, cols)[0, 1] > 0) == falling


def test_many_classes_and_names_that_are_no_markup(tmp_path: Path) -> None:
    classes = [f"$class_{index} <b>" for index in range(40)]
    counts = np.zeros((40, 41), np.int64)
    counts[0, 0] = counts[1, 40] = 5
    plot_confusion(counts, tmp_path / "c.png", classes=classes, title="$x_")
    image = read(tmp_path / "c.png")
    assert max(image.shape) < 3000
    with pytest.raises(ValueError, match=r"counts are \(40, 40\), expected \(40, 41\)"):
        plot_confusion(counts[:, :-1], tmp_path / "c.png", classes=classes, title="t")


def test_scores_are_printed_by_class(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        "miou": 0.625,
        "iou": {"dry": 0.75, "flood": None},
        "f1": {"dry": 0.857, "flood": None},
        "boundary_iou": {"dry": 0.4, "flood": None},
        "ece": None,
        "confusion": [[75, 20, 5], [0, 0, 0]],
    }
    print_scores(scores, title="flood.hfd on test")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["miou", "0.6250"] in lines and ["ece", "-"] in lines
    assert ["dry", "0.75", "0.857", "0.4", "100"] in lines
    assert ["dry", "75", "20", "5"] in lines
    assert ["flood", "-", "-", "-"] in lines


def test_the_difference_is_printed_with_its_interval_and_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    print_difference(
        difference([side(wrong=10)], [side(wrong=30)], classes=CLASSES), first="runs/a", second="runs/b"
    )
    out = capsys.readouterr().out
    gain = 100 * ((100 / 110 + 0.9) / 2 - (100 / 130 + 0.7) / 2)
    assert f"A minus B, mIoU: {gain:+.2f} points" in out
    assert f"[{gain:+.2f}, {gain:+.2f}]" in out, "all tiles alike: nothing to be unsure of"
    assert "100.0 %" in out and "runs/b" in out
    assert "8 tiles, drawn with replacement" in out and "One seed a side" in out
    left_out = difference([side(wrong=10, tiles=4)], [side(wrong=30)], classes=CLASSES)
    print_difference(left_out, first="a", second="b")
    out = capsys.readouterr().out
    assert "4 tiles (4 more left out" in out and "no interval" in out


def test_the_picture_has_the_colour_of_who_is_better(tmp_path: Path) -> None:
    blue, orange = (0, 114, 178), (213, 94, 0)
    better, worse = side(wrong=10), side(wrong=30)
    worse["tile_7"] = better["tile_7"]
    for name, (first, second) in {"a": (better, worse), "b": (worse, better)}.items():
        result = difference([first], [second], classes=CLASSES)
        plot_difference(result, tmp_path / f"{name}.png", first="$a_", second="b")
    first, second = read(tmp_path / "a.png"), read(tmp_path / "b.png")
    assert near(first, blue) > 2000 and near(first, orange) == 0
    assert near(second, orange) > 2000 and near(second, blue) == 0


def test_too_few_tiles_to_draw(tmp_path: Path) -> None:
    result = difference([side(wrong=1, tiles=3)], [side(wrong=2, tiles=3)], classes=CLASSES)
    with pytest.raises(DatasetError, match="3 tiles are too few to resample.*leave out --out"):
        plot_difference(result, tmp_path / "d.png", first="a", second="b")
    assert not (tmp_path / "d.png").exists()
