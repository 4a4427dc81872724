"""quantize with a bound, and sensitivity, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.cli import app
from hfd_edge.config import DatasetConfig, SarInput, write_toml
from hfd_edge.raster.image import write_image
from hfd_edge.sar.preprocessing import Preprocessing

TILE = 64
SAR = SarInput(bands=("vv",), units="intensity", looks=1.0, nodata=0.0)
CLASSES, PALETTE = ("dark", "bright"), ((0, 0, 255), (200, 0, 0))


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def model() -> onnx.ModelProto:
    """Averages 4 x 4 pixels, and tells bright from dark."""
    shape = ["batch", 1, TILE, TILE]
    rng = np.random.default_rng(0)
    mix = np.abs(rng.normal(size=(16, 16, 1, 1))) / 16
    vote = np.stack([-np.ones((16, 1, 1)), np.ones((16, 1, 1))]) / 16
    constants = {
        "body.weight": np.ones((16, 1, 4, 4)) / 16 * rng.uniform(0.5, 1.5, (16, 1, 1, 1)),
        "body.bias": np.ones(16),
        "mix.weight": mix,
        "classifier.weight": vote,
        "vote.bias": np.array([1.6, 0.0]),
    }
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["sar", "body.weight", "body.bias"], ["body:out"], name="body", strides=[4, 4]),
            node("Relu", ["body:out"], ["relu:out"], name="relu"),
            node("Conv", ["relu:out", "mix.weight"], ["mix:out"], name="mix"),
            node("Relu", ["mix:out"], ["relu2:out"], name="relu2"),
            node("Conv", ["relu2:out", "classifier.weight", "vote.bias"], ["logits"], name="classifier"),
        ],
        "small",
        [helper.make_tensor_value_info("sar", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2, TILE // 4, TILE // 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "data"
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        for index in range(2):
            labels = np.repeat(np.repeat(rng.integers(0, 2, (4, 4)), 16, 0), 16, 1).astype(np.uint8)
            image = np.where(labels, 0.3, 0.01)[None] * rng.gamma(4, 0.25, (1, TILE, TILE))
            write_image(root / split / "sar" / f"{index}.tif", image.astype(np.float32))
            write_image(root / split / "label" / f"{index}.png", labels[None])
    write_toml(
        root / "dataset.toml", DatasetConfig(name="d", classes=CLASSES, palette=PALETTE, sar=SAR, eo=None)
    )
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
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
        classes=CLASSES,
        palette=PALETTE,
        sar=SAR,
        preprocessing=preprocessing,
        head="quarter",
        tile_px=TILE,
        precisions={"fp32": "model.fp32.onnx"},
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )
    content = model().SerializeToString()
    return Bundle.create(tmp_path / "small.hfd", manifest, {"model.fp32.onnx": content}).path


def test_quantize_with_a_bound_then_sensitivity(bundle: Path, data: Path, tmp_path: Path) -> None:
    code, out, err = call("quantize", bundle, "--data", data, "--tiles", "2", "--max-drop", "5", "--json")
    assert code == 0, err
    result = json.loads(out)
    metrics = result["metrics"]
    assert (result["method"], result["selection"], result["int8_layers"]) == ("entropy", "even", 2)
    assert result["kept"] == {"classifier: its logits decide the label directly": ["classifier"]}
    assert metrics["int8"]["gate"]["bound"] == {"miou_points": 5.0, "class_points": 1.5}
    assert metrics["int8_fp16"]["gate"]["after"]["miou_points"] <= 5

    options = ("--data", data, "--tiles", "2", "--out", tmp_path / "s.json", "--plot", tmp_path / "s.png")
    code, out, err = call("sensitivity", bundle, *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {row["layer"] for row in found["layers"]} == {"body", "mix"}
    assert found["file"] == "calibration/sensitivity.json"
    stored = json.loads((bundle / found["file"]).read_text())
    assert stored == json.loads((tmp_path / "s.json").read_text())
    assert (tmp_path / "s.png").stat().st_size > 10_000
    code, out, _ = call("sensitivity", bundle, "--data", data, "--tiles", "1")
    assert code == 0 and "one only: lost" in out


def test_mistakes(bundle: Path, data: Path) -> None:
    code, _, err = call("sensitivity", bundle, "--data", data)
    assert code == 1 and "has no calibration record. Make it with: hfd-edge quantize" in err
    code, _, err = call("quantize", bundle, "--data", data, "--method", "minmax")
    assert code == 1 and "choose one of entropy, max, mse, percentile" in err
    code, _, err = call("quantize", bundle, "--data", data, "--max-drop", "-1")
    assert code == 2 and "--max-drop" in err
    code, _, err = call("quantize", bundle, "--data", data, "--max-class-drop", "0.5")
    assert code == 2 and "--max-class-drop" in err and "--max-drop" in err
