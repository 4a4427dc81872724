"""Which layers compute in INT8, what that leaves of the Q/DQ nodes, and their scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from hfd_edge.deploy.calibration import collect
from hfd_edge.deploy.graph import consumers, load, producers, quantizers, session
from hfd_edge.deploy.onnx_export import export_network
from hfd_edge.deploy.precision import place, ranges
from hfd_edge.deploy.qdq import (
    fold_weights,
    int8_model,
    layers,
    quantized_tensors,
    share,
    shared_scales,
)
from hfd_edge.errors import ExportError

from .conftest import BANDS, TILE, make_tiles
from .hostile import Network

Placed = tuple[Any, dict[str, float]]


def run(model: Any, tiles: np.ndarray) -> np.ndarray:
    return np.asarray(session(model).run(None, {"sar": tiles})[0])


def constants(model: Any) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def node(model: Any, name: str) -> Any:
    (found,) = (item for item in model.graph.node if item.name == name)
    return found


def before(model: Any, tensor: str) -> str:
    """Operator that computes a tensor."""
    return str(producers(model)[tensor].op_type)


@pytest.fixture(scope="module")
def mini_placed(mini_onnx: Path) -> Placed:
    placed = place(mini_onnx, make_tiles(1)[0])
    return placed, ranges(collect(mini_onnx, quantized_tensors(placed), make_tiles(3)), "max")


@pytest.fixture(scope="module")
def residual_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("residual") / "model.fp32.onnx"
    export_network(Network().eval(), path, bands=BANDS, tile_px=TILE, head="quarter")
    return path


@pytest.fixture(scope="module")
def residual(residual_onnx: Path) -> Placed:
    placed = place(residual_onnx, make_tiles(1)[0])
    return placed, ranges(collect(residual_onnx, quantized_tensors(placed), make_tiles(3)), "max")


def test_layers_are_named_after_modules(mini_placed: Placed, residual: Placed) -> None:
    names = layers(mini_placed[0])
    assert names == tuple(item.name for item in mini_placed[0].graph.node if item.name in names)
    assert set(names) == {
        *("fine.0.0", "fine.1.0", "coarse.0", "merge.0"),
        *("align.flow_coarse", "align.flow_fine", "align/Resize", "align.flow_merge.0"),
    }
    assert layers(residual[0]) == ("stem", "down", "first", "second", "widen", "fuse", "last")


def test_a_residual_sum_rides_on_its_convolution(residual: Placed) -> None:
    placed, amax = residual
    quantised = int8_model(placed, amax)
    (total,) = (item for item in quantised.graph.node if item.op_type == "Add")
    # One input straight from the convolution, so that its kernel adds; the skip is INT8.
    assert sorted(before(quantised, name) for name in total.input) == ["Conv", "DequantizeLinear"]
    kept = int8_model(placed, amax, keep=["second"])
    (total,) = (item for item in kept.graph.node if item.op_type == "Add")
    assert sorted(before(kept, name) for name in total.input) == ["Conv", "Relu"]
    # The skip is still quantised for the convolution that reads it as well.
    assert before(kept, node(kept, "first").input[0]) == "DequantizeLinear"
    assert layers(kept) == ("stem", "down", "first", "widen", "fuse", "last")
    # Without that one, the sum alone still wants the INT8 skip.
    other = int8_model(placed, amax, keep=["first"])
    (total,) = (item for item in other.graph.node if item.op_type == "Add")
    assert sorted(before(other, name) for name in total.input) == ["Conv", "DequantizeLinear"]
    assert before(other, node(other, "first").input[0]) == "Relu"


def test_a_kept_layer_is_float_and_pairs_that_nobody_needs_go(residual: Placed) -> None:
    placed, amax = residual
    kept = int8_model(placed, amax, keep=["fuse"])
    read = node(kept, "fuse").input
    assert before(kept, read[0]) == "Relu"
    assert constants(kept)[read[1]].dtype == np.float32
    gone = set(quantized_tensors(placed)) - set(quantized_tensors(kept))
    assert gone == {read[0]}
    assert len(quantizers(kept)[0]) == len(set(quantizers(kept)[0].values()))


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_every_pair_is_shared_by_its_readers(mini_placed: Placed, residual: Placed, rest: Any) -> None:
    for placed, amax in (mini_placed, residual):
        model = int8_model(placed, amax, rest=rest)
        values = constants(model)
        # TensorRT-RTX compiles scalars into several times the weights; see test_engine.
        assert {values[scale].shape for scale in quantizers(model)[0].values()} == {(1,)}
        readers = consumers(model)
        for item in model.graph.node:
            if item.op_type == "QuantizeLinear":
                assert [other.op_type for other in readers[item.output[0]]] == ["DequantizeLinear"]


def test_all_layers_kept_is_the_fp32_model(residual: Placed, residual_onnx: Path) -> None:
    placed, amax = residual
    model = int8_model(placed, amax, keep=layers(placed))
    assert not [item for item in model.graph.node if "Linear" in item.op_type]
    assert layers(model) == ()
    tiles = make_tiles(2, seed=1)
    np.testing.assert_array_equal(run(model, tiles), run(load(residual_onnx), tiles))


def test_one_layer_alone(residual: Placed, residual_onnx: Path) -> None:
    placed, amax = residual
    only = int8_model(placed, amax, keep=[name for name in layers(placed) if name != "second"])
    assert layers(only) == ("second",)
    tiles = make_tiles(2, seed=1)
    everything = np.abs(run(int8_model(placed, amax), tiles) - run(load(residual_onnx), tiles)).mean()
    assert 0 < np.abs(run(only, tiles) - run(load(residual_onnx), tiles)).mean() < everything


def test_the_placed_model_stays_as_it_is(residual: Placed) -> None:
    placed, amax = residual
    bytes_before = placed.SerializeToString(deterministic=True)
    int8_model(placed, amax, keep=["first"], rest="fp16")
    assert placed.SerializeToString(deterministic=True) == bytes_before


def test_a_warped_map_is_quantised_behind_the_concatenation_only(mini_placed: Placed) -> None:
    quantised = quantized_tensors(mini_placed[0])
    assert "align/GridSample:out" not in quantised
    assert any(name.endswith("Concat:out") for name in quantised)


def test_a_warp_reads_int8_only_where_a_layer_needs_it_anyway(mini_placed: Placed) -> None:
    placed, amax = mini_placed
    model = int8_model(placed, amax)
    assert before(model, node(model, "align/GridSample").input[0]) == "DequantizeLinear"
    kept = int8_model(placed, amax, keep=["align.flow_coarse"])
    assert before(kept, node(kept, "align/GridSample").input[0]) == "Clip"
    assert set(quantized_tensors(model)) - set(quantized_tensors(kept)) == {"coarse.2/Clip:out"}


def test_both_forms_of_the_warp_have_the_same_int8_layers(mini_placed: Placed, gather_onnx: Path) -> None:
    gathered = place(gather_onnx, make_tiles(1)[0])
    assert layers(gathered) == layers(mini_placed[0])
    reads = [item for item in gathered.graph.node if item.op_type == "GatherND"]
    assert len(reads) == 4
    quantised = set(quantized_tensors(gathered))
    assert quantised.isdisjoint(name for item in reads for name in (*item.input, *item.output))


class Pyramid(nn.Module):
    """Two laterals that are summed after their ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(BANDS, 16, 3, stride=4, padding=1) for _ in range(2))
        self.smooth = nn.Conv2d(16, 16, 3, padding=1)
        self.classifier = nn.Conv2d(16, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        total = torch.relu(self.left(pixels)) + torch.relu(self.right(pixels))
        return self.classifier(torch.relu(self.smooth(total)))


def test_a_sum_that_no_convolution_takes_over_is_not_quantised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_network(Pyramid().eval(), tmp_path / "m.onnx", bands=BANDS, tile_px=TILE, head="quarter")
    placed = place(tmp_path / "m.onnx", make_tiles(1)[0])
    (total,) = (item for item in placed.graph.node if item.op_type == "Add")
    assert [before(placed, name) for name in total.input] == ["Relu", "Relu"]
    assert quantized_tensors(placed) == ("sar", total.output[0])


def test_maps_that_meet_in_a_concatenation_share_its_scale(mini_placed: Placed) -> None:
    placed, amax = mini_placed
    pairs = shared_scales(placed)
    fine, coarse = "fine.1.2/Clip:out", "align.flow_coarse:out"
    assert pairs[coarse] == "align/Concat:out"  # through the Resize
    assert fine in pairs
    whole = pairs[fine]
    shared = share(amax, placed)
    assert shared[fine] == shared[whole] == amax[whole]
    assert {name: value for name, value in shared.items() if name not in pairs} == {
        name: value for name, value in amax.items() if name not in pairs
    }
    assert share(amax, placed, fixed=[fine])[fine] == amax[fine]
    model = int8_model(placed, {**shared, whole: 4.5, fine: 4.5})
    scales, values = quantizers(model)[0], constants(model)
    assert values[scales[fine]] == values[scales[whole]] == np.float32(4.5 / 127)


def test_int8_with_fp16_elsewhere(mini_placed: Placed) -> None:
    placed, amax = mini_placed
    model = int8_model(placed, amax, rest="fp16")
    onnx.checker.check_model(model, full_check=True)
    values = constants(model)
    for item in model.graph.node:
        if item.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[item.input[1]].dtype == np.float16
    for name in layers(model):
        read = node(model, name).input
        # TensorRT recognises a quantised layer by its DQ nodes: no cast may come between.
        assert before(model, read[0]) == "DequantizeLinear"
        if node(model, name).op_type == "Conv":
            assert values[producers(model)[read[1]].input[0]].dtype == np.int8
            assert all(values[bias].dtype == np.float16 for bias in read[2:])
    for name in ("align.flow_head", "classifier"):
        assert values[node(model, name).input[1]].dtype == np.float32
    kinds = [item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)]
    assert kinds == [TensorProto.FLOAT] * 2
    tiles = make_tiles(4, seed=1)
    wide = int8_model(placed, amax)
    assert (run(model, tiles).argmax(1) == run(wide, tiles).argmax(1)).mean() > 0.97


