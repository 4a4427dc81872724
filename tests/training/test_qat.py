"""Quantisation-aware training: what it keeps, what it refuses, and that it resumes to the bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.config import DatasetConfig, Recipe, read_toml, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import CheckpointError, DatasetError, MissingExtraError, RecipeError, StorageError
from hfd_edge.files import sha256
from hfd_edge.hfdnet.fakequant import quantised_convolutions
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.training.evaluate import Scorer, evaluate_run
from hfd_edge.training.fit import train_student, train_teacher
from hfd_edge.training.identity import identity_of
from hfd_edge.training.qat import quantised_network, train_qat
from hfd_edge.training.samples import TileCache, TileStore

BASE = {
    "network": {"encoder": "test_resnet", "channels": 8, "init": "random"},
    "training": {"epochs": 2, "batch": 4, "crop_px": 64, "learning_rate": 2e-3, "checkpoint_every": 1},
    "qat": {"epochs": 2, "learning_rate": 1e-4, "calibration_tiles": 3},
}


def recipe(**sections) -> Recipe:
    return Recipe.model_validate({**BASE, **{k: _merged(k, v) for k, v in sections.items()}})


def _merged(section: str, values: Any) -> Any:
    return {**BASE.get(section, {}), **values} if isinstance(values, dict) else values


@pytest.fixture(scope="module")
def runs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, its student, and the student's quantisation-aware training."""
    out = tmp_path_factory.mktemp("runs")
    folder = PairFolder.open(pairs)
    train_teacher(folder, recipe(training={"epochs": 1}), out / "teacher")
    train_student(folder, recipe(), out / "student", teacher=out / "teacher")
    train_qat(folder, recipe(), out / "qat", start=out / "student", teacher=out / "teacher")
    return out


@pytest.fixture(scope="module")
def qat(runs: Path) -> Run:
    return Run.open(runs / "qat")


def test_the_run_is_an_ordinary_student_with_ranges(qat: Run, runs: Path, pairs: Path) -> None:
    student = Run.open(runs / "student")
    assert qat.info.kind == "student"
    assert qat.info.qat_sha256 == sha256(student.weights_path)
    assert qat.info.preprocessing == student.info.preprocessing
    assert "nvidia-modelopt" in qat.info.versions
    assert "nvidia-modelopt" not in student.info.versions
    weights, theirs = read_tensors(qat.weights_path)[0], read_tensors(student.weights_path)[0]
    assert weights.keys() == theirs.keys()
    assert {name: value.shape for name, value in weights.items()} == {k: v.shape for k, v in theirs.items()}
    assert qat.quantizers().keys() == quantised_convolutions(qat.network()).keys()
    assert student.quantizers() is None
    assert 0 < evaluate_run(qat, PairFolder.open(pairs))["miou"] <= 1


def test_the_recipe_is_kept_and_its_qat_section_counts(qat: Run) -> None:
    assert qat.recipe == recipe()
    history = qat.metrics()["history"]
    assert [row["step"] for row in history] == [2, 4]
    assert history[0]["lr"] < 1.01e-4
    assert all(row["feature"] > 0 and row["cwd"] > 0 for row in history)  # the teacher is still there


def test_the_score_is_that_of_the_rounded_network(qat: Run, pairs: Path) -> None:
    folder = PairFolder.open(pairs)
    val = [pair for pair in folder.pairs("val") if pair.label is not None]
    store = TileStore(folder, val, qat.info.preprocessing, None, TileCache(0))
    found = Scorer(store, torch.device("cpu"))(quantised_network(qat), text="again")
    assert found.miou == pytest.approx(qat.metrics()["miou"], abs=2e-3)


def test_a_fine_tuning_that_harms_keeps_the_start(runs: Path, pairs: Path, tmp_path: Path) -> None:
    # A rate at which the network forgets all it knew, on pairs that it knows.
    settings = recipe(qat={"learning_rate": 1.0, "epochs": 1}, distill={"method": "none"})
    run = train_qat(PairFolder.open(pairs), settings, tmp_path / "run", start=runs / "student")
    metrics = run.metrics()
    assert metrics["best_epoch"] == 0
    assert metrics["miou"] >= metrics["history"][0]["miou"]
    network = Run.open(runs / "student").network()
    pixels = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(run.network()(pixels), network(pixels), rtol=0, atol=1e-4)


