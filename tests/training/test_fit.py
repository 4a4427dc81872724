"""Training teacher and student on tiny simulated pairs, and every refusal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hfd_edge.config import DatasetConfig, Recipe, read_toml, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import CheckpointError, DatasetError, RecipeError, StorageError
from hfd_edge.files import resource_folder, sha256
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.raster.image import write_image
from hfd_edge.training.fit import train_student, train_teacher


@pytest.fixture(scope="session")
def teacher(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    network = {"encoder": "resnet10t", "channels": 16, "init": "random"}
    recipe = Recipe.model_validate({"network": network, "training": {"epochs": 1, "batch": 4, "crop_px": 64}})
    train_teacher(PairFolder.open(pairs), recipe, out)
    return out


def test_a_teacher_run_is_complete(folder: PairFolder, recipe, tmp_path: Path) -> None:
    texts: list[str] = []
    epochs: list[tuple[Path, int]] = []
    run = train_teacher(
        folder,
        recipe(),
        tmp_path / "run",
        progress=lambda done, total, text: texts.append(f"{done:g}/{total:g} {text}"),
        on_epoch=lambda path, history: epochs.append((path, len(history))),
    )
    assert epochs == [(run.path, 1), (run.path, 2)]
    assert texts[-1].startswith("4/4 teacher epoch 2/2 loss ")
    assert texts[-1].endswith(" img/s")
    assert " mIoU 0." in texts[-1]
    names = {path.name for path in run.path.iterdir()}
    assert names == {"best.safetensors", "last.ckpt.safetensors", "recipe.toml", "run.json", "metrics.json"}
    assert Run.open(run.path) == run
    assert run.info.kind == "teacher"
    assert run.info.data_sha256 == folder.sha256
    assert run.network().bands == 3


def test_metrics_agree_with_the_history(folder: PairFolder, teacher: Path, recipe, tmp_path: Path) -> None:
    run = train_student(folder, recipe(distill={"method": "hfdm+logits"}), tmp_path / "run", teacher=teacher)
    metrics = run.metrics()
    history = metrics["history"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert [row["step"] for row in history] == [2, 4]
    best = max(history, key=lambda row: row["miou"])
    assert metrics["best_epoch"] == best["epoch"]
    assert metrics["miou"] == best["miou"]
    assert set(metrics["iou"]) == set(folder.config.classes)
    assert {"loss", "ce", "dice", "feature", "cwd", "logits", "lr"} <= set(history[0])
    assert metrics["images_per_second"] > 0
    assert metrics["seconds"] > 0
    assert metrics["device"].startswith(("CPU", "NVIDIA"))
    assert metrics["pixels"] <= 2 * 80 * 80


@pytest.mark.parametrize("method", ["none", "logits", "fitnet", "cwd", "hfdm", "hfdm+logits"])
def test_every_method_trains(method: str, folder: PairFolder, teacher: Path, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": method, "correct_only": True, "pool": True}, training={"epochs": 1})
    run = train_student(folder, settings, tmp_path / "run", teacher=teacher)
    assert run.info.preprocessing is not None
    assert run.info.teacher_sha256 == (None if method == "none" else sha256(teacher / "best.safetensors"))
    weights, _ = read_tensors(run.weights_path)
    assert not [name for name in weights if "projector" in name]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_loss_falls(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"epochs": 6})
    history = train_student(folder, settings, tmp_path / "run").metrics()["history"]
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def test_equal_seeds_give_equal_bits_and_others_do_not(folder: PairFolder, recipe, tmp_path: Path) -> None:
    weights = []
    for name, seed, cache_mb in (("a", 0, 4096), ("b", 0, 0), ("c", 1, 4096)):
        settings = recipe(
            distill={"method": "none"}, training={"epochs": 1, "seed": seed, "cache_mb": cache_mb}
        )
        weights.append(read_tensors(train_student(folder, settings, tmp_path / name).weights_path)[0])
    first, same, other = weights
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_training_leaves_global_settings_alone(folder: PairFolder, recipe, tmp_path: Path) -> None:
    state, deterministic = torch.random.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    train_student(folder, recipe(distill={"method": "none"}, training={"epochs": 1}), tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_bf16_trains_on_the_cpu(folder: PairFolder, teacher: Path, recipe, tmp_path: Path) -> None:
    settings = recipe(training={"precision": "bf16-mixed", "epochs": 1})
    run = train_student(folder, settings, tmp_path / "run", teacher=teacher)
    assert run.network().classifier.weight.dtype == torch.float32
    assert run.metrics()["precision"] == "bf16-mixed"


def test_the_student_may_start_from_the_teacher(
    folder: PairFolder, teacher: Path, recipe, tmp_path: Path
) -> None:
    settings = recipe(
        network={"init": "teacher"},
        distill={"method": "none"},
        training={"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0},
    )
    run = train_student(folder, settings, tmp_path / "run", teacher=teacher)
    theirs, ours = read_tensors(teacher / "best.safetensors")[0], read_tensors(run.weights_path)[0]
    torch.testing.assert_close(ours["classifier.weight"], theirs["classifier.weight"])
    stem = theirs["encoder.body.conv1.0.weight"].sum(1, keepdim=True) / 2
    torch.testing.assert_close(ours["encoder.body.conv1.0.weight"], stem.expand(-1, 2, -1, -1))
    with pytest.raises(RecipeError, match='network.init = "teacher", which needs a teacher'):
        train_student(folder, settings, tmp_path / "other")


def test_a_teacher_of_another_width_teaches(
    folder: PairFolder, teacher: Path, recipe, tmp_path: Path
) -> None:
    settings = recipe(network={"channels": 8}, training={"epochs": 1})
    run = train_student(folder, settings, tmp_path / "run", teacher=teacher)
    assert run.network().classifier.in_channels == 8


def test_a_missing_teacher_names_both_ways_out(folder: PairFolder, recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'distill.method = "hfdm".*--teacher RUN.*distill.method=none'):
        train_student(folder, recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_is_no_teacher(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"epochs": 1})
    train_student(folder, settings, tmp_path / "student")
    with pytest.raises(RecipeError, match="is the run of a student, not of a teacher"):
        train_student(folder, recipe(), tmp_path / "run", teacher=tmp_path / "student")


def changed_copy(pairs: Path, to: Path, **changes) -> PairFolder:
    shutil.copytree(pairs, to)
    config = read_toml(to / "dataset.toml", DatasetConfig)
    write_toml(to / "dataset.toml", config.model_copy(update=changes))
    return PairFolder.open(to)


def test_a_teacher_of_other_classes_or_bands_is_refused(
    pairs: Path, teacher: Path, recipe, tmp_path: Path
) -> None:
    config = PairFolder.open(pairs).config
    renamed = changed_copy(pairs, tmp_path / "a", classes=("sea", *config.classes[1:]))
    with pytest.raises(RecipeError, match=r"knows the classes \['water'.*has \['sea'"):
        train_student(renamed, recipe(), tmp_path / "run", teacher=teacher)
    scaled = changed_copy(pairs, tmp_path / "b", eo=config.eo.model_copy(update={"scale": 300.0}))
    with pytest.raises(RecipeError, match="was trained on EO input"):
        train_student(scaled, recipe(), tmp_path / "run", teacher=teacher)


def test_existing_output_is_refused_and_untouched(folder: PairFolder, recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match=r"already exists.*--resume"):
        train_teacher(folder, recipe(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_resuming_nothing_is_refused(folder: PairFolder, recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no run .* Leave out --resume"):
        train_teacher(folder, recipe(), tmp_path / "run", resume=True)


def test_a_finished_run_is_returned_as_it_is(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"epochs": 1})
    run = train_student(folder, settings, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    steps: list[str] = []
    train_student(
        folder, settings, run.path, resume=True, progress=lambda done, total, text: steps.append(text)
    )
    assert not [text for text in steps if "epoch" in text]
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_resume_refuses_another_recipe_data_or_kind(
    pairs: Path, folder: PairFolder, recipe, tmp_path: Path
) -> None:
    none = {"method": "none"}
    settings = recipe(distill=none, training={"epochs": 1})
    train_student(folder, settings, tmp_path / "run")
    other = recipe(distill=none, training={"epochs": 1, "learning_rate": 0.5}, network={"hfam": False})
    with pytest.raises(
        CheckpointError, match=r"network.hfam was True, is False; training.learning_rate was 0.002, is 0.5"
    ):
        train_student(folder, other, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="is the run of a student, not of a teacher"):
        train_teacher(folder, settings, tmp_path / "run", resume=True)
    grown = changed_copy(pairs, tmp_path / "data", source="another source")
    with pytest.raises(CheckpointError, match=r"begun with another data \(data_sha256\)"):
        train_student(grown, settings, tmp_path / "run", resume=True)


def test_resume_refuses_another_teacher(folder: PairFolder, teacher: Path, recipe, tmp_path: Path) -> None:
    train_student(folder, recipe(training={"epochs": 1}), tmp_path / "run", teacher=teacher)
    train_teacher(folder, recipe(training={"epochs": 1, "seed": 9}), tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"begun with another teacher \(teacher_sha256\)"):
        train_student(
            folder,
            recipe(training={"epochs": 1}),
            tmp_path / "run",
            teacher=tmp_path / "teacher",
            resume=True,
        )


def test_interrupted_between_steps_goes_on(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"})

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("student") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(folder, settings, tmp_path / "run", progress=stop)
    resumed = train_student(folder, settings, tmp_path / "run", resume=True)
    straight = train_student(folder, settings, tmp_path / "straight")
    for name in ("model", "best"):
        first, second = (
            {k: v for k, v in read_tensors(run.checkpoint_path)[0].items() if k.startswith(name)}
            for run in (resumed, straight)
        )
        assert first and all(torch.equal(first[key], second[key]) for key in first)
    rows = [run.metrics()["history"] for run in (resumed, straight)]
    assert rows[0] == rows[1]


def test_a_damaged_checkpoint_is_named(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"epochs": 1})
    run = train_student(folder, settings, tmp_path / "run")
    run.checkpoint_path.write_bytes(run.checkpoint_path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"last.ckpt.safetensors \(5000 bytes\) is damaged"):
        train_student(folder, settings, run.path, resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(
    folder: PairFolder, recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(distill={"method": "none"})
    import hfd_edge.files as files

    flush, writes = files._flush_to_disk, []

    def fills_up(path: Path) -> None:
        writes.append(path)
        if len(writes) > 4:  # recipe.toml, run.json and two checkpoints fit
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(files, "_flush_to_disk", fills_up)
    with pytest.raises(StorageError, match="Free some space"):
        train_student(folder, settings, tmp_path / "run")
    monkeypatch.undo()
    run = train_student(folder, settings, tmp_path / "run", resume=True)
    assert run.metrics()["epochs"] == 2
    assert not [path for path in run.path.iterdir() if path.name.startswith(".writing")]


def test_a_diverging_loss_stops_with_advice(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(RecipeError, match=r"training has diverged. Lower training.learning_rate"):
        train_student(folder, settings, tmp_path / "run")


def test_labels_that_are_all_unknown_are_refused(pairs: Path, teacher: Path, recipe, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    for path in (tmp_path / "data" / "train" / "label").iterdir():
        write_image(path, np.full((1, 80, 80), 255, np.uint8))
    folder = PairFolder.open(tmp_path / "data")
    with pytest.raises(DatasetError, match="No training pixel of .* has a label.*'train'"):
        train_teacher(folder, recipe(), tmp_path / "teacher")
    # The teacher's logits alone can teach classes.
    train_student(folder, recipe(distill={"method": "logits"}), tmp_path / "run", teacher=teacher)


def test_a_batch_of_a_single_cell_is_refused(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"batch": 1, "crop_px": 32})
    with pytest.raises(RecipeError, match=r"training.batch is 1 and training.crop_px 32.*at least"):
        train_student(folder, settings, tmp_path / "run")


def test_what_fails_before_the_first_step_leaves_no_run(
    folder: PairFolder, teacher: Path, recipe, tmp_path: Path
) -> None:
    unknown = recipe(network={"encoder": "resnet81"})
    with pytest.raises(RecipeError, match="resnet81"):
        train_teacher(folder, unknown, tmp_path / "run")
    shutil.copytree(teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "best.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        train_student(folder, recipe(), tmp_path / "run", teacher=tmp_path / "teacher")
    assert not (tmp_path / "run").exists()


def test_killed_after_the_checkpoint_the_rest_is_made_up(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill={"method": "none"}, training={"epochs": 1})
    run = train_student(folder, settings, tmp_path / "run")
    metrics = run.metrics()
    for name in ("best.safetensors", "metrics.json"):
        (run.path / name).unlink()
    drawn: list[int] = []
    train_student(
        folder, settings, run.path, resume=True, on_epoch=lambda path, rows: drawn.append(len(rows))
    )
    assert run.metrics() == metrics
    assert run.network() is not None
    assert drawn == [1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="only refused without a GPU")
def test_float16_needs_a_gpu(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(training={"precision": "16-mixed"})
    with pytest.raises(RecipeError, match="needs an NVIDIA GPU"):
        train_teacher(folder, settings, tmp_path / "run")


def test_missing_files_are_refused_before_training(
    pairs: Path, teacher: Path, recipe, tmp_path: Path
) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "train" / "eo")
    folder = PairFolder.open(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"Split 'train' of .* no pair with an EO image.*Add eo/ files"):
        train_student(folder, recipe(), tmp_path / "run", teacher=teacher)
    none = recipe(distill={"method": "none"}, training={"epochs": 1})
    train_student(folder, none, tmp_path / "sar_only")  # does not look at EO
    shutil.rmtree(tmp_path / "data" / "val" / "label")
    with pytest.raises(DatasetError, match="Split 'val' of .* has no pair with a label"):
        train_student(PairFolder.open(tmp_path / "data"), none, tmp_path / "run")


@pytest.mark.parametrize("name", ["demo", "flood", "ombria", "simulated"])
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = read_toml(resource_folder("recipes") / f"{name}.toml", Recipe)
    assert recipe.network.preset == "s"
    assert recipe.distill.method != "none"
