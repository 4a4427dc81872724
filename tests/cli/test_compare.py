"""`hfd-edge compare` on thresholds whose labels are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app

runner = CliRunner()


def call(*arguments: str | Path) -> Any:
    return runner.invoke(app, ["compare", *(str(argument) for argument in arguments)])


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfd_edge.runtime.backends.tuning.RUNS", 2)
    # Whatever else is installed.
    monkeypatch.setattr("hfd_edge.comparison.run.available_backends", lambda: ("onnxruntime",))
    # Whatever else is installed.
    monkeypatch.setattr("hfd_edge.comparison.run.available_backends", lambda: ("onnxruntime",))


@pytest.fixture
def bundle(make_thresholds: Callable[..., Bundle]) -> Path:
    return make_thresholds().path


def test_help_teaches() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "flip against FP32" in " ".join(result.stdout.replace("│", " ").split())


def test_json_is_the_file_and_the_page_stands_beside_it(
    bundle: Path, threshold_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = call(bundle, "--data", threshold_data, "--out", out, "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    stored = json.loads((out / "comparison.json").read_text())
    assert stored == {key: value for key, value in content.items() if key not in ("json", "html")}
    assert [row["precision"] for row in stored["rows"]] == ["fp32", "fp16", "int8"]
    assert stored["machine"]
    assert stored["created"].endswith("UTC")
    page = (out / "comparison.html").read_text()
    assert content["html"] == str(out / "comparison.html")
    # Four tiles; SAR, truth, two variants and the difference each, and EO but for tile 3.
    names = [tile["name"] for tile in stored["rows"][2]["most_flipped"][:4]]
    assert page.count("<img") == 4 * 6 - names.count("tile_3")
    assert sorted(path.name for path in out.iterdir()) == ["comparison.html", "comparison.json"]


def test_tables_and_no_files_without_out(
    bundle: Path, threshold_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = call(bundle, "--data", threshold_data, "--tiles", "2", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "thresholds on test, 2 tiles, onnxruntime" in result.stdout
    for name in ("FP32", "FP16", "INT8", "flood"):
        assert name in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_no_pictures(bundle: Path, threshold_data: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "out", "--pictures", "0", "--threads", "1")
    assert call(bundle, "--data", threshold_data, *arguments).exit_code == 0
    assert "<img" not in (tmp_path / "out" / "comparison.html").read_text()


def test_errors_are_one_line(bundle: Path, threshold_data: Path) -> None:
    for arguments, message in (
        (("--split", "train"), "has no split 'train'"),
        (("--backend", "tensorrt"), "Backend tensorrt cannot run"),
        (("--backend", "npu"), "There is no backend 'npu'"),
    ):
        result = call(bundle, "--data", threshold_data, *arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert message in line
    assert call(bundle, "--data", threshold_data, "--tiles", "0").exit_code == 2


def test_missing_jinja2_is_said_before_anything_is_measured(
    bundle: Path, threshold_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = call(bundle, "--data", threshold_data, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "hfd-edge[report]" in result.stderr
    assert "mIoU" not in result.stderr, "nothing was scored"
    assert not (tmp_path / "out").exists()
    result = call(bundle, "--data", threshold_data, "--threads", "1")
    assert result.exit_code == 0, "the tables need no jinja2"


def test_an_unfit_folder_is_said_before_anything_is_measured(
    bundle: Path, threshold_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    result = call(bundle, "--data", threshold_data, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "error: Could not write" in result.stderr
    assert "mIoU" not in result.stderr, "nothing was scored"


def test_numbers_outlive_a_page_that_fails(
    bundle: Path, threshold_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hfd_edge.report.disagreement.draw_disagreements", fail)
    result = call(bundle, "--data", threshold_data, "--out", tmp_path / "out", "--threads", "1")
    assert result.exit_code != 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.json"]
