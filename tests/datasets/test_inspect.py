"""Shifts between simulated SAR and optical images that are known, and the facts of folders made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.config import DatasetConfig, EoInput, SarInput, write_toml
from hfd_edge.datasets import inspect, registration
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.inspect import BINS, inspect_folder
from hfd_edge.datasets.registration import Misregistration, Peak, compare, edges, summarise
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.errors import DatasetError
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.sar.radiometry import intensity_to_db
from hfd_edge.sar.simulate import simulate_scene

from .conftest import MakeFolder


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Five scenes, SAR in dB and EO, with a rim to shift within."""
    found = [simulate_scene(rows=296, cols=296, seed=seed) for seed in range(5)]
    return [
        (intensity_to_db(np.where(one.sar > 0, one.sar, np.nan)), one.eo / np.float32(255)) for one in found
    ]


def _shift(scenes: list[tuple[np.ndarray, np.ndarray]], cols: int, rows: int) -> Misregistration:
    """EO of every scene moved to the right and down; chance is the scene before it."""
    inner = slice(20, 276)
    sar = [edges(one[:, inner, inner]) for one, _ in scenes]
    eo = [edges(one[:, 20 - rows : 276 - rows, 20 - cols : 276 - cols]) for _, one in scenes]
    peaks = [peak for pair in zip(sar, eo, strict=True) for peak in compare(*pair)]
    chance = [peak for one in range(len(sar)) for peak in compare(sar[one], eo[one - 1])]
    return summarise(peaks, chance)


@pytest.mark.parametrize(("cols", "rows"), [(0, 0), (6, -4), (-11, 9)])
def test_known_shifts_are_found(scenes: list[tuple[np.ndarray, np.ndarray]], cols: int, rows: int) -> None:
    found = _shift(scenes, cols, rows)
    assert found.windows >= 18 and len(found.peaks) >= found.windows / 2
    # Layover moves SAR along the columns, which is range.
    assert found.cols == pytest.approx(cols, abs=0.8) and found.rows == pytest.approx(rows, abs=0.3)
    assert found.spread is not None and found.spread < 1.5