def test_small_scales_in_fp16_do_no_harm(residual_onnx: Path, tmp_path: Path) -> None:
    # The bias divided by both scales exceeds what FP16 holds.
    model = onnx.load(residual_onnx)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if item.name == "last.weight":
            item.CopyFrom(numpy_helper.from_array(values * np.float32(0.01), item.name))
        if item.name == "last.bias":
            item.CopyFrom(numpy_helper.from_array(values + np.float32(2), item.name))
    path, tiles = tmp_path / "small.onnx", make_tiles(4, seed=1)
    onnx.save(model, path)
    placed = place(path, tiles[0])
    amax = ranges(collect(path, quantized_tensors(placed), tiles), "max")
    wide, narrow = (run(int8_model(placed, amax, rest=rest), tiles) for rest in ("fp32", "fp16"))
    assert np.abs(wide - narrow).max() < 0.01


def test_fp16_keeps_what_the_gate_kept_in_fp16(residual: Placed) -> None:
    model = int8_model(*residual, keep=["fuse"], rest="fp16")
    assert constants(model)[node(model, "fuse").input[1]].dtype == np.float16
    assert layers(model) == ("stem", "down", "first", "second", "widen", "last")


def with_a_dead_channel(path: Path, out: Path) -> None:
    """Give one channel weights of 1e-12 and an ordinary bias, as folded batch normalisation does."""
    model = onnx.load(path)
    values = constants(model)
    weight, bias = values["first.weight"].copy(), values["first.bias"].copy()
    weight[3], bias[3] = 1e-12, 2.0
    for item in model.graph.initializer:
        if item.name in ("first.weight", "first.bias"):
            item.CopyFrom(numpy_helper.from_array(weight if "weight" in item.name else bias, item.name))
    onnx.save(model, out)


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_biases_of_dead_channels_fit_into_32_bits(residual_onnx: Path, tmp_path: Path, rest: Any) -> None:
    path = tmp_path / "dead.onnx"
    with_a_dead_channel(residual_onnx, path)
    placed = place(path, make_tiles(1)[0])
    amax = ranges(collect(path, quantized_tensors(placed), make_tiles(3)), "max")
    model = int8_model(placed, amax, rest=rest)
    values, first = constants(model), node(model, "first")
    steps = [values[producers(model)[name].input[1]].astype(np.float64) for name in first.input[:2]]
    assert (np.abs(values[first.input[2]]) / (steps[0] * steps[1])).max() <= 2**30 * 1.001
    if rest == "fp32":
        # With all of ONNX Runtime's passes, which make the bias an int32, as device kernels do.
        whole = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = whole.run(None, {"sar": make_tiles(2)})[0]
        expected = run(load(path), make_tiles(2))
        assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)


