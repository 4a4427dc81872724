"""Histograms and clipping points against NumPy and against known distributions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hfd_edge.deploy.calibration import (
    METHODS,
    Histogram,
    amax_entropy,
    amax_max,
    amax_mse,
    amax_percentile,
    collect,
    float_tensors,
    ranged_tensors,
)
from hfd_edge.deploy.graph import load, session
from hfd_edge.errors import ExportError

from .conftest import make_tiles


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram.empty()
    for part in parts:
        histogram.add(part)
    return histogram


def bins_of(values: np.ndarray, limit: float) -> np.ndarray:
    """NumPy's counts for the same float32 arithmetic, zeros left out."""
    magnitude = np.abs(values.astype(np.float32)).ravel()
    codes = np.minimum((magnitude * np.float32(2048 / limit)).astype(np.int64), 2047)
    return np.bincount(codes[magnitude > 0], minlength=2048)


@pytest.mark.parametrize(
    "shape", [(3, 50, 70), (1,), (2, 1, 1), (7, 300, 301)], ids=["small", "one", "two", "several blocks"]
)
def test_counts_are_exactly_those_of_numpy(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[values < -0.5] = 0  # many exact zeros, and a largest value that is negative or positive
    histogram = histogram_of(values)
    assert histogram.limit == histogram.largest == float(np.abs(values).max())
    np.testing.assert_array_equal(histogram.counts, bins_of(values, histogram.limit))
    expected, _ = np.histogram(np.abs(values[values != 0]), bins=2048, range=(0, histogram.limit))
    # A value on the border of two bins may fall into either: float32 rounds there.
    assert np.abs(histogram.counts - expected).sum() <= 1e-4 * values.size + 2


@pytest.mark.parametrize("kind", ["float64", "reversed", "transposed", "empty axis"])
def test_any_memory_layout_counts_the_same(kind: str) -> None:
    values = np.random.default_rng(7).laplace(size=(40, 30)).astype(np.float32)
    shown = {
        "float64": values.astype(np.float64),
        "reversed": values[::-1, ::-1],
        "transposed": values.T,
        "empty axis": values[:, None, :],
    }[kind]
    np.testing.assert_array_equal(histogram_of(shown).counts, histogram_of(values).counts)


def test_counts_beyond_the_float32_of_opencv_stay_exact() -> None:
    histogram = histogram_of(np.array([4.0]))
    values = np.full((1 << 24) + 3, 1.0, np.float32)
    histogram.add(values)
    assert histogram.counts[512] == values.size
    assert histogram.counts.sum() == values.size + 1


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e30])
def test_tiny_and_huge_values(scale: float) -> None:
    with np.errstate(over="raise", invalid="raise"):
        histogram = histogram_of(np.array([0.0, 0.5, -1.0], np.float32) * np.float32(scale))
    assert histogram.counts.sum() == 2
    for method in METHODS.values():
        assert 0 < method(histogram) <= histogram.largest == pytest.approx(scale, rel=1e-6)


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


def test_percentile_against_numpy() -> None:
    values = np.random.default_rng(6).laplace(size=400_000)
    values[::2] = 0
    histogram = histogram_of(values[:100_000], values[100_000:])
    expected = np.percentile(np.abs(values[values != 0]), 99.99)
    assert amax_percentile(histogram) == pytest.approx(expected, abs=histogram.limit / 2048)
    # One value in 10,000 is cut off, and one alone is not.
    assert amax_percentile(histogram_of(np.append(np.ones(20_001), 9.0))) == pytest.approx(1, abs=0.01)
    assert amax_percentile(histogram_of(np.append(np.ones(2000), 9.0))) > 8


def test_mse_clips_a_far_outlier() -> None:
    values = np.append(np.random.default_rng(8).uniform(-2, 2, 1_000_000), 20.0)
    # Rounding costs 1000000 (a/127)^2 / 12, clipping (20-a)^2: least at a = 3.24.
    assert amax_mse(histogram_of(values)) == pytest.approx(3.24, rel=0.05)


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


