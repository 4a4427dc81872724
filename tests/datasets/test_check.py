"""Everything that may be wrong with a folder, each planted in a sound one, and what is legal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.crs import CRS

from hfd_edge.config import DatasetConfig, parse, read_toml
from hfd_edge.datasets.check import Finding, check_folder
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.raster.georeference import Georeference, grid_difference
from hfd_edge.raster.image import read_image, write_image

MakeFolder = Callable[..., Path]
UTM, NEXT_ZONE = (CRS.from_epsg(code).to_wkt() for code in (32632, 32633))
PLACE = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0)


def check(root: Path, **options: Any) -> tuple[Finding, ...]:
    return check_folder(PairFolder.open(root, **options)).findings


def only(root: Path, **options: Any) -> Finding:
    """The one finding that there must be."""
    findings = check(root, **options)
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_folder(make_folder: MakeFolder) -> None:
    found = check_folder(PairFolder.open(make_folder()))
    assert found.findings == ()
    assert found.pairs == {"train": 2, "val": 1, "test": 1}


def test_files_are_all_read_and_progress_is_reported(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "val" / "label" / "c.png", np.full((24, 17), 9, np.uint8))
    write_image(root / "test" / "sar" / "d.tif", np.ones((1, 24, 17), np.float32))
    (root / "train" / "eo" / "b.png").write_bytes(b"not an image")
    seen: list[tuple[float, float, str]] = []
    found = check_folder(PairFolder.open(root), progress=lambda *report: seen.append(report))
    where = [finding.where for finding in found.of("fault")]
    assert where == ["train/eo/b.png", "val/label/c.png", "test/sar/d.tif"]
    assert found.of("warning") == ()
    assert seen[-1][:2] == (4, 4)


def test_faulty_names_do_not_hide_faulty_files(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "val" / "label" / "c.png").rename(root / "val" / "label" / "x.png")
    (root / "train" / "eo" / "b.png").write_bytes(b"not an image")
    texts = [finding.text for finding in check(root)]
    assert len(texts) == 3
    assert "x.png has no SAR image of the same name" in texts[0]
    assert "train/eo/b.png" in texts[1]
    assert "No pair of val has a label: nothing can be trained" in texts[2]


# --- files that some pairs have -------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "name"), [("train", "b"), ("val", "c")])
def test_eo_that_only_some_pairs_have(make_folder: MakeFolder, split: str, name: str) -> None:
    root = make_folder()
    (root / split / "eo" / f"{name}.png").unlink()
    finding = only(root)
    assert (finding.level, finding.where) == ("warning", split)
    total = 2 if split == "train" else 1
    assert f"1 of {total} pairs of {split} have no EO image, first '{name}'" in finding.text
    assert f"Add eo/{name}.png or .tif" in finding.text


def test_eo_of_the_earlier_date(make_folder: MakeFolder) -> None:
    root = make_folder()
    shutil.copytree(root / "train" / "eo", root / "train" / "eo_before")
    (finding,) = check(root)  # val has none at all: no teacher of both dates can be scored
    assert (finding.level, finding.where) == ("warning", "val")
    assert "1 of 1 pairs of val have no EO image of the earlier date, first 'c'" in finding.text
    shutil.copytree(root / "val" / "eo", root / "val" / "eo_before")
    assert check(root) == ()
    (root / "train" / "eo_before" / "b.png").rename(root / "train" / "eo_before" / "x.png")
    write_image(root / "val" / "eo_before" / "c.png", np.zeros((3, 9, 9), np.uint8))
    levels = [(finding.level, finding.text) for finding in check(root)]
    assert [level for level, _ in levels] == ["fault", "fault", "warning"]
    assert "eo_before/x.png has no SAR image of the same name" in levels[0][1]
    assert "c.png is 9x9 pixels" in levels[1][1]
    assert "Add eo_before/b.png or .tif" in levels[2][1]


def test_eo_may_be_missing_where_only_the_sar_network_looks(make_folder: MakeFolder) -> None:
    root = make_folder()
    shutil.rmtree(root / "test" / "eo")
    assert check(root) == ()
    shutil.rmtree(root / "val" / "eo")
    (root / "val" / "label" / "c.png").unlink()
    assert [finding.text[:35] for finding in check(root)] == ["No pair of val has a label: nothing"]


def test_a_folder_without_any_eo_trains_from_sar_alone(make_folder: MakeFolder) -> None:
    root = make_folder()
    for split in ("train", "val", "test"):
        shutil.rmtree(root / split / "eo")
    assert check(root) == ()


def test_labels_that_only_some_pairs_have(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "train" / "label" / "b.png").unlink()
    finding = only(root)
    assert (finding.level, finding.where) == ("warning", "train")
    assert "1 of 2 pairs of train have no label, first 'b'; they serve distillation alone" in finding.text
    (root / "train" / "label" / "a.1.png").unlink()
    finding = only(root)
    assert finding.level == "fault"
    assert "No pair of train has a label: nothing can be trained" in finding.text


def test_a_test_split_without_labels_is_a_warning(make_folder: MakeFolder) -> None:
    root = make_folder()
    shutil.rmtree(root / "test" / "label")
    finding = only(root)
    assert (finding.level, finding.where) == ("warning", "test")
    assert "1 of 1 pairs of test have no label, first 'd'; they are left out of every score" in finding.text


# --- copies ---------------------------------------------------------------------------------------------


def test_the_same_pixels_in_two_splits(make_folder: MakeFolder) -> None:
    root = make_folder()
    # Not the same file: packed in another way, under another name.
    write_image(root / "test" / "sar" / "d.tif", read_image(root / "train" / "sar" / "b.tif"), nodata=-1.0)
    assert (root / "test/sar/d.tif").read_bytes() != (root / "train/sar/b.tif").read_bytes()
    finding = only(root)
    assert (finding.level, finding.where) == ("fault", "test")
    assert "train/sar/b.tif (train) and" in finding.text and "test/sar/d.tif (test)" in finding.text
    assert "hold the same pixels (1 images). Remove them from one of the two" in finding.text


def test_almost_the_same_pixels_are_another_image(make_folder: MakeFolder) -> None:
    root = make_folder()
    image = read_image(root / "train" / "sar" / "b.tif")
    image[0, 0, 0] *= 1.001
    write_image(root / "test" / "sar" / "d.tif", image)
    assert check(root) == ()


def test_copies_in_one_split_and_under_each_scheme(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    shutil.copy(root / "sar" / "b.tif", root / "sar" / "a.1.tif")
    both = check(root)
    assert [(finding.level, finding.where) for finding in both] == [
        ("warning", "event/train"),
        ("warning", "spatial/test"),
    ]
    assert "hold the same pixels (1 copies in event/train). Keep one" in both[0].text
    assert only(root, scheme="spatial").where == "spatial/test"
    shutil.copy(root / "sar" / "b.tif", root / "sar" / "c.tif")
    leaks = [finding for finding in check(root, scheme="event") if finding.level == "fault"]
    assert len(leaks) == 1 and "b.tif" not in leaks[0].where
    assert "sar/c.tif (val) hold the same pixels" in leaks[0].text


def test_copies_of_unlabelled_pairs(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    assert "event/unlabelled" not in check_folder(PairFolder.open(root, scheme="event")).pairs
    (root / "splits" / "event" / "unlabelled.txt").write_text("e\n")
    for name, level, why in (("b", "warning", "copies weigh twice"), ("d", "fault", "says nothing")):
        shutil.copy(root / "sar" / f"{name}.tif", root / "sar" / "e.tif")
        shutil.copy(root / "eo" / f"{name}.png", root / "eo" / "e.png")
        checked = check_folder(PairFolder.open(root, scheme="event"))
        assert checked.pairs["event/unlabelled"] == 1
        (finding,) = checked.findings
        assert (finding.level, finding.where) == (level, "event/unlabelled")
        assert f"sar/{name}.tif (" in finding.text and "sar/e.tif (unlabelled)" in finding.text
        assert why in finding.text


def test_unlabelled_pairs_without_eo(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    write_image(root / "sar" / "e.tif", read_image(root / "sar" / "b.tif") + 1)
    (root / "splits" / "event" / "unlabelled.txt").write_text("e\n")
    finding = only(root, scheme="event")
    assert (finding.level, finding.where) == ("warning", "event/unlabelled")
    assert "1 of 1 pairs of event/unlabelled have no EO image, first 'e'" in finding.text
    assert "they teach a student nothing" in finding.text


def test_a_pair_that_two_lists_name_is_told_once(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    (root / "splits" / "event" / "val.txt").write_text("c\nb\n")
    assert "train.txt and val.txt both list 'b'" in only(root, scheme="event").text


# --- place ----------------------------------------------------------------------------------------------


def georeferenced(root: Path, kind: str, georeference: Georeference) -> None:
    """Write the files of one kind of pair c with a georeference, and the SAR image with PLACE."""
    base = root / "val"
    for which, place in (("sar", Georeference(UTM, PLACE)), (kind, georeference)):
        path = next((base / which).iterdir())
        image = read_image(path)
        path.unlink()
        write_image(base / which / "c.tif", image, georeference=place)


@pytest.mark.parametrize("kind", ["eo", "label"])
@pytest.mark.parametrize(
    ("crs", "east_m", "message"),
    [
        (UTM, 25.0, r"val/.*/c.tif lies elsewhere than .*sar/c.tif: corners up to 2.5 pixels away. Resample"),
        (NEXT_ZONE, 0.0, r"CRS EPSG:32633 instead of EPSG:32632"),
    ],
)
def test_images_of_another_place(
    make_folder: MakeFolder, kind: str, crs: str, east_m: float, message: str
) -> None:
    root = make_folder()
    a, b, c, *rest = PLACE
    georeferenced(root, kind, Georeference(crs, (a, b, c + east_m, *rest)))
    finding = only(root)
    assert (finding.level, finding.where) == ("fault", f"val/{kind}/c.tif")
    assert re.search(message, finding.text)


@pytest.mark.parametrize("georeference", [Georeference(UTM, PLACE), Georeference()])
def test_one_place_or_none_said(make_folder: MakeFolder, georeference: Georeference) -> None:
    root = make_folder()
    georeferenced(root, "eo", georeference)
    assert check(root) == ()


def test_grid_difference() -> None:
    here = Georeference(UTM, PLACE)

    def against(*transform: float, crs: str | None = UTM) -> str | None:
        return grid_difference(here, Georeference(crs, transform), rows=100, cols=200)  # type: ignore[arg-type]

    a, b, c, d, e, f = PLACE
    assert against(*PLACE) is None
    assert against(a, b, c + 0.5, d, e, f) is None, "a twentieth of a pixel is rounding"
    assert against(a, b, c, d, e, f - 30) == "corners up to 3 pixels away"
    assert against(a * 1.01, b, c, d, e, f) == "corners up to 2 pixels away", "another pixel size"
    assert against(a, b, c + 50, d, e, f, crs=None) == "corners up to 5 pixels away"
    turned = Georeference(UTM, (0.0, 10.0, c, 10.0, 0.0, f))  # columns run north, rows run east
    moved = Georeference(UTM, (0.0, 10.0, c + 20, 10.0, 0.0, f + 40))
    assert grid_difference(turned, moved, rows=9, cols=9) == "corners up to 4 pixels away"
    # One CRS in two spellings: WKT of another version.
    spelt = Georeference(CRS.from_epsg(32632).to_wkt(version="WKT2_2019"), PLACE)
    assert grid_difference(here, spelt, rows=9, cols=9) is None


# --- values ---------------------------------------------------------------------------------------------


def test_linear_power_declared_as_decibels(make_folder: MakeFolder) -> None:
    root = make_folder(units="sigma0_db")
    finding = only(root)
    assert (finding.level, finding.where) == ("warning", "dataset.toml")
    assert "4 of 4 SAR images have no value below 0, first" in finding.text
    assert 'units is "sigma0_db". If they are linear power, set units = "intensity"' in finding.text
    for path in root.rglob("sar/*.tif"):
        write_image(path, 10 * np.log10(read_image(path)))
    assert check(root) == ()


def test_no_data_below_zero_is_no_decibel(make_folder: MakeFolder) -> None:
    root = make_folder(units="sigma0_db", nodata=-99.0)
    for path in root.rglob("sar/*.tif"):
        image = read_image(path)
        image[:, 0] = -99.0
        write_image(path, image)
    assert "4 of 4 SAR images have no value below 0" in only(root).text


def test_a_class_that_no_training_label_shows(make_folder: MakeFolder) -> None:
    root = make_folder()
    for path in (root / "train" / "label").iterdir():
        label = read_image(path)
        label[label == 2] = 255
        write_image(path, label)
    finding = only(root)
    assert (finding.level, finding.where) == ("warning", "train")
    assert "No label of train holds 'town' (2 labels read): a network cannot learn" in finding.text


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_know_nothing(make_folder: MakeFolder, split: str) -> None:
    """A training refuses them after its first epoch."""
    root = make_folder()
    for path in (root / split / "label").iterdir():
        write_image(path, np.full((24, 17), 255, np.uint8))
    finding = only(root)
    assert (finding.level, finding.where) == ("fault", split)
    assert f"labels of {split} hold nothing but ignore_index 255: nothing can be trained." in finding.text


def test_test_labels_that_know_nothing_are_a_warning(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "test" / "label" / "d.png", np.full((24, 17), 255, np.uint8))
    finding = only(root)
    assert (finding.level, finding.where) == ("warning", "test")
    assert "The 1 labels of test hold nothing but ignore_index 255: nothing can be scored." in finding.text


@pytest.mark.parametrize("layout", ["splits", "pool"])
def test_a_training_needs_a_validation_split(make_folder: MakeFolder, layout: str) -> None:
    root = make_folder(layout=layout)
    if layout == "splits":
        (root / "val").rename(root / "valid")
        where = "val"
    else:
        (root / "splits" / "event" / "val.txt").unlink()
        where = "event/val"
    finding = only(root)
    assert (finding.level, finding.where) == ("fault", where)
    assert f"There is no {where}, and training cannot choose its best epoch without." in finding.text


def test_a_folder_for_scoring_alone_needs_no_other_split(make_folder: MakeFolder) -> None:
    root = make_folder()
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    assert check(root) == ()


def test_a_list_from_an_editor_that_marks_utf8(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    path = root / "splits" / "event" / "train.txt"
    path.write_text(path.read_text(), "utf-8-sig")
    assert check(root) == ()


def test_gamma0_is_read_as_sigma0(make_folder: MakeFolder) -> None:
    root = make_folder(units="sigma0_db")
    path = root / "dataset.toml"
    declared = read_toml(path, DatasetConfig)
    path.write_text(path.read_text().replace("sigma0_db", "gamma0_db"))
    config = read_toml(path, DatasetConfig)
    assert config.sar.units == "sigma0_db" and config == declared
    assert parse(config.model_dump(), DatasetConfig, source="x") == config
