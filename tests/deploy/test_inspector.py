"""The inspector's JSON of several generations, counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hfd_edge.deploy.inspector import precision_of, summarise, tensors
from hfd_edge.engine_record import Layers
from hfd_edge.errors import EngineError


def layer(kind: str, output: str | None = None, weights: str | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"Name": "some", "LayerType": kind, "Inputs": []}
    made["Outputs"] = [] if output is None else [{"Name": "out", "Format/Datatype": output}]
    if weights is not None:
        made["Weights"] = {"Type": weights, "Count": 9}
    return made


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Row major linear FP32 format", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Half(64,1:8,...)", "fp16"),
        ("Float(1,2)", "fp32"),
        ("Float16", "fp16"),
        ("BFloat16", "bf16"),
        ("Int8", "int8"),
        ("Int32", "int32"),
        ("N/A due to dynamic shapes", "other"),
        (None, "other"),
    ],
)
def test_precision_by_output(output: str | None, expected: str) -> None:
    assert precision_of(layer("PointWiseV2", output)) == expected


def test_weights_say_more_than_the_output() -> None:
    """A convolution that takes INT8 and gives FP16 computes in INT8."""
    assert precision_of(layer("CaskConvolution", "Half", "Int8")) == "int8"
    assert precision_of(layer("CaskConvolution", "N/A due to dynamic shapes", "Half")) == "fp16"


LAYERS = [
    layer("Reformat", "Int8"),
    layer("CaskConvolution", "Int8", "Int8"),
    layer("CaskConvolution", "Half", "Int8"),
    layer("Reformat", "Row major linear FP16 format"),
    layer("PointWiseV2", "Row major linear FP16 format"),
    layer("NoOp"),
]
EXPECTED = Layers(count=6, by_precision={"fp16": 1, "int8": 2, "other": 1}, reformats=2)


def test_both_generations_of_tensors() -> None:
    ten = json.dumps({"Layers": LAYERS, "Bindings": ["sar", "logits"]})
    eleven = json.dumps({"Layers": LAYERS, "I/O Tensors": [{"Name": "sar"}, {"Name": "logits"}]})
    for text in (ten, eleven):
        assert summarise(text) == EXPECTED
        assert tensors(text) == ("sar", "logits")


def test_layers_by_name_alone() -> None:
    """Without detailed verbosity an engine keeps names; reformats still show."""
    text = json.dumps({"Layers": ["Reformatting CopyNode for Input Tensor 0 to conv", "conv + relu"]})
    assert summarise(text) == Layers(count=2, by_precision={"other": 1}, reformats=1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', "Layer(Reformat): ..."])
def test_something_else(text: str) -> None:
    with pytest.raises(EngineError, match="gave something else than JSON with Layers"):
        summarise(text)
