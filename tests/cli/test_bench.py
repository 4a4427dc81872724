"""`hfd-edge bench` on thresholds whose labels are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hfd_edge.bench.result import read_bench
from hfd_edge.bundle import Bundle
from hfd_edge.cli import app

from ..bench.bundles import golden_bundle, hasty

__all__ = ["golden_bundle", "hasty"]

pytestmark = pytest.mark.usefixtures("hasty")
runner = CliRunner()
QUICK = ("--runs", "2", "--threads", "1", "--max-jitter", "100000", "--no-cold-start")


def call(*arguments: str | Path) -> Any:
    return runner.invoke(app, ["bench", *(str(argument) for argument in arguments)])


@pytest.fixture
def bundle(golden_bundle: Callable[..., Bundle]) -> Path:
    return golden_bundle().path


def test_help_teaches() -> None:
    result = call("--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    assert "hfd-edge bench flood.hfd --precision all" in text
    for part in ("bench diff", "golden tiles", "--max-jitter"):
        assert part in text


def test_json_is_the_file_and_tables_stand_beside_it(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(bundle, "--precision", "fp32", *QUICK, "--rate", "50", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((out / "bench.json").read_text())
    (record,) = read_bench(out / "bench.json").records
    assert [scenario.kind for scenario in record.scenarios] == ["tile", "stream"]
    assert sorted(path.name for path in out.iterdir()) == ["bench.csv", "bench.html", "bench.json"]
    assert str(out / "bench.html") in result.stderr


def test_tables_and_no_files_without_out(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = call("run", bundle, "--precision", "fp32", *QUICK)
    assert result.exit_code == 0, result.output
    assert "thresholds" in result.stdout and "p50" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_output_ends_with_1_and_has_no_figures(bundle: Path, tmp_path: Path) -> None:
    for more in ((), ("--allow-invalid",)):
        result = call(bundle, "--precision", "int8", *QUICK, *more, "--out", tmp_path / "out", "--json")
        assert result.exit_code == 1
        (record,) = json.loads(result.stdout)["records"]
        assert record["scenarios"] == [] and record["invalid"][0].startswith("wrong output: ")
        assert (tmp_path / "out" / "bench.json").exists(), "the reason is on record"


def test_figures_that_cannot_be_trusted_end_with_1_unless_allowed(
    make_thresholds: Callable[..., Bundle],
) -> None:
    path = make_thresholds().path  # without golden tiles
    result = call(path, "--precision", "fp32", *QUICK)
    assert result.exit_code == 1
    assert "no golden tiles" in result.stdout
    assert "p50" in result.stdout, "the figures are shown all the same"
    assert call(path, "--precision", "fp32", *QUICK, "--allow-invalid").exit_code == 0


def test_noise_is_in_percent(bundle: Path) -> None:
    options = ("--precision", "fp32", "--runs", "5", "--threads", "1", "--no-cold-start")
    result = call(bundle, *options, "--max-jitter", "0.0001")
    assert result.exit_code == 1
    assert "at most 0.0% allowed" in result.stdout


def test_errors_are_one_line(bundle: Path) -> None:
    for arguments, message in (
        (("--backend", "npu"), "There is no backend 'npu'"),
        (("--precision", "int4"), "has no int4 model"),
        (("--rate", "-1"), "rate_hz is -1.0, expected a positive number"),
        (("--scenario", "tile", "--rate", "5"), "Add --scenario stream"),
    ):
        result = call(bundle, *QUICK, *arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert message in line
    result = call(bundle, "--scenario", "tiles")
    assert result.exit_code == 2
    assert "there is no scenario 'tiles'" in result.stderr


def test_what_cannot_be_written_is_said_before_anything_is_measured(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("hfd_edge.bench.run.run_bench", never)
    (tmp_path / "out").touch()
    result = call(bundle, *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "error: Could not write" in result.stderr
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = call(bundle, *QUICK, "--out", tmp_path / "other")
    assert result.exit_code == 1
    assert "hfd-edge[report]" in result.stderr
