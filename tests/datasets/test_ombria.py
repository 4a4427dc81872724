"""Conversion from the authors' layout, on files of the test's own and on the real ones."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.check import check_folder
from hfd_edge.datasets.convert import convert
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError, StorageError
from hfd_edge.raster.image import write_image

SIZE = 12


def _authors_layout(root: Path, *, train: int = 25, test: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for number in range(1, train + test + 1):
        part = "train" if number <= train else "test"
        for when, low in (("AFTER", "after"), ("BEFORE", "before")):
            sar = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
            eo = rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
            write_image(root / "OmbriaS1" / part / when / f"S1_{low}_{number:04d}.png", sar)
            write_image(root / "OmbriaS2" / part / when / f"S2_{low}_{number:04d}.png", eo)
        mask = (rng.random((SIZE, SIZE)) < 0.3).astype(np.uint8) * 255
        write_image(root / "OmbriaS1" / part / "MASK" / f"S1_mask_{number:04d}.png", mask)
    return root


def _with_labels_and_splits(root: Path) -> dict[str, list[str]]:
    _authors_layout(root)
    names = [f"{'AB'[number % 2]}_{number:04d}" for number in range(1, 30)]
    rng = np.random.default_rng(1)
    for name in names:
        write_image(root / "label" / f"{name}.png", rng.choice(np.array([0, 1, 255], np.uint8), (SIZE, SIZE)))
    splits = {"train": names[:20], "val": names[20:24], "test": names[24:]}
    for scheme in ("spatial", "event"):
        for split, own in splits.items():
            path = root / "splits" / scheme / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}.png\n" for name in own))
    return splits


def test_authors_own_distribution(tmp_path: Path) -> None:
    src, dst = _authors_layout(tmp_path / "src"), tmp_path / "dst"
    reports: list[tuple[float, float, str]] = []
    convert("ombria", src, dst, progress=lambda *report: reports.append(report))
    folder = PairFolder.open(dst)
    assert folder.schemes == ("authors",)
    names = {split: [pair.name for pair in folder.pairs(split)] for split in folder.splits}
    assert {split: len(own) for split, own in names.items()} == {"train": 23, "val": 2, "test": 4}
    assert names["test"] == [f"test_{number:04d}" for number in range(26, 30)]
    first, second = (int(name[-4:]) for name in names["val"])
    assert second == first + 1, "neighbouring numbers show neighbouring ground: val is a run"
    pair = folder.pairs("test")[0]
    assert pair.sar.read_bytes() == (src / "OmbriaS1/test/AFTER/S1_after_0026.png").read_bytes()
    assert pair.eo is not None
    assert pair.eo.read_bytes() == (src / "OmbriaS2/test/AFTER/S2_after_0026.png").read_bytes()
    assert pair.eo_before is not None and pair.shows("eo before+after")
    before = src / "OmbriaS2/test/BEFORE/S2_before_0026.png"
    assert pair.eo_before.read_bytes() == before.read_bytes()
    assert set(np.unique(folder.load_label(pair))) == {0, 1}
    assert check_folder(folder).findings == ()
    assert reports[-1][:2] == (29, 29)
    convert("ombria", src, tmp_path / "again")
    assert PairFolder.open(tmp_path / "again").sha256 == folder.sha256


def test_given_labels_and_splits_are_kept(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    splits = _with_labels_and_splits(src)
    convert("ombria", src, dst)
    for scheme in ("spatial", "event"):
        folder = PairFolder.open(dst, scheme=scheme)
        for split, names in splits.items():
            assert [pair.name for pair in folder.pairs(split)] == sorted(names)
        assert check_folder(folder).findings == ()
    flood = PairFolder.open(dst, scheme="new_flood")
    assert [pair.name for pair in flood.pairs("train")] == sorted(splits["train"])
    # A_0026 A_0028 | B_0025 B_0027 B_0029: the first half of each flood, rounded down, has no label
    assert [pair.name for pair in flood.unlabelled] == ["A_0026", "B_0025"]
    assert [pair.name for pair in flood.pairs("test")] == ["A_0028", "B_0027", "B_0029"]
    assert check_folder(flood).findings == ()
    second = PairFolder.open(dst, scheme="new_flood_2")
    assert [pair.name for pair in second.unlabelled] == ["A_0028", "B_0027", "B_0029"]
    assert [pair.name for pair in second.pairs("test")] == ["A_0026", "B_0025"]
    assert second.pairs("train") == flood.pairs("train") and check_folder(second).findings == ()
    name = splits["test"][0]
    assert (dst / "label" / f"{name}.png").read_bytes() == (src / "label" / f"{name}.png").read_bytes()
    number = name[-4:]
    assert (dst / "sar" / f"{name}.png").read_bytes() == (
        src / "OmbriaS1/train/AFTER" / f"S1_after_{number}.png"
    ).read_bytes()


def test_splits_without_labels_and_labels_without_splits(tmp_path: Path) -> None:
    src = tmp_path / "src"
    splits = _with_labels_and_splits(src)
    (src / "label").rename(tmp_path / "label")
    convert("ombria", src, tmp_path / "masks")
    folder = PairFolder.open(tmp_path / "masks", scheme="event")
    assert [pair.name for pair in folder.pairs("val")] == sorted(splits["val"])
    assert 255 not in folder.load_label(folder.pairs("val")[0])
    shutil.copytree(src / "splits" / "event", src / "splits" / "new_flood")
    convert("ombria", src, tmp_path / "own")  # a scheme of this name is kept, and has no second half of ours
    assert PairFolder.open(tmp_path / "own").schemes == ("event", "new_flood", "spatial")
    (tmp_path / "label").rename(src / "label")
    (src / "splits").rename(tmp_path / "splits")
    convert("ombria", src, tmp_path / "authors")
    folder = PairFolder.open(tmp_path / "authors")
    assert folder.schemes == ("authors",)
    assert 255 in folder.load_label(folder.pairs("test")[0])


def test_missing_and_faulty_files_leave_nothing_behind(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    with pytest.raises(DatasetError, match=r"is not OMBRIA: there is no OmbriaS1/train/AFTER"):
        convert("ombria", src, dst)
    _with_labels_and_splits(src)
    (src / "splits" / "event" / "val.txt").write_text("Z_0999.png\n")
    with pytest.raises(DatasetError, match=r"val.txt lists Z_0999, but OmbriaS1/ has no tile of that number"):
        convert("ombria", src, dst)
    (src / "splits" / "event" / "val.txt").write_text("Z_0003.png\n")
    with pytest.raises(DatasetError, match=r"call tile 0003 both B_0003 and Z_0003"):
        convert("ombria", src, dst)
    (src / "splits" / "event" / "val.txt").write_text("B_0003.png\n")
    (src / "label" / "B_0003.png").unlink()
    with pytest.raises(DatasetError, match=r"label has no B_0003.png for .*S1_after_0003.png. Add it"):
        convert("ombria", src, dst)
    (src / "OmbriaS2" / "train" / "AFTER" / "S2_after_0007.png").unlink()
    with pytest.raises(DatasetError, match=r"S1_after_0007.png has no partner .*S2_after_0007.png. Fetch"):
        convert("ombria", src, dst)
    write_image(src / "OmbriaS2/train/AFTER/S2_after_0007.png", np.zeros((3, SIZE, SIZE), np.uint8))
    (src / "OmbriaS2" / "train" / "BEFORE" / "S2_before_0009.png").unlink()
    with pytest.raises(DatasetError, match=r"S1_after_0009.png has no partner .*S2_before_0009.png. Fetch"):
        convert("ombria", src, dst)
    assert not dst.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_mask_that_is_not_a_mask(tmp_path: Path) -> None:
    src = _authors_layout(tmp_path / "src")
    mask = src / "OmbriaS1" / "train" / "MASK" / "S1_mask_0002.png"
    write_image(mask, np.full((SIZE, SIZE), 7, np.uint8))
    with pytest.raises(
        DatasetError, match=r"S1_mask_0002.png has 1 bands with values \[7\], but .* 0 and 255"
    ):
        convert("ombria", src, tmp_path / "dst")
    mask.write_bytes(mask.read_bytes()[:30])
    with pytest.raises(DatasetError, match=r"S1_mask_0002.png.*fetch the file again"):
        convert("ombria", src, tmp_path / "dst")


def test_too_few_tiles_and_existing_destination(tmp_path: Path) -> None:
    src = _authors_layout(tmp_path / "src", train=1, test=1)
    with pytest.raises(
        DatasetError, match="has 1 train and 1 test tiles, but at least two and one are needed"
    ):
        convert("ombria", src, tmp_path / "dst")
    with pytest.raises(StorageError, match="already exists"):
        convert("ombria", _authors_layout(tmp_path / "more"), tmp_path)
    with pytest.raises(DatasetError, match=r"no converter for 'umbria' \(there is: .*ombria.*\)"):
        convert("umbria", src, tmp_path / "dst")


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    src = shared_data / "ombria"
    if not src.is_dir():
        pytest.skip("OMBRIA is not beside the repository (../shared/data/ombria)")
    convert("ombria", src, tmp_path / "ombria")
    for scheme, counts in (("spatial", (270, 40, 80)), ("event", (277, 43, 70))):
        folder = PairFolder.open(tmp_path / "ombria", scheme=scheme)
        assert tuple(len(folder.pairs(split)) for split in ("train", "val", "test")) == counts
    for scheme, counts in (("new_flood", (277, 34, 36)), ("new_flood_2", (277, 36, 34))):
        flood = PairFolder.open(tmp_path / "ombria", scheme=scheme)
        assert (len(flood.pairs("train")), len(flood.unlabelled), len(flood.pairs("test"))) == counts
    assert check_folder(folder).findings == ()
    shares: Counter[int] = Counter()
    for split in folder.splits:
        for pair in folder.pairs(split):
            values, pixels = np.unique(folder.load_label(pair), return_counts=True)
            shares.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
    total = sum(shares.values())
    percent = [100 * shares[label] / total for label in (0, 1, 255)]
    assert percent == pytest.approx([79.6, 19.6, 0.9], abs=0.1)
