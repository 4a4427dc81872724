"""Both layouts, and every fault that a hand-made folder may have, by its message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.check import check_folder
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError, RecipeError
from hfd_edge.raster.image import read_image, write_image

MakeFolder = Callable[..., Path]


def faults(folder: PairFolder, split: str | None = None) -> list[str]:
    return [finding.text for finding in check_folder(folder, split).of("fault")]


def test_split_folders(make_folder: MakeFolder) -> None:
    folder = PairFolder.open(make_folder())
    assert folder.splits == ("train", "val", "test")
    assert [pair.name for pair in folder.pairs("train")] == ["a.1", "b"], "a dot in a name is not a suffix"
    assert folder.schemes == ()
    pair = folder.pairs("test")[0]
    sar, eo, label = folder.load_sar(pair), folder.load_eo(pair), folder.load_label(pair)
    assert sar.shape == (2, 24, 17) and sar.dtype == np.float32
    assert eo.shape == (3, 24, 17) and eo.dtype == np.float32
    assert label.shape == (24, 17) and label.dtype == np.uint8
    assert eo.min() >= 0 and eo.max() == 1
    assert set(np.unique(label)) == {0, 1, 2, 255}
    assert faults(folder) == []


def test_pool_with_split_schemes(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    assert PairFolder.open(root).schemes == ("event", "spatial")
    event, spatial = (PairFolder.open(root, scheme=name) for name in ("event", "spatial"))
    assert [pair.name for pair in event.pairs("train")] == ["a.1", "b"]
    assert [pair.name for pair in spatial.pairs("test")] == ["a.1", "b"]
    assert faults(event) == [] and faults(spatial, "val") == []
    assert event.sha256 != spatial.sha256


def test_pool_with_several_schemes_asks_which(make_folder: MakeFolder) -> None:
    folder = PairFolder.open(make_folder(layout="pool"))
    with pytest.raises(DatasetError, match=r"several split schemes \(event, spatial\).*--set split=event"):
        folder.pairs("train")
    assert faults(folder) == []
    assert len(folder.sha256) == 64


def test_only_scheme_needs_no_name(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    for path in (root / "splits" / "event").iterdir():
        path.unlink()
    assert PairFolder.open(root).scheme == "spatial"
    assert len(PairFolder.open(root).pairs("test")) == 2


def test_hash_follows_content_names_and_config(make_folder: MakeFolder) -> None:
    root = make_folder()
    first = PairFolder.open(root).sha256
    assert PairFolder.open(root).sha256 == first
    label = root / "test" / "label" / "d.png"
    before = label.read_bytes()
    write_image(label, np.zeros((24, 17), np.uint8))
    assert PairFolder.open(root).sha256 != first
    label.write_bytes(before)
    assert PairFolder.open(root).sha256 == first
    label.rename(label.with_name("e.png"))
    (root / "test" / "sar" / "d.tif").rename(root / "test" / "sar" / "e.tif")
    assert PairFolder.open(root).sha256 != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("looks = 4.0", "looks = -4.0"), r"sar.looks: Input should be greater than 0 \(got -4.0\)"),
        (("looks =", "loooks ="), r"dataset.toml: sar.loooks: Extra inputs are not permitted"),
        (("name =", "nmae ="), r"name: Field required.*nmae: Extra inputs"),
        (('"town"', '"town", "sea"'), "palette has 3 colours for 4 classes"),
        (("ignore_index = 255", "ignore_index = 1"), "ignore_index 1 is the id of a class"),
        (("[sar]", "[sar"), r"dataset.toml is not valid TOML"),
    ],
)
def test_faulty_dataset_toml(make_folder: MakeFolder, change: tuple[str, str], message: str) -> None:
    path = make_folder() / "dataset.toml"
    text = path.read_text().replace(*change)
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        PairFolder.open(path.parent)


def test_not_a_data_folder(tmp_path: Path, make_folder: MakeFolder) -> None:
    with pytest.raises(
        DatasetError, match=r"is not a data folder: it has no dataset.toml.*hfd-edge simulate"
    ):
        PairFolder.open(tmp_path)
    root = make_folder()
    with pytest.raises(DatasetError, match="has no split scheme 'event' .*its splits are the folders train/"):
        PairFolder.open(root, scheme="event")
    with pytest.raises(DatasetError, match=r"has no split 'tset' \(it has train, val, test\)"):
        PairFolder.open(root).pairs("tset")
    (root / "splits").mkdir()
    with pytest.raises(DatasetError, match=r"splits holds no scheme. Write splits/<scheme>/train.txt"):
        PairFolder.open(root)


def test_both_layouts_at_once(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    (root / "train").mkdir()
    with pytest.raises(DatasetError, match=r"has both splits/ and split folders.*Keep one"):
        PairFolder.open(root)
    (root / "train").rmdir()
    with pytest.raises(DatasetError, match=r"no split scheme 'evnet' \(it has event, spatial\)"):
        PairFolder.open(root, scheme="evnet")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.8])
@pytest.mark.parametrize(("kind", "suffix"), [("sar", ".tif"), ("eo", ".png"), ("label", ".png")])
def test_truncated_files(make_folder: MakeFolder, kind: str, suffix: str, keep: float) -> None:
    root = make_folder(rows=60, cols=50)
    path = root / "val" / kind / f"c{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    folder = PairFolder.open(root)
    load = {"sar": folder.load_sar, "eo": folder.load_eo, "label": folder.load_label}[kind]
    with pytest.raises(DatasetError, match=f"val/{kind}/c{suffix}.*replace the file, or remove the pair"):
        load(folder.pairs("val")[0])
    assert any(f"val/{kind}/c{suffix}" in fault for fault in faults(folder, "val"))


def test_label_id_out_of_range(make_folder: MakeFolder) -> None:
    root = make_folder()
    label = np.zeros((24, 17), np.uint8)
    label[3, 4:7] = 7
    write_image(root / "val" / "label" / "c.png", label)
    folder = PairFolder.open(root)
    with pytest.raises(
        DatasetError,
        match=r"label/c.png holds label id 7 on 3 pixels, but dataset.toml has 3 classes \(0 to 2\) and "
        r"ignore_index 255. Add the class, or map these pixels to 255",
    ):
        folder.load_label(folder.pairs("val")[0])


def test_label_must_be_one_integer_band(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "val" / "label" / "c.png", np.zeros((3, 24, 17), np.uint8))
    folder = PairFolder.open(root)
    with pytest.raises(DatasetError, match=r"has 3 bands of uint8.*Convert colours to ids"):
        folder.load_label(folder.pairs("val")[0])
    (root / "val" / "label" / "c.png").unlink()
    write_image(root / "val" / "label" / "c.tif", np.zeros((1, 24, 17), np.float32))
    folder = PairFolder.open(root)
    with pytest.raises(DatasetError, match=r"has 1 bands of float32"):
        folder.load_label(folder.pairs("val")[0])


@pytest.mark.parametrize("kind", ["eo", "label"])
def test_mismatching_sizes(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder()
    bands = {"eo": (3,), "label": ()}[kind]
    write_image(root / "val" / kind / "c.png", np.zeros((*bands, 24, 18), np.uint8))
    folder = PairFolder.open(root)
    load = {"eo": folder.load_eo, "label": folder.load_label}[kind]
    with pytest.raises(
        DatasetError, match=rf"{kind}/c.png is 24x18 pixels .*sar/c.tif is 24x17. Co-register and resample"
    ):
        load(folder.pairs("val")[0])


def test_wrong_band_counts(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "val" / "sar" / "c.tif", np.ones((3, 24, 17), np.float32))
    write_image(root / "val" / "eo" / "c.png", np.ones((1, 24, 17), np.uint8))
    folder = PairFolder.open(root)
    pair = folder.pairs("val")[0]
    with pytest.raises(DatasetError, match=r"sar/c.tif has 3 bands, but .* declares 2 SAR bands \(vv, vh\)"):
        folder.load_sar(pair)
    with pytest.raises(DatasetError, match=r"eo/c.png has 1 bands, but .* declares 3 EO bands"):
        folder.load_eo(pair)


def test_missing_label_and_eo(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "val" / "label" / "c.png").unlink()
    (root / "val" / "eo" / "c.png").unlink()
    folder = PairFolder.open(root)
    pair = folder.pairs("val")[0]
    assert pair.label is None and pair.eo is None
    with pytest.raises(DatasetError, match=r"Pair 'c' has no label.*Add label/c.png"):
        folder.load_label(pair)
    with pytest.raises(DatasetError, match=r"Pair 'c' has no EO image.*Add eo/c.png"):
        folder.load_eo(pair)


@pytest.mark.parametrize("layout", ["splits", "pool"])
def test_names_that_do_not_match(make_folder: MakeFolder, layout: str) -> None:
    root = make_folder(layout=layout)
    base = root / "val" if layout == "splits" else root
    (base / "label" / "c.png").rename(base / "label" / "C.png")
    folder = PairFolder.open(root, scheme=None if layout == "splits" else "event")
    with pytest.raises(DatasetError, match=r"label/C.png has no SAR image of the same name.*Rename it"):
        folder.pairs("val")
    found = faults(folder)
    assert len(found) == 2 and "val has a label" in found[1], "its only one is named otherwise"


def test_two_files_of_one_name_and_no_sar_at_all(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "val" / "sar" / "c.png", np.ones((24, 17), np.uint8))
    with pytest.raises(DatasetError, match=r"c.tif and c.png have the same name. Keep one"):
        PairFolder.open(root).pairs("val")
    for path in (root / "test" / "sar").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"test/sar holds no PNG or TIFF"):
        PairFolder.open(root).pairs("test")


def test_split_list_faults(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    path = root / "splits" / "event" / "train.txt"
    path.write_text("b\nz.png\nb\n")
    folder = PairFolder.open(root, scheme="event")
    with pytest.raises(DatasetError, match=r"train.txt lists 'z', but there is no sar/z.png or .tif"):
        folder.pairs("train")
    found = faults(folder)
    assert len(found) == 2 and "lists 'b' more than once" in found[1]
    path.write_text("\n")
    with pytest.raises(DatasetError, match=r"train.txt lists no pair"):
        PairFolder.open(root, scheme="event").pairs("train")


def test_a_pair_in_two_splits_is_a_leak(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    (root / "splits" / "event" / "val.txt").write_text("c\nb\n")
    (root / "splits" / "event" / "test.txt").write_text("c\n")
    folder = PairFolder.open(root, scheme="event")
    leak = r"event/train.txt and val.txt both list 'b' \(1 pairs\).*Remove"
    for split in ("train", "val"):
        with pytest.raises(DatasetError, match=leak):
            folder.pairs(split)
    # Some data sets have no third split: whoever tests on val may do so, but is told by the check.
    assert [pair.name for pair in folder.pairs("test")] == ["c"]
    found = faults(folder)
    assert len(found) == 2
    assert "event/val.txt and test.txt both list 'c'" in found[1]


def test_a_list_of_pairs_without_label(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    plain = PairFolder.open(root, scheme="event")
    before = plain.sha256
    assert plain.unlabelled == ()
    path = root / "splits" / "event" / "unlabelled.txt"
    path.write_text("c\n")
    (root / "splits" / "event" / "val.txt").unlink(missing_ok=True)
    (root / "splits" / "event" / "test.txt").unlink(missing_ok=True)
    folder = PairFolder.open(root, scheme="event")
    (pair,) = folder.unlabelled
    assert pair.name == "c" and pair.label is None and folder.splits == ("train",)
    assert folder.sha256 != before and PairFolder.open(root, scheme="spatial").unlabelled == ()
    path.write_text("c\nb\n")
    folder = PairFolder.open(root, scheme="event")
    with pytest.raises(DatasetError, match=r"train.txt and unlabelled.txt both list 'b' \(1 pairs\).*Remove"):
        assert folder.unlabelled
    assert any("train.txt and unlabelled.txt both list 'b'" in text for text in faults(folder))


def test_a_split_list_that_is_not_text(make_folder: MakeFolder) -> None:
    root = make_folder(layout="pool")
    (root / "splits" / "event" / "val.txt").write_bytes(b"\xff\xfec\x00")
    folder = PairFolder.open(root, scheme="event")
    with pytest.raises(DatasetError, match=r"val.txt is not UTF-8 text.*one name a line"):
        folder.pairs("val")
    assert len(faults(folder)) == 1


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_sar_without_a_valid_pixel(make_folder: MakeFolder, value: float) -> None:
    root = make_folder()
    write_image(root / "val" / "sar" / "c.tif", np.full((2, 24, 17), value, np.float32))
    folder = PairFolder.open(root)
    with pytest.raises(DatasetError, match=r"sar/c.tif has no valid pixel: all 24x17 .*Remove the pair"):
        folder.load_sar(folder.pairs("val")[0])


def test_decibels_where_linear_is_declared(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "val" / "sar" / "c.tif", np.full((2, 24, 17), -12.5, np.float32))
    folder = PairFolder.open(root)
    with pytest.raises(DatasetError, match=r"sar/c.tif: .*probably in dB.*db_to_intensity"):
        folder.load_sar(folder.pairs("val")[0])


def test_eo_scale_and_nan(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "val" / "eo" / "c.png").unlink()
    eo = np.full((3, 24, 17), 3000, np.float32)
    write_image(root / "val" / "eo" / "c.tif", eo)
    folder = PairFolder.open(root)
    pair = folder.pairs("val")[0]
    with pytest.raises(DatasetError, match=r"most values lie above eo.scale = 255 \(max 3000\).*10000"):
        folder.load_eo(pair)
    text = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(text.replace("scale = 255.0", "scale = 10000.0"))
    eo[:, 0, 0], eo[:, 1, 1] = np.nan, 15_000
    write_image(root / "val" / "eo" / "c.tif", eo)
    image = PairFolder.open(root).load_eo(pair)
    assert image[0, 0, 0] == 0 and image[0, 1, 1] == 1 and image[0, 2, 2] == np.float32(0.3)


def test_no_data_that_a_tile_itself_declares(make_folder: MakeFolder) -> None:
    """A GeoTIFF's no-data tag means in training what it means to the runtime."""
    folder = PairFolder.open(make_folder())
    pair = folder.pairs("train")[0]
    stored = read_image(pair.sar)
    stored[:, 0, 0] = 77.0
    write_image(pair.sar, stored, nodata=77.0)
    loaded = folder.load_sar(pair)
    assert np.isnan(loaded[:, 0, 0]).all()
    assert np.array_equal(loaded[:, 1:], stored[:, 1:])
