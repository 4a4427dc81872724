"""`predict` says when a scene is not what the network was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app
from hfd_edge.drift import portray_image, training_statistics
from hfd_edge.raster.image import write_image

runner = CliRunner()


def scene(seed: int, *, level: float = 100.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(level + 3 * rng.normal(), 12, (1, 100, 120)), 1, 255).astype(np.uint8)


@pytest.fixture
def bundle(make_thresholds: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A bundle of one stretched band whose training images lie around 100."""
    plain = make_thresholds()
    chain, bands = plain.manifest.preprocessing, plain.manifest.sar.bands
    portraits = [(portray_image(scene(seed), chain, bands=bands), {}) for seed in range(20)]
    manifest = plain.manifest.model_copy(update={"training": training_statistics(portraits, chain)})
    files = {name: plain.file(name) for name in plain.manifest.files}
    return Bundle.create(tmp_path / "trained.hfd", manifest, files).path


def predict(*arguments: str | Path) -> Any:
    result = runner.invoke(app, ["predict", *(str(argument) for argument in arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_warns_on_stderr_and_in_json(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "usual.tif", scene(50))
    write_image(tmp_path / "bright.tif", scene(51, level=180))
    scenes = tmp_path / "usual.tif", tmp_path / "bright.tif"
    result = predict(bundle, *scenes, "--out", tmp_path / "masks", "--json")
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {tmp_path / 'bright.tif'}: sar lies ")
    usual, bright = (row["drift"] for row in json.loads(result.stdout)["scenes"])
    assert usual["findings"] == []
    assert usual["unjudged"] is None
    assert bright["findings"][0]["kind"] == "level"
    assert bright["findings"][0]["message"] in warning
    assert bright["figures"]["level sar"] == pytest.approx(180, abs=10)


def test_the_table_stays_short(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "bright.tif", scene(51, level=180))
    result = predict(bundle, tmp_path / "bright.tif", "--out", tmp_path / "mask.tif")
    assert "warning: " in result.stderr
    assert "drift" not in result.stdout


def test_bundles_without_statistics_are_silent(
    make_thresholds: Callable[..., Bundle], tmp_path: Path
) -> None:
    write_image(tmp_path / "bright.tif", scene(51, level=180))
    bundle = make_thresholds().path
    result = predict(bundle, tmp_path / "bright.tif", "--out", tmp_path / "mask.tif", "--json")
    assert "warning" not in result.stderr
    assert json.loads(result.stdout)["scenes"][0]["drift"] is None
