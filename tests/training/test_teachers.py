"""Teachers that see EO, EO and SAR, or EO of two dates, and the students that they teach."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hfd_edge.config import Recipe, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import BundleError, CheckpointError, DatasetError, RecipeError
from hfd_edge.evaluation import open_predictor
from hfd_edge.hfdnet.run import Run, RunInfo, read_tensors
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.training.evaluate import _input, eo_statistics_of, evaluate_run
from hfd_edge.training.fit import train_student, train_teacher
from hfd_edge.training.identity import identity_of
from hfd_edge.training.preparation import refuse_other_sar
from hfd_edge.training.samples import TileCache, TileStore, collate, teacher_pixels

BASE = {
    "network": {"encoder": "resnet10t", "channels": 16, "init": "random"},
    "training": {"epochs": 1, "batch": 4, "crop_px": 64},
}
INPUTS = {"eo": 3, "eo+sar": 5, "eo before+after": 6, "eo before+after+sar": 8}


def with_inputs(inputs: str, **sections: dict) -> Recipe:
    return Recipe.model_validate({**BASE, "teacher": {"inputs": inputs}, **sections})


@pytest.fixture(scope="module")
def dated(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    """The simulated pairs with a darker EO image of an earlier date."""
    root = tmp_path_factory.mktemp("dated") / "pairs"
    shutil.copytree(pairs, root)
    for path in root.glob("*/eo/*.png"):
        write_image(path.parents[1] / "eo_before" / path.name, read_image(path) // 2)
    return PairFolder.open(root)


@pytest.fixture(scope="module")
def teachers(dated: PairFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("teachers")
    return {
        inputs: train_teacher(dated, with_inputs(inputs), out / str(n)) for n, inputs in enumerate(INPUTS)
    }


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_teacher_is_trained_scored_and_taught_from(
    inputs: str, teachers: dict[str, Run], dated: PairFolder, tmp_path: Path
) -> None:
    teacher = teachers[inputs]
    assert Run.open(teacher.path).info.sees == teacher.recipe.teacher.inputs == inputs
    assert teacher.network().bands == INPUTS[inputs]
    assert (teacher.info.preprocessing is not None) == ("sar" in inputs)
    scores = evaluate_run(teacher, dated, split="val")
    assert scores["miou"] == pytest.approx(teacher.metrics()["miou"], abs=2e-3)
    student = train_student(dated, Recipe.model_validate(BASE), tmp_path / "run", teacher=teacher.path)
    assert student.network().bands == 2
    assert student.recipe.teacher.inputs == Run.open(student.path).recipe.teacher.inputs == inputs
    names = [set(run.network().state_dict()) for run in (teacher, student)]
    assert names[0] == names[1]
    with pytest.raises(BundleError, match="is a teacher, which takes EO"), open_predictor(teacher.path):
        pass


@pytest.mark.parametrize("inputs", INPUTS)
def test_what_a_teacher_sees_is_its_files_in_order(
    inputs: str, teachers: dict[str, Run], dated: PairFolder
) -> None:
    info, pair = teachers[inputs].info, dated.pairs("val")[0]
    statistics = eo_statistics_of(teachers[inputs])
    store = TileStore(dated, [pair], info.preprocessing, statistics, TileCache(0), info.sees)
    seen = [statistics.standardise(dated.load_eo(pair))]
    if "before" in inputs:
        seen.append(statistics.standardise(dated.load_eo_before(pair)))
        assert seen[1].mean() < seen[0].mean() - 0.5  # one standardisation for both dates
    if "sar" in inputs:
        seen.append(info.preprocessing(dated.load_sar(pair))[0])
    expected = np.concatenate(seen)
    np.testing.assert_array_equal(_input(store[0]), expected)
    batch = collate([store[0]], eo_bands=store.eo_bands)
    np.testing.assert_array_equal(teacher_pixels(batch, bands=INPUTS[inputs])[0].numpy(), expected)


def test_the_student_feeds_its_teacher_what_that_was_trained_on(
    teachers: dict[str, Run], dated: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In distillation, the teacher sees both dates: the earlier one decides what it says."""
    from hfd_edge.hfdnet.network import HfdNet

    seen: list[torch.Tensor] = []
    taps = HfdNet.taps

    def spy(self: HfdNet, pixels: torch.Tensor):
        if self.bands == 6:
            seen.append(pixels)
        return taps(self, pixels)

    monkeypatch.setattr(HfdNet, "taps", spy)
    train_student(
        dated, Recipe.model_validate(BASE), tmp_path / "run", teacher=teachers["eo before+after"].path
    )
    assert len(seen) == 2
    assert all((pixels[:, 3:].mean() < pixels[:, :3].mean() - 0.5) for pixels in seen)


def test_data_without_the_earlier_date_are_refused(
    teachers: dict[str, Run], folder: PairFolder, dated: PairFolder, tmp_path: Path
) -> None:
    message = r"no pair with an EO image of both dates .* \"eo before\+after\" sees. Add eo_before/ files"
    with pytest.raises(DatasetError, match=message):
        train_teacher(folder, with_inputs("eo before+after"), tmp_path / "run")
    with pytest.raises(DatasetError, match=message):
        train_student(folder, with_inputs("eo"), tmp_path / "run", teacher=teachers["eo before+after"].path)
    with pytest.raises(DatasetError, match=r"no labelled pixel for a teacher.*Add the EO images"):
        evaluate_run(teachers["eo before+after"], folder)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_sar_preprocessing_is_refused(
    teachers: dict[str, Run], dated: PairFolder, tmp_path: Path
) -> None:
    recipe = with_inputs("eo", preprocessing={"clip_percentile": 5.0})
    with pytest.raises(RecipeError, match=r"sees SAR as .* but the student takes .* same split and \[prep"):
        train_student(dated, recipe, tmp_path / "run", teacher=teachers["eo+sar"].path)
    assert not (tmp_path / "run").exists()


