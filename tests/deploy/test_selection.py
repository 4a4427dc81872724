"""Choosing, keeping and reading calibration tiles."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.descriptors import describe_split
from hfd_edge.deploy.selection import (
    SELECTION,
    Selection,
    Shares,
    Spread,
    load_selection,
    select,
    selected_tiles,
    store_selection,
)
from hfd_edge.errors import BundleError, DatasetError, ExportError
from hfd_edge.raster.image import write_image

from .conftest import PREPROCESSING, TILE


def choose(folder: PairFolder, *, count: int = 6, tile_px: int = 32, **options: object) -> Selection:
    return select(folder, PREPROCESSING, tile_px=tile_px, count=count, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["k-centre", "random", "even"])
def test_the_same_seed_gives_the_same_tiles(folder: PairFolder, method: str) -> None:
    first, second = choose(folder, method=method, seed=3), choose(folder, method=method, seed=3)
    assert first == second
    assert (first.method, first.seed, first.split, first.tile_px) == (method, 3, "train", 32)
    assert (first.requested, first.candidates, len(first.tiles)) == (6, 45, 6)
    assert len(set(first.tiles)) == 6
    places = [(tile.name, tile.row, tile.col) for tile in first.tiles]
    assert places == sorted(places)  # so that neighbours share the reading of their image


def test_no_more_tiles_than_there_are(folder: PairFolder) -> None:
    selection = choose(folder, count=1000)
    assert (selection.requested, len(selection.tiles)) == (1000, 45)
    assert selection.coverage.radius == selection.coverage.mean_distance == 0
    assert selection.coverage.nodata.distance == 0
    assert selection.coverage.backscatter["vv"].distance == 0
    assert selection.coverage.log_enl is not None
    assert selection.coverage.log_enl.distance == 0


def test_another_split(folder: PairFolder) -> None:
    selection = choose(folder, split="val")
    assert {tile.name for tile in selection.tiles} <= {"tile_0", "tile_1"}
    assert selection.candidates == 18


def test_k_centre_covers_better_than_chance(folder: PairFolder) -> None:
    radii = {
        method: np.mean(
            [choose(folder, method=method, seed=seed, count=8).coverage.radius for seed in range(4)]
        )
        for method in ("k-centre", "random")
    }
    assert radii["k-centre"] < 0.9 * radii["random"]


def test_coverage_compares_the_selection_with_the_whole_split(folder: PairFolder) -> None:
    selection = choose(folder, count=5)
    every = describe_split(folder, PREPROCESSING, tile_px=32, split="train")
    some = [item for item in every if item.tile in selection.tiles]
    assert len(some) == 5
    coverage = selection.coverage
    for band, name in enumerate(("vv", "vh")):
        spread = coverage.backscatter[name]
        for shares, items in ((spread.split, every), (spread.selection, some)):
            counts = sum(item.backscatter[band] for item in items)
            np.testing.assert_allclose(shares, counts / counts.sum())
    for index, name in enumerate(("water", "land", "city")):
        for share, items in (
            (coverage.classes[name].split, every),
            (coverage.classes[name].selection, some),
        ):
            total = sum(item.classes for item in items)
            assert share == pytest.approx(total[index] / total.sum())
    assert sum(coverage.nodata.split) == pytest.approx(1)
    assert coverage.log_enl is not None
    assert sum(coverage.log_enl.selection) == pytest.approx(1)
    figures = coverage.figures()
    assert figures["radius"] == coverage.radius
    assert figures["backscatter_distance"] == {
        name: spread.distance for name, spread in coverage.backscatter.items()
    }
    assert figures["class_share"]["water"] == coverage.classes["water"].model_dump()


def test_distance_is_how_far_values_move() -> None:
    spread = Spread(low=-2, high=2, split=(0.5, 0.5, 0, 0), selection=(0, 0, 0.5, 0.5))
    assert spread.distance == pytest.approx(2)
    assert Spread(low=0, high=1, split=(1, 0), selection=(0.5, 0.5)).distance == pytest.approx(0.25)


def test_without_labels_there_is_no_class_mix(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "pairs", ignore=shutil.ignore_patterns("label"))
    selection = choose(PairFolder.open(tmp_path / "pairs"))
    assert selection.coverage.classes == {}
    assert len(selection.tiles) == 6


def test_tiles_of_almost_no_data_are_left_out(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "pairs")
    folder = PairFolder.open(tmp_path / "pairs")
    image = folder.load_sar(folder.pairs("train")[0])
    image[:, :60, :] = 0.0  # of the windows at rows 0 and 32 nothing or little is left
    image[:, 61, 10] = 0.3
    write_image(tmp_path / "pairs" / "train" / "sar" / "tile_0.tif", image)
    folder = PairFolder.open(tmp_path / "pairs")
    for method in ("k-centre", "random", "even"):
        selection = choose(folder, count=100, method=method)
        assert (selection.candidates, selection.left_out, len(selection.tiles)) == (45, 3, 42)
        assert not [tile for tile in selection.tiles if tile.name == "tile_0" and tile.row == 0]
    assert max(np.flatnonzero(selection.coverage.nodata.split)) == 19  # they are still of the split
    assert max(np.flatnonzero(selection.coverage.nodata.selection)) < 18


def test_no_tile_with_enough_pixels(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "pairs")
    folder = PairFolder.open(tmp_path / "pairs")
    for pair in folder.pairs("train"):
        image = np.zeros_like(folder.load_sar(pair))
        image[:, 20:24, 20:24] = 0.5
        write_image(pair.sar, image)
    with pytest.raises(DatasetError, match=r"No tile of split 'train' in .* has 10% valid .* 45 has 1\.6%"):
        choose(PairFolder.open(tmp_path / "pairs"))


@pytest.mark.parametrize("bad", [{"method": "best"}, {"count": 0}, {"seed": -1}])
def test_impossible_options(folder: PairFolder, bad: dict[str, object]) -> None:
    with pytest.raises(ExportError, match="is not possible; choose one of k-centre, random, even"):
        choose(folder, **bad)  # type: ignore[arg-type]


def test_progress_counts_the_pairs(folder: PairFolder) -> None:
    seen: list[tuple[float, float]] = []
    choose(folder, progress=lambda done, total, text: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(6)]


def test_a_selection_lives_in_the_bundle(bundle: Bundle, folder: PairFolder) -> None:
    assert load_selection(bundle) is None
    selection = choose(folder, tile_px=TILE, count=4)
    stored = store_selection(bundle, selection)
    assert load_selection(stored) == load_selection(Bundle.open(bundle.path)) == selection
    stored.verify()
    tiles = selected_tiles(folder, stored, selection)
    assert len(tiles) == len(list(tiles)) == 4
    for tile, source in zip(tiles, selection.tiles, strict=True):
        assert hashlib.sha256(tile.tobytes()).hexdigest() == source.sha256
    # A second choice replaces the first.
    again = choose(folder, tile_px=TILE, count=2, method="even")
    assert load_selection(store_selection(stored, again)) == again


def test_another_image_or_preprocessing_is_refused(
    bundle: Bundle, data: Path, tmp_path: Path, folder: PairFolder
) -> None:
    selection = choose(folder, tile_px=TILE, count=100)
    shutil.copytree(data, tmp_path / "pairs")
    changed = PairFolder.open(tmp_path / "pairs")
    pair = changed.pairs("train")[0]
    write_image(pair.sar, changed.load_sar(pair) * np.float32(1.01))
    with pytest.raises(DatasetError, match=r"tile_0.tif has changed.*hfd-edge calibrate select"):
        list(selected_tiles(changed, bundle, selection))
    drifted = bundle.manifest.model_copy(update={"preprocessing": replace(PREPROCESSING, std=(5.0, 5.01))})
    with pytest.raises(DatasetError, match="has changed"):
        list(selected_tiles(folder, Bundle(bundle.path, drifted), selection))


def test_tiles_of_another_size_are_refused(
    bundle: Bundle, folder: PairFolder, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot(bundle.path)
    selection = choose(folder, tile_px=32)
    with pytest.raises(ExportError, match=r"have 32 pixels a side, its model takes 64\. Choose tiles again"):
        store_selection(bundle, selection)
    assert snapshot(bundle.path) == before
    stored = bundle.add({SELECTION: selection.model_dump_json().encode()})
    with pytest.raises(ExportError, match="have 32 pixels a side"):
        load_selection(stored)


@pytest.mark.parametrize("content", [b"{", b"{}", b"[1]", b"\xff\xfe", b'{"method": "even"}'])
def test_a_damaged_selection(bundle: Bundle, content: bytes) -> None:
    stored = bundle.add({SELECTION: content})
    with pytest.raises(ExportError, match=r"tiles.json is damaged or from another version: .*Choose tiles"):
        load_selection(stored)


def test_an_edited_selection_is_caught_by_its_hash(bundle: Bundle, folder: PairFolder) -> None:
    stored = store_selection(bundle, choose(folder, tile_px=TILE))
    path = stored.path / SELECTION
    path.write_text(path.read_text().replace("tile_1", "tile_2"))
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        load_selection(stored)


def test_shares_are_shares() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Shares(split=1.5, selection=0)
