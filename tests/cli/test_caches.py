"""calibrate cache and calibrate read on a small bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.cli import app
from hfd_edge.config import SarInput
from hfd_edge.deploy.record import RECORD, CalibrationRecord, CalibrationTile, KeptNode, write_record
from hfd_edge.sar.preprocessing import Preprocessing

TILE = 32


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def make_model() -> Any:
    shape = ["batch", 1, TILE, TILE]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["sar", "body.weight"], ["body:out"], name="body"),
            helper.make_node("Conv", ["body:out", "classifier.weight"], ["logits"], name="classifier"),
        ],
        "small",
        [helper.make_tensor_value_info("sar", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2, TILE, TILE])],
        [
            numpy_helper.from_array(np.ones((4, 1, 1, 1), np.float32), "body.weight"),
            numpy_helper.from_array(np.ones((2, 4, 1, 1), np.float32), "classifier.weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    preprocessing = Preprocessing(
        units="intensity",
        looks=1.0,
        nodata=0.0,
        speckle="none",
        window_px=7,
        clip=((-30.0, 5.0),),
        mean=(-12.0,),
        std=(5.0,),
    )
    manifest = Manifest(
        name="small",
        classes=("water", "land"),
        palette=((0, 0, 255), (0, 128, 0)),
        sar=SarInput(bands=("vv",), units="intensity", looks=1.0, nodata=0.0),
        preprocessing=preprocessing,
        head="full",
        tile_px=TILE,
        precisions={"fp32": "model.fp32.onnx"},
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )
    made = Bundle.create(
        tmp_path / "small.hfd", manifest, {"model.fp32.onnx": make_model().SerializeToString()}
    )
    record = CalibrationRecord(
        method="entropy",
        onnx_sha256=made.manifest.files["model.fp32.onnx"],
        data_sha256="d" * 64,
        split="train",
        input_shape=(1, TILE, TILE),
        selection="even",
        requested_tiles=1,
        tiles=(CalibrationTile(name="a", row=0, col=0, sha256="e" * 64),),
        amax={"sar": 1.0, "body:out": 6.0, "logits": 3.0},
        quantized_tensors=("sar",),
        quantized_nodes=("body",),
        kept=(KeptNode(node="classifier", reason="its logits decide the argmax"),),
        versions={},
    )
    return made.add({RECORD: write_record(record)})


def test_write_and_read(bundle: Bundle) -> None:
    status, out, _ = call("calibrate", "cache", bundle.path, "--tensorrt", "8.5.2", "--json")
    result = json.loads(out)
    assert status == 0
    path = Path(result["cache"])
    assert path.read_text() == "TRT-8502-EntropyCalibration2\nsar: 3c010204\nbody:out: 3d418306\n"
    assert (result["tensors"], result["left_out"], result["kept"]) == (2, ["logits"], ["classifier"])
    Bundle.open(bundle.path).verify()

    status, out, _ = call("calibrate", "read", path, "--bundle", bundle.path, "--ranges", "--json")
    result = json.loads(out)
    assert status == 0
    assert (result["tensorrt"], result["tensors"], result["fits"]) == ("8.5.2", 2, str(bundle.path))
    assert result["amax"] == pytest.approx({"sar": 1.0, "body:out": 6.0})
    assert "amax" not in json.loads(call("calibrate", "read", path, "--json")[1])


def test_tables_for_people(bundle: Bundle) -> None:
    status, out, _ = call("calibrate", "cache", bundle.path, "--tensorrt", "10.3.0")
    assert status == 0 and "EntropyCalibration2" in out and "classifier" in out
    status, out, _ = call("calibrate", "read", bundle.path / "calibration/tensorrt-10.3.0.cache")
    assert status == 0 and "10.3.0" in out


def test_a_cache_of_another_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "other.cache"
    path.write_text("TRT-8502-EntropyCalibration2\nsar: 3c010204\nbackbone.0: 3c010204\n")
    assert call("calibrate", "read", path)[0] == 0
    status, out, err = call("calibrate", "read", path, "--bundle", bundle.path)
    assert (status, out) == (1, "")
    assert "error: " in err and "is for another model: 1 of its 2 tensors" in err


def test_a_tensorrt_without_caches_is_refused(bundle: Bundle) -> None:
    status, _, err = call("calibrate", "cache", bundle.path, "--tensorrt", "11.4.1")
    assert status == 1 and "TensorRT 11.4.1 reads no calibration caches" in err
    assert not list((bundle.path / "calibration").glob("*.cache"))
