"""The model card says what the run folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.config import DatasetConfig, NetworkRecipe, Recipe, read_toml, tomllib
from hfd_edge.errors import CheckpointError
from hfd_edge.files import resource_folder, sha256
from hfd_edge.hfdnet.card import model_card
from hfd_edge.hfdnet.network import from_recipe
from hfd_edge.hfdnet.run import Run, RunInfo
from hfd_edge.sar.preprocessing import Preprocessing

SMALL = {"encoder": "mobilenetv3_small_050", "channels": 8, "init": "random"}
DATASET = {
    "name": "delta",
    "classes": ["land", "water"],
    "palette": [[0, 0, 0], [1, 1, 1]],
    "sar": {"bands": ["vv", "vh"], "units": "intensity", "looks": 4.4, "nodata": 0.0},
    "source": "Delta Survey 2024, CC BY 4.0.",
}
CLIP, MEAN, STD = ((-30.0, 0.5), (-35.0, -5.0)), (-12.25, -18.0), (4.0, 4.5)
SAR = Preprocessing("intensity", 4.4, 0.0, "lee", 7, CLIP, MEAN, STD)
VAL = {
    "miou": 0.71,
    "iou": {"land": 0.8, "water": None},
    "accuracy": 0.9,
    "tiles": 3,
    "best_epoch": 2,
    "epochs": 5,
}


CWD = Recipe.model_validate({"split": "coast", "network": SMALL, "distill": {"method": "cwd"}})


def make(path: Path, *, weights: bool = True, recipe: Recipe = CWD, **changes) -> Run:
    fields = {
        "kind": "student",
        "dataset": DatasetConfig.model_validate(DATASET),
        "preprocessing": SAR,
        "data_sha256": "d" * 64,
        "teacher_sha256": "e" * 64,
        "versions": {"torch": "9.9"},
        "commit": "abc123",
        "created": "2026-01-01T00:00:00+00:00",
    }
    run = Run.create(path, recipe, RunInfo(**{**fields, **changes}))
    if weights:
        torch.manual_seed(0)
        run.save_best(run.untrained_network().state_dict())
        run.save_metrics({**VAL, "steps": 40, "device": "CPU, 1 threads"})
    return run


def test_a_students_card(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    test = {
        "split": "test",
        "miou": 0.625,
        "iou": {"land": 0.75, "water": 0.5},
        "accuracy": 0.875,
        "tiles": 9,
    }
    card = model_card(run, scores=[{**test, "mf1": 0.8125, "ece": None}])
    count = sum(weight.numel() for weight in run.network().parameters())
    assert card.startswith("# delta student\n")
    for text in (
        "into 2 classes: land, water",
        f"**{count / 1e6:.2f} M parameters**",
        "by `cwd`, from a teacher that sees EO images; it needs SAR alone",
        "units `intensity`, equivalent number of looks 4.4; no-data: NaN and 0.",
        "Speckle filter: lee (7 x 7). Then, in dB,",
        "| vv | -30 to 0.5 | -12.25 | 4 |",
        "|  | test | val, best epoch |",
        "| mIoU | 0.625 | 0.710 |",
        "| mean F1 | 0.812 |  |",
        "| IoU water | 0.500 |  |",
        "| tiles | 9 | 3 |",
        "- data: delta, split scheme `coast`",
        "- source and licence: Delta Survey 2024, CC BY 4.0.",
        "- best epoch: 2",
        f"- weights, SHA-256: {sha256(run.weights_path)}",
        "- code revision: abc123",
        "arXiv:2210.08988",
    ):
        assert text in card, text
    assert "ECE" not in card and "Not measured" not in card
    assert "distil alone" not in card
    toml = card.split("```toml\n")[1].split("```")[0]
    assert Recipe.model_validate(tomllib.loads(toml)) == run.recipe


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    silent = DatasetConfig.model_validate({**DATASET, "source": ""})
    card = model_card(make(tmp_path / "run", dataset=silent))
    assert "Not measured on a split that the training did not see" in card
    assert "- source and licence: not stated; ask who gave you the data" in card
    with pytest.raises(CheckpointError, match="has no best.safetensors"):
        model_card(make(tmp_path / "begun", weights=False))


def test_a_teachers_card(tmp_path: Path) -> None:
    eo = {"eo_mean": (0.3,) * 3, "eo_std": (0.1,) * 3, "inputs": "eo", "preprocessing": None}
    card = model_card(make(tmp_path / "run", kind="teacher", teacher_sha256=None, **eo))
    assert "Semantic segmentation of EO images" in card
    assert "It learnt from labels alone." in card and "Speckle" not in card
    assert "EO, bands red, green, blue; a stored value of 255 is reflectance 1." in card
    assert "Not for devices: only students are exported." in card


def test_the_command_writes_or_prints_it(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    printed = CliRunner().invoke(app, ["card", str(run.path)])
    assert printed.exit_code == 0 and printed.stdout.strip() == model_card(run).strip()
    written = CliRunner().invoke(app, ["card", str(run.path), "--out", str(tmp_path / "CARD.md")])
    assert written.exit_code == 0 and (tmp_path / "CARD.md").read_text() == model_card(run)


def test_the_small_preset_is_small_enough_for_the_edge() -> None:
    network = from_recipe(NetworkRecipe(preset="s"), bands=2, classes=10)
    assert network.count_parameters() <= 6_000_000


def test_a_card_says_what_was_measured_and_on_what(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    unseen = "Not measured on a split that the training did not see"
    scores = {"split": "val", "miou": 0.5, "iou": {}, "data": "delta", "scheme": "coast"}
    card = model_card(run, scores=[scores])
    assert "|  | val | val, best epoch |" in card and unseen in card
    card = model_card(run, scores=[{**scores, "split": "test", "data": "ombria", "scheme": "event"}])
    assert "|  | test of ombria (scheme event) | val, best epoch |" in card and unseen not in card


def test_a_card_counts_the_pairs(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.save_metrics({**VAL, "steps": 40, "pairs": 12, "unlabelled_pairs": 0})
    assert "- pairs: 12\n" in model_card(run) and "distil alone" not in model_card(run)
    run.save_metrics({**VAL, "steps": 40, "pairs": 12, "unlabelled_pairs": 34})
    card = model_card(run)
    assert "- pairs that distil alone, without a label that is used: 34\n" in card
    assert "- Pairs without label took part: where they show" in card


def test_the_shipped_card_is_of_the_shipped_recipe(root: Path) -> None:
    card = (root / "docs" / "flood-card.md").read_text("utf-8")
    toml = card.split("```toml\n")[1].split("```")[0]
    recipe = read_toml(resource_folder("recipes") / "flood.toml", Recipe)
    assert Recipe.model_validate(tomllib.loads(toml)) == recipe
    (path,) = (root / "benchmarks" / "results").glob("*/ablation-ombria.json")
    name = "new_flood-hfdm+logits-eo_before+after+sar-seed0"
    (run,) = (row for row in json.loads(path.read_text("utf-8"))["rows"] if row["run"] == name)
    assert f"| mIoU | {run['miou']:.3f} |" in card


def test_a_card_of_the_last_epoch(tmp_path: Path) -> None:
    training = CWD.training.model_copy(update={"keep": "last"})
    run = make(tmp_path / "run", recipe=CWD.model_copy(update={"training": training}))
    card, chosen = model_card(run), "The epoch was chosen by the validation split"
    assert "|  | val, last epoch |" in card and "- last epoch: 2" in card and chosen not in card
    assert chosen in model_card(make(tmp_path / "best"))


def test_a_card_tells_of_qat_and_of_the_teachers_weights_without_distillation(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"network": {**SMALL, "init": "teacher"}, "distill": {"method": "none"}})
    for name, changes, text in (
        ("a", {"qat_sha256": "f" * 64}, "It learnt from labels alone. It was then fine-tuned for INT8."),
        ("b", {}, "It learnt from labels alone. Its first weights were the teacher's."),
    ):
        assert text in model_card(make(tmp_path / name, recipe=recipe, **changes))
