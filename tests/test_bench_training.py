"""benchmarks/bench_training.py and warp.py on tiny sizes; never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(root: Path, out: Path, script: str, name: str) -> list[dict[str, Any]]:
    command = [sys.executable, f"benchmarks/{script}.py", "--quick", "--root", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob(f"benchmarks/results/*/{name}.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def test_the_loop_is_compared_with_a_bare_one(root: Path, tmp_path: Path) -> None:
    teacher, student, layout, half = run(root, tmp_path, "bench_training", "training")
    assert (teacher["what"], student["what"]) == ("training loop, teacher", "training loop, student (hfdm)")
    for row in (teacher, student):
        assert row["ratio"] == pytest.approx(row["ours_img_s"] / row["theirs_img_s"])
        assert row["ratio_is"] == "ours over theirs" and row["wanted"] == 0.9
        assert row["ours_img_s"] > 0
    assert (
        layout["what"].endswith("channels-last, float32") and layout["against"] == "channels-first, float32"
    )
    assert half["what"].endswith("channels-last, bfloat16") and half["against"] == "channels-last, float32"
    assert layout["ours_img_s"] == half["theirs_img_s"] > 0


@pytest.mark.slow
def test_alignment_is_counted_on_and_off(root: Path, tmp_path: Path) -> None:
    off, sampled, gathered = run(root, tmp_path, "warp", "warp")
    assert [row["hfam"] for row in (off, sampled, gathered)] == ["off", "grid_sample", "gather"]
    assert off["parameters"] < sampled["parameters"] == gathered["parameters"]
    assert off["gmacs"] < sampled["gmacs"] == pytest.approx(gathered["gmacs"])
    assert {engine: times["over_off"] for engine, times in off["engines"].items()} == {
        "onnxruntime": 1.0,
        "openvino": 1.0,
    }
