"""Baselines train in the student's own loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.config import write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.export import export_run
from hfd_edge.errors import CheckpointError, ExportError, RecipeError
from hfd_edge.evaluation import measure, open_predictor
from hfd_edge.hfdnet.baselines import ARCHITECTURES
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.training.baselines import train_baseline
from hfd_edge.training.fit import train_student

TINY = {"encoder": "mobilenetv3_small_050", "channels": 8, "init": "random"}


runner = CliRunner()


class Stop(Exception):
    """Ends a training in the middle."""


def test_a_baseline_is_trained_evaluated_and_not_exported(
    folder: PairFolder, pairs: Path, recipe, tmp_path: Path
) -> None:
    settings = recipe(network=TINY, training={"epochs": 1})
    run = train_baseline(folder, settings, tmp_path / "run", arch="Unet")
    assert run == Run.open(run.path)
    assert (run.info.kind, run.info.arch) == ("baseline", "Unet")
    assert run.recipe.distill.method == "none"  # the recipe's hfdm means nothing here
    assert run.metrics()["history"][0].keys() >= {"ce", "dice"}

    student = train_student(
        folder, recipe(network=TINY, training={"epochs": 1}, distill={"method": "none"}), tmp_path / "student"
    )
    assert run.info.preprocessing == student.info.preprocessing
    assert run.metrics()["steps"] == student.metrics()["steps"]

    scores = measure(run.path, pairs)
    assert scores["tiles"] == 2
    assert 0 <= scores["miou"] <= 1
    pair = folder.pairs("test")[0]
    with open_predictor(run.path) as predict:
        assert predict(folder.load_sar(pair)).shape == (80, 80)
    with pytest.raises(ExportError, match=r"is a baseline \(Unet\): baselines are for comparison"):
        export_run(run.path, tmp_path / "unet.hfd")


@pytest.mark.parametrize("arch", ["PSPNet", "DeepLabV3Plus"])  # unused encoder stages; dropout
def test_a_stopped_baseline_goes_on_bit_for_bit(
    arch: str, folder: PairFolder, recipe, tmp_path: Path
) -> None:
    settings = recipe(network=TINY, training={"epochs": 2})

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("baseline") and done == 3:
            raise Stop

    straight = train_baseline(folder, settings, tmp_path / "straight", arch=arch)
    with pytest.raises(Stop):
        train_baseline(folder, settings, tmp_path / "stopped", arch=arch, progress=stop)
    with pytest.raises(CheckpointError, match=f"architecture {arch}, not of FPN. Give --arch {arch}"):
        train_baseline(folder, settings, tmp_path / "stopped", arch="FPN", resume=True)
    resumed = train_baseline(folder, settings, tmp_path / "stopped", arch=arch, resume=True)
    first, second = (read_tensors(run.weights_path)[0] for run in (straight, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_trains_what_evaluate_scores(pairs: Path, recipe, tmp_path: Path) -> None:
    write_toml(tmp_path / "r.toml", recipe(network=TINY, training={"epochs": 1}))
    command = ["train", "baseline", tmp_path / "r.toml", "--arch", "FPN", "--data", pairs, "--json"]
    trained = runner.invoke(app, [str(word) for word in (*command, "--out", tmp_path / "run")])
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(trained.stdout)["kind"] == "baseline"
    assert Run.open(tmp_path / "run").info.versions["segmentation-models-pytorch"]
    for command in (["evaluate", tmp_path / "run", "--data", pairs], ["inspect", tmp_path / "run"]):
        done = runner.invoke(app, [str(word) for word in (*command, "--json")])
        assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["arch"] == "FPN"
    help_text = runner.invoke(app, ["train", "baseline", "--help"]).stdout
    assert all(name in help_text for name in ARCHITECTURES)


def test_refusals(folder: PairFolder, recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RecipeError, match="no baseline architecture 'Vnet'"):
        train_baseline(folder, recipe(), out, arch="Vnet")
    with pytest.raises(RecipeError, match='network.init is "teacher", but a baseline is not built like'):
        train_baseline(folder, recipe(network={"init": "teacher"}), out, arch="Unet")
    with pytest.raises(RecipeError, match="training.batch is 1, but several baselines pool the whole image"):
        train_baseline(folder, recipe(training={"batch": 1}), out, arch="Unet")
    assert not out.exists()
