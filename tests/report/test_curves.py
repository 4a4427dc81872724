from __future__ import annotations

import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.errors import MissingExtraError, StorageError
from hfd_edge.report.curves import SIZE_PX, best_epoch, plot_curves, spread


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is not a PNG"
    return image


def accent_pixels(image: np.ndarray) -> np.ndarray:
    """Where the colour of mIoU and of the best epoch is drawn (BGR)."""
    return np.abs(image.astype(int) - (0xBF, 0x5F, 0x1F)).max(-1) < 12


def test_png_has_the_stated_size(history, tmp_path: Path) -> None:
    plot_curves(history, tmp_path / "run" / "curves.png", title="Student")
    assert read(tmp_path / "run" / "curves.png").shape == (SIZE_PX[1], SIZE_PX[0], 3)
    assert [item.name for item in (tmp_path / "run").iterdir()] == ["curves.png"]


def test_the_best_epoch_is_marked_where_it_is(history, tmp_path: Path) -> None:
    plot_curves(history, tmp_path / "a.png")
    moved = [dict(row) for row in history]
    moved[1]["miou"] = 0.9
    plot_curves(moved, tmp_path / "b.png")
    columns = []
    for name in ("a.png", "b.png"):
        lower = accent_pixels(read(tmp_path / name))[SIZE_PX[1] // 2 :, : int(SIZE_PX[0] * 0.8)]
        columns.append(int(np.argmax(lower.sum(0))))  # the dashed line is the tallest thing in its colour
    assert columns[0] - columns[1] > SIZE_PX[0] * 0.2, "epoch 4 of 6 is well to the right of epoch 2"


def test_the_same_history_gives_the_same_file(history, tmp_path: Path) -> None:
    plot_curves(history, tmp_path / "a.png")
    plot_curves(history, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "history",
    [
        [{"epoch": 1, "loss": 1.0, "miou": 0.5, "iou": {"water": 0.5}}],
        [{"epoch": 1, "loss": float("nan"), "miou": None, "iou": {}}],
        [
            {"epoch": e, "loss": 10.0**-e, "cwd": 10.0 ** -(e + 1), "miou": 0.1, "iou": {"a": None}}
            for e in (1, 2, 3)
        ],
        [{"epoch": 1, "loss": 0.0, "miou": 0.0, "iou": {"$x$ _ <b>": 0.0}}, {"epoch": 2}],
        [
            {"epoch": e, "loss": 1.0, "miou": 0.5, "iou": {f"class {k}": 0.5 for k in range(15)}}
            for e in (0, 1)
        ],
        [{"epoch": 1, "loss": -0.5, "feature": float("inf"), "miou": np.float32(0.5), "iou": None}],
    ],
    ids=["one epoch", "nothing finite", "log scale", "gaps and markup", "fifteen classes", "negative loss"],
)
def test_odd_histories_are_drawn(history, tmp_path: Path) -> None:
    plot_curves(history, tmp_path / "curves.png")
    image = read(tmp_path / "curves.png")
    assert image.shape == (SIZE_PX[1], SIZE_PX[0], 3)
    assert (image < 128).any(), "axes and headings are drawn"


def test_empty_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="history is empty"):
        plot_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_an_unwritable_place_is_named(history, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    with pytest.raises(StorageError, match="Could not write"):
        plot_curves(history, tmp_path / "taken" / "curves.png")


def test_missing_matplotlib_names_the_extra(history, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"Drawing training curves needs .*hfd-edge\[report\]"):
        plot_curves(history, tmp_path / "curves.png")


def test_best_epoch() -> None:
    rows = [{"epoch": 3, "miou": 0.4}, {"epoch": 4, "miou": 0.6}, {"epoch": 5, "miou": 0.6}, {"epoch": 6}]
    assert best_epoch(rows) == (4, 0.6), "the first of equals, as training keeps it"
    assert best_epoch([{"epoch": 1, "miou": float("nan")}]) is None


@pytest.mark.parametrize(
    "heights", [[], [0.5], [0.1, 0.9], [0.5, 0.5, 0.5], [0.0, 0.01, 0.5, 0.52, 0.54, 0.9], [0.2] * 10]
)
def test_spread_keeps_order_distance_and_centre(heights: list[float]) -> None:
    moved = spread(heights, gap=0.1)
    assert len(moved) == len(heights)
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in itertools.pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights)), "labels move up as much as down"


def test_spread_leaves_what_has_room() -> None:
    assert spread([0.1, 0.4, 0.9], gap=0.1) == [0.1, 0.4, 0.9]
