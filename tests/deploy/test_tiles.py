"""Which tiles calibrate and which are golden."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.tiles import calibration_tiles, golden_images, pad_to_tile
from hfd_edge.errors import DatasetError

from .conftest import PREPROCESSING


def test_padding_mirrors_the_image() -> None:
    pixels = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = pad_to_tile(pixels, tile_px=4)
    assert padded.shape == (1, 4, 4)
    np.testing.assert_array_equal(padded[0], [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]])
    np.testing.assert_array_equal(pad_to_tile(padded, tile_px=4), padded)


def test_tiles_are_windows_of_the_preprocessed_training_images(folder: PairFolder) -> None:
    tiles, sources = calibration_tiles(folder, PREPROCESSING, tile_px=64, count=3)
    assert tiles.shape == (3, 2, 64, 64)
    assert tiles.dtype == np.float32
    pairs = {pair.name: pair for pair in folder.pairs("train")}
    assert len({source.name for source in sources}) == 3
    for tile, source in zip(tiles, sources, strict=True):
        pixels, _ = PREPROCESSING(folder.load_sar(pairs[source.name]))
        window = pixels[:, source.row : source.row + 64, source.col : source.col + 64]
        np.testing.assert_array_equal(tile, window)
        assert source.sha256 == hashlib.sha256(tile.tobytes()).hexdigest()


def test_the_same_tiles_every_time(folder: PairFolder) -> None:
    first = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=9)
    second = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=9)
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[0], second[0])


def test_images_are_used_again_where_they_hold_more_tiles(folder: PairFolder) -> None:
    tiles, sources = calibration_tiles(folder, PREPROCESSING, tile_px=32, count=12)
    assert len(tiles) == len(sources) == len(set(sources)) > len(folder.pairs("train"))


def test_small_images_give_one_tile_each(folder: PairFolder) -> None:
    tiles, _ = calibration_tiles(folder, PREPROCESSING, tile_px=96, count=12)
    assert len(tiles) == len(folder.pairs("train"))
    np.testing.assert_array_equal(tiles[0][:, 64:80, :72], tiles[0][:, 95:79:-1, :72])


def test_progress_tells_of_every_tile(folder: PairFolder) -> None:
    seen: list[float] = []
    calibration_tiles(
        folder, PREPROCESSING, tile_px=64, count=3, progress=lambda done, total, text: seen.append(done)
    )
    assert seen == [1, 2, 3]


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
