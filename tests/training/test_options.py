"""Every option of [training]: what it changes, that it resumes bit for bit, and what it refuses."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.config import Recipe, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import CheckpointError, MissingExtraError, RecipeError
from hfd_edge.hfdnet.distillation import Hfdm, segmentation_losses
from hfd_edge.hfdnet.network import HfdNet, Taps
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.raster.image import write_image
from hfd_edge.training import devices
from hfd_edge.training.average import WeightAverage
from hfd_edge.training.devices import reproducible
from hfd_edge.training.fit import train_student
from hfd_edge.training.identity import identity_of
from hfd_edge.training.loop import Trainer
from hfd_edge.training.objective import Distillation, Objective, Supervision
from hfd_edge.training.pooling import Recorder, pools, still_norms
from hfd_edge.training.supervision import balanced_weights
from hfd_edge.training.tensorboard import TensorBoard

SMALL = {"encoder": "mobilenetv3_small_050", "channels": 8}
ALONE = {"method": "none"}


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return read_tensors(run.checkpoint_path)[0] | read_tensors(run.weights_path)[0]


def same(first: Run, second: Run) -> bool:
    mine, theirs = tensors(first), tensors(second)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def stopped_at(step: int) -> Any:
    def progress(done: float, total: float, text: str, /) -> None:
        if text.startswith("student") and done == step:
            raise KeyboardInterrupt

    return progress


# --- pieces of a batch ---------------------------------------------------------------------------------


def frozen(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


@pytest.mark.parametrize("masked", [True, False])
def test_pieces_have_the_gradient_of_the_whole(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(5, 2, 64, 64, generator=generator)
    label = torch.randint(0, 3, (5, 64, 64), generator=generator)
    label[:2, :, :40] = 255  # pieces know different numbers of pixels
    label[4] = 2  # and of classes
    valid = torch.rand(5, 64, 64, generator=generator) > 0.3 if masked else None
    torch.manual_seed(1)
    teacher = HfdNet(bands=3, classes=3, encoder="resnet10t", channels=8).eval()
    weights = {"hint": 0.2, "feature": 0.3, "cwd": 2.0, "logits": 0.7}
    model = frozen(
        Objective(
            HfdNet(bands=2, classes=3, encoder="resnet10t", channels=8),
            ignore_index=255,
            supervision=Supervision((0.5, 1.0, 3.0), focal_gamma=1.5),
            distillation=Distillation(weights),
            hfdm=Hfdm(8),
        )
    ).double()
    taps = teacher.double().taps(torch.randn(5, 3, 64, 64, generator=generator).double())

    def part(begin: int, end: int) -> tuple[Any, ...]:
        seen = Taps(*(maps[begin:end] for maps in taps))
        mask = None if valid is None else valid[begin:end]
        return pixels[begin:end].double(), label[begin:end], seen, mask, 0.5

    whole = model(*part(0, 5))
    whole["loss"].backward()
    slopes = {name: value.grad for name, value in model.named_parameters()}
    expected = {name: slope.clone() for name, slope in slopes.items() if slope is not None}
    model.zero_grad()
    parts, recorders = [part(0, 2), part(2, 3), part(3, 5)], [Recorder() for _ in range(3)]
    with torch.no_grad():
        for given, recorder in zip(parts, recorders, strict=True):
            model(*given, recorder)
    for given, pool in zip(parts, pools(recorders), strict=True):
        losses = model(*given, pool)
        losses["loss"].backward()
        for name, value in whole.items():  # every piece knows the losses of the whole
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6, check_dtype=False)
    found = dict(model.named_parameters())
    for name, slope in expected.items():
        torch.testing.assert_close(found[name].grad, slope, rtol=1e-3, atol=1e-6)


def test_accumulated_training_is_that_of_the_whole_batch(
    folder: PairFolder, recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "train", lambda self, mode=True: frozen(nn.Module.train(self, mode)))
    runs = []
    for pieces in (1, 3):
        training = {"epochs": 1, "batch": 5, "accumulate": pieces}
        settings = recipe(network=SMALL, distill=ALONE, training=training)
        runs.append(train_student(folder, settings, tmp_path / str(pieces)))
    whole, pieced = (tensors(run) for run in runs)
    for name, value in whole.items():
        if name.endswith("exp_avg"):
            torch.testing.assert_close(pieced[name], value, rtol=1e-3, atol=1e-5)
    losses = [[row["loss"] for row in run.metrics()["history"]] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert runs[1].metrics()["steps"] == runs[0].metrics()["steps"]


def test_looking_at_sums_teaches_the_norms_nothing() -> None:
    norm = nn.BatchNorm2d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    pixels = torch.randn(4, 2, 8, 8)
    with still_norms(norm):
        seen = norm(pixels)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(norm(pixels), seen)  # standardised as in training
    assert not torch.equal(norm.running_mean, before["running_mean"])


def test_more_pieces_than_samples_are_refused(folder: PairFolder, recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate is 5, but a batch of 4 cannot have more pieces"):
        recipe(training={"accumulate": 5})
    single = recipe(distill=ALONE, training={"batch": 3, "accumulate": 2, "crop_px": 32})
    with pytest.raises(RecipeError, match=r"batch is 3 in 2 pieces and training.crop_px 32.*at least 4, or"):
        train_student(folder, single, tmp_path / "run")


# --- average of the weights ----------------------------------------------------------------------------


def test_the_average_is_the_documented_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = WeightAverage(network, 0.5)
    expected = network[0].weight.item()
    for step in range(12):
        with torch.no_grad():
            network[0].weight.fill_(float(step))
            network[1].num_batches_tracked.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(average.tensors["0.weight"]) == pytest.approx(expected, rel=1e-5)
    assert int(average.tensors["1.num_batches_tracked"]) == 11
    with pytest.raises(KeyError):
        with average.in_place():
            assert network[0].weight.item() == float(average.tensors["0.weight"])
            raise KeyError
    assert network[0].weight.item() == 11


@pytest.fixture(scope="module")
def averaging() -> dict[str, Any]:
    training = {"epochs": 2, "batch": 4, "crop_px": 64, "learning_rate": 2e-3, "checkpoint_every": 1}
    return {"network": {**SMALL, "init": "random"}, "distill": ALONE, "training": {**training, "ema": 0.9}}


def test_the_average_is_what_is_kept_and_it_resumes(
    folder: PairFolder, averaging: dict[str, Any], tmp_path: Path
) -> None:
    settings = Recipe.model_validate(averaging)
    straight = train_student(folder, settings, tmp_path / "straight")
    checkpoint, best = read_tensors(straight.checkpoint_path)[0], read_tensors(straight.weights_path)[0]
    assert straight.metrics()["best_epoch"] in (1, 2)
    name = "classifier.weight"
    assert not torch.equal(best[name], checkpoint[f"model/network.{name}"])
    if straight.metrics()["best_epoch"] == 2:
        assert torch.equal(best[name], checkpoint[f"average/{name}"])
    with pytest.raises(KeyboardInterrupt):
        train_student(folder, settings, tmp_path / "halted", progress=stopped_at(3))
    assert same(train_student(folder, settings, tmp_path / "halted", resume=True), straight)
    plain = settings.model_copy(update={"training": settings.training.model_copy(update={"ema": 0.0})})
    with pytest.raises(CheckpointError, match=r"training.ema was 0.9, is 0.0"):
        train_student(folder, plain, straight.path, resume=True)


# --- what counts ---------------------------------------------------------------------------------------


def test_weighted_cross_entropy_equals_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 16, 16, generator=generator)
    label = torch.randint(0, 3, (2, 16, 16), generator=generator)
    label[0, :4] = 255
    weights = torch.tensor([0.2, 1.0, 5.0])
    losses = segmentation_losses(logits, label, ignore_index=255, class_weights=weights)
    expected = F.cross_entropy(logits, label, weight=weights, ignore_index=255)
    torch.testing.assert_close(losses["ce"], expected)
    none = torch.full_like(label, 255)
    assert segmentation_losses(logits, none, ignore_index=255, class_weights=weights)["ce"] == 0
    focal = segmentation_losses(logits, label, ignore_index=255, focal_gamma=2.0)["ce"]
    right = logits.softmax(1).gather(1, label.where(label != 255, 0)[:, None])[:, 0][label != 255]
    torch.testing.assert_close(focal, (-((1 - right) ** 2) * right.log()).mean())


def test_focal_slopes_are_finite_where_all_is_right() -> None:
    logits = torch.tensor([100.0, -100.0])[None, :, None, None].repeat(1, 1, 8, 8).requires_grad_()
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    segmentation_losses(logits, label, ignore_index=255, focal_gamma=0.5)["ce"].backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_balanced_weights_are_median_frequencies(pairs: Path, tmp_path: Path) -> None:
    folder = PairFolder.open(pairs)
    config = folder.config
    labels = [np.full((80, 80), 255, np.uint8) for _ in range(2)]
    labels[0][0, :4], labels[1][0, :3] = (0, 0, 0, 1), (0, 2, 2)
    (tmp_path / "label").mkdir()
    listed = []
    for number, (pair, label) in enumerate(zip(folder.pairs("train"), labels, strict=False)):
        path = tmp_path / "label" / f"{number}.png"
        write_image(path, label[None])
        listed.append(replace(pair, label=path))
    weights = balanced_weights(folder, [*listed, replace(listed[0], label=None)])
    # Class 0 has 4 of the 7 known pixels around it, class 1 has 1 of 4, class 2 has 2 of 3; no other occurs.
    frequency = np.array([4 / 7, 1 / 4, 2 / 3])
    np.testing.assert_allclose(weights[:3], np.median(frequency) / frequency)
    assert weights[3:] == (1.0,) * (len(config.classes) - 3)


def test_weights_must_be_one_a_class(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(distill=ALONE, training={"class_weights": [1.0, 2.0]})
    with pytest.raises(
        RecipeError, match=r"class_weights has 2 numbers, but .* has the \d classes \['water'"
    ):
        train_student(folder, settings, tmp_path / "run")
    with pytest.raises(ValueError, match="class_weights are all 0"):
        recipe(training={"class_weights": [0.0, 0.0]})


def test_rare_classes_count_in_training(folder: PairFolder, recipe, tmp_path: Path) -> None:
    runs = []
    for name, options in (("a", {"class_weights": "balanced", "focal_gamma": 2.0}), ("b", {})):
        settings = recipe(network=SMALL, distill=ALONE, training={"epochs": 1, **options})
        runs.append(train_student(folder, settings, tmp_path / name))
    first, second = (run.metrics()["history"][0]["ce"] for run in runs)
    assert first < second  # focal losses are smaller
    names = read_tensors(runs[0].checkpoint_path)[0].keys()
    assert names == read_tensors(runs[1].checkpoint_path)[0].keys()


# --- when it ends --------------------------------------------------------------------------------------


def test_it_stops_when_nothing_gets_better(
    folder: PairFolder, recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Nothing is learnt, so no epoch beats the first.
    training = {
        "epochs": 9,
        "batch": 6,
        "learning_rate": 1e-30,
        "weight_decay": 0.0,
        "patience": 2,
        "ema": 0.0,
    }
    settings = recipe(network=SMALL, distill=ALONE, training=training)
    run = train_student(folder, settings, tmp_path / "run")
    metrics = run.metrics()
    assert metrics["epochs"] < 9
    assert metrics["epochs"] == metrics["best_epoch"] + 2
    assert metrics["ended"] == "no better validation mIoU in 2 epochs (training.patience)"
    rates = [row["lr"] for row in metrics["history"]]
    assert rates[0] == pytest.approx(1e-30, rel=0.01)  # of the schedule of nine epochs
    before = {path.name: path.stat().st_mtime_ns for path in run.path.glob("last*")}
    with caplog.at_level(logging.WARNING, logger="hfd_edge.training"):
        train_student(folder, settings, run.path, resume=True, progress=stopped_at(metrics["steps"] + 1))
    assert "has stopped: no better validation mIoU in 2 epochs" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in run.path.glob("last*")} == before
    assert run.metrics() == metrics


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_last_epoch_is_kept_where_the_recipe_says_so(
    ema: float, folder: PairFolder, recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter((0.9, 0.8, 0.7, 0.6, 0.5))
    validate = Trainer._validate
    monkeypatch.setattr(Trainer, "_validate", lambda self: {**validate(self), "miou": next(falling)})
    settings = recipe(network=SMALL, distill=ALONE, training={"epochs": 4, "keep": "last", "ema": ema})
    with pytest.raises(KeyboardInterrupt):
        train_student(folder, settings, tmp_path / "run", progress=stopped_at(5))
    run = train_student(folder, settings, tmp_path / "run", resume=True)
    metrics, (checkpoint, _) = run.metrics(), read_tensors(run.checkpoint_path)
    assert (metrics["best_epoch"], metrics["miou"]) == (4, metrics["history"][-1]["miou"])
    assert metrics["miou"] < metrics["history"][0]["miou"]
    for name, value in read_tensors(run.weights_path)[0].items():
        source = checkpoint[f"average/{name}" if ema else f"model/network.{name}"]
        assert torch.equal(source.to(value.dtype), value), name


def test_keeping_the_last_epoch_goes_with_no_patience() -> None:
    with pytest.raises(ValueError, match='keep = "last" does not look for; set patience = 0'):
        Recipe.model_validate({"training": {"keep": "last", "patience": 3}})


def test_a_training_to_the_end_says_so(folder: PairFolder, recipe, tmp_path: Path) -> None:
    settings = recipe(network=SMALL, distill=ALONE, training={"epochs": 2, "patience": 2})
    with pytest.raises(KeyboardInterrupt):
        train_student(folder, settings, tmp_path / "run", progress=stopped_at(4))
    assert Run.open(tmp_path / "run").metrics()["ended"] is None
    assert (
        train_student(folder, settings, tmp_path / "run", resume=True).metrics()["ended"]
        == "all epochs are done"
    )


# --- repeatable, and seen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "device", "remedy"),
    [
        ("grid_sampler_2d_backward_cuda", "meta", 'Set network.warp = "gather", or set training.determin'),
        ("some_backward_cuda", "meta", "Choose another encoder, or set training.deterministic = false"),
        ("some_backward", "cpu", "Choose another encoder."),
    ],
)
def test_an_operator_without_deterministic_form_is_named(operator: str, device: str, remedy: str) -> None:
    # A device of no machine stands for a GPU; only whether it is a CPU matters here.
    message = rf"operator {operator} has no deterministic form on this {device.upper()}, .*{remedy}"
    with pytest.raises(RecipeError, match=message):
        with reproducible(torch.device(device), 0, deterministic=True):
            raise RuntimeError(f"{operator} does not have a deterministic implementation, but you set ...")
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another fault"):
        with reproducible(torch.device("cpu"), 0):
            raise RuntimeError("another fault")


def test_determinism_is_asked_for_on_any_device_when_wanted() -> None:
    for wanted in (False, True):
        with reproducible(torch.device("meta"), 0, deterministic=wanted):
            assert torch.are_deterministic_algorithms_enabled() is wanted


def test_tensorboard_has_every_epoch_once(tmp_path: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    row = {"lr": 1e-3, "miou": 0.5, "iou": {"water": 0.25, "none": None}, "loss": 1.5, "ce": 1.0}
    rows = [{"epoch": epoch, "step": 3 * epoch, **row, "loss": 1.5 - epoch} for epoch in (1, 2, 3)]
    first = TensorBoard()
    first(tmp_path, rows[:1])
    first(tmp_path, rows[:2])
    first.close()
    resumed = TensorBoard()
    resumed(tmp_path, rows[:2])
    resumed(tmp_path, rows)
    resumed.close()
    seen = events.EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    tags = {"loss/loss", "loss/ce", "validation/miou", "iou/water", "schedule/lr", "schedule/epoch"}
    assert set(seen.Tags()["scalars"]) == tags
    assert [(event.step, event.value) for event in seen.Scalars("loss/loss")] == [
        (3, 0.5),
        (6, -0.5),
        (9, -1.5),
    ]


def test_the_first_process_draws_and_prints_alone(
    pairs: Path, recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    write_toml(tmp_path / "r.toml", recipe(network=SMALL, distill=ALONE))
    command = ["train", "student", str(tmp_path / "r.toml"), "--data", str(pairs), "--tensorboard", "--json"]
    command += ["--set", "training.epochs=1", "--out"]
    first = CliRunner().invoke(app, [*command, str(tmp_path / "first")])
    assert json.loads(first.stdout)["ended"] == "all epochs are done", first.output
    assert (tmp_path / "first" / "curves.png").is_file()
    assert list((tmp_path / "first" / "tensorboard").glob("events.out.tfevents.*"))
    monkeypatch.setattr(devices, "leads", lambda: False)
    second = CliRunner().invoke(app, [*command, str(tmp_path / "second")])
    assert (second.exit_code, second.stdout) == (0, "")
    assert not (tmp_path / "second" / "curves.png").exists()
    assert not (tmp_path / "second" / "tensorboard").exists()


def test_without_tensorboard_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"--tensorboard needs .*'hfd-edge\[tensorboard\]'"):
        TensorBoard()


def test_checkpoints_of_before_these_options_go_on(folder: PairFolder, recipe, tmp_path: Path) -> None:
    run = train_student(
        folder, recipe(network=SMALL, distill=ALONE, training={"epochs": 1}), tmp_path / "run"
    )
    options = ("accumulate", "ema", "class_weights", "focal_gamma", "patience", "deterministic")
    options += ("keep", "label_share")
    changed = {"accumulate": 2, "ema": 0.5, "class_weights": "balanced", "focal_gamma": 1.0, "patience": 3}
    changed |= {"keep": "last", "label_share": 0.5}
    for key in options:
        training = run.recipe.training.model_copy(update={key: changed.get(key, True)})
        other = replace(run, recipe=run.recipe.model_copy(update={"training": training}))
        assert identity_of(other) != identity_of(run), key
    text = (run.path / "recipe.toml").read_text()
    kept = [line for line in text.splitlines() if line.split(" ")[0] not in options]
    assert len(kept) == len(text.splitlines()) - len(options)
    (run.path / "recipe.toml").write_text("\n".join(kept))
    assert identity_of(Run.open(run.path)) == identity_of(run)
