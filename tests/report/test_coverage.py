"""The coverage plot: drawn for every kind of selection, and different when the selection is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.deploy.record import CalibrationTile
from hfd_edge.deploy.selection import Coverage, Selection, Shares, Spread
from hfd_edge.errors import StorageError
from hfd_edge.report.coverage import plot_coverage


def selection(*, bands: int = 1, classes: int = 2, looks: bool = True, shift: int = 0) -> Selection:
    shape = np.exp(-((np.arange(64) - 30) ** 2) / 80)
    split, some = shape / shape.sum(), np.roll(shape, shift) / shape.sum()
    spread = Spread(low=-3, high=3, split=tuple(split), selection=tuple(some))
    coverage = Coverage(
        radius=1.0,
        mean_distance=0.5,
        backscatter={f"band{index}": spread for index in range(bands)},
        log_enl=spread if looks else None,
        classes={f"class {index}": Shares(split=1 / classes, selection=0.2) for index in range(classes)},
        nodata=Spread(low=0, high=1, split=(1.0, 0.0), selection=(1.0, 0.0)),
    )
    return Selection(
        method="k-centre",
        seed=0,
        split="train",
        tile_px=64,
        requested=1,
        candidates=10,
        left_out=0,
        tiles=(CalibrationTile(name="a", row=0, col=0, sha256="0"),),
        coverage=coverage,
    )


def drawn(path: Path, made: Selection, title: str = "Tiles") -> np.ndarray:
    plot_coverage(made, path, title=title)
    image = cv2.imread(str(path))
    assert image is not None
    return image


@pytest.mark.parametrize(
    ("bands", "classes", "looks", "rows"), [(1, 2, True, 2), (2, 9, True, 3), (1, 0, False, 1)]
)
def test_every_panel_is_drawn(tmp_path: Path, bands: int, classes: int, looks: bool, rows: int) -> None:
    image = drawn(tmp_path / "plot.png", selection(bands=bands, classes=classes, looks=looks))
    assert image.shape[1] == 1408
    assert 340 * rows < image.shape[0] < 460 * rows + 200
    # Grey areas and blue lines are there, in the last row of panels too.
    bottom = image[-400:]
    for colour in ((209, 202, 195), (191, 95, 31)):
        assert (np.abs(bottom.astype(int) - colour).max(-1) < 4).sum() > 200


def test_another_selection_is_another_picture(tmp_path: Path) -> None:
    first, second = (drawn(tmp_path / f"{shift}.png", selection(shift=shift)) for shift in (0, 9))
    assert (first != second).any(-1).sum() > 1000


def test_names_are_not_taken_for_formulas(tmp_path: Path) -> None:
    made = selection()
    odd = {"$\\frac{$": Shares(split=0.4, selection=0.2), "a" * 40: Shares(split=0.6, selection=0.8)}
    coverage = made.coverage.model_copy(
        update={"classes": odd, "backscatter": {"$x_{$": made.coverage.backscatter["band0"]}}
    )
    drawn(tmp_path / "plot.png", made.model_copy(update={"coverage": coverage}), title="$\\bad{$")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        plot_coverage(selection(), tmp_path / "file" / "plot.png")
