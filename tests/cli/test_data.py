"""data check: findings one a line for people, as objects for programs, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.raster.image import read_image, write_image


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A sound folder; six images of 96 pixels show every class."""
    root = tmp_path / "pairs"
    write_dataset(root, train=6, val=1, test=1, size_px=96, seed=1)
    return root


def test_data_check(pairs: Path) -> None:
    done = CliRunner().invoke(app, ["data", "check", str(pairs), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["pairs"] == {"train": 6, "val": 1, "test": 1}
    assert found["faults"] == [] and found["warnings"] == []

    next((pairs / "test" / "label").iterdir()).unlink()
    done = CliRunner().invoke(app, ["data", "check", str(pairs), "--json"])
    assert done.exit_code == 0, "a warning is legal"
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning["level"] == "warning" and warning["where"] == "test"

    source, copy = (next((pairs / split / "sar").iterdir()) for split in ("train", "test"))
    write_image(copy, read_image(source))
    (pairs / "val" / "label" / "stray.png").write_bytes(b"")
    done = CliRunner().invoke(app, ["data", "check", str(pairs), "--json"])
    assert done.exit_code == 1
    faults = json.loads(done.stdout)["faults"]
    assert len(faults) == 2 and "stray.png has no SAR image" in faults[0]["text"]
    assert "hold the same pixels" in faults[1]["text"]

    done = CliRunner().invoke(app, ["data", "check", str(pairs)])
    assert done.exit_code == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith(("fault: ", "warning: "))]
    assert lines == [
        f"fault: {faults[0]['text']}",
        f"warning: {warning['text']}",
        f"fault: {faults[1]['text']}",
    ]
