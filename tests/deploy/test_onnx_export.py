"""The ONNX file computes what the weights compute, and the check that says so can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hfd_edge.deploy.graph import load, producers, session
from hfd_edge.deploy.onnx_export import OPSET, check_parity, export_network, fold_constants
from hfd_edge.deploy.shapes import infer
from hfd_edge.errors import ExportError, MissingExtraError, StorageError
from hfd_edge.raster.logits import labels_from_logits

from .conftest import BANDS, CLASSES, TILE, Mini, make_mini, make_tiles

SHAPE = {"bands": BANDS, "tile_px": TILE, "head": "quarter"}


def test_names_types_and_free_batch(mini_onnx: Path) -> None:
    model = onnx.load(mini_onnx)
    assert model.opset_import[0].version == OPSET
    (sar,), (logits,) = model.graph.input, model.graph.output
    assert (sar.name, logits.name) == ("sar", "logits")
    runner = session(mini_onnx)
    for batch in (1, 3):
        found = runner.run(["logits"], {"sar": make_tiles(batch)})[0]
        assert found.shape == (batch, len(CLASSES), TILE // 4, TILE // 4)
        assert found.dtype == np.float32


def test_batch_normalisation_is_folded(mini_onnx: Path) -> None:
    operators = {node.op_type for node in onnx.load(mini_onnx).graph.node}
    assert "BatchNormalization" not in operators
    assert "GridSample" in operators


def test_parity(mini: Mini, mini_onnx: Path) -> None:
    before = {name: value.clone() for name, value in mini.state_dict().items()}
    assert check_parity(mini, mini_onnx, **SHAPE, pixels=make_tiles(2)) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in mini.state_dict().items())


def test_parity_of_the_gather_form(gather_onnx: Path) -> None:
    assert "GridSample" not in {node.op_type for node in onnx.load(gather_onnx).graph.node}
    assert check_parity(make_mini(method="gather"), gather_onnx, **SHAPE) < 1e-5


def test_indices_of_the_gather_form_are_whole_numbers_all_along(gather_onnx: Path) -> None:
    """TensorRT 8.2 cannot keep layers in FP32, and FP16 rounds whole numbers above 2048."""
    model = load(gather_onnx)
    tensors, made = infer(model), producers(model)
    products = 0
    for gather in [node for node in model.graph.node if node.op_type == "GatherND"]:
        waiting = [gather.input[1]]
        while waiting:
            node = made.get(waiting.pop())
            if node is not None and node.op_type != "Cast":
                assert tensors[node.output[0]].dtype == "INT64", node.name
                products += node.op_type == "Mul"
                waiting.extend(node.input)
    assert products


def test_a_damaged_weight_is_found(mini: Mini, mini_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(mini_onnx)
    weight = next(item for item in model.graph.initializer if item.name == "coarse.0.weight")
    value = onnx.numpy_helper.to_array(weight).copy()
    value[0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(ExportError, match="as trained differs from the weights by .*allowed are 1e-04"):
        check_parity(mini, tmp_path / "damaged.onnx", **SHAPE)


def test_a_faulty_warp_is_found_though_the_flow_is_zero(tmp_path: Path) -> None:
    """A warp that ignores its flow computes the same as long as the flow is zero."""
    network = make_mini(flow=False)
    with torch.no_grad():
        # Not exactly zero, as the exporter would merge equal constants; far below what a pixel shows.
        network.align.flow_head.bias.copy_(torch.tensor([1e-9, 2e-9]))
        network.align.flow_head.weight.fill_(1e-12)
    path = tmp_path / "model.onnx"
    export_network(network, path, **SHAPE)
    model = onnx.load(path)
    scale = next(node for node in model.graph.node if node.op_type == "Mul" and "align" in node.name)
    constant = next(item for item in model.graph.initializer if item.name in scale.input)
    zeros = np.zeros_like(onnx.numpy_helper.to_array(constant))
    constant.CopyFrom(onnx.numpy_helper.from_array(zeros, constant.name))
    onnx.save(model, path)
    with pytest.raises(ExportError, match="with a random flow differs from the weights"):
        check_parity(network, path, **SHAPE)


def test_parity_of_a_network_whose_flow_was_never_trained(tmp_path: Path) -> None:
    network = make_mini(flow=False)
    path = tmp_path / "model.onnx"
    export_network(network, path, **SHAPE)
    assert check_parity(network, path, **SHAPE) < 1e-5


def test_full_and_quarter_head_give_the_same_labels(mini: Mini, mini_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "full.onnx"
    export_network(mini, path, bands=BANDS, tile_px=TILE, head="full")
    assert check_parity(mini, path, bands=BANDS, tile_px=TILE, head="full") < 1e-5
    tiles = make_tiles(4)
    full = session(path).run(["logits"], {"sar": tiles})[0].argmax(1)
    quarter = session(mini_onnx).run(["logits"], {"sar": tiles})[0]
    labels = [labels_from_logits(logits, stride=4, rows=TILE, cols=TILE) for logits in quarter]
    assert len(np.unique(full)) > 1
    assert (full == np.stack(labels)).mean() >= 0.999


def test_weights_that_are_not_finite(mini_onnx: Path) -> None:
    network = make_mini()
    with torch.no_grad():
        network.classifier.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="gives logits that are not finite or all equal"):
        check_parity(network, mini_onnx, **SHAPE)


def test_an_operator_that_cannot_be_exported(tmp_path: Path) -> None:
    class Strange(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svd(pixels).S

    with pytest.raises(ExportError, match="cannot be exported to ONNX"):
        export_network(Strange(), tmp_path / "m.onnx", **SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Free some space"):
        export_network(mini, tmp_path / "m.onnx", **SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"'onnxscript'.*pip install 'hfd-edge\[export\]'"):
        export_network(mini, tmp_path / "m.onnx", **SHAPE)


def test_nothing_is_printed(mini: Mini, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_network(mini, tmp_path / "m.onnx", **SHAPE)
    assert capfd.readouterr().out == ""


def test_constants_are_folded_and_equal_ones_shared() -> None:
    """Two grids as the exporter leaves them: float64 parts, joined and cast at run time."""
    helper, to_array = onnx.helper, onnx.numpy_helper.to_array
    half = np.arange(6, dtype=np.float64).reshape(2, 3) / 7
    nodes = []
    for grid in "ab":
        nodes += [
            helper.make_node("Unsqueeze", ["half", "axis"], [f"{grid}1"]),
            helper.make_node("Concat", [f"{grid}1", f"{grid}1"], [f"{grid}2"], axis=0),
            helper.make_node("Cast", [f"{grid}2"], [f"{grid}3"], to=onnx.TensorProto.FLOAT),
        ]
    nodes += [
        helper.make_node("Add", ["x", "a3"], ["sum"]),
        helper.make_node("Mul", ["sum", "b3"], ["y"]),
        helper.make_node("Cast", ["half"], ["z"], to=onnx.TensorProto.FLOAT),
    ]
    shapes = {"x": [2, 2, 3], "y": [2, 2, 3], "z": [2, 3]}
    values = {name: helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()}
    constants = [
        onnx.numpy_helper.from_array(half, "half"),
        onnx.numpy_helper.from_array(np.array([0]), "axis"),
    ]
    graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    x = np.ones((2, 2, 3), np.float32)
    expected = session(model).run(None, {"x": x})
    fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    # The second Cast is an output of the model and stays; the grid is there once.
    assert [node.op_type for node in model.graph.node] == ["Add", "Mul", "Cast"]
    assert {item.name: to_array(item).dtype for item in model.graph.initializer} == {
        "half": np.float64,
        "a3": np.float32,
    }
    for found, value in zip(session(model).run(None, {"x": x}), expected, strict=True):
        np.testing.assert_array_equal(found, value)
