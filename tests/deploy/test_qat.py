"""Ranges of a quantisation-aware training on their way into the INT8 model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from hfd_edge.bundle import Bundle
from hfd_edge.config import DeployRecipe, NetworkRecipe, Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.export import export_run
from hfd_edge.deploy.graph import high_precision_nodes, load, quantizers, session
from hfd_edge.deploy.qat import QAT_RANGES, tensor_ranges
from hfd_edge.deploy.quantize import quantize
from hfd_edge.errors import ExportError
from hfd_edge.hfdnet.fakequant import activation_ranges, fold_norms, quantised_convolutions
from hfd_edge.hfdnet.run import Run
from hfd_edge.training.qat import quantised_network

from .conftest import PREPROCESSING, TILE
from .test_export import make_run

# Inverted residuals without squeeze-and-excite, as in the smallest preset, but a tenth of its weights.
RECIPE = Recipe(
    network=NetworkRecipe(encoder="mobilenetv2_035", channels=16, init="random"),
    deploy=DeployRecipe(tile_px=TILE),
)


@pytest.fixture(scope="module")
def run(folder: PairFolder, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as quantisation-aware training leaves it, without the training."""
    student = Run.open(make_run(tmp_path_factory.mktemp("runs") / "student", folder, recipe=RECIPE))
    network = student.network()
    fold_norms(network)
    ranges = activation_ranges(network, [tile(folder, index) for index in range(3)], percentile=99.9)
    info = student.info.model_copy(update={"qat_sha256": "0" * 64})
    tuned = Run.create(student.path.with_name("qat"), student.recipe, info, ranges=ranges)
    tuned.save_best(network.state_dict())
    return tuned


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_run(run.path, tmp_path_factory.mktemp("bundles") / "qat.hfd")


@pytest.fixture(scope="module")
def made(exported: Bundle, folder: PairFolder) -> Bundle:
    return quantize(exported, folder, tiles=3)


def tile(folder: PairFolder, index: int) -> torch.Tensor:
    pixels, _ = PREPROCESSING(folder.load_sar(folder.pairs("train")[index]))
    return torch.from_numpy(pixels[None, :, :TILE, :TILE].copy())


def test_modules_become_tensors(run: Run, exported: Bundle) -> None:
    model = load(exported.model("fp32"))
    stored = json.loads(exported.file(QAT_RANGES).read_text())
    inputs = {node.name: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    ranges = run.quantizers()
    assert stored == {"amax": {inputs[name]: value for name, value in ranges.items()}}
    assert stored["amax"]["sar"] == ranges["encoder.body.conv_stem"]
    exported.verify()


def test_training_rounds_what_the_graph_quantises(run: Run, exported: Bundle) -> None:
    model = load(exported.model("fp32"))
    kept = set(high_precision_nodes(model))
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert quantised_convolutions(run.network()).keys() == convolutions - kept


def test_int8_computes_what_was_trained(run: Run, made: Bundle, folder: PairFolder) -> None:
    """The INT8 model on ONNX Runtime against the fake-quantised network, relative to what INT8 changes."""
    assert json.loads(made.file("calibration/int8.json").read_text())["method"] == "qat"
    int8, fp32 = session(made.model("int8")), session(made.model("fp32"))
    rounded = quantised_network(run)
    ours, theirs, plain = [], [], []
    for index in range(3):
        pixels = tile(folder, index)
        with torch.no_grad():
            ours.append(rounded(pixels).numpy())
        theirs.append(int8.run(None, {"sar": pixels.numpy()})[0])
        plain.append(fp32.run(None, {"sar": pixels.numpy()})[0])
    noise = np.std(np.stack(theirs) - np.stack(plain))
    difference = np.std(np.stack(theirs) - np.stack(ours))
    # Not 0: sums in another order round to a neighbouring code here and there, and the flow heads' input
    # is rounded once more in the graph.
    assert difference < 0.5 * noise
    assert 0 < noise < 0.1 * np.std(np.stack(plain))


def test_int8_uses_the_ranges_to_the_bit(made: Bundle) -> None:
    model = load(made.model("int8"))
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    scales, _ = quantizers(model)
    learnt = json.loads(made.file(QAT_RANGES).read_text())["amax"]
    for tensor, amax in learnt.items():
        assert constants[scales[tensor]].ravel()[0] == np.float32(amax / 127), tensor


def changed(ranges: dict[str, float], **values: Any) -> dict[str, float]:
    return {**ranges, **values}


def test_a_range_without_convolution_is_refused(run: Run, exported: Bundle) -> None:
    with pytest.raises(
        ExportError, match=r"a range for elsewhere, but the exported graph has no convolution"
    ):
        tensor_ranges(exported.model("fp32"), changed(run.quantizers(), elsewhere=1.0))


def test_two_ranges_for_one_tensor_are_refused(run: Run, exported: Bundle) -> None:
    ranges = changed(run.quantizers(), **{"hfam.aggregate.2.flow_fine": 0.125})
    with pytest.raises(ExportError, match=r"and 0.125 for .*aggregate.2.flow_fine and another"):
        tensor_ranges(exported.model("fp32"), ranges)
