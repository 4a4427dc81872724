"""Which tiles calibrate and which are golden."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.tiles import calibration_tiles, golden_images, pad_to_tile
from hfd_edge.errors import DatasetError
from hfd_edge.raster.image import write_image

from .conftest import PREPROCESSING


def test_padding_mirrors_the_image() -> None:
    pixels = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = pad_to_tile(pixels, tile_px=4)
    assert padded.shape == (1, 4, 4)
    np.testing.assert_array_equal(padded[0], [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]])
    np.testing.assert_array_equal(pad_to_tile(padded, tile_px=4), padded)


def test_tiles_are_windows_of_the_preprocessed_training_images(folder: PairFolder) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=64, count=3)
    pairs = {pair.name: pair for pair in folder.pairs("train")}
    assert len(tiles) == len({source.name for source in tiles.sources}) == 3
    for tile, source in zip(tiles, tiles.sources, strict=True):
        pixels, _ = PREPROCESSING(folder.load_sar(pairs[source.name]))
        window = pixels[:, source.row : source.row + 64, source.col : source.col + 64]
        assert tile.shape == (2, 64, 64)
        assert tile.dtype == np.float32
        np.testing.assert_array_equal(tile, window)
        assert source.sha256 == hashlib.sha256(tile.tobytes()).hexdigest()


def test_the_same_tiles_every_time(folder: PairFolder) -> None:
    first = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=9)
    second = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=9)
    assert first.sources == second.sources
    # Read twice, they are the same again: nothing is used up.
    np.testing.assert_array_equal(list(first), list(second))
    np.testing.assert_array_equal(list(first), list(second))


def test_images_are_used_again_where_they_hold_more_tiles(folder: PairFolder) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=12)
    assert len(tiles) == len(set(tiles.sources)) > len(folder.pairs("train"))


def test_small_images_give_one_tile_each(folder: PairFolder) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=96, count=12)
    assert len(tiles) == len(folder.pairs("train"))
    first = next(iter(tiles))
    np.testing.assert_array_equal(first[:, 64:80, :72], first[:, 95:79:-1, :72])


def test_progress_tells_of_every_tile(folder: PairFolder) -> None:
    seen: list[float] = []
    calibration_tiles(
        folder, PREPROCESSING, tile_px=64, count=3, progress=lambda done, total, text: seen.append(done)
    )
    assert seen == [1, 2, 3]


def test_tiles_are_cut_when_they_are_read(folder: PairFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=5)
    read: list[str] = []
    load = PairFolder.load_sar
    monkeypatch.setattr(PairFolder, "load_sar", lambda self, pair: read.append(pair.name) or load(self, pair))
    stream = iter(tiles)
    next(stream)
    next(stream)
    assert read == ["tile_0", "tile_1"]


def test_neighbours_share_one_reading_of_their_image(
    folder: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=12)
    ordered = replace(tiles, sources=tuple(sorted(tiles.sources, key=lambda source: source.name)))
    read: list[str] = []
    load = PairFolder.load_sar
    monkeypatch.setattr(PairFolder, "load_sar", lambda self, pair: read.append(pair.name) or load(self, pair))
    assert len(list(ordered)) == len(tiles)
    assert read == [f"tile_{index}" for index in range(5)]


def test_a_changed_image_is_refused(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    shutil.copytree(data, root)
    opened = PairFolder.open(root)
    tiles = calibration_tiles(opened, PREPROCESSING, tile_px=64, count=5)
    image = opened.load_sar(opened.pairs("train")[2])
    source = tiles.sources[2]
    image[0, source.row + 40, source.col + 40] *= 1.5
    write_image(root / "train" / "sar" / "tile_2.tif", image)
    stream = iter(tiles)
    next(stream)
    next(stream)
    with pytest.raises(DatasetError, match=r"row \d+, column \d+ of .*tile_2.tif has changed: .* SHA-256"):
        next(stream)
    # Smaller than it was, so that the window lies outside.
    write_image(root / "train" / "sar" / "tile_2.tif", image[:, :1, :])
    moved = replace(tiles, sources=(source.model_copy(update={"row": 5}),))
    with pytest.raises(DatasetError, match="tile_2.tif has changed"):
        list(moved)


def test_another_preprocessing_is_refused(folder: PairFolder) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=64, count=1)
    drifted = replace(tiles, preprocessing=replace(PREPROCESSING, mean=(-12.0, -11.99)))
    with pytest.raises(DatasetError, match="Bring the file and the preprocessing back, or choose"):
        list(drifted)


def test_a_pair_that_is_gone_is_named(folder: PairFolder) -> None:
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=64, count=1)
    gone = replace(tiles, sources=(tiles.sources[0].model_copy(update={"name": "lost"}),))
    with pytest.raises(DatasetError, match="has no pair 'lost' in split 'train', of which a calibration"):
        list(gone)


def test_golden_images_are_stored_pixels_of_the_validation_split(folder: PairFolder) -> None:
    images = golden_images(folder, tile_px=64, count=2)
    stored = [folder.load_sar(pair) for pair in folder.pairs("val")]
    for image, whole in zip(images, stored, strict=True):
        np.testing.assert_array_equal(image, whole[:, 8:72, 4:68])
    (small,) = golden_images(folder, tile_px=96, count=1)
    np.testing.assert_array_equal(small, stored[0])


def test_no_split_to_take_tiles_from(tmp_path: Path, data: Path) -> None:
    (tmp_path / "dataset.toml").write_text((data / "dataset.toml").read_text())
    empty = PairFolder.open(tmp_path)
    with pytest.raises(DatasetError, match="has neither a val nor a train split"):
        golden_images(empty, tile_px=64, count=1)
    with pytest.raises(DatasetError, match="has no split 'train'"):
        calibration_tiles(empty, PREPROCESSING, tile_px=64, count=1)