def test_tiles_may_be_any_iterable_with_a_length(mini_onnx: Path) -> None:
    class Lazy:
        def __init__(self) -> None:
            self.given = 0

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[np.ndarray]:
            for tile in make_tiles(3):
                self.given += 1
                yield tile

    lazy, given = Lazy(), []
    found = collect(
        mini_onnx, ["sar", "logits"], lazy, progress=lambda done, total, text: given.append(lazy.given)
    )
    assert given == [1, 2, 3]  # one tile at a time, never ahead
    whole = collect(mini_onnx, ["sar", "logits"], make_tiles(3))
    for name, histogram in whole.items():
        np.testing.assert_array_equal(found[name].counts, histogram.counts)


def tensors_of(path: Path, pixels: np.ndarray, *, flow: float) -> dict[str, np.ndarray]:
    """Every inner tensor of a model whose flow heads are scaled."""
    model = load(path)
    for weight in model.graph.initializer:
        if "flow" in weight.name:
            weight.CopyFrom(numpy_helper.from_array(flow * numpy_helper.to_array(weight), weight.name))
    computed = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in computed if name != "logits"
    )
    return dict(zip(computed, session(model).run(computed, {"sar": pixels}), strict=True))


@pytest.mark.parametrize("form", ["mini_onnx", "gather_onnx"])
def test_float_tensors_are_those_that_depend_on_the_pixels(form: str, request: pytest.FixtureRequest) -> None:
    """Run on other pixels: the float tensors that differ are named, and no others."""
    path = request.getfixturevalue(form)
    named = float_tensors(path)
    differing, tile = {"sar"}, make_tiles(1, seed=4)
    for flow in (1, 40):  # short flows move within a pixel, long ones to other pixels
        first, second = (tensors_of(path, pixels, flow=flow) for pixels in (tile, -30 * tile))
        differing |= {
            name
            for name, values in first.items()
            if values.dtype == np.float32 and not np.array_equal(values, second[name])
        }
    assert set(named) == differing
    assert list(named) == ["sar", *(name for name in first if name in differing)]  # in the graph's order
    assert set(collect(path, named, make_tiles(1))) == set(named)


@pytest.mark.parametrize("form", ["mini_onnx", "gather_onnx"])
def test_ranges_are_measured_outside_of_what_stays_precise(form: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(form))
    measured = ranged_tensors(model)
    inside = set(float_tensors(model)) - set(measured)
    assert {"align.flow_head:out", "align/Mul:out"} <= inside
    # What enters the warp, what it gives to the convolution behind it, and all else.
    assert {"sar", "coarse.2/Clip:out", "align.flow_merge.2/Relu:out", "Concat:out", "logits"} <= set(
        measured
    )
    joined = next(node for node in model.graph.node if node.output[0] == "Concat:out")
    assert set(joined.input) <= set(measured)
    assert all(name.startswith("align") for name in inside)


def test_float_tensors_of_a_model_in_memory(mini_onnx: Path) -> None:
    model = load(mini_onnx)
    before = model.SerializeToString()
    assert float_tensors(model) == float_tensors(mini_onnx)
    assert model.SerializeToString() == before


def test_float_tensors_leave_out_what_depends_on_the_shape_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[batch,1,8,8] sar) => (float[batch,1,8,8] logits) {
      size = Shape(sar)
      scale = Cast<to=1>(size)
      one = Constant<value_float=0.5>()
      odd = Mul(scale, one)
      top = ReduceMax(odd)
      inner = Mul(sar, top)
      whole = Cast<to=7>(inner)
      back = Cast<to=1>(whole)
      logits = Add(inner, back)
    }"""
    assert float_tensors(onnx.parser.parse_model(text)) == ("sar", "inner", "back", "logits")


def test_a_model_whose_types_are_unknown() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "custom": 1]>
    g (float[1,1,8,8] sar) => (float[1,1,8,8] logits) {
      inner = custom.Mystery(sar)
      logits = Relu(inner)
    }"""
    with pytest.raises(ExportError, match=r"type of inner, which node .*\(Mystery\) computes, cannot be"):
        float_tensors(onnx.parser.parse_model(text))
