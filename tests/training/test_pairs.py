"""Pairs that lack EO, and pairs of other folders that have no labels."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hfd_edge.config import DatasetConfig, Recipe, read_toml, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.datasets.statistics import eo_statistics, fit_preprocessing
from hfd_edge.errors import CheckpointError, DatasetError, RecipeError
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.training.baselines import train_baseline
from hfd_edge.training.fit import train_student, train_teacher
from hfd_edge.training.pairs import (
    epoch_pairs,
    join_unlabelled,
    labelled,
    open_unlabelled,
    student_pairs,
    teacher_pairs,
)
from hfd_edge.training.samples import Augmentation, Batches, EoStatistics, TileCache, TileStore

NO_CHANGE = Augmentation(crop_px=64, flip="none", eo_jitter=0.0, sar_gain=(0.0, 0.0), ignore_index=255)


@pytest.fixture(scope="module")
def teacher(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = {"encoder": "resnet10t", "channels": 16, "init": "random"}
    recipe = Recipe.model_validate({"network": network, "training": {"epochs": 1, "batch": 4, "crop_px": 64}})
    return train_teacher(PairFolder.open(pairs), recipe, tmp_path_factory.mktemp("runs") / "teacher").path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of another place: brighter, with another no-data value, another ignore index and labels."""
    root = tmp_path_factory.mktemp("other") / "pairs"
    write_dataset(root, train=3, val=1, test=1, size_px=64, seed=7)
    for path in sorted(root.glob("*/sar/*")):
        stored = read_image(path)
        write_image(path, np.where(stored == 0, np.float32(-1), 5 * stored).astype(stored.dtype))
    config = read_toml(root / "dataset.toml", DatasetConfig)
    sar = config.sar.model_copy(update={"nodata": -1.0})
    write_toml(root / "dataset.toml", config.model_copy(update={"sar": sar, "ignore_index": 99}))
    for path in root.glob("*/label/*"):
        label = read_image(path)
        write_image(path, np.where(label == 255, np.uint8(99), label))
    return root


def without_eo(pairs: Path, to: Path, count: int) -> PairFolder:
    shutil.copytree(pairs, to)
    for path in sorted((to / "train" / "eo").iterdir())[:count]:
        path.unlink()
    return PairFolder.open(to)


def store_of(folder: PairFolder) -> TileStore:
    statistics = EoStatistics(*eo_statistics(folder))
    return TileStore(folder, folder.pairs("train"), fit_preprocessing(folder), statistics, TileCache(100))


# --- missing EO ------------------------------------------------------------------------------------------


