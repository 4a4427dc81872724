from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.errors import StorageError
from hfd_edge.report import sheets
from hfd_edge.report.pictures import TilePictures
from hfd_edge.report.sheets import comparison, predictions_sheet, write_predictions

RED = np.zeros((3, 10, 10), np.uint8)
RED[0] = 255


def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == np.array(colour, np.uint8)[:, None, None]).all(0).sum())


def test_pictures_keep_their_colours_and_proportions() -> None:
    wide = np.zeros((3, 5, 10), np.uint8)
    wide[1] = 200
    sheet = comparison([{"a": RED, "b": wide}], classes=[], palette=[], cell_px=40)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] == 3
    assert count(sheet, (255, 0, 0)) == 40 * 40
    assert count(sheet, (0, 200, 0)) == 20 * 40


def test_large_pictures_are_averaged_down() -> None:
    stripes = np.zeros((3, 100, 100), np.uint8)
    stripes[:, ::2] = 200
    sheet = comparison([{"a": stripes}], classes=[], palette=[], cell_px=50)
    assert count(sheet, (100, 100, 100)) == 50 * 50


def test_legend_shows_every_class_colour() -> None:
    palette = [(1, 2, 3), (40, 50, 60)]
    sheet = comparison([{"a": RED}], classes=["water", "field"], palette=palette, cell_px=64)
    assert all(count(sheet, colour) > 100 for colour in palette)


def test_a_long_legend_wraps_instead_of_being_cut() -> None:
    classes = [f"a class with a long name {k}" for k in range(8)]
    palette = [(10 + k, 0, 0) for k in range(8)]
    short = comparison([{"a": RED}], classes=classes[:1], palette=palette[:1], cell_px=200)
    long = comparison([{"a": RED}], classes=classes, palette=palette, cell_px=200)
    assert long.shape[1] > short.shape[1]
    assert long.shape[2] == short.shape[2]
    assert all(count(long, colour) > 100 for colour in palette)


def test_a_missing_picture_leaves_a_frame() -> None:
    sheet = comparison([{"a": RED, "b": None}], classes=[], palette=[], cell_px=100)
    frame = sheet[:, :, -130:]
    assert (frame != 255).any(0).sum() > 400, "an outline and the words"


def test_titles_and_captions_are_written() -> None:
    bare = comparison([{"": RED}], classes=[], palette=[], cell_px=100)
    captioned = comparison([{"SAR": RED}], classes=[], palette=[], cell_px=100)
    titled = comparison([{"SAR": RED}], classes=[], palette=[], titles=["tile_0001"], cell_px=100)
    dark = [int((sheet.max(0) < 120).sum()) for sheet in (bare, captioned, titled)]
    assert dark[0] == 0
    assert dark[0] < dark[1] < dark[2]


def test_a_caption_never_runs_into_its_neighbour() -> None:
    caption = "a caption that is far too long for its cell"
    sheet = comparison([{caption: RED}], classes=[], palette=[], cell_px=60)
    assert (sheet[:, :, -15:] == 255).all()
    assert sheets._shorten("SAR", 200, size=14) == "SAR"
    assert sheets._shorten(caption, 60, size=14).endswith("...")


def test_opencv_4_has_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    sheet = comparison([{"SAR": RED}], classes=["water"], palette=[(9, 9, 9)], titles=["t"], cell_px=100)
    assert (sheet.max(0) < 120).sum() > 0


@pytest.mark.parametrize("rows", [[], [{}]])
def test_nothing_to_compare(rows: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="needs at least one row with at least one picture"):
        comparison(rows, classes=[], palette=[])


def test_bad_pictures_and_titles_are_named() -> None:
    with pytest.raises(ValueError, match=r"a picture is uint8 \(3, rows, cols\), but this is float64"):
        comparison([{"a": np.zeros((3, 4, 4))}], classes=[], palette=[])
    with pytest.raises(ValueError, match="comparison of 1 rows has 2 titles"):
        comparison([{"a": RED}], classes=[], palette=[], titles=["x", "y"])


def test_variants_that_no_tile_has_are_left_out(tile: TilePictures, classes, palette) -> None:
    width = predictions_sheet([tile], classes=classes, palette=palette, cell_px=50).shape[2]
    # SAR, EO, truth, SAR only, FP32, FP16; INT8 was not built.
    assert width == 2 * 20 + 6 * 50 + 5 * 10
    bare = dataclasses.replace(tile, eo=None, truth=None)
    assert predictions_sheet([bare], classes=classes, palette=palette, cell_px=50).shape[2] == width - 120
    both = predictions_sheet([tile, bare], classes=classes, palette=palette, cell_px=50)
    assert both.shape[2] == width, "what one tile lacks is a frame"


def test_write_predictions(tile: TilePictures, classes, palette, tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiles.png"
    write_predictions([tile, tile], path, classes=classes, palette=palette, cell_px=64)
    decoded = cv2.imread(str(path))
    expected = predictions_sheet([tile, tile], classes=classes, palette=palette, cell_px=64)
    np.testing.assert_array_equal(np.moveaxis(decoded[..., ::-1], -1, 0), expected)
    assert [item.name for item in path.parent.iterdir()] == ["tiles.png"]


def test_write_predictions_into_a_file(tile: TilePictures, classes, palette, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    with pytest.raises(StorageError, match="Could not write"):
        write_predictions([tile], tmp_path / "taken" / "x.png", classes=classes, palette=palette)
