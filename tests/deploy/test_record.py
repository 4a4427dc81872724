from __future__ import annotations

import json

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.record import (
    RECORD,
    CalibrationRecord,
    CalibrationTile,
    KeptNode,
    read_record,
    write_record,
)
from hfd_edge.errors import ExportError


def make_record(onnx_sha256: str, **changes: object) -> CalibrationRecord:
    fields = {
        "method": "entropy",
        "onnx_sha256": onnx_sha256,
        "data_sha256": "d" * 64,
        "split": "train",
        "input_shape": (2, 64, 64),
        "selection": "even",
        "requested_tiles": 2,
        "tiles": (CalibrationTile(name="a", row=0, col=64, sha256="e" * 64),),
        "amax": {"sar": 3.5, "fine.0.0:out": 0.1},
        "quantized_tensors": ("sar",),
        "quantized_nodes": ("fine.0.0",),
        "kept": (KeptNode(node="classifier", reason="logits decide the argmax"),),
        "versions": {"onnx": "1.18"},
    }
    return CalibrationRecord.model_validate({**fields, **changes})


def model_hash(bundle: Bundle) -> str:
    return bundle.manifest.files[bundle.manifest.precisions["fp32"]]


def test_round_trip_keeps_every_bit(bundle: Bundle) -> None:
    record = make_record(model_hash(bundle), amax={"sar": 0.1 + 0.2, "x": 1e-30})
    assert read_record(bundle.add({RECORD: write_record(record)})) == record


def test_refuses_a_bundle_that_was_never_quantised(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match=r"has no calibration record. Make it with: hfd-edge quantize"):
        read_record(bundle)


def test_refuses_the_record_of_another_model(bundle: Bundle) -> None:
    added = bundle.add({RECORD: write_record(make_record("f" * 64))})
    with pytest.raises(ExportError, match=r"calibrates another FP32 model \(ffffffffffff"):
        read_record(added)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content | {"amax": {"sar": -1.0}},
        lambda content: content | {"amax": {"sar": float("inf")}},
        lambda content: content | {"amax": {}},
        lambda content: content | {"tiles": []},
        lambda content: content | {"strange": 1},
        lambda content: {"method": "entropy"},
    ],
)
def test_refuses_damage(bundle: Bundle, damage) -> None:
    content = json.loads(write_record(make_record(model_hash(bundle))))
    added = bundle.add({RECORD: json.dumps(damage(content)).encode()})
    with pytest.raises(ExportError, match="is damaged or from another version"):
        read_record(added)


def test_refuses_what_is_not_json(bundle: Bundle) -> None:
    added = bundle.add({RECORD: b'{"method": '})
    with pytest.raises(ExportError, match="is damaged or from another version"):
        read_record(added)