def test_resume_refuses_other_inputs(teachers: dict[str, Run], dated: PairFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"teacher.inputs was 'eo\+sar', is 'eo'"):
        train_teacher(dated, with_inputs("eo"), teachers["eo+sar"].path, resume=True)
    again = train_teacher(dated, with_inputs("eo+sar"), teachers["eo+sar"].path, resume=True)
    assert again == Run.open(teachers["eo+sar"].path)


def test_runs_from_before_there_was_a_choice(teachers: dict[str, Run]) -> None:
    info = teachers["eo"].info.model_dump(mode="json")
    del info["inputs"], info["unlabelled_sha256"]
    old = RunInfo.model_validate(info)
    assert (old.sees, old.bands) == ("eo", 3)
    recipe = teachers["eo"].recipe.model_dump(mode="json", exclude={"qat", "teacher"})
    del recipe["distill"]["tolerance_px"], recipe["distill"]["unlabelled"]
    options = ("accumulate", "ema", "class_weights", "focal_gamma", "patience", "deterministic")
    for key in (*options, "keep", "label_share"):
        del recipe["training"][key]
    content = {"kind": "teacher", "recipe": recipe, "data": old.data_sha256, "teacher": None}
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert identity_of(teachers["eo"]) == expected, "checkpoints of earlier versions could not be resumed"
    assert identity_of(teachers["eo+sar"]) != expected


def test_a_teacher_of_sar_needs_its_preprocessing(teachers: dict[str, Run]) -> None:
    info = {**teachers["eo+sar"].info.model_dump(), "preprocessing": None}
    with pytest.raises(ValueError, match=r"a teacher of inputs 'eo\+sar' needs 'preprocessing'"):
        RunInfo.model_validate(info)


def test_a_teacher_of_another_split_is_refused(
    teachers: dict[str, Run], dated: PairFolder, tmp_path: Path
) -> None:
    """It has learnt from labels that its student is scored on."""
    root, teacher = tmp_path / "pool", tmp_path / "teacher"
    shutil.copytree(dated.root / "train", root)
    shutil.copy(dated.root / "dataset.toml", root)
    names = [pair.name for pair in dated.pairs("train")]
    for scheme, order in (("event", names), ("spatial", names[::-1])):
        for split, own in (("train", order[:4]), ("val", order[4:])):
            (root / "splits" / scheme).mkdir(parents=True, exist_ok=True)
            (root / "splits" / scheme / f"{split}.txt").write_text("\n".join(own))
    shutil.copytree(teachers["eo"].path, teacher)
    write_toml(teacher / "recipe.toml", with_inputs("eo", split="event"))
    folder, recipe = PairFolder.open(root, scheme="spatial"), with_inputs("eo", split="spatial")
    message = r"was trained on the split 'event', but the student's is 'spatial'.*Train a teacher on this"
    with pytest.raises(RecipeError, match=message):
        train_student(folder, recipe, tmp_path / "run", teacher=teacher)
    write_toml(teacher / "recipe.toml", recipe)
    assert train_student(folder, recipe, tmp_path / "run", teacher=teacher).metrics()["epochs"] == 1


def test_the_last_bits_of_another_machine_are_no_other_input(teachers: dict[str, Run]) -> None:
    own = teachers["eo+sar"].info.preprocessing
    assert own is not None
    refuse_other_sar(teachers["eo+sar"], replace(own, mean=tuple(value + 1e-6 for value in own.mean)))
    for field in ("mean", "std"):
        other = replace(own, **{field: tuple(value + 0.01 for value in getattr(own, field))})
        with pytest.raises(RecipeError, match="sees SAR as"):
            refuse_other_sar(teachers["eo+sar"], other)
    with pytest.raises(RecipeError, match="sees SAR as"):
        refuse_other_sar(teachers["eo+sar"], replace(own, looks=own.looks + 1e-6))


def test_student_and_teacher_see_the_same_sar(
    teachers: dict[str, Run], dated: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfd_edge.hfdnet.network import HfdNet

    seen: dict[int, list[torch.Tensor]] = {2: [], 5: []}
    taps = HfdNet.taps

    def spy(self: HfdNet, pixels: torch.Tensor):
        if torch.is_grad_enabled() or self.bands == 5:
            seen[self.bands].append(pixels)
            assert self.training == (self.bands == 2), "the teacher's normalisation is frozen"
        return taps(self, pixels)

    monkeypatch.setattr(HfdNet, "taps", spy)
    train_student(dated, Recipe.model_validate(BASE), tmp_path / "run", teacher=teachers["eo+sar"].path)
    assert len(seen[2]) == len(seen[5]) == 2
    assert all(torch.equal(mine, whole[:, 3:]) for mine, whole in zip(seen[2], seen[5], strict=True))


def test_an_interrupted_teacher_of_sar_goes_on(dated: PairFolder, tmp_path: Path) -> None:
    recipe = with_inputs("eo+sar", training={**BASE["training"], "checkpoint_every": 1})

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("teacher") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_teacher(dated, recipe, tmp_path / "run", progress=stop)
    resumed = train_teacher(dated, recipe, tmp_path / "run", resume=True)
    straight = train_teacher(dated, recipe, tmp_path / "straight")
    first, second = (read_tensors(run.checkpoint_path)[0] for run in (resumed, straight))
    assert all(torch.equal(first[key], second[key]) for key in first)
