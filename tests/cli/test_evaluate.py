"""`hfd-edge evaluate` and `evaluate diff` on thresholds whose labels are known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app
from hfd_edge.datasets.folder import PairFolder

runner = CliRunner()


def call(*arguments: str | Path) -> Any:
    return runner.invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def plain(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture
def make(make_thresholds: Callable[..., Bundle], tmp_path: Path) -> Callable[[float, str], Path]:
    """Give a function that makes a bundle that says flood above a threshold."""

    def build(threshold: float, name: str) -> Path:
        path = make_thresholds({"fp32": threshold, "int8": 129.0}).path
        return Path(shutil.move(path, tmp_path / name))

    return build


@pytest.fixture
def good(make: Callable[[float, str], Path]) -> Path:
    return make(110.0, "good.hfd")


@pytest.fixture
def poor(make: Callable[[float, str], Path]) -> Path:
    return make(100.0, "poor.hfd")


def truth_and_labels(data: Path, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    folder = PairFolder.open(data)
    pairs = [pair for pair in folder.pairs("test") if pair.label]
    truth = np.stack([folder.load_label(pair) for pair in pairs])
    sar = np.stack([folder.load_sar(pair)[0] for pair in pairs])
    return truth, np.where(sar == 0, 255, sar > threshold)


def iou(truth: np.ndarray, said: np.ndarray, label: int) -> float:
    known = truth != 255
    both, either = (truth == label) & (said == label), ((truth == label) | (said == label)) & known
    return float(both.sum() / either.sum())


@pytest.mark.parametrize("named", [False, True])
def test_the_scores_of_a_bundle(poor: Path, threshold_data: Path, tmp_path: Path, named: bool) -> None:
    picture = tmp_path / "confusion.png"
    words = ("run",) if named else ()
    result = call(*words, poor, "--data", threshold_data, "--confusion", picture, "--json")
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    truth, said = truth_and_labels(threshold_data, 100)
    known = truth != 255
    expected = [[int((known & (truth == t) & (said == s)).sum()) for s in (0, 1, 255)] for t in (0, 1)]
    assert scores["confusion"] == expected
    assert scores["iou"]["flood"] == pytest.approx(iou(truth, said, 1))
    assert scores["f1"]["flood"] == pytest.approx(
        2 * expected[1][1] / (sum(expected[1]) + expected[0][1] + expected[1][1])
    )
    assert 0 < scores["boundary_miou"] < 1 and scores["ece"] is None
    assert set(scores) >= {"miou", "accuracy", "pixels", "tiles", "backend", "precision", "split", "mf1"}
    assert cv2.imread(str(picture)).shape[0] > 300


def test_options_may_come_before_the_model(poor: Path, threshold_data: Path) -> None:
    result = call("--data", threshold_data, poor)
    assert result.exit_code == 0, result.output
    assert "boundary IoU" in result.stdout and "Confusion" in result.stdout


def test_diff_gives_the_difference_of_the_scores(
    good: Path, poor: Path, threshold_data: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "diff.png"
    result = call("diff", good, poor, "--data", threshold_data, "--out", picture, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for label, name in enumerate(("dry", "flood")):
        gain = iou(*truth_and_labels(threshold_data, 110), label) - iou(
            *truth_and_labels(threshold_data, 100), label
        )
        assert found["iou"][name]["points"] == pytest.approx(100 * gain)
    assert 0 < found["miou"]["low_points"] < found["miou"]["points"] < found["miou"]["high_points"]
    assert found["miou"]["share_above"] == 1.0
    assert found["tiles"] == 7 and {tile["tile"] for tile in found["per_tile"]} >= {found["best"][0]}
    assert (found["a"], found["b"], found["split"]) == ([str(good)], [str(poor)], "test")
    assert cv2.imread(str(picture)).shape[1] > 1000


def test_diff_of_seeds_prints_both_sides(good: Path, poor: Path, threshold_data: Path) -> None:
    result = call("diff", f"{good},{poor}", f"{poor},{poor}", "--data", threshold_data)
    assert result.exit_code == 0, result.output
    assert "seeds too, in pairs" in result.stdout
    assert "95 % interval" in result.stdout


def test_diff_takes_the_precision_for_bundles(good: Path, poor: Path, threshold_data: Path) -> None:
    """The INT8 variants of both are the same threshold."""
    result = call("diff", good, poor, "--data", threshold_data, "--precision", "int8", "--json")
    assert json.loads(result.stdout)["miou"]["points"] == 0.0


def test_split_schemes_have_to_agree(good: Path, poor: Path, threshold_data: Path) -> None:
    """Bundles of two schemes would be scored on different tiles."""
    for scheme in ("even", "odd"):
        (threshold_data / "splits" / scheme).mkdir(parents=True)
        text = "".join(f"tile_{n}\n" for n in range(7) if (n % 2 == 0) == (scheme == "even"))
        (threshold_data / "splits" / scheme / "test.txt").write_text(text)
    for kind in ("sar", "eo", "label"):
        shutil.move(threshold_data / "test" / kind, threshold_data / kind)
    (threshold_data / "test").rmdir()
    for bundle, scheme in ((good, "even"), (poor, "odd")):
        manifest = bundle / "manifest.json"
        content = json.loads(manifest.read_text())
        content["provenance"]["recipe"] = {"split": scheme}
        manifest.write_text(json.dumps(content))
    result = call("diff", good, poor, "--data", threshold_data)
    assert result.exit_code == 1
    assert f"{good} was trained under split scheme even, but {poor} under odd" in plain(result.output)
    assert "--scheme" in result.output
    result = call("diff", good, poor, "--data", threshold_data, "--scheme", "odd", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tiles"] == 3


@pytest.mark.parametrize("text", ["nowhere", "nowhere,other", ","])
def test_a_model_that_is_not_there(good: Path, threshold_data: Path, text: str) -> None:
    result = call("diff", good, text, "--data", threshold_data)
    assert result.exit_code == 2
    assert "There is no folder" in plain(result.output)


@pytest.mark.parametrize("words", [(), ("diff",)])
def test_help_teaches(words: tuple[str, ...]) -> None:
    text = plain(call(*words, "--help").stdout)
    assert "Example: " in text and "evaluate diff" in text