def test_norms_are_folded_and_stay_so(qat: Run) -> None:
    norms = [module for module in qat.network().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 10
    for norm in norms:
        assert (norm.weight == 1).all() and not norm.running_mean.any()
        assert norm.running_var.unique().numel() == 1
    assert any(norm.bias.any() for norm in norms)


def test_projectors_start_anew_and_learn_at_the_students_rate(
    runs: Path, pairs: Path, tmp_path: Path
) -> None:
    settings = recipe(qat={"epochs": 1, "learning_rate": 1e-9}, training={"weight_decay": 0.0})
    run = train_qat(
        PairFolder.open(pairs), settings, tmp_path / "run", start=runs / "student", teacher=runs / "teacher"
    )
    tensors = read_tensors(run.checkpoint_path)[0]
    bias = tensors["model/hfdm.projectors.0.1.bias"]  # starts at 0
    assert 1e-4 < float(bias.abs().max()) < 1e-2
    network = Run.open(runs / "student").network()
    (pixels,) = torch.randn(1, 1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(run.network()(pixels), network(pixels), rtol=0, atol=1e-4)


def test_interrupted_it_goes_on_to_the_same_bits(runs: Path, qat: Run, pairs: Path, tmp_path: Path) -> None:
    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("student") and done == 3:
            raise KeyboardInterrupt

    folder, options = PairFolder.open(pairs), {"start": runs / "student", "teacher": runs / "teacher"}
    with pytest.raises(KeyboardInterrupt):
        train_qat(folder, recipe(), tmp_path / "run", progress=stop, **options)
    texts: list[str] = []
    resumed = train_qat(
        folder,
        recipe(),
        tmp_path / "run",
        resume=True,
        progress=lambda done, total, text: texts.append(text),
        **options,
    )
    assert "calibrating" not in texts
    for name in ("best.safetensors", "last.ckpt.safetensors"):
        first, second = read_tensors(resumed.path / name)[0], read_tensors(qat.path / name)[0]
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert (resumed.path / "quantizers.json").read_bytes() == (qat.path / "quantizers.json").read_bytes()
    assert resumed.metrics()["history"] == qat.metrics()["history"]


def test_interrupted_in_its_first_epoch_the_command_resumes_it(
    runs: Path, qat: Run, pairs: Path, tmp_path: Path
) -> None:
    """Its start is the best so far, and there is no epoch to draw yet."""

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("student") and done == 2:
            raise KeyboardInterrupt

    folder, options = PairFolder.open(pairs), {"start": runs / "student", "teacher": runs / "teacher"}
    with pytest.raises(KeyboardInterrupt):
        train_qat(folder, recipe(), tmp_path / "run", progress=stop, **options)
    arguments = ["--data", pairs, "--teacher", runs / "teacher", "--qat", runs / "student", "--resume"]
    arguments += ["--out", tmp_path / "run"]
    recipe_file = tmp_path / "run" / "recipe.toml"
    result = CliRunner().invoke(app, ["train", "student", *map(str, [recipe_file, *arguments])])
    assert result.exit_code == 0, result.output
    assert Run.open(tmp_path / "run").metrics()["history"] == qat.metrics()["history"]


def test_one_that_diverges_names_its_own_rate(runs: Path, pairs: Path, tmp_path: Path) -> None:
    settings = recipe(qat={"learning_rate": 1e30}, distill={"method": "none"})
    with pytest.raises(RecipeError, match=r"training has diverged. Lower qat.learning_rate, or"):
        train_qat(PairFolder.open(pairs), settings, tmp_path / "run", start=runs / "student")


def test_resume_refuses_another_start_or_qat_recipe(runs: Path, pairs: Path, tmp_path: Path) -> None:
    folder, teacher = PairFolder.open(pairs), runs / "teacher"
    shutil.copytree(runs / "qat", tmp_path / "run")
    other = recipe(qat={"percentile": 99.0})
    with pytest.raises(CheckpointError, match=r"another recipe: qat.percentile was 99.99, is 99.0"):
        train_qat(folder, other, tmp_path / "run", start=runs / "student", teacher=teacher, resume=True)
    with pytest.raises(CheckpointError, match=r"another student to start from \(qat_sha256\)"):
        train_qat(folder, recipe(), tmp_path / "run", start=runs / "qat", teacher=teacher, resume=True)
    with pytest.raises(CheckpointError, match=r"another student to start from \(qat_sha256\)"):
        train_student(folder, recipe(), tmp_path / "run", teacher=teacher, resume=True)


def test_an_ordinary_training_does_not_mind_the_qat_section(runs: Path, pairs: Path, tmp_path: Path) -> None:
    student = Run.open(runs / "student")
    changed = Run(student.path, recipe(qat={"epochs": 7}), student.info)
    assert identity_of(changed) == identity_of(student)
    done = train_student(
        PairFolder.open(pairs), changed.recipe, student.path, teacher=runs / "teacher", resume=True
    )
    assert done.metrics() == student.metrics()


def test_without_a_teacher(runs: Path, pairs: Path, tmp_path: Path) -> None:
    folder, start = PairFolder.open(pairs), runs / "student"
    with pytest.raises(RecipeError, match=r'distill.method = "hfdm".*--teacher RUN.*distill.method=none'):
        train_qat(folder, recipe(), tmp_path / "run", start=start)
    alone = recipe(distill={"method": "none"}, qat={"epochs": 1}, network={"init": "teacher"})
    run = train_qat(folder, alone, tmp_path / "run", start=start)  # its weights are there already
    assert run.info.teacher_sha256 is None
    assert "feature" not in run.metrics()["history"][0]


def test_what_cannot_be_continued_is_refused(runs: Path, pairs: Path, tmp_path: Path) -> None:
    folder, teacher = PairFolder.open(pairs), runs / "teacher"
    with pytest.raises(RecipeError, match=r"is the run of a teacher.*Give --qat the run folder of a student"):
        train_qat(folder, recipe(), tmp_path / "run", start=teacher, teacher=teacher)
    other = recipe(network={"channels": 16}, preprocessing={"speckle": "lee"})
    with pytest.raises(
        RecipeError, match=r"speckle was 'none', is 'lee'; .*channels was 8, is 16.*own recipe"
    ):
        train_qat(folder, other, tmp_path / "run", start=runs / "student", teacher=teacher)
    with pytest.raises(RecipeError, match=r"split was None, is 'spatial'.*own recipe"):
        train_qat(folder, recipe(split="spatial"), tmp_path / "run", start=runs / "student", teacher=teacher)
    shutil.copytree(runs / "student", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has not ended. Finish it with --resume"):
        train_qat(folder, recipe(), tmp_path / "run", start=tmp_path / "unfinished", teacher=teacher)
    with pytest.raises(StorageError, match="already exists"):
        train_qat(folder, recipe(), runs / "qat", start=runs / "student", teacher=teacher)
    assert not (tmp_path / "run").exists()


def test_data_of_another_radiometry_are_refused(runs: Path, pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    config = read_toml(pairs / "dataset.toml", DatasetConfig)
    sar = config.sar.model_copy(update={"looks": 9.0})
    write_toml(tmp_path / "data" / "dataset.toml", config.model_copy(update={"sar": sar}))
    with pytest.raises(DatasetError, match=r"looks=9.0.*the student"):
        train_qat(
            PairFolder.open(tmp_path / "data"),
            recipe(distill={"method": "none"}),
            tmp_path / "run",
            start=runs / "student",
        )


def test_without_modelopt_nothing_is_begun(
    runs: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(MissingExtraError, match=r"quantisation-aware training needs .*'hfd-edge\[qat\]'"):
        train_qat(PairFolder.open(pairs), recipe(), tmp_path / "run", start=runs / "student")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"amax": {"encoder.body.conv1.0": -1.0}}'])
def test_damaged_ranges_are_named(qat: Run, tmp_path: Path, content: str) -> None:
    shutil.copytree(qat.path, tmp_path / "run")
    (tmp_path / "run" / "quantizers.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"quantizers.json is missing or damaged .*Copy the whole run"):
        Run.open(tmp_path / "run").quantizers()


def test_only_these_runs_have_quantisers(runs: Path) -> None:
    with pytest.raises(CheckpointError, match="was trained without quantisers. Train it with --qat"):
        quantised_network(Run.open(runs / "student"))


def test_the_command(runs: Path, pairs: Path, tmp_path: Path) -> None:
    arguments = ["--data", pairs, "--teacher", runs / "teacher", "--qat", runs / "student"]
    arguments += ["--out", tmp_path / "run", "--set", "qat.epochs=1", "--json"]
    recipe_file = runs / "student" / "recipe.toml"
    result = CliRunner().invoke(app, ["train", "student", *map(str, [recipe_file, *arguments])])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["epochs"] == 1
    assert Run.open(tmp_path / "run").quantizers()
