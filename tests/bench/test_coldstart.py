"""Processes of their own, real ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bench import coldstart
from hfd_edge.bench.coldstart import Start, start_once, summarise
from hfd_edge.bench.result import Golden
from hfd_edge.bench.scenarios import scene_work
from hfd_edge.bench.variants import Variant
from hfd_edge.bundle import Bundle
from hfd_edge.errors import BenchError

VARIANT = Variant(
    backend="onnxruntime",
    precision="fp32",
    overlap_px=32,
    golden=Golden(tiles=0, agreement=None, required=1.0),
    wrong=None,
    events=False,
    emulated=None,
)


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    np.save(tmp_path / "tile.npy", np.full((1, 64, 64), 90, np.uint8))
    return tmp_path / "tile.npy"


def test_a_process_is_timed_from_its_start(make_thresholds: Callable[..., Bundle], tile: Path) -> None:
    began = time.monotonic()
    found = start_once(make_thresholds(), tile, variant=VARIANT, threads=1)
    wall_s = time.monotonic() - began
    parts = found.import_s + found.load_s + found.first_mask_s
    assert 0 < parts < found.total_s < wall_s, "the interpreter's own start counts, its end does not"
    assert min(found.import_s, found.load_s, found.first_mask_s) > 0
    assert found.peak_mb is None or 30 < found.peak_mb < 2000
    assert found.scene_peak_mb is None


def test_stream_and_scene_come_after_the_mask(
    make_thresholds: Callable[..., Bundle], tile: Path, tmp_path: Path
) -> None:
    scene = scene_work(None, tile=np.load(tile), folder=tmp_path, runs=1)
    found = start_once(make_thresholds(), tile, variant=VARIANT, threads=1, stream=True, scene=scene)
    assert scene.destination.exists()
    if found.peak_mb is not None:
        assert found.stream_peak_mb is not None and found.scene_peak_mb is not None
        assert found.peak_mb <= found.stream_peak_mb <= found.scene_peak_mb


def test_the_process_runs_this_code_whatever_lies_in_the_current_folder(
    make_thresholds: Callable[..., Bundle], tile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "another checkout"
    (other / "hfd_edge").mkdir(parents=True)
    (other / "hfd_edge" / "__init__.py").write_text("raise SystemExit('another version')")
    bundle = make_thresholds()
    monkeypatch.chdir(other)
    assert start_once(bundle, tile, variant=VARIANT, threads=1).total_s > 0


def test_a_process_that_fails_says_why(make_thresholds: Callable[..., Bundle], tile: Path) -> None:
    with pytest.raises(BenchError) as caught:
        start_once(make_thresholds(), tile, variant=replace(VARIANT, precision="int4"), threads=1)
    assert "could not give a mask with int4 on onnxruntime" in str(caught.value)
    assert "has no int4 model" in str(caught.value)
    assert "--no-cold-start" in str(caught.value)


def test_a_process_that_hangs_is_stopped(
    make_thresholds: Callable[..., Bundle], tile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coldstart, "_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(coldstart, "_LONGEST_S", 0.2)
    with pytest.raises(BenchError, match="it did not end in 0 s"):
        start_once(make_thresholds(), tile, variant=VARIANT, threads=1)


def test_medians() -> None:
    starts = [
        Start(1.0, 0.3, 0.1, 0.2, 200.0), Start(3.0, 0.2, 0.3, 0.1, None), Start(2.0, 0.1, 0.2, 0.3, 100.0)
    ]  # fmt: skip
    found = summarise(starts)
    assert (found.total_s, found.import_s, found.load_s, found.first_mask_s) == (2.0, 0.2, 0.2, 0.2)
    assert (found.peak_mb, found.runs, found.samples_s) == (150.0, 3, (1.0, 3.0, 2.0))