def test_pairs_without_eo_are_told_and_left_to_the_label(
    pairs: Path, recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = without_eo(pairs, tmp_path / "data", 2)
    first = folder.pairs("train")[0].name
    (tmp_path / "data" / "train" / "label" / f"{first}.png").unlink(missing_ok=True)
    (tmp_path / "data" / "train" / "label" / f"{first}.tif").unlink(missing_ok=True)
    folder = PairFolder.open(tmp_path / "data")
    second = folder.pairs("train")[1].name
    with caplog.at_level(logging.WARNING, logger="hfd_edge.training"):
        assert len(teacher_pairs(folder, "train", "eo")) == 4
        found = student_pairs(folder, recipe(), tell=True)
        assert len(found.train) == 5 and not found.unlabelled
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert f"1 of 5 pairs in split 'train' of {folder.root} have no EO image, first '{second}'" in texts[0]
    assert texts[0].endswith(": the teacher leaves them out.")
    assert texts[1].endswith(": the student learns from their labels alone.")
    assert (
        "1 of 6 pairs in split 'train'" in texts[2]
        and "neither a label that is used nor an EO image" in texts[2]
    )


def test_only_pairs_without_eo_are_masked(pairs: Path, tmp_path: Path) -> None:
    whole, holed = PairFolder.open(pairs), without_eo(pairs, tmp_path / "data", 2)
    full = store_of(whole)
    some = replace(full, folder=holed, pairs=holed.pairs("train"))
    expected, batch = (Batches(store, 6, NO_CHANGE, seed=1)(0) for store in (full, some))
    order = np.random.default_rng((1, 0, 0)).permutation(6)
    missing = torch.from_numpy(order < 2)
    assert expected.valid is None and batch.valid is not None and batch.eo is not None
    assert torch.equal(batch.valid, ~missing[:, None, None].expand(6, 64, 64))
    assert torch.equal(batch.sar, expected.sar) and torch.equal(batch.label, expected.label)
    assert torch.equal(batch.eo[~missing], expected.eo[~missing])
    none = Batches(replace(some, pairs=holed.pairs("train")[:2]), 2, NO_CHANGE, seed=1)(0)
    assert none.eo is not None and none.eo.shape == (2, 3, 64, 64) and not none.valid.any()


def test_teacher_and_student_train_with_some_eo_missing(
    pairs: Path, teacher: Path, recipe, tmp_path: Path
) -> None:
    folder = without_eo(pairs, tmp_path / "data", 5)
    assert train_teacher(folder, recipe(training={"epochs": 1}), tmp_path / "t").metrics()["steps"] == 1
    run = train_student(folder, recipe(training={"epochs": 1, "batch": 2}), tmp_path / "s", teacher=teacher)
    assert run.metrics()["steps"] == 3  # six pairs, of which some batch has no EO at all
    assert all(np.isfinite(run.metrics()["history"][0][name]) for name in ("loss", "feature", "cwd"))


# --- unlabelled pairs ------------------------------------------------------------------------------------


def test_unlabelled_pairs_join_each_batch_by_the_training_statistics(pairs: Path, other: Path) -> None:
    store, foreign = store_of(PairFolder.open(pairs)), PairFolder.open(other)
    joining = join_unlabelled((), [foreign, foreign], store, batch=4, share=0.4)
    assert joining is not None and joining.batch == 3 and len(joining.store) == 6
    plain = Batches(store, 4, NO_CHANGE, seed=2)
    batches = replace(plain, unlabelled=joining)
    assert batches.steps_per_epoch == plain.steps_per_epoch
    batch, alone = batches(1), plain(1)
    assert batch.sar.shape[0] == 7
    for name in ("sar", "eo", "label"):
        assert torch.equal(getattr(batch, name)[:4], getattr(alone, name)), name
    assert (batch.label[4:] == 255).all()

    order = np.random.default_rng((2, 2, 0)).permutation(6)
    pair = foreign.pairs("train")[int(order[3]) % 3]
    preprocessing = replace(store.preprocessing, nodata=-1.0)
    np.testing.assert_array_equal(batch.sar[4].numpy(), preprocessing(foreign.load_sar(pair))[0])
    np.testing.assert_array_equal(batch.eo[4].numpy(), store.eo.standardise(foreign.load_eo(pair)))
    assert batch.sar[4:].mean() > batch.sar[:4].mean() + 0.5  # brighter, and not standardised away


def test_pairs_of_the_training_folder_itself_keep_their_labels_where_they_count(pairs: Path) -> None:
    store = store_of(PairFolder.open(pairs))
    joining = join_unlabelled((), [store.folder], store, batch=4, share=0.5)
    assert joining is not None
    assert all((joining.store[index].label == 255).all() for index in range(6))
    assert not any((store[index].label == 255).all() for index in range(6))


def test_an_interrupted_training_with_unlabelled_pairs_goes_on(
    folder: PairFolder, teacher: Path, other: Path, recipe, tmp_path: Path
) -> None:
    settings = recipe(distill={"tolerance_px": 4, "unlabelled": 0.4})
    options = {"teacher": teacher, "unlabelled": [other]}

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("student") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(folder, settings, tmp_path / "run", progress=stop, **options)
    with pytest.raises(CheckpointError, match=r"another unlabelled pairs \(unlabelled_sha256\): .* None now"):
        train_student(folder, settings, tmp_path / "run", teacher=teacher, resume=True)
    resumed = train_student(folder, settings, tmp_path / "run", resume=True, **options)
    straight = train_student(folder, settings, tmp_path / "straight", **options)
    assert resumed.info.unlabelled_sha256 == (PairFolder.open(other).sha256,)
    assert resumed.metrics()["history"] == straight.metrics()["history"]
    first, second = (read_tensors(run.checkpoint_path)[0] for run in (resumed, straight))
    assert all(torch.equal(first[key], second[key]) for key in first)

    alone = train_student(folder, settings, tmp_path / "alone", teacher=teacher)
    assert alone.metrics()["steps"] == straight.metrics()["steps"]
    weights = [read_tensors(run.weights_path)[0]["classifier.weight"] for run in (alone, straight)]
    assert not torch.equal(*weights)


def test_unlabelled_pairs_that_teach_nothing_or_do_not_fit_are_refused(
    folder: PairFolder, teacher: Path, other: Path, recipe, tmp_path: Path
) -> None:
    def train(path: Path, **distill: object) -> Run:
        settings = recipe(distill=distill)
        return train_student(folder, settings, tmp_path / "run", teacher=teacher, unlabelled=[path])

    with pytest.raises(RecipeError, match='distill.method is "none"'):
        train(other, method="none")
    with pytest.raises(RecipeError, match=r"distill.unlabelled = 0.*leave out --unlabelled"):
        train(other, unlabelled=0.0)
    with pytest.raises(RecipeError, match=r"distill.correct_only = true.*leave out --unlabelled"):
        train(other, correct_only=True)
    with pytest.raises(DatasetError, match="is not a data folder"):
        train(tmp_path)
    shutil.copytree(other, tmp_path / "a")
    config = read_toml(other / "dataset.toml", DatasetConfig)
    hh = config.sar.model_copy(update={"bands": ("hh", "hv")})
    write_toml(tmp_path / "a" / "dataset.toml", config.model_copy(update={"sar": hh}))
    with pytest.raises(DatasetError, match=r"SAR bands \['hh', 'hv'\] in .* takes \['vv', 'vh'\]"):
        train(tmp_path / "a")
    grey = config.eo.model_copy(update={"bands": ("grey",)})
    write_toml(tmp_path / "a" / "dataset.toml", config.model_copy(update={"eo": grey}))
    with pytest.raises(DatasetError, match=r"EO bands \('grey',\), but the teacher sees \('red'"):
        train(tmp_path / "a")
    write_toml(tmp_path / "a" / "dataset.toml", config)
    shutil.rmtree(tmp_path / "a" / "train" / "eo")
    with pytest.raises(DatasetError, match="Split 'train' of .*a has no pair with an EO image"):
        train(tmp_path / "a")
    assert not (tmp_path / "run").exists()


def test_of_several_split_schemes_the_one_of_the_training_serves(
    folder: PairFolder, teacher: Path, other: Path, recipe, tmp_path: Path
) -> None:
    root = tmp_path / "pool"
    shutil.copytree(other / "train", root)
    shutil.copy(other / "dataset.toml", root)
    names = sorted(path.stem for path in (root / "sar").iterdir())
    for scheme, own in (("event", names), ("spatial", names[:1])):
        (root / "splits" / scheme).mkdir(parents=True)
        (root / "splits" / scheme / "train.txt").write_text("\n".join(own))
    message = r"pool have the split schemes event, spatial, .* none .* leave one scheme"
    with pytest.raises(DatasetError, match=message):
        train_student(folder, recipe(), tmp_path / "run", teacher=teacher, unlabelled=[root])
    run = Run.open(teacher)
    chosen = replace(folder, scheme="spatial")
    (found,) = open_unlabelled([root], recipe(), chosen, run)
    assert [pair.name for pair in found.pairs("train")] == names[:1]


def test_a_share_of_the_labels_is_used_and_the_other_pairs_distil(
    pairs: Path, teacher: Path, recipe, tmp_path: Path
) -> None:
    folder = PairFolder.open(pairs)
    names = [pair.name for pair in folder.pairs("train")]
    few = recipe(training={"label_share": 0.34, "epochs": 1, "batch": 2})
    found = student_pairs(folder, few)
    assert [pair.name for pair in found.train] == [names[1], names[4]]
    assert [pair.name for pair in found.unlabelled] == [names[i] for i in (0, 2, 3, 5)]
    assert (len(found.val), found.epoch) == (2, 6)
    assert [p.name for p in teacher_pairs(folder, "train", "eo", label_share=0.34)] == [names[1], names[4]]
    for alone in ({"method": "none"}, {"correct_only": True}):
        assert not student_pairs(folder, recipe(training={"label_share": 0.34}, distill=alone)).unlabelled

    store = store_of(folder)
    joining = join_unlabelled(found.unlabelled, (), store, batch=2, share=0.5)
    assert joining is not None and joining.batch == 2 and len(joining.store) == 4
    assert all((joining.store[index].label == 255).all() for index in range(4))
    assert join_unlabelled(found.unlabelled, (), store, batch=2, share=0.0) is None
    run = train_student(folder, few, tmp_path / "s", teacher=teacher)
    assert run.metrics()["steps"] == 3  # an epoch is as long as with all six labels
    assert train_teacher(folder, few, tmp_path / "t").metrics()["steps"] == 3
    assert train_baseline(folder, few, tmp_path / "b", arch="Unet").metrics()["steps"] == 3


def test_a_teachers_share_of_the_labels_may_be_without_eo(pairs: Path, recipe, tmp_path: Path) -> None:
    folder = without_eo(pairs, tmp_path / "data", 5)  # the sixth has EO
    assert epoch_pairs(folder) == 6 and epoch_pairs(folder, "eo") == 1
    run = train_teacher(folder, recipe(training={"epochs": 2, "label_share": 1.0}), tmp_path / "t")
    assert run.metrics()["steps"] == 2
    message = r"None of the 3 pairs .* whose labels are used has an EO image. Raise training.label_share from"
    assert [p.name for p in labelled(folder, "train", share=0.5)] == [
        p.name for p in folder.pairs("train")[1::2]
    ]
    for path in (tmp_path / "data" / "train" / "eo").iterdir():
        path.rename(path.with_stem(folder.pairs("train")[0].name))
    with pytest.raises(DatasetError, match=message):
        teacher_pairs(PairFolder.open(tmp_path / "data"), "train", "eo", label_share=0.5)


def test_listed_pairs_join_without_their_labels(pairs: Path, teacher: Path, recipe, tmp_path: Path) -> None:
    root = tmp_path / "pool"
    shutil.copytree(pairs / "train", root)
    shutil.copy(pairs / "dataset.toml", root)
    names = sorted(path.stem for path in (root / "sar").iterdir())
    (root / "splits" / "one").mkdir(parents=True)
    for split, own in (("train", names[:3]), ("val", names[3:4]), ("unlabelled", names[4:])):
        (root / "splits" / "one" / f"{split}.txt").write_text("\n".join(own))
    folder = PairFolder.open(root)
    found = student_pairs(folder, recipe())
    assert [pair.name for pair in found.train] == names[:3]
    assert [(pair.name, pair.label) for pair in found.unlabelled] == [(name, None) for name in names[4:]]
    assert found.epoch == len(teacher_pairs(folder, "train", "eo")) == 3
    assert not student_pairs(folder, recipe(distill={"method": "none"})).unlabelled
    (root / "eo" / next((root / "eo").glob(f"{names[4]}.*")).name).unlink()
    assert [pair.name for pair in student_pairs(PairFolder.open(root), recipe()).unlabelled] == names[5:]


def test_pairs_without_label_join_batches_or_are_them(
    pairs: Path, teacher: Path, recipe, tmp_path: Path
) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    labels = sorted((tmp_path / "data" / "train" / "label").iterdir())
    for path in labels[1:]:
        path.unlink()
    folder = PairFolder.open(tmp_path / "data")
    some = student_pairs(folder, recipe())
    assert (len(some.train), some.epoch, len(some.unlabelled)) == (1, 1, 5)

    def trained(**distill: object) -> Run:
        settings = recipe(training={"epochs": 2, "batch": 2}, distill={"method": "logits", **distill})
        name = "-".join(map(str, distill.values())) or "joined"
        return train_student(folder, settings, tmp_path / name, teacher=teacher)

    joined, alone = trained(), trained(unlabelled=0.0)
    assert joined.metrics()["steps"] == alone.metrics()["steps"] == 2  # of the labelled pair, not of all six
    assert [run.metrics()["pairs"] for run in (joined, alone)] == [1, 1]
    assert [run.metrics()["unlabelled_pairs"] for run in (joined, alone)] == [5, 0]
    weights = [read_tensors(run.weights_path)[0]["classifier.weight"] for run in (joined, alone)]
    assert not torch.equal(*weights)

    labels[0].unlink()
    folder = PairFolder.open(tmp_path / "data")
    none = student_pairs(folder, recipe(training={"label_share": 0.5}))
    assert (len(none.train), none.epoch, none.unlabelled) == (6, 6, ())
    settings = recipe(training={"epochs": 1}, distill={"method": "logits"})
    assert train_student(folder, settings, tmp_path / "run", teacher=teacher).metrics()["steps"] == 2
    with pytest.raises(DatasetError, match="Split 'train' of .* has no pair with a label"):
        student_pairs(folder, recipe(distill={"correct_only": True}))
