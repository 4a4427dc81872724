"""One command takes a recipe to a bundle."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.config import write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.hfdnet.run import CHECKPOINT_NAME, Run
from hfd_edge.training.fit import train_teacher

SCRIPT = Path(__file__).resolve().parents[2] / "train" / "bundle.py"


def test_a_stopped_road_goes_on_to_the_bundle(
    pairs: Path, recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(distill={"method": "logits"}, training={"epochs": 1}, deploy={"tile_px": 64})
    write_toml(tmp_path / "r.toml", settings)
    runs, out = tmp_path / "runs", tmp_path / "student.hfd"
    given = [str(SCRIPT), str(tmp_path / "r.toml"), "--data", str(pairs), "--runs", str(runs)]
    monkeypatch.setattr(sys, "argv", [*given, "--out", str(out)])

    out.mkdir()
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "already exists" in capsys.readouterr().err
    assert not runs.exists()  # said before hours of training
    out.rmdir()

    train_teacher(PairFolder.open(pairs), settings, runs / "teacher")  # what a stopped call has left
    trained = (runs / "teacher" / CHECKPOINT_NAME).stat().st_mtime_ns
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (runs / "teacher" / CHECKPOINT_NAME).stat().st_mtime_ns == trained  # not trained again

    bundle, student = Bundle.open(out), Run.open(runs / "student")
    assert bundle.file("model.fp32.onnx").is_file()
    assert student.info.teacher_sha256 is not None
    printed, card = capsys.readouterr().out, (runs / "CARD.md").read_text()
    assert "test mIoU 0." in printed
    assert "| test |" in card and "by `logits`, from a teacher that sees EO images" in card
