"""What disks, files and data do to a training: it goes on, or says what is wrong; never silently worse."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hfd_edge.config import DatasetConfig, Recipe, read_toml, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.errors import CheckpointError, DatasetError, StorageError
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.training.evaluate import evaluate_run
from hfd_edge.training.fit import train_student, train_teacher

Build = Callable[..., Recipe]
SMALL = {"encoder": "mobilenetv3_small_050", "channels": 8}
ALONE = {"method": "none"}


@pytest.fixture
def copy(pairs: Path, tmp_path: Path) -> Path:
    """The simulated pairs, to change."""
    return shutil.copytree(pairs, tmp_path / "data")


@pytest.fixture(scope="module")
def teacher(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = {"epochs": 1, "batch": 4, "crop_px": 64}
    recipe = Recipe.model_validate({"network": {**SMALL, "init": "random"}, "training": training})
    return train_teacher(PairFolder.open(pairs), recipe, tmp_path_factory.mktemp("runs") / "teacher").path


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    files = (run.checkpoint_path, run.weights_path)
    return {f"{path.name} {name}": value for path in files for name, value in read_tensors(path)[0].items()}


def change(folder: Path, kind: str, names: slice, edit: Callable[[Any], Any]) -> None:
    """Rewrite images of one kind, files in name order."""
    for path in sorted(folder.glob(f"*/{kind}/*"))[names]:
        write_image(path, np.ascontiguousarray(edit(read_image(path))))


# --- disks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_student(PairFolder.open(pairs), two_epochs(), tmp_path_factory.mktemp("runs") / "student")


def two_epochs() -> Recipe:
    training = {"epochs": 2, "batch": 4, "crop_px": 64, "learning_rate": 2e-3, "checkpoint_every": 1}
    return Recipe.model_validate(
        {"network": {**SMALL, "init": "random"}, "training": training, "distill": ALONE}
    )


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("last.ckpt.safetensors", 1),
        ("last.ckpt.safetensors", 3),
        ("best.safetensors", 1),
        ("metrics.json", 1),
    ],
)
def test_a_disk_that_fills_up_costs_nothing_but_time(
    name: str,
    time: int,
    folder: PairFolder,
    undisturbed: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace, seen, out = Path.replace, [0], tmp_path / "run"

    def fills_up(path: Path, target: Path) -> Path:
        """The rename that ends a write is the first to know what is written; this one never comes."""
        seen[0] += Path(target).name == name
        if Path(target).name == name and seen[0] == time:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fills_up)
    with pytest.raises(StorageError, match=rf"Could not write .*{name}: No space left.*Free some space"):
        train_student(folder, two_epochs(), out)
    monkeypatch.undo()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".writing")]
    found = tensors_of(train_student(folder, two_epochs(), out, resume=True))
    expected = tensors_of(undisturbed)
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("part", ["model/", "optimizer/", "best/", "header"])
def test_a_flipped_bit_is_not_resumed(
    part: str, folder: PairFolder, tmp_path: Path, undisturbed: Run
) -> None:
    run = Run.open(shutil.copytree(undisturbed.path, tmp_path / "run"))
    content = bytearray(run.checkpoint_path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    if part == "header":
        place = content.index(b'\\"step\\": 4') + len(b'\\"step\\": ')  # JSON inside JSON
    else:
        kernel = next(key for key in entries if key.startswith(part) and len(entries[key]["shape"]) == 4)
        place = 8 + size + entries[kernel]["data_offsets"][0]  # lowest byte of the first weight
    content[place] ^= 1
    run.checkpoint_path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.ckpt.safetensors is damaged: .* SHA-256 .* was written"):
        train_student(folder, two_epochs(), run.path, resume=True)


def test_flipped_weights_do_not_teach_or_score(folder: PairFolder, teacher: Path, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(teacher, tmp_path / "teacher"))
    content = bytearray(run.weights_path.read_bytes())
    content[-1] ^= 1
    run.weights_path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best.safetensors is damaged: .* SHA-256"):
        evaluate_run(run, folder)


def test_files_of_before_there_was_a_hash_are_read(teacher: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.safetensors"
    with safe_open(teacher / "last.ckpt.safetensors", framework="pt") as stored:
        header = {key: value for key, value in stored.metadata().items() if key != "sha256"}
    tensors = read_tensors(teacher / "last.ckpt.safetensors")[0]
    save_file(tensors, old, header)
    back, kept = read_tensors(old)
    assert kept == header
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


# --- data ----------------------------------------------------------------------------------------------


def trained_everywhere(folder: PairFolder, recipe: Build, out: Path, teacher: Path, **training: Any) -> Run:
    """A student distilled with every kind of loss, its losses finite."""
    settings = recipe(
        network=SMALL, distill={"method": "hfdm+logits"}, training={"epochs": 1, "batch": 2, **training}
    )
    run = train_student(folder, settings, out, teacher=teacher)
    (row,) = run.metrics()["history"]
    losses = {name: row[name] for name in ("loss", "ce", "dice", "feature", "cwd", "logits")}
    assert all(np.isfinite(value) for value in losses.values()), losses
    assert all(weight.isfinite().all() for weight in read_tensors(run.weights_path)[0].values())
    return run


@pytest.mark.parametrize("splits", [("train",), ("val", "test")])
def test_a_class_that_a_split_does_not_hold(
    splits: tuple[str, ...], copy: Path, recipe: Build, teacher: Path, tmp_path: Path
) -> None:
    for path in (path for split in splits for path in (copy / split / "label").iterdir()):
        label = read_image(path)
        write_image(path, np.where(label == 0, np.uint8(1), label))
    folder = PairFolder.open(copy)
    emptied = folder.config.classes[0]
    run = trained_everywhere(folder, recipe, tmp_path / "run", teacher)
    for name, scores in (("val", run.metrics()), ("test", evaluate_run(run, folder, split="test"))):
        known = [value for value in scores["iou"].values() if value is not None]
        assert scores["miou"] == pytest.approx(np.mean(known))
        if name in splits:  # none, unless the network sees it where it is not
            assert scores["iou"][emptied] in (None, 0.0)


def test_a_class_that_no_split_holds(copy: Path, recipe: Build, tmp_path: Path) -> None:
    config = read_toml(copy / "dataset.toml", DatasetConfig)
    more = {"classes": (*config.classes, "ghost"), "palette": (*config.palette, (1, 2, 3))}
    write_toml(copy / "dataset.toml", config.model_copy(update=more))
    folder = PairFolder.open(copy)
    own = train_teacher(folder, recipe(network=SMALL, training={"epochs": 1}), tmp_path / "teacher").path
    run = trained_everywhere(folder, recipe, tmp_path / "run", own)
    assert evaluate_run(run, folder)["iou"]["ghost"] in (None, 0.0)


def test_splits_of_a_single_tile(recipe: Build, teacher: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=1, val=1, test=1, size_px=80, seed=3)
    folder = PairFolder.open(tmp_path / "data")
    run = trained_everywhere(folder, recipe, tmp_path / "run", teacher, batch=4, epochs=1)
    assert run.metrics()["steps"] == 1
    assert evaluate_run(run, folder)["tiles"] == 1


def test_images_of_any_size_in_one_split(recipe: Build, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=3, val=2, test=1, size_px=256, seed=5)
    for names, (rows, cols) in ((slice(0, None, 2), (250, 199)), (slice(1, None, 2), (41, 97))):
        for kind in ("sar", "eo", "label"):
            change(tmp_path / "data", kind, names, lambda image, rows=rows, cols=cols: image[:, :rows, :cols])
    folder = PairFolder.open(tmp_path / "data")
    own = train_teacher(folder, recipe(network=SMALL, training={"epochs": 1}), tmp_path / "teacher").path
    run = trained_everywhere(folder, recipe, tmp_path / "run", own, batch=3)  # crops of 64: more than 41 rows
    scores = evaluate_run(run, folder, split="val")
    truth = [folder.load_label(pair) for pair in folder.pairs("val")]
    assert {label.shape for label in truth} == {(250, 199), (41, 97)}
    assert scores["pixels"] == sum((label != 255).sum() for label in truth)


def test_a_label_that_knows_nothing_among_others(
    copy: Path, recipe: Build, teacher: Path, tmp_path: Path
) -> None:
    for split in ("train", "val", "test"):
        write_image(min((copy / split / "label").iterdir()), np.full((1, 80, 80), 255, np.uint8))
    folder = PairFolder.open(copy)
    run = trained_everywhere(folder, recipe, tmp_path / "run", teacher, batch=1)  # a batch of it alone
    assert evaluate_run(run, folder)["tiles"] == 2


def test_nan_in_sar_is_no_data(copy: Path, recipe: Build, teacher: Path, tmp_path: Path) -> None:
    def holes(image: Any) -> Any:
        image = image.copy()
        image[0, :30, :40] = np.nan  # of one band
        image[:, 70:, 5] = np.nan
        return image

    change(copy, "sar", slice(None), holes)
    folder = PairFolder.open(copy)
    run = trained_everywhere(folder, recipe, tmp_path / "run", teacher)
    preprocessing = run.info.preprocessing
    assert preprocessing is not None and np.isfinite([*preprocessing.mean, *preprocessing.std]).all()
    pixels, valid = preprocessing(folder.load_sar(folder.pairs("test")[0]))
    assert np.isfinite(pixels).all() and not valid[:30, :40].any() and valid[40:70].all()
    filtered = recipe(
        network=SMALL, distill=ALONE, preprocessing={"speckle": "lee"}, training={"epochs": 1, "batch": 2}
    )
    assert np.isfinite(train_student(folder, filtered, tmp_path / "lee").metrics()["history"][0]["loss"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_eo_of_another_size_is_named(
    split: str, copy: Path, recipe: Build, teacher: Path, tmp_path: Path
) -> None:
    path = max((copy / split / "eo").iterdir())
    write_image(path, np.ascontiguousarray(read_image(path)[:, :64]))
    folder = PairFolder.open(copy)
    settings = recipe(network=SMALL, training={"epochs": 1})
    with pytest.raises(DatasetError, match=rf"{path.name} is 64x80 pixels .* is 80x80"):
        train_teacher(folder, settings, tmp_path / "teacher")
    if split == "train":
        with pytest.raises(DatasetError, match=rf"{path.name} is 64x80 pixels .* is 80x80"):
            train_student(folder, settings, tmp_path / "run", teacher=teacher)
