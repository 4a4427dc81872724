"""What is timed, and in which order; no clock but a counted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.comparison import latency
from hfd_edge.comparison.scoring import Bench
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.progress import silent
from hfd_edge.runtime.backends import tuning


class Clock:
    """Time that passes only when a model runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Model:
    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        self.clock, self.seconds, self.runs, self.closed = clock, seconds, 0, False
        self.tiles: list[np.ndarray] = []

    def run(self, tile: np.ndarray) -> np.ndarray:
        self.clock.now += self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1
        self.tiles.append(tile)
        return tile

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


@pytest.fixture
def bench(make_thresholds: Callable[..., Bundle], threshold_data: Path) -> Bench:
    folder = PairFolder.open(threshold_data)
    return Bench(make_thresholds(), folder, "test", folder.pairs("test"), 3, silent)


def test_there_and_back_again(bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, str, Any]] = []
    models: list[Model] = []

    def open_backend(bundle: Bundle, *, backend: str, precision: str, threads: int | None) -> Model:
        assert all(model.closed for model in models), "one at a time"
        opened.append((precision, backend, threads))
        # Warming up takes a second a run; it must not count. Each visit is slower than the one before.
        models.append(Model(clock, [1.0, 1.0, 0.010 * len(opened)]))
        return models[-1]

    monkeypatch.setattr(tuning, "open_backend", open_backend)
    keys = [("fp32", "onnxruntime"), ("int8", "onnxruntime"), ("int8", "tensorrt")]
    times = latency.time_all(bench, keys)
    assert [one[0] for one in opened] == ["fp32", "int8", "int8", "fp32"]
    assert {one[1:] for one in opened} == {("onnxruntime", 3)}, "no GPU; the threads that were asked for"
    assert set(times) == set(keys[:2])
    half = tuning.RUNS // 2
    assert times[keys[0]] == pytest.approx([10.0] * half + [40.0] * half)
    assert times[keys[1]] == pytest.approx([20.0] * half + [30.0] * half)
    assert all(model.closed for model in models)


def test_a_slow_device_stops_early(bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "open_backend", lambda *_, **__: Model(clock, [4.0]))
    times = latency.time_all(bench, [("fp32", "onnxruntime")])
    assert times[("fp32", "onnxruntime")] == pytest.approx([4000.0] * 6)


def test_the_tile_is_real_and_whole(bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(clock, [0.01])
    monkeypatch.setattr(tuning, "open_backend", lambda *_, **__: model)
    latency.time_all(bench, [("fp32", "onnxruntime")])
    (tile,) = {id(one): one for one in model.tiles}.values()
    image = bench.folder.load_sar(bench.pairs[0])[0].astype(np.float32)
    assert (tile.shape, tile.dtype) == ((1, 1, 64, 64), np.float32)
    expected = np.pad(image, ((0, 24), (0, 14)), mode="symmetric")
    np.testing.assert_array_equal(tile[0, 0], expected)  # mean 0 and standard deviation 1
