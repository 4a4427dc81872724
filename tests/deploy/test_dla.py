"""What the DLA takes: each rule with a layer that keeps it and one that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.deploy.dla import DlaPlacement, Rules, place_on_dla
from hfd_edge.deploy.graph import kept_reasons, load
from hfd_edge.deploy.precision import to_int8
from hfd_edge.deploy.shapes import infer

from .conftest import make_tiles
from .graphs import make_graph, node, weight


def placed(model: Any, rules: Rules | None = None) -> DlaPlacement:
    return place_on_dla(model, infer(model), rules or Rules())


def reason(*nodes: Any, constants: dict[str, np.ndarray] | None = None, rules: Rules | None = None) -> str:
    """Why the last node is refused."""
    return placed(make_graph(nodes, constants or {}, [1, 4, 8, 8], opset=18), rules).layers[-1].reason


def conv(kernel: int, **attributes: Any) -> str:
    return reason(
        node("Conv", ["sar", "w"], "logits", **attributes), constants={"w": weight(4, 4, kernel, kernel)}
    )


def resize(scale: float, *, mode: str = "linear", form: str = "half_pixel", **rules: Any) -> str:
    scales = np.array([1, 1, scale, scale], np.float32)
    item = node(
        "Resize",
        ["sar", "", "s"],
        "logits",
        mode=mode,
        coordinate_transformation_mode=form,
        nearest_mode="floor",
    )
    return reason(item, constants={"s": scales}, rules=Rules(**rules))


def test_convolutions() -> None:
    assert conv(3, pads=[1, 1, 1, 1]) == ""
    assert conv(3, pads=[16, 16, 16, 16], dilations=[16, 16]) == ""
    assert conv(1, strides=[8, 8]) == ""
    assert conv(1, pads=[32, 0, 0, 0]) == "padding [32, 0, 0, 0], taken are 0 to 31"
    assert conv(1, strides=[9, 1]) == "stride [9, 1], taken are 1 to 8"
    assert conv(2, dilations=[33, 33], pads=[16, 16, 17, 17]) == "dilation [33, 33], taken are 1 to 32"
    assert conv(33, pads=[31, 31, 31, 31]) == "kernel [33, 33], taken are 1 to 32"


def test_deconvolutions() -> None:
    def deconv(kernel: int, **attributes: Any) -> str:
        channels = 4 // attributes.get("group", 1)
        constants = {"w": weight(4, channels, kernel, kernel)}
        return reason(node("ConvTranspose", ["sar", "w"], "logits", **attributes), constants=constants)

    assert deconv(2, strides=[2, 2]) == ""
    assert deconv(64) == ""
    assert deconv(4, strides=[2, 2], pads=[1, 1, 1, 1]) == "the DLA's deconvolution takes no padding"
    assert deconv(2, group=2) == "the DLA's deconvolution takes no groups and no dilation"
    assert deconv(33) == "the deconvolution's kernel is [33, 33], taken are 1 to 32, 64, 96 and 128"


def test_pooling() -> None:
    def pool(ranges: dict[str, float] | None = None, **attributes: Any) -> str:
        return reason(node("MaxPool", ["sar"], "logits", **attributes), rules=Rules(amax=ranges))

    assert pool(kernel_shape=[2, 2], strides=[2, 2]) == ""
    assert pool({"sar": 2.0, "logits": 2.0}, kernel_shape=[2, 2]) == ""
    assert pool({"sar": 2.0, "logits": 1.9}, kernel_shape=[2, 2]) == "INT8 ranges of its tensors differ"
    assert pool(kernel_shape=[8, 9], pads=[0, 1, 0, 0]) == "window [8, 9], taken are 1 to 8"
    assert pool(kernel_shape=[3, 3], ceil_mode=1) == "pooling with ceil_mode"


def test_clips() -> None:
    def clip(low: float, high: float) -> str:
        constants = {"low": np.float32(low), "high": np.float32(high)}
        return reason(node("Clip", ["sar", "low", "high"], "logits"), constants=constants)

    assert clip(0, 6) == clip(0, 127) == ""
    assert clip(-1, 6) == "Clip from -1.0 to 6.0; the DLA clips from 0 to between 1 and 127"
    assert clip(0, 0.5).startswith("Clip from 0.0 to 0.5")


def test_sums_and_concatenations_need_one_range_in_int8() -> None:
    join = [node("Relu", ["sar"], "a"), node("Concat", ["sar", "a"], "logits", axis=1)]
    add = [node("Relu", ["sar"], "a"), node("Add", ["sar", "a"], "logits")]
    equal = {"sar": 3.0, "a": 3.0, "logits": 3.0}
    assert reason(*add) == reason(*join) == ""
    assert reason(*add, rules=Rules(amax=equal)) == reason(*join, rules=Rules(amax=equal)) == ""
    other_sum = Rules(amax=equal | {"logits": 6.0})
    assert reason(*add, rules=other_sum) == ""
    assert reason(*join, rules=other_sum) == "INT8 ranges of its tensors differ"
    assert reason(*add, rules=Rules(amax=equal | {"a": 3.1})) == "INT8 ranges of its tensors differ"
    along_rows = [join[0], node("Concat", ["sar", "a"], "logits", axis=2)]
    assert reason(*along_rows) == "Concat along another axis than channels"


def test_resizes() -> None:
    assert resize(4) == resize(2, tensorrt=(8, 5, 2)) == resize(32, mode="nearest") == ""
    assert resize(8) == "linear Resize by 8, at most 4 is taken"
    assert resize(64, mode="nearest") == "nearest Resize by 64, at most 32 is taken"
    assert resize(1.5) == "Resize from [8, 8] to [12, 12] is not by a whole number"
    assert "linear Resize; before TensorRT 8.4" in resize(2, tensorrt=(8, 2, 1))
    assert resize(2, mode="nearest", tensorrt=(8, 2, 1)) == ""
    assert resize(2, form="align_corners") == (
        "linear Resize with align_corners coordinates, expected linear with half_pixel"
    )


def test_other_layers_and_shapes() -> None:
    assert reason(node("Exp", ["sar"], "logits")) == "Exp is not among the layers of the DLA"
    wide = make_graph([node("Relu", ["sar"], "logits")], {}, [1, 1, 1, 8193])
    assert placed(wide).layers[0].reason == "an axis has 8193 elements, at most 8192 are taken"
    flat = make_graph(
        [
            node("Reshape", ["sar", "to"], "a"),
            node("Relu", ["a"], "b"),
            node("Reshape", ["b", "to4"], "logits"),
        ],
        {"to": np.array([1, 256]), "to4": np.array([1, 4, 8, 8])},
        [1, 4, 8, 8],
    )
    assert placed(flat).layers[1].reason == "one of its tensors has 2 axes, expected 4"
    rules = Rules(wide=["logits/Relu"])
    assert reason(node("Relu", ["sar"], "logits"), rules=rules).startswith("kept in FP32")


def test_pieces_are_what_the_gpu_leaves_connected() -> None:
    nodes = [
        node("Relu", ["sar"], "a"),
        node("Exp", ["a"], "b"),  # GPU
        node("Relu", ["b"], "c"),
        node("Add", ["a", "c"], "d"),  # belongs to c: a runs before the GPU, this after it
        node("Exp", ["d"], "e"),
        node("Relu", ["e"], "f"),
        node("Add", ["f", "d"], "logits"),
    ]
    found = placed(make_graph(nodes, {}, [1, 4, 8, 8]))
    assert found.subgraphs == 3
    whole = [node("Relu", ["sar"], "a"), node("Relu", ["a"], "b"), node("Add", ["a", "b"], "logits")]
    assert placed(make_graph(whole, {}, [1, 4, 8, 8])).subgraphs == 1
    assert placed(make_graph([node("Exp", ["sar"], "logits")], {}, [1, 4, 8, 8])).subgraphs == 0


def test_the_share_that_falls_back() -> None:
    nodes = [
        node("Conv", ["sar", "w"], "a"),
        node("Conv", ["a", "w"], "b"),
        node("Conv", ["b", "v"], "logits", strides=[9, 9]),
    ]
    model = make_graph(nodes, {"w": weight(4, 4, 1, 1), "v": weight(2, 4, 1, 1)}, [1, 4, 8, 8])
    each, last = 4 * 64 * 4, 2 * 1 * 4
    assert placed(model).fallback_share == pytest.approx(last / (2 * each + last))
    assert placed(model).reasons == {"stride [9, 9], taken are 1 to 8": ("logits/Conv",)}


def test_the_mini_network(mini_onnx: Path, tmp_path: Path) -> None:
    model = load(mini_onnx)
    rules = Rules((10, 3, 0), None, kept_reasons(model))
    found = place_on_dla(model, infer(model), rules)
    gpu = {layer.operator for layer in found.layers if layer.device == "GPU"}
    assert "GridSample" in gpu
    heads = {layer.node for layer in found.layers if layer.device == "GPU" and layer.operator == "Conv"}
    assert heads == {"align.flow_head", "classifier"}
    assert 0 < found.fallback_share < 0.1
    # Q/DQ nodes are seen through: the same layers, placed alike.
    to_int8(mini_onnx, tmp_path / "int8.onnx", tiles=make_tiles(2))
    quantised = load(tmp_path / "int8.onnx")
    again = place_on_dla(quantised, infer(quantised), rules)
    assert {(layer.node, layer.device) for layer in again.layers} == {
        (layer.node, layer.device) for layer in found.layers
    }
    assert again.subgraphs == found.subgraphs
