"""Histograms and clipping points against NumPy and against known distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.deploy.calibration import METHODS, Histogram, amax_entropy, amax_max, amax_mse, collect
from hfd_edge.errors import ExportError

from .conftest import make_tiles


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram.empty()
    for part in parts:
        histogram.add(part)
    return histogram


def test_counts_match_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(3, 50, 70)).astype(np.float32)
    histogram = histogram_of(values)
    expected, _ = np.histogram(np.abs(values), bins=2048, range=(0, histogram.limit))
    assert histogram.limit == histogram.largest == pytest.approx(float(np.abs(values).max()))
    assert histogram.counts.sum() == values.size
    # A value on the border of two bins may fall into either: float32 rounds there.
    assert np.abs(histogram.counts - expected).sum() <= 10


def test_a_wider_range_merges_bins_and_loses_nothing() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(0, 1, 5000), rng.normal(0, 30, 5000)
    histogram = histogram_of(small, large)
    assert histogram.counts.sum() == 10_000
    assert histogram.limit >= histogram.largest == pytest.approx(np.abs(large).max(), rel=1e-6)
    assert histogram.limit < 2 * histogram.largest
    below = histogram.counts[: 2048 // 8].sum()
    edge = histogram.limit / 8
    assert below == pytest.approx((np.abs(small) < edge).sum() + (np.abs(large) < edge).sum(), abs=5)


def test_exact_zeros_are_not_counted() -> None:
    histogram = histogram_of(np.array([0.0, 0.0, 1.0, -2.0]), np.zeros(7))
    assert histogram.counts.sum() == 2
    assert histogram.largest == 2.0


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.zeros((0,))])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_nothing_but_zeros(values: np.ndarray, method: str) -> None:
    assert METHODS[method](histogram_of(values)) == 0.0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_value(method: str) -> None:
    assert METHODS[method](histogram_of(np.full(9, -3.5))) == pytest.approx(3.5, rel=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ExportError, match="makes the FP32 model overflow"):
        histogram_of(np.array([1.0, bad]))


def test_a_speckle_tail_is_clipped_by_entropy_and_mse() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate((rng.normal(0, 1, 200_000), [40.0, -55.0]))
    histogram = histogram_of(values)
    assert amax_max(histogram) == 55.0
    assert 2.0 < amax_entropy(histogram) < 20.0
    # Rounding costs 200000 (a/127)^2 / 12, clipping (40-a)^2 + (55-a)^2: least at a = 31.3.
    assert amax_mse(histogram) == pytest.approx(31.3, rel=0.03)


def test_a_flat_distribution_is_hardly_clipped() -> None:
    values = np.random.default_rng(3).uniform(-6, 6, 300_000)
    assert amax_entropy(histogram_of(values)) > 0.95 * 6
    assert amax_mse(histogram_of(values)) > 0.95 * 6


def test_the_order_of_tiles_hardly_matters() -> None:
    """modelopt's own calibrator never clips below the first tile's largest value."""
    rng = np.random.default_rng(4)
    parts = [rng.normal(0, 1, 20_000) for _ in range(8)]
    parts[0] = np.append(parts[0], 60.0)
    forward, backward = histogram_of(*parts), histogram_of(*parts[::-1])
    assert amax_entropy(forward) == pytest.approx(amax_entropy(backward), rel=0.15)
    assert amax_entropy(forward) < 30


def test_mse_is_the_best_of_its_candidates() -> None:
    values = np.random.default_rng(5).laplace(size=50_000).astype(np.float32)
    histogram = histogram_of(values)

    def error(amax: float) -> float:
        scale = amax / 127
        return float(((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2).mean())

    chosen = error(amax_mse(histogram))
    others = [error(share * histogram.largest) for share in (0.31, 0.45, 0.6, 0.8, 1.0)]
    assert chosen <= 1.02 * min(others)


def test_collect_reads_inner_tensors(mini_onnx: Path) -> None:
    tiles = make_tiles(3)
    seen: list[tuple[float, float]] = []
    found = collect(
        mini_onnx,
        ["sar", "fine.0.2/Clip:out", "logits"],
        tiles,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    assert found["sar"].largest == pytest.approx(float(np.abs(tiles).max()))
    assert 0 < found["fine.0.2/Clip:out"].largest <= 6  # a ReLU6
    assert found["logits"].counts.sum() == 3 * 3 * 16 * 16
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_collect_names_what_is_wrong(mini_onnx: Path) -> None:
    with pytest.raises(ExportError, match="has no tensor nothing"):
        collect(mini_onnx, ["nothing"], make_tiles(1))
    with pytest.raises(ExportError, match=r"Calibration tile 0 of shape \(2, 32, 32\) does not run"):
        collect(mini_onnx, ["logits"], make_tiles(1, tile=32))