def test_unrelated_images_give_no_shift(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = _shift([(scenes[one][0], scenes[one - 2][1]) for one in range(5)], 0, 0)
    assert found.windows >= 18 and found.cols is None and found.rows is None and found.spread is None


def test_edges_and_windows_without_content() -> None:
    image = np.random.default_rng(0).normal(size=(2, 64, 200)).astype(np.float32)
    image[:, :, :100] = np.nan
    seen = edges(image)
    assert np.isnan(seen[:, :100]).all() and np.isnan(seen[10, 101]), "the rim of no-data is no edge"
    assert np.isfinite(seen[:, 110:]).all()
    assert np.isnan(edges(np.full((1, 5, 7), np.nan))).all()
    assert len(compare(seen, seen)) == 0, "both windows of 128 pixels hold too much no-data"
    flat = np.zeros((128, 128), np.float32)
    assert compare(flat, flat) == [] and compare(flat[:20], flat[:20]) == []
    with pytest.raises(ValueError, match=r"edge maps \(128, 128\) and \(20, 128\) differ in size"):
        compare(flat, flat[:20])
    assert summarise([], []) == Misregistration(0, ())


def test_long_shifts_do_not_count() -> None:
    chance = [Peak(0, 0, 0.01)] * 50
    peaks = [Peak(2, 1, 0.5)] * registration.LEAST_WINDOWS + [Peak(60, 0, 0.5)] * 20
    found = summarise(peaks, chance)
    assert (found.cols, found.rows, found.spread) == (2, 1, 0)
    assert summarise(peaks[1:], chance).cols is None


def _write(root: Path, split: str, name: str, **images: np.ndarray) -> None:
    for kind, image in images.items():
        write_image(root / split / kind / f"{name}.tif", image)


def test_facts_of_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sar = rng.gamma(9.0, 0.01 / 9, (1, 64, 64)).astype(np.float32)
    sar[:, :16] = 0
    label = np.zeros((64, 64), np.uint8)
    label[:16], label[16:28] = 255, 1
    eo = np.tile(np.arange(64, dtype=np.uint8), (1, 64, 1))
    _write(tmp_path, "train", "a", sar=sar, eo=eo, label=label)
    _write(tmp_path, "train", "b", sar=sar)
    _write(tmp_path, "val", "c", sar=sar, label=label)
    config = DatasetConfig(
        name="x", classes=("land", "water"), palette=((0, 0, 0), (9, 9, 9)),
        sar=SarInput(bands=("vv",), units="intensity"), eo=EoInput(bands=("grey",), scale=63.0),
    )  # fmt: skip
    write_toml(tmp_path / "dataset.toml", config)
    found = inspect_folder(PairFolder.open(tmp_path))
    train, val = found.splits["train"], found.splits["val"]
    assert (train.pairs, train.read, train.with_eo, train.with_label) == (2, 2, 1, 1)
    assert train.nodata == 0.25 and train.ignored == 0.25
    assert train.classes == {"land": 0.75, "water": 0.25} == val.classes
    assert train.sar["vv"].median == pytest.approx(10 * np.log10(np.median(sar[sar > 0])), abs=0.01)
    assert train.sar["vv"].looks == pytest.approx(9, rel=0.1)
    grey = train.eo["grey"]
    assert (grey.low, grey.high) == pytest.approx((0, 1)) and grey.median == pytest.approx(0.5, abs=0.01)
    assert len(grey.shares) == BINS and sum(grey.shares) == pytest.approx(1)
    assert np.ptp(grey.shares) < 0.02, "grey levels that are equally frequent look so"
    assert val.misregistration is None and val.eo == {}
    texts = [finding.text for finding in found.findings or ()]
    assert any("hold the same pixels" in text and "(val)" in text for text in texts), "a leak between splits"


def test_stretched_images_have_no_looks(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    _write(tmp_path, "train", "a", sar=image)
    config = DatasetConfig(name="x", classes=("a", "b"), palette=((0, 0, 0), (9, 9, 9)),
                           sar=SarInput(bands=("sar",), units="stretched"), eo=None)  # fmt: skip
    write_toml(tmp_path / "dataset.toml", config)
    facts = inspect_folder(PairFolder.open(tmp_path), "train").splits["train"]
    assert facts.sar["sar"].looks is None and facts.sar["sar"].median == pytest.approx(
        np.median(image), abs=1
    )
    assert facts.classes == {} and facts.ignored is None


def test_schemes_splits_and_samples(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(layout="pool")
    with pytest.raises(DatasetError, match=r"several split schemes \(event, spatial\). Choose one: --scheme"):
        inspect_folder(PairFolder.open(root))
    folder = PairFolder.open(root, scheme="event")
    found = inspect_folder(folder, tiles=1)
    assert {name: (facts.pairs, facts.read) for name, facts in found.splits.items()} == {
        "train": (2, 1), "val": (1, 1), "test": (1, 1),
    }  # fmt: skip
    assert found.findings is None, "what was not read was not checked"
    assert set(inspect_folder(folder, "val").splits) == {"val"}


def test_pairs_of_unlabelled_txt(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    lists = root / "splits" / "event"
    names = (lists / "train.txt").read_text().split()
    (lists / "train.txt").write_text("\n".join(names[1:]))
    (lists / "unlabelled.txt").write_text(names[0])
    folder = PairFolder.open(root, scheme="event")
    assert list(folder.lists) == ["train", "val", "test", "unlabelled"]
    found = inspect_folder(folder).splits
    joining = found["unlabelled"]
    assert (joining.pairs, joining.with_eo, joining.with_label) == (1, 1, 0)
    assert joining.classes == {}, "their labels are not looked at"
    assert list(joining.sar) == list(found["train"].sar) and found["train"].pairs == len(names) - 1


def test_a_shifted_folder_shows_its_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "sim", train=6, val=1, test=1, size_px=256, seed=3)
    for path in (tmp_path / "sim" / "train" / "eo").iterdir():
        write_image(path, np.roll(read_image(path), (5, -3), axis=(1, 2)))
    shift = inspect_folder(PairFolder.open(tmp_path / "sim"), "train").splits["train"].misregistration
    assert shift is not None
    assert shift.rows == pytest.approx(5, abs=0.4) and shift.cols == pytest.approx(-3, abs=0.8)
    monkeypatch.setattr(inspect, "MOST_COMPARED", 3)
    fewer = inspect_folder(PairFolder.open(tmp_path / "sim"), "train").splits["train"].misregistration
    assert fewer is not None and fewer.windows <= 12 < shift.windows
