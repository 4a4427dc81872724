"""Shapes, multiply-accumulates and memory, against figures counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.deploy.graph import load, session
from hfd_edge.deploy.shapes import Memory, Tensor, batch_of, folded, infer, macs, memory, with_batch
from hfd_edge.errors import ExportError

from .conftest import BANDS, CLASSES, TILE
from .graphs import make_graph, node, weight


def test_tensors_of_the_mini_network(mini_onnx: Path) -> None:
    model = load(mini_onnx)
    tensors = infer(model, batch=3)
    assert tensors["sar"] == Tensor((3, BANDS, TILE, TILE), "FLOAT")
    assert tensors["logits"] == Tensor((3, len(CLASSES), TILE // 4, TILE // 4), "FLOAT")
    outputs = session(model).run(None, {"sar": np.zeros((3, BANDS, TILE, TILE), np.float32)})
    assert outputs[0].shape == tensors["logits"].shape
    assert batch_of(model) is None
    assert batch_of(with_batch(model, 5)) == 5
    assert infer(with_batch(model, 5), batch=2)["logits"].shape[0] == 5  # a fixed batch stays


def test_multiply_accumulates() -> None:
    nodes = [
        node("Conv", ["sar", "w"], "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Conv", ["a", "d"], "b", group=6),
        node("ConvTranspose", ["b", "t"], "logits", strides=[2, 2]),
    ]
    constants = {"w": weight(6, 4, 3, 3), "d": weight(6, 1, 1, 1), "t": weight(6, 5, 2, 2)}
    model = make_graph(nodes, constants, ["n", 4, 8, 8])
    found = macs(model, infer(model, batch=2))
    assert found == {
        "a/Conv": 2 * 6 * 4 * 4 * (4 * 3 * 3),
        "b/Conv": 2 * 6 * 4 * 4,  # depthwise: one multiplication a value
        "logits/ConvTranspose": 2 * 6 * 4 * 4 * (5 * 2 * 2),
    }


def test_matrix_products() -> None:
    model = make_graph([node("MatMul", ["sar", "w"], "logits")], {"w": weight(8, 3)}, [2, 4, 5, 8])
    assert macs(model, infer(model)) == {"logits/MatMul": 2 * 4 * 5 * 3 * 8}


def test_memory_counts_what_lives_at_the_same_time() -> None:
    nodes = [
        node("Conv", ["sar", "w"], "a"),
        node("Relu", ["a"], "b"),  # in place
        node("Conv", ["b", "w"], "c"),
        node("Add", ["b", "c"], "d"),  # b lives until here
        node("Conv", ["d", "w"], "logits"),
    ]
    model = make_graph(nodes, {"w": weight(4, 4, 1, 1)}, [1, 4, 8, 8])
    plane = 4 * 8 * 8 * 4  # bytes of a tensor; b, c and d at the sum
    assert memory(model, infer(model)) == Memory(weights_bytes=4 * 4 * 4, activations_bytes=3 * plane)
    assert memory(model, infer(model), float_bytes=2).activations_bytes == 3 * plane // 2


def test_int8_from_a_cache_takes_a_byte_where_layers_read() -> None:
    nodes = [node("Conv", ["sar", "w"], "a"), node("Conv", ["a", "v"], "logits")]
    model = make_graph(nodes, {"w": weight(4, 4, 1, 1), "v": weight(4, 4, 1, 1)}, [1, 4, 8, 8])
    tensors, plane = infer(model), 4 * 8 * 8
    assert memory(model, tensors) == Memory(2 * 64, 2 * 4 * plane)
    assert memory(model, tensors, int8=["logits/Conv"]) == Memory(64 + 16, (4 + 1) * plane)


def test_quantisers_share_the_memory_of_what_they_quantise() -> None:
    nodes = [
        node("Conv", ["sar", "w"], "a"),
        node("QuantizeLinear", ["a", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "r"),
        node("Conv", ["r", "w"], "logits"),
    ]
    constants = {"w": weight(4, 4, 1, 1), "s": np.float32(0.1), "z": np.int8(0)}
    model = make_graph(nodes, constants, [1, 4, 8, 8])
    assert memory(model, infer(model)).activations_bytes == (4 + 1) * 4 * 8 * 8


def test_what_depends_on_constants_alone_is_folded() -> None:
    nodes = [
        node("Unsqueeze", ["g", "axes"], "h"),
        node("Cast", ["h"], "i", to=1),
        node("Add", ["sar", "i"], "logits"),
    ]
    constants = {"g": np.ones((4, 8, 8)), "axes": np.array([0])}
    model = make_graph(nodes, constants, [1, 4, 8, 8])
    assert folded(model) == {"h/Unsqueeze", "i/Cast"}
    assert folded(model, but=("Cast",)) == {"h/Unsqueeze"}
    assert memory(model, infer(model)).activations_bytes == 2 * 4 * 4 * 8 * 8


def test_shapes_that_do_not_fit() -> None:
    broken = make_graph([node("Add", ["sar", "w"], "logits")], {"w": weight(1, 3, 8, 8)}, [1, 4, 8, 8])
    with pytest.raises(ExportError, match="Shapes of the model do not fit together"):
        infer(broken)


def test_a_shape_that_only_the_data_tell() -> None:
    nodes = [node("NonZero", ["sar"], "a"), node("Cast", ["a"], "logits", to=1)]
    model = make_graph(nodes, {}, [1, 4, 8, 8])
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    with pytest.raises(
        ExportError, match=r"tensor a \(node a/NonZero, NonZero\) is not known before the model"
    ):
        infer(model)


def test_what_is_still_read_is_not_overwritten() -> None:
    nodes = [
        node("Conv", ["sar", "w"], "a"),
        node("Relu", ["a"], "b"),  # a is read again: not in place
        node("Add", ["a", "b"], "logits"),
    ]
    model = make_graph(nodes, {"w": weight(4, 4, 1, 1)}, [1, 4, 8, 8])
    assert memory(model, infer(model)).activations_bytes == 3 * 4 * 4 * 8 * 8