def test_what_cannot_be_made(residual: Placed) -> None:
    placed, amax = residual
    with pytest.raises(ExportError, match=r"classifier cannot be kept .* no layer .* Layers: stem, down"):
        int8_model(placed, amax, keep=["stem", "classifier"])
    missing: Mapping[str, float] = {name: value for name, value in amax.items() if name != "sar"}
    with pytest.raises(ExportError, match="Tensor sar has range None, expected a positive number"):
        int8_model(placed, missing)
    for value in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ExportError, match=f"Tensor sar has range {value}"):
            int8_model(placed, {**amax, "sar": value})


def test_a_zero_point_is_refused(residual: Placed) -> None:
    placed, amax = residual
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(placed)
    name = next(item.input[2] for item in spoilt.graph.node if item.op_type == "QuantizeLinear")
    zero = next(item for item in spoilt.graph.initializer if item.name == name)
    values = numpy_helper.to_array(zero).copy()
    values[...] = 3
    zero.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ExportError, match=r"has zero point \[3\] \(int8\), expected int8 zeros"):
        int8_model(spoilt, amax)


def test_folding_changes_no_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    scale = (np.abs(weight).reshape(4, -1).max(1) / 127).astype(np.float32)
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("QuantizeLinear", ["w", "s", "z"], ["wq"], axis=0),
            node("DequantizeLinear", ["wq", "s", "z"], ["wd"], axis=0),
            node("Conv", ["sar", "wd"], ["logits"], pads=[1, 1, 1, 1]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("sar", TensorProto.FLOAT, [1, 2, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 8, 8])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(scale, "s"),
            numpy_helper.from_array(np.zeros(4, np.int8), "z"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    pixels = rng.normal(size=(1, 2, 8, 8)).astype(np.float32)
    before = session(model).run(None, {"sar": pixels})[0]
    fold_weights(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Conv"]
    assert "w" not in {item.name for item in model.graph.initializer}
    np.testing.assert_array_equal(session(model).run(None, {"sar": pixels})[0], before)
