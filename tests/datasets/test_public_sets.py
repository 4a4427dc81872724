"""Converters of public data sets, on small files in the authors' layouts that are made here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.config import DatasetConfig, SarInput
from hfd_edge.datasets import source, whu_opt_sar
from hfd_edge.datasets.check import check_folder
from hfd_edge.datasets.convert import CONVERTERS, convert
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.public import PUBLIC
from hfd_edge.datasets.spacenet6 import read_polygons
from hfd_edge.errors import DatasetError
from hfd_edge.raster.georeference import Georeference
from hfd_edge.raster.image import georeference_of, write_image
from hfd_edge.raster.polygons import fill_polygons

PX = 16


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _sentinel1(name: str) -> np.ndarray:
    return _rng(name).normal(-14, 3, (2, PX, PX)).astype(np.float32)


def _sentinel2(name: str) -> np.ndarray:
    """Band n (from 0) holds 100 n to 100 n + 99."""
    return (_rng(name).integers(0, 100, (13, PX, PX)) + 100 * np.arange(13)[:, None, None]).astype(np.uint16)


def _sen1floods11(root: Path) -> None:
    hand, lists = (
        root / "v1.1" / part for part in ("data/flood_events/HandLabeled", "splits/flood_handlabeled")
    )
    chips = {
        "train": ["Ghana_1", "Ghana_2"],
        "valid": ["India_3"],
        "test": ["USA_4"],
        "bolivia": ["Bolivia_5"],
    }
    for part, names in chips.items():
        for name in names:
            write_image(hand / "S1Hand" / f"{name}_S1Hand.tif", _sentinel1(name))
            write_image(hand / "S2Hand" / f"{name}_S2Hand.tif", _sentinel2(name))
            label = np.arange(PX * PX).reshape(PX, PX) % 3 - 1
            write_image(hand / "LabelHand" / f"{name}_LabelHand.tif", label.astype(np.int16))
        lists.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n" for name in names)
        (lists / f"flood_{part}_data.csv").write_text(lines)


def _triplet(
    root: Path, season: str, scene: str, number: int, label: str, *, folder: str | None = None
) -> None:
    name = f"{season}_{scene}_{number}"
    values = np.arange(PX * PX, dtype=np.uint8).reshape(1, PX, PX)
    maps = np.repeat(values % 17 + 1, 4, axis=0) if label == "lc" else values % 11
    for kind, image in (("s1", _sentinel1(name)), ("s2", _sentinel2(name)), (label, maps)):
        place = root / season / f"{kind}_{folder or scene}"
        write_image(place / f"{season}_{kind}_{scene}_p{number}.tif", image)


def _sen12ms(root: Path) -> None:
    listed: dict[str, list[str]] = {"train": [], "test": []}
    for part, scenes in (("train", ("1", "2", "3")), ("test", ("9",))):
        for scene in scenes:
            for number in (30, 131):
                _triplet(root, "ROIs1158_spring", scene, number, "lc")
                listed[part].append(f"ROIs1158_spring_s1_{scene}_p{number}.tif")
    for part, names in listed.items():
        (root / f"{part}_list.txt").write_text("\n".join(names) + "\n")


def _dfc2020(root: Path) -> None:
    for number in range(20):
        _triplet(root, "ROIs0000_test", "0", number, "dfc")
    for number in range(3):
        _triplet(root, "ROIs0000_validation", "0", number, "dfc", folder="validation")


def _whu(root: Path) -> None:
    place = Georeference(transform=(5.0, 0.0, 500.0, 0.0, -5.0, 9000.0))
    for name in ("NH49E001013", "NH49E002014", "NH49E004013", "NH49E001014"):
        rng, size = _rng(name), (20, 13)
        label = rng.choice(np.arange(0, 80, 10, dtype=np.uint8), size)
        label[:8, :8] = 0
        write_image(
            root / "sar" / f"{name}.tif", rng.integers(0, 256, (1, *size), np.uint8), georeference=place
        )
        write_image(root / "optical" / f"{name}.tif", rng.integers(0, 256, (4, *size), np.uint8))
        write_image(root / "lbl" / f"{name}.tif", label)


def _ddhr(root: Path) -> None:
    for number in range(30):
        rng = _rng(str(number))
        optical = rng.integers(0, 256, (PX, PX, 3), np.uint8)
        grey = np.repeat(rng.integers(0, 256, (PX, PX, 1), np.uint8), 3, axis=2)
        for kind, image in (("GF2", optical), ("GF3", grey)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            (root / kind / f"{number}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
        write_image(
            root / "label" / f"{number}.png", rng.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (PX, PX))
        )


def _spacenet6(root: Path) -> None:
    base, prefix = root / "AOI_11_Rotterdam", "SN6_Train_AOI_11_Rotterdam"
    rows = ["ImageId,TileBuildingId,PolygonWKT_Pix,Mean_Building_Height"]
    for number in range(20):  # two passes over ten places, from west to east
        tile = f"2019080411122{number % 2}_20190804111453_tile_{number}"
        west = 590_000.0 + PX * 0.5 * (number // 2)
        place = Georeference(transform=(0.5, 0.0, west, 0.0, -0.5, 5_752_000.0))
        sar = _rng(tile).normal(40, 5, (4, PX, PX)).astype(np.float32)
        sar[:, :2] = 0
        eo = _rng(tile).integers(0, 256, (3, PX, PX), np.uint8)
        write_image(base / "SAR-Intensity" / f"{prefix}_SAR-Intensity_{tile}.tif", sar, georeference=place)
        write_image(base / "PS-RGB" / f"{prefix}_PS-RGB_{tile}.tif", eo, georeference=place)
        rows.append(
            f'{tile},{number},"POLYGON ((3 4 9, 8 4 9, 8 10 9, 3 10 9, 3 4 9), (5 6,6 6,6 7,5 7,5 6))",7.5'
        )
    (base / "SummaryData").mkdir()
    (base / "SummaryData" / f"{prefix}_Buildings.csv").write_text(
        "\n".join([*rows, "none,0,POLYGON EMPTY,0"]) + "\n"
    )


MAKERS: dict[str, Callable[[Path], None]] = {
    "ddhr": _ddhr,
    "dfc2020": _dfc2020,
    "sen1floods11": _sen1floods11,
    "sen12ms": _sen12ms,
    "spacenet6": _spacenet6,
    "whu_opt_sar": _whu,
}


def _converted(name: str, tmp_path: Path, scheme: str | None = None) -> PairFolder:
    MAKERS[name](tmp_path / "src")
    convert(name, tmp_path / "src", tmp_path / "dst")
    return PairFolder.open(tmp_path / "dst", scheme=scheme)


def _names(folder: PairFolder) -> dict[str, list[str]]:
    return {split: [pair.name for pair in folder.pairs(split)] for split in folder.splits}


def test_every_set_has_its_facts() -> None:
    assert set(CONVERTERS) == set(PUBLIC) == {"ombria", *MAKERS}
    for name, one in PUBLIC.items():
        assert all((one.title, one.content, one.size, one.licence, one.citation)), name


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_converted_folder_is_sound(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whu_opt_sar, "TILE_PX", 8)
    folder = _converted(name, tmp_path, "authors" if name == "sen1floods11" else None)
    found = check_folder(folder)
    assert found.of("fault") == ()
    assert folder.splits == ("train", "val", "test")
    assert PUBLIC[name].licence in folder.config.source and "Cite" in folder.config.source


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddhr", "holds no GF3/<number>.jpg"),
        ("dfc2020", "holds no ROIs0000_test/s1_*/"),
        ("sen1floods11", "holds no v1.1/data/flood_events/HandLabeled/S1Hand"),
        ("sen12ms", "holds no ROIs*_*/s1_*/"),
        ("spacenet6", "holds no AOI_11_Rotterdam/SAR-Intensity"),
        ("whu_opt_sar", "holds no sar/*.tif"),
    ],
)
def test_another_layout_names_what_was_expected(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=re.escape(expected)):
        convert(name, tmp_path, tmp_path / "dst")
    MAKERS[name](tmp_path / "src")
    eo = sorted(path for path in (tmp_path / "src").rglob("*")
                if path.parent.name.startswith(("GF2", "s2_", "S2Hand", "PS-RGB", "optical")))  # fmt: skip
    eo[0].unlink()
    with pytest.raises(DatasetError, match=re.escape(eo[0].name)):
        convert(name, tmp_path / "src", tmp_path / "dst")
    assert not (tmp_path / "dst").exists() and not list(tmp_path.glob(".writing-*"))


def test_sen1floods11(tmp_path: Path) -> None:
    folder = _converted("sen1floods11", tmp_path, "authors")
    assert folder.schemes == ("authors", "bolivia")
    assert _names(folder) == {"train": ["Ghana_1", "Ghana_2"], "val": ["India_3"], "test": ["USA_4"]}
    assert _names(PairFolder.open(folder.root, scheme="bolivia"))["test"] == ["Bolivia_5"]
    pair = folder.pairs("test")[0]
    assert np.array_equal(folder.load_sar(pair), _sentinel1("USA_4"))
    label = folder.load_label(pair)
    assert label.ravel()[:4].tolist() == [255, 0, 1, 255]
    # red, green, blue and near infrared are bands 4, 3, 2 and 8 of 13
    assert (folder.load_eo(pair)[:4].mean((1, 2)) * 100).astype(int).tolist() == [3, 2, 1, 7]
    csv = tmp_path / "src/v1.1/splits/flood_handlabeled/flood_valid_data.csv"
    csv.write_text("Nowhere_9_S1Hand.tif,x\n")
    with pytest.raises(DatasetError, match=r"flood_valid_data.csv lists Nowhere_9, but S1Hand/ has no chip"):
        convert("sen1floods11", tmp_path / "src", tmp_path / "more")


def test_sen12ms_keeps_scenes_whole(tmp_path: Path) -> None:
    folder = _converted("sen12ms", tmp_path)
    names = _names(folder)
    assert names["test"] == ["ROIs1158_spring_9_p131", "ROIs1158_spring_9_p30"]
    assert len(names["train"]) == 4 and len(names["val"]) == 2
    scenes = {split: {name.rsplit("_p", 1)[0] for name in own} for split, own in names.items()}
    assert not scenes["train"] & scenes["val"]
    # IGBP 1 to 17: evergreen needleleaf forest is forest, 12 and 14 are cropland, 17 is water
    label = folder.load_label(folder.pairs("test")[0]).ravel()
    assert label[:17].tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 5, 7, 8, 9]
    convert("sen12ms", tmp_path / "src", tmp_path / "again")
    assert PairFolder.open(tmp_path / "again").sha256 == folder.sha256
    (tmp_path / "src" / "test_list.txt").unlink()
    with pytest.raises(
        DatasetError, match=r"test_list.txt cannot be read .* Fetch it from the authors' page"
    ):
        convert("sen12ms", tmp_path / "src", tmp_path / "more")


def test_dfc2020_tests_on_the_validation_part(tmp_path: Path) -> None:
    folder = _converted("dfc2020", tmp_path)
    names = _names(folder)
    assert names["test"] == [f"ROIs0000_validation_0_p{number}" for number in range(3)]
    assert len(names["train"]) == 18 and len(names["val"]) == 2
    assert folder.load_label(folder.pairs("test")[0]).ravel()[:12].tolist() == [255, *range(10), 255]


def test_whu_opt_sar_is_cut_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whu_opt_sar, "TILE_PX", 8)
    folder = _converted("whu_opt_sar", tmp_path)
    names = _names(folder)
    # 20 x 13 pixels are 3 x 2 tiles, of which the first has no label
    assert names["test"] == [f"NH49E001014_{tile}" for tile in
                             ("r00_c01", "r01_c00", "r01_c01", "r02_c00", "r02_c01")]  # fmt: skip
    assert len(names["val"]) == 5 and len({name[:11] for name in names["val"]}) == 1
    last = folder.pairs("test")[-1]
    assert folder.load_sar(last).shape == (1, 4, 5)
    assert georeference_of(last.sar).transform == (5.0, 0.0, 540.0, 0.0, -5.0, 8920.0)
    image = source.read_bands(tmp_path / "src/optical/NH49E001014.tif", bands=4, title="x")
    assert np.allclose(folder.load_eo(last) * 255, image[:, 16:, 8:])
    write_image(tmp_path / "src/sar/NH49E001013.tif", np.ones((1, 20, 13), np.uint16))
    with pytest.raises(DatasetError, match=r"has 1 bands of uint16, but WHU-OPT-SAR has 1 of uint8 there"):
        convert("whu_opt_sar", tmp_path / "src", tmp_path / "more")


def test_ddhr_with_and_without_the_authors_lists(tmp_path: Path) -> None:
    folder = _converted("ddhr", tmp_path)
    assert folder.scheme == "runs"
    names = _names(folder)
    assert [len(names[split]) for split in ("train", "val", "test")] == [22, 2, 6]
    pair = folder.pairs("test")[0]
    assert folder.load_sar(pair).shape == (1, PX, PX) and pair.sar.suffix == ".png"
    for part, numbers in (("trainM", range(0, 30, 2)), ("valM", range(1, 30, 2))):
        lines = (f"/somewhere/GF2/{n}.jpg /somewhere/GF3/{n}.jpg /somewhere/label/{n}.png\n" for n in numbers)
        (tmp_path / "src" / f"{part}_list.txt").write_text("".join(lines))
    convert("ddhr", tmp_path / "src", tmp_path / "listed")
    names = _names(PairFolder.open(tmp_path / "listed", scheme="authors"))
    assert names["test"] == sorted(str(n) for n in range(1, 30, 2))
    assert sorted(names["train"] + names["val"]) == sorted(str(n) for n in range(0, 30, 2))


def test_spacenet6_splits_the_ground_and_draws_footprints(tmp_path: Path) -> None:
    folder = _converted("spacenet6", tmp_path)
    tiles = {
        split: {int(name.rsplit("_", 1)[1]) // 2 for name in own} for split, own in _names(folder).items()
    }
    assert tiles == {"train": set(range(7)), "val": {7}, "test": {8, 9}}, (
        "both passes of a place stay together"
    )
    label = folder.load_label(folder.pairs("test")[0])
    expected = np.zeros((PX, PX), np.uint8)
    expected[4:10, 3:8] = 1
    expected[6, 5] = 0
    expected[:2] = 255
    assert np.array_equal(label, expected)


def test_polygons() -> None:
    two = "MULTIPOLYGON (((0 0, 2 0, 2 1, 0 1, 0 0)), ((3 3, 6 3, 6 6, 3 6, 3 3), (4 4, 5 4, 5 5, 4 5, 4 4)))"
    assert [len(polygon) for polygon in read_polygons(two)] == [1, 2]
    label = fill_polygons(read_polygons(two), rows=6, cols=7)
    assert label.sum() == 2 + 8 and label[0, :2].all() and label[4, 4] == 0
    assert read_polygons("POLYGON EMPTY") == []
    assert not fill_polygons([], rows=2, cols=3).any()
    for wrong in ("LINESTRING (0 0, 1 1)", "POLYGON ((a b, c d))"):
        with pytest.raises(DatasetError, match="Fetch the CSV again"):
            read_polygons(wrong)


def test_blank_tiles_and_strange_labels(tmp_path: Path) -> None:
    config = DatasetConfig(name="x", classes=("a", "b"), palette=((0, 0, 0), (1, 1, 1)),
                           sar=SarInput(bands=("vv",), units="sigma0_db"))  # fmt: skip

    def read(name: str) -> list[source.Sample]:
        sar = np.full((1, 4, 4), np.nan if name == "blank" else -10.0, np.float32)
        return [source.Sample(name, name, sar, None, np.zeros((4, 4), np.uint8))]

    texts: list[str] = []
    every = ["blank", "one", "two", "three", "unused"]
    schemes = {"s": {"train": ["blank", "one"], "val": ["two"], "test": ["three"]}}
    source.write_pool(
        tmp_path / "out", config, every, read, schemes, progress=lambda *report: texts.append(report[2])
    )
    assert _names(PairFolder.open(tmp_path / "out")) == {"train": ["one"], "val": ["two"], "test": ["three"]}
    assert len(list((tmp_path / "out" / "sar").iterdir())) == 3
    assert texts[-1] == "convert x, 1 tiles without valid SAR left out"
    with pytest.raises(DatasetError, match="Split 'train' of 's' would hold no tile of x"):
        source.write_pool(tmp_path / "no", config, ["blank"], read, schemes, progress=lambda *_: None)
    with pytest.raises(DatasetError, match=r"f.tif holds label value 7, but X has 0, 1. Fetch"):
        source.map_labels(np.array([[7]]), {0: 0, 1: 1}, Path("f.tif"), title="X")


def test_values_beyond_a_reflectance_do_not_wrap_around(tmp_path: Path) -> None:
    stored = np.full((13, 2, 2), 300.0, np.float32)
    stored[:, 0, 0], stored[:, 0, 1], stored[:, 1, 1] = -1, np.nan, 1e6
    write_image(tmp_path / "s2.tif", stored)
    image = source.read_sentinel2(tmp_path / "s2.tif", title="X")
    assert image.dtype == np.uint16 and image[0].tolist() == [[0, 0], [300, 65535]]


def test_test_scenes_alone_are_too_little(tmp_path: Path) -> None:
    _whu(tmp_path / "src")
    for path in (tmp_path / "src").glob("*/*.tif"):
        if path.stem not in whu_opt_sar.TEST:
            path.unlink()
    with pytest.raises(DatasetError, match="Split 'train' of 'authors' would hold no tile of whu_opt_sar"):
        convert("whu_opt_sar", tmp_path / "src", tmp_path / "dst")


def test_spacenet6_footprints_of_other_tiles_are_no_labels(tmp_path: Path) -> None:
    _spacenet6(tmp_path / "src")
    (csv,) = (tmp_path / "src").rglob("*_Buildings.csv")
    csv.write_text(csv.read_text().replace("2019080411", "other_2019080411"))
    with pytest.raises(DatasetError, match=r"names none of the 20 tiles .*first '2019.* but other_2019"):
        convert("spacenet6", tmp_path / "src", tmp_path / "dst")
