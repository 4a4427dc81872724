"""Descriptions of tiles against known pixels, and the choosers against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.config import DatasetConfig, EoInput, SarInput, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.descriptors import (
    BACKSCATTER_BINS,
    CHOOSERS,
    Described,
    backscatter_limits,
    covering,
    describe_split,
    features,
    k_centre,
    log_enl,
)
from hfd_edge.deploy.record import CalibrationTile
from hfd_edge.deploy.tiles import Tiles
from hfd_edge.raster.image import write_image

from .conftest import BANDS, CLASSES, PALETTE, PREPROCESSING


def described(
    *, level: int = 60, enl: float = 0.6, classes: tuple[int, ...] = (10, 0, 0), nodata: float = 0.0
) -> Described:
    backscatter = np.zeros((BANDS, BACKSCATTER_BINS), np.int64)
    backscatter[:, level] = 100
    tile = CalibrationTile(name="a", row=0, col=0, sha256="0")
    return Described(tile, backscatter, enl, np.array(classes), nodata)


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("looks", [1, 4, 30])
def test_looks_of_speckle_are_recovered(looks: int) -> None:
    rng = np.random.default_rng(0)
    level = np.repeat(np.repeat(rng.uniform(0.01, 1, (2, 8, 8)), 32, 1), 32, 2)  # fields
    power = (level * rng.gamma(looks, 1 / looks, level.shape)).astype(np.float32)
    assert 10 ** log_enl(power) == pytest.approx(looks, rel=0.1)


def test_looks_do_not_depend_on_the_calibration_constant() -> None:
    power = np.random.default_rng(1).gamma(4, 0.25, (1, 64, 64))
    assert log_enl(power * 1e-6) == pytest.approx(log_enl(power), abs=1e-9)


def test_looks_leave_out_blocks_with_no_data() -> None:
    power = np.random.default_rng(2).gamma(4, 0.25, (1, 64, 64)).astype(np.float32)
    expected = log_enl(power[:, 8:])
    power[:, :7, ::8] = np.nan
    assert log_enl(power) == expected


@pytest.mark.parametrize(
    "power",
    [np.ones((1, 7, 64)), np.full((2, 16, 16), np.nan), np.zeros((1, 16, 16)), np.full((1, 8, 8), 3.0)],
    ids=["less than a block", "no data", "no power", "constant"],
)
def test_looks_that_cannot_be_estimated(power: np.ndarray) -> None:
    assert np.isnan(log_enl(power))


def test_almost_constant_looks_are_limited() -> None:
    power = 1 + 1e-6 * np.random.default_rng(3).normal(size=(1, 16, 16))
    assert log_enl(power) == 3.0


def test_a_split_is_described_by_its_own_pixels(folder: PairFolder) -> None:
    found = describe_split(folder, PREPROCESSING, tile_px=32, split="train")
    # 80 x 72 pixels: windows at 0, 32 and flush with the end.
    assert len(found) == 5 * 9
    assert {item.tile.row for item in found} == {0, 32, 48}
    assert {item.tile.col for item in found} == {0, 32, 40}
    (low, high), _ = backscatter_limits(PREPROCESSING)
    assert (low, high) == pytest.approx((-18 / 5, 17 / 5))
    pairs = {pair.name: pair for pair in folder.pairs("train")}
    for item in (found[0], found[5], found[-1]):
        window = np.s_[item.tile.row : item.tile.row + 32, item.tile.col : item.tile.col + 32]
        pair = pairs[item.tile.name]
        pixels, valid = PREPROCESSING(folder.load_sar(pair))
        inside = valid[window]
        for band in range(BANDS):
            values = pixels[band][window][inside]
            expected, _ = np.histogram(values, BACKSCATTER_BINS, (low, high))
            assert np.abs(item.backscatter[band] - expected).sum() <= 4  # float32 at the borders of bins
            assert item.backscatter[band].sum() == inside.sum()
        assert item.nodata_share == pytest.approx(1 - inside.mean())
        truth = folder.load_label(pair)[window]
        assert item.classes.tolist() == [(truth == index).sum() for index in range(3)]
    assert found[0].nodata_share == pytest.approx(10 * 12 / 32**2)
    assert np.mean([item.log_enl for item in found]) == pytest.approx(np.log10(4), abs=0.1)


def test_the_hash_is_that_of_the_tile_that_calibrates(folder: PairFolder) -> None:
    for tile_px in (32, 64, 96):
        found = describe_split(folder, PREPROCESSING, tile_px=tile_px, split="val")
        tiles = Tiles(tuple(item.tile for item in found), folder, "val", PREPROCESSING, tile_px)
        assert len(list(tiles)) == len(found)  # iterating compares the hashes


def write_folder(root: Path, images: dict[str, np.ndarray], sar: SarInput) -> PairFolder:
    eo = EoInput(bands=("red",), scale=255.0)
    write_toml(
        root / "dataset.toml", DatasetConfig(name="own", classes=CLASSES, palette=PALETTE, sar=sar, eo=eo)
    )
    for name, image in images.items():
        write_image(root / "train" / "sar" / f"{name}.tif", image)
    return PairFolder.open(root)


def test_stretched_products_and_pairs_without_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    smooth = rng.integers(100, 110, (1, 40, 40)).astype(np.uint8)
    grainy = rng.integers(0, 255, (1, 40, 40)).astype(np.uint8)
    sar = SarInput(bands=("sar",), units="stretched", looks=1.0)
    opened = write_folder(tmp_path, {"smooth": smooth, "grainy": grainy}, sar)
    preprocessing = replace(
        PREPROCESSING, units="stretched", looks=1.0, nodata=None, clip=((0, 255),), mean=(100,), std=(50,)
    )
    found = describe_split(opened, preprocessing, tile_px=64, split="train")
    looks = {item.tile.name: item.log_enl for item in found}
    assert looks["grainy"] < 1 < looks["smooth"]
    assert all(item.classes.tolist() == [0, 0, 0] for item in found)
    assert np.isfinite(features(found, preprocessing)).all()
    assert all(item.backscatter.sum() == 1600 for item in found)  # mirrored padding is not counted


def test_windows_without_a_valid_pixel_and_ignored_labels(tmp_path: Path) -> None:
    image = np.zeros((1, 64, 32), np.float32)
    image[:, :32] = np.random.default_rng(5).gamma(4, 0.25, (1, 32, 32))
    sar = SarInput(bands=("vv",), units="intensity", looks=4.0, nodata=0.0)
    write_folder(tmp_path, {"edge": image}, sar)
    preprocessing = replace(PREPROCESSING, clip=((-30, 5),), mean=(-12,), std=(5,))
    label = np.full((1, 64, 32), 255, np.uint8)  # ignored, but for a corner of each window
    label[:, :4, :4], label[:, 60:, :2] = 1, 2
    write_image(tmp_path / "train" / "label" / "edge.png", label)
    found = describe_split(PairFolder.open(tmp_path), preprocessing, tile_px=32, split="train")
    assert [item.classes.tolist() for item in found] == [[0, 16, 0], [0, 0, 8]]
    assert [item.nodata_share for item in found] == [0, 1]
    assert np.isnan(found[1].log_enl)
    assert not found[1].backscatter.any()
    assert np.isfinite(features(found, preprocessing)).all()


def test_every_kind_of_feature_has_the_same_weight() -> None:
    rng = np.random.default_rng(6)
    items = [
        described(
            level=int(rng.integers(20, 100)),
            enl=float(rng.normal(0.6, 0.01)),
            classes=tuple(rng.integers(0, 99, 3)),
            nodata=float(rng.uniform(0, 1e-3)),
        )
        for _ in range(50)
    ]
    points = features(items, PREPROCESSING)
    quantiles = 8 * BANDS
    for group in (np.s_[:quantiles], np.s_[quantiles], np.s_[quantiles + 1 : quantiles + 4], np.s_[-1]):
        part = points[:, group].reshape(50, -1)
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-9)
        assert part.var(0).sum() == pytest.approx(1)


def test_what_is_unknown_or_constant_does_not_separate_tiles() -> None:
    known = [described(classes=(5, 5, 0)), described(classes=(0, 5, 5))]
    unknown = described(classes=(0, 0, 0), enl=float("nan"))
    points = features([*known, unknown], PREPROCESSING)
    np.testing.assert_array_equal(points[2], 0)
    assert distances(points)[0, 1] == pytest.approx(2 * distances(points)[0, 2])


def test_distance_grows_with_the_shift_of_backscatter() -> None:
    points = features([described(level=level) for level in (20, 21, 60, 110)], PREPROCESSING)
    first = distances(points)[0]
    assert 0 < first[1] < first[2] < first[3]
    assert first[2] == pytest.approx(40 * first[1], rel=1e-6)


def test_k_centre_is_within_twice_the_best_radius() -> None:
    rng = np.random.default_rng(7)
    for seed in range(5):
        points = rng.normal(size=(12, 2))
        apart = distances(points)
        best = min(
            apart[list(chosen)].min(0).max() for chosen in itertools.combinations(range(len(points)), 3)
        )
        chosen = k_centre(points, 3, np.random.default_rng(seed))
        radius, mean = covering(points, chosen)
        assert radius == pytest.approx(apart[chosen].min(0).max())
        assert mean == pytest.approx(apart[chosen].min(0).mean())
        assert radius <= 2 * best + 1e-12


def test_k_centre_takes_the_farthest_next() -> None:
    points = np.array([[0.0], [1.0], [10.0], [4.0]])
    for seed in range(4):
        chosen = k_centre(points, 4, np.random.default_rng(seed))
        for taken in range(1, 4):
            gap = distances(points)[chosen[:taken]].min(0)
            assert gap[chosen[taken]] == gap.max()


def test_k_centre_finds_the_one_odd_tile() -> None:
    points = np.vstack((np.random.default_rng(8).normal(size=(500, 3)), [[40.0, 0, 0]]))
    for seed in range(5):
        assert 500 in k_centre(points, 2, np.random.default_rng(seed))


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_choosers_pick_each_point_once(name: str, count: int) -> None:
    points = np.zeros((7, 2))  # all the same, the worst case for the farthest-first rule
    chosen = CHOOSERS[name](points, count, np.random.default_rng(1))
    assert len(chosen) == len(set(chosen)) == count
    assert all(0 <= index < 7 and isinstance(index, int) for index in chosen)
    assert chosen == CHOOSERS[name](points, count, np.random.default_rng(1))


@pytest.mark.parametrize("name", ["k-centre", "random"])
def test_seeds_differ(name: str) -> None:
    points = np.random.default_rng(9).normal(size=(60, 4))
    picks = {tuple(sorted(CHOOSERS[name](points, 5, np.random.default_rng(seed)))) for seed in range(6)}
    assert len(picks) > 3


def test_even_spreads_over_the_order() -> None:
    assert CHOOSERS["even"](np.zeros((10, 1)), 4, np.random.default_rng(0)) == [0, 2, 5, 7]
