"""Names, and which nodes stay precise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hfd_edge.deploy.graph import (
    high_precision_nodes,
    kept_reasons,
    load,
    producers,
    quantizers,
    replace_initializers,
    session,
    unfused_sums,
)
from hfd_edge.deploy.onnx_export import export_network
from hfd_edge.errors import ExportError

from .conftest import BANDS, TILE, Mini, block


def test_nodes_are_named_after_modules(mini_onnx: Path) -> None:
    nodes = load(mini_onnx).graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert {"fine.0.0", "coarse.0", "align.flow_head", "align/GridSample", "classifier"} <= set(names)
    (head,) = (node for node in nodes if node.name == "align.flow_head")
    assert list(head.output) == ["align.flow_head:out"]


def test_nothing_tells_of_the_exporting_machine(mini_onnx: Path) -> None:
    content = mini_onnx.read_bytes()
    assert b"stack_trace" not in content
    assert b".py" not in content
    assert str(Path.home()).encode() not in content or str(Path.home()) == "/"


def test_flow_warp_and_classifier_stay_precise(mini_onnx: Path) -> None:
    model = load(mini_onnx)
    kept = set(high_precision_nodes(model))
    assert {"align.flow_head", "align/GridSample", "classifier"} <= kept
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert convolutions & kept == {"align.flow_head", "classifier"}
    arithmetic = {node.name for node in model.graph.node if node.op_type in ("Mul", "Add", "Transpose")}
    assert arithmetic <= kept


def test_all_arithmetic_of_the_gather_form_stays_precise(gather_onnx: Path) -> None:
    model = load(gather_onnx)
    kept = set(high_precision_nodes(model))
    # Positions in flattened maps exceed what FP16 can count, so none of these may be converted.
    for operator in ("GatherND", "Floor", "Cast", "Sub", "Mul"):
        found = {node.name for node in model.graph.node if node.op_type == operator}
        assert found and found <= kept, operator
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert convolutions & kept == {"align.flow_head", "classifier"}


@pytest.mark.parametrize("method", ["grid_sample", "gather"])
def test_what_merges_a_warped_map_with_another_is_no_part_of_the_warp(method: str, tmp_path: Path) -> None:
    class Summed(Mini):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            fine = self.fine(pixels)
            return self.classifier(self.merge(fine + self.align(self.coarse(fine), fine)))

    network = Summed(method).eval()
    network.merge = block(32, 32, 1).eval()
    export_network(network, tmp_path / "m.onnx", bands=BANDS, tile_px=TILE, head="quarter")
    model = load(tmp_path / "m.onnx")
    (merge,) = (node for node in model.graph.node if node.name == "merge.0")
    merged = producers(model)[merge.input[0]]
    assert merged.op_type == "Add"
    assert merged.name in unfused_sums(model)
    kept = kept_reasons(model)
    assert merged.name not in kept
    # Of the sum's inputs, the warped map alone comes from the warp.
    assert sorted(producers(model)[name].name in kept for name in merged.input) == [False, True]


@pytest.mark.parametrize("kept", [0, 1, 100, 30_000])
def test_a_truncated_model(mini_onnx: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(mini_onnx.read_bytes()[:kept])
    with pytest.raises(ExportError, match=r"cut\.onnx (is not a whole ONNX model|has inputs \[\])"):
        load(path)


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a whole ONNX model.*Export the run again"):
        load(tmp_path / "none.onnx")


def test_a_foreign_model(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    with pytest.raises(ExportError, match=r"has inputs \['x'\] and outputs \['y'\], expected \['sar'\]"):
        load(path)


def test_replacing_constants(mini_onnx: Path) -> None:
    model = load(mini_onnx)
    replace_initializers(model, {"classifier.bias": np.array([1.0, 2.0, 3.0])})
    (bias,) = (item for item in model.graph.initializer if item.name == "classifier.bias")
    assert onnx.numpy_helper.to_array(bias).tolist() == [1, 2, 3]
    assert onnx.numpy_helper.to_array(bias).dtype == np.float32
    for name, shape in (("classifier.bias", (2,)), ("nothing", (3,))):
        with pytest.raises(ExportError, match=f"no constant {name} of shape"):
            replace_initializers(model, {name: np.zeros(shape)})


def test_a_plain_model_has_no_quantizers(mini_onnx: Path) -> None:
    assert quantizers(load(mini_onnx)) == ({}, {})


def test_onnx_runtime_names_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="ONNX Runtime cannot open the model: .*rotobuf"):
        session(tmp_path / "bad.onnx")


def test_onnx_runtime_must_not_quantise_biases(mini_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In models with FP16 scales (preset s, ONNX Runtime 1.32) that pass turned a bias of 3.7 into -81375.
    real, seen = onnxruntime.InferenceSession, []

    def spy(*arguments: object, **options: object) -> object:
        seen.append(options["disabled_optimizers"])
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    session(mini_onnx)
    assert seen == [["WeightBiasQuantization"]]


def test_replacing_a_scalar_keeps_it_one(mini_onnx: Path) -> None:
    model = load(mini_onnx)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(1.0, np.float32), "scale"))
    replace_initializers(model, {"scale": np.asarray(2.0)})
    assert list(model.graph.initializer[-1].dims) == []


def test_every_kept_node_has_its_reason(mini_onnx: Path, gather_onnx: Path) -> None:
    for path in (mini_onnx, gather_onnx):
        reasons = {name: text.split(":")[0] for name, text in kept_reasons(load(path)).items()}
        assert tuple(reasons) == high_precision_nodes(load(path))
        assert reasons["align.flow_head"] == "flow head"
        assert reasons["classifier"] == "classifier"
        warps = {reasons[name] for name in reasons if "GridSample" in name or "GatherND" in name}
        assert warps == {"warp"}
        assert reasons["align/Mul"] == "warp grid"
