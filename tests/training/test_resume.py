"""SIGKILL at any moment, resume, and the weights are bit for bit those of an undisturbed training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfd_edge.hfdnet.run import read_tensors

STEPS = 10
SCRIPT = """
import sys
from pathlib import Path
from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.training.fit import train_student, train_teacher

data, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
teacher = Path(sys.argv[4])
recipe = Recipe.model_validate({
    "network": {"encoder": "mobilenetv3_small_050", "channels": 8, "init": "random"},
    "training": {"epochs": 5, "batch": 4, "crop_px": 64, "learning_rate": 1e-3, "checkpoint_every": 1},
})
folder = PairFolder.open(data)
if not teacher.exists():
    train_teacher(folder, recipe, teacher)

def report(done, total, text):
    if text.startswith("student"):
        print(f"{done:g}", flush=True)

train_student(folder, recipe, out, teacher=teacher, resume=resume and out.exists(), progress=report)
"""


def start(data: Path, out: Path, teacher: Path, *, resume: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data), str(out), "resume" if resume else "fresh", str(teacher)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> list[int]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [int(line) for line in output.split()]


def kill_after(process: subprocess.Popen[str], step: int) -> None:
    """SIGKILL once the step was reported: while its checkpoint is written, or the next step runs."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL does not exist on this system")
def test_killed_three_times_equals_undisturbed(pairs: Path, tmp_path: Path) -> None:
    teacher, straight, killed = (tmp_path / name for name in ("teacher", "straight", "killed"))
    assert finish(start(pairs, straight, teacher, resume=False)) == list(range(1, STEPS + 1))
    points = sorted(random.Random(20).sample(range(1, STEPS), 3))
    for point in points:
        kill_after(start(pairs, killed, teacher, resume=True), point)
        assert (killed / "run.json").is_file()
    redone = finish(start(pairs, killed, teacher, resume=True))
    assert redone[-1] == STEPS
    assert redone[0] >= points[-1]  # it did go on from a checkpoint, not from the start

    for name in ("best.safetensors", "last.ckpt.safetensors"):
        first, second = read_tensors(straight / name)[0], read_tensors(killed / name)[0]
        assert first.keys() == second.keys()
        different = [key for key in first if not torch.equal(first[key], second[key])]
        assert not different, f"{name}: {different[:3]} after kills at {points}"
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".")]
