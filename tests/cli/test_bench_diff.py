"""`hfd-edge bench diff`: exit codes, tolerances and JSON of the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hfd_edge.bench.result import BenchFile, Machine, write_bench
from hfd_edge.cli import app

from ..benches import make_bench, make_record, make_scenario

runner = CliRunner()


def call(*arguments: str | Path) -> Any:
    return runner.invoke(app, ["bench", "diff", *(str(argument) for argument in arguments)])


def write(path: Path, content: BenchFile) -> Path:
    write_bench(path, content)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path / "old" / "bench.json", make_bench())


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return write(tmp_path / "slow.json", make_bench(make_record(scenarios=(make_scenario(112.0, seed=1),))))


def test_help_teaches() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "--fail-over 5%" in result.stdout


def test_a_regression_fails_and_the_same_passes(old: Path, slow: Path) -> None:
    result = call(old, slow)
    assert result.exit_code == 1
    assert "FAILED at a tolerance of 5 %: regression 3, same 2" in result.stdout
    assert result.stderr == ""
    result = call(old, old)
    assert result.exit_code == 0
    assert "passed at a tolerance of 5 %: same 5" in result.stdout
    assert call(slow, old).exit_code == 0, "an improvement"
    assert call(old.parent, slow).exit_code == 1, "the folder stands for its bench.json"


@pytest.mark.parametrize(("share", "status"), [("20%", 0), ("0.2", 0), ("5 %", 1), ("0.1", 1), ("0%", 1)])
def test_tolerances(old: Path, slow: Path, share: str, status: int) -> None:
    assert call(old, slow, "--fail-over", share).exit_code == status


@pytest.mark.parametrize("share", ["5", "-5%", "five", "", "%", "nan", "1.01"])
def test_what_is_no_share_is_refused(old: Path, share: str) -> None:
    result = call(old, old, "--fail-over", share)
    assert result.exit_code == 2
    assert "is not a share" in result.stderr


def test_json_is_one_object(old: Path, slow: Path) -> None:
    result = call(old, slow, "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["failed"] is True
    assert content["tolerance"] == 0.05
    first = content["changes"][0]
    assert (first["record"], first["scenario"], first["figure"]) == (
        "onnxruntime fp32",
        "tile",
        "latency p50",
    )
    assert first["verdict"] == "regression"
    assert first["bounds"]["low"] < first["ratio"] < first["bounds"]["high"]
    assert json.loads(call(old, old, "--json").stdout)["failed"] is False


def test_refusals_are_one_line(old: Path, tmp_path: Path) -> None:
    machine = Machine(slug="orin", text="Orin", cores=6)
    other = write(tmp_path / "other.json", make_bench(machine=machine))
    noisy = write(
        tmp_path / "noisy.json", make_bench(make_record(scenarios=(make_scenario(invalid=("noisy.",)),)))
    )
    (tmp_path / "text.json").write_text("{")
    for path, message in (
        (other, "machine: test-cpu-2c and now orin"),
        (noisy, "onnxruntime fp32 tile: noisy"),
        (tmp_path / "none.json", "There is no file"),
        (tmp_path / "text.json", "is not JSON"),
        (tmp_path, "There is no file"),
    ):
        result = call(old, path)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert call(old, other, "--across").exit_code == 0
    assert call(old, noisy, "--allow-invalid").exit_code == 0
