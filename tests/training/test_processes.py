"""Two processes that torchrun starts train what one does, go on where they stopped, and end together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfd_edge.config import Recipe, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import RecipeError
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.training import devices, fit
from hfd_edge.training.objective import Objective

SCRIPT = """
import sys, warnings
from pathlib import Path
from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import RecipeError
from hfd_edge.training import fit
from hfd_edge.training.devices import leads
from tests_processes import Still

fit.Objective = Still
data, root = Path(sys.argv[1]), Path(sys.argv[2])
folder = PairFolder.open(data)
recipe = read_toml(root / "recipe.toml", Recipe)

def stop(done, total, text):
    if text.startswith("student") and done == 2:
        raise KeyboardInterrupt

def told(path, history):
    print("told", leads(), path.name, len(history), flush=True)

options = {"teacher": root / "teacher", "on_epoch": told}
for name, changes in (("shared", {}), ("pieces", {"accumulate": 2})):
    training = recipe.training.model_copy(update=changes)
    changed = recipe.model_copy(update={"training": training})
    try:
        fit.train_student(folder, changed, root / name, progress=stop, **options)
    except KeyboardInterrupt:
        fit.train_student(folder, changed, root / name, resume=True, **options)
greedy = recipe.model_copy(update={"training": recipe.training.model_copy(update={"accumulate": 4})})
try:
    fit.train_student(folder, greedy, root / "greedy", **options)
except RecipeError as error:
    print("refused", leads(), error, flush=True)

def fail(done, total, text):
    if not leads():
        raise RuntimeError("the second process fails")

fit.train_student(folder, recipe, root / "failed", progress=fail, **options)
print("finished", flush=True)
"""
FROZEN = '''
from torch import nn
from hfd_edge.training.objective import Objective

class Still(Objective):
    """No batch normalisation learns or sees the batch, so that shares of a batch can be compared with it."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
'''


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Objective]:
    (tmp_path / "tests_processes.py").write_text(FROZEN)
    space: dict[str, type[Objective]] = {}
    exec(FROZEN, space)
    return space["Still"]


def distance(run: Run, other: Run, *parts: str) -> float:
    """Largest difference between tensors of two checkpoints, of the names that hold all parts."""
    found, expected = (read_tensors(each.checkpoint_path)[0] for each in (run, other))
    names = [name for name in expected if all(part in name for part in parts) and "exp_avg_sq" not in name]
    assert names and found.keys() == expected.keys()
    return max(float((found[name].double() - expected[name].double()).abs().max()) for name in names)


def largest_moment(run: Run) -> float:
    """Of AdamW's first moments."""
    tensors, _ = read_tensors(run.checkpoint_path)
    return max(float(tensor.abs().max()) for name, tensor in tensors.items() if name.endswith("/exp_avg"))


def test_two_processes_equal_one(
    pairs: Path, folder: PairFolder, recipe, still: type[Objective], tmp_path: Path, monkeypatch
) -> None:
    small = {"encoder": "mobilenetv3_small_050", "channels": 8}
    settings: Recipe = recipe(
        network=small,
        distill={"method": "hfdm+logits"},
        training={"batch": 5, "ema": 0.5, "learning_rate": 1e-3, "class_weights": "balanced"},
    )
    fit.train_teacher(folder, recipe(network=small, training={"epochs": 1}), tmp_path / "teacher")
    write_toml(tmp_path / "recipe.toml", settings)
    (tmp_path / "script.py").write_text(SCRIPT)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, str(tmp_path / "script.py"), str(pairs), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
    )
    assert done.returncode != 0
    assert "the second process fails" in done.stderr, done.stderr
    assert "finished" not in done.stdout  # the first was ended, though nothing was wrong with it
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith("told")]
    # Resumed within the first epoch: nothing to tell yet. Never by the second process.
    assert told == [f"told True {name} {epoch}" for name in ("shared", "pieces") for epoch in (1, 2)]
    refused = [line for line in lines if line.startswith("refused")]
    assert len(refused) == 2
    assert "training.batch is 5, too few for 2 processes with training.accumulate = 4" in refused[0]
    assert "batch normalisation sees the samples of its own process alone" in done.stderr

    monkeypatch.setattr(fit, "Objective", still)
    alone = fit.train_student(folder, settings, tmp_path / "alone", teacher=tmp_path / "teacher")
    for name in ("shared", "pieces"):
        together = Run.open(tmp_path / name)
        for key in ("tiles", "pixels", "steps", "ended"):
            assert together.metrics()[key] == alone.metrics()[key]
        for mine, theirs in zip(together.metrics()["history"], alone.metrics()["history"], strict=True):
            numbers = {key: value for key, value in theirs.items() if key != "iou"}
            assert {key: mine[key] for key in numbers} == pytest.approx(numbers, rel=1e-3)
        assert distance(together, alone, "best/") < 0.3 * settings.training.learning_rate
        # AdamW's steps do not depend on the gradients' scale, its moments do.
        assert distance(together, alone, "optimizer/", "exp_avg") < 1e-3 * largest_moment(alone)


def test_only_the_first_process_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.leads()
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    assert not devices.leads()
    monkeypatch.setenv("RANK", "0")
    assert devices.leads()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=r"started 2 processes .* has 1 GPUs. Give --nproc-per-node"):
        devices.make_fabric("32-true")
