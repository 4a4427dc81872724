"""preflight and build: what they print, and which of engine and device kit they make."""

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
from hfd_edge.raster.image import write_image
from hfd_edge.sar.preprocessing import Preprocessing

TILE = 32


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def make_model() -> bytes:
    """One convolution at stride 4 and a warp that does not move."""
    shape, side = ["batch", 1, TILE, TILE], TILE // 4
    grid = np.zeros((1, side, side, 2), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["sar", "w"], ["a"], name="body", strides=[4, 4]),
            helper.make_node("GridSample", ["a", "grid"], ["b"], name="warp", align_corners=0),
            helper.make_node("Add", ["a", "b"], ["logits"], name="sum"),
        ],
        "small",
        [helper.make_tensor_value_info("sar", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2, side, side])],
        [
            numpy_helper.from_array(np.array([[[[1.0]]], [[[-1.0]]]], np.float32), "w"),
            numpy_helper.from_array(grid, "grid"),
        ],
    )
    # The warp's batch is 1, so the batch is.
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    opset = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


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
        classes=("land", "water"),
        palette=((0, 128, 0), (0, 0, 255)),
        sar=SarInput(bands=("vv",), units="intensity", nodata=0.0),
        preprocessing=preprocessing,
        head="quarter",
        tile_px=TILE,
        precisions={"fp32": "model.fp32.onnx", "fp16": "model.fp16.onnx"},
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )
    image = 10 ** np.random.default_rng(0).uniform(-3, 0, (1, TILE, TILE)).astype(np.float32)
    write_image(tmp_path / "image.tif", image)
    write_image(tmp_path / "labels.png", np.zeros((1, TILE, TILE), np.uint8))
    files: dict[str, bytes | Path] = {
        "model.fp32.onnx": make_model(),
        "model.fp16.onnx": make_model(),
        "golden/000.sar.tif": tmp_path / "image.tif",
        "golden/000.labels.png": tmp_path / "labels.png",
    }
    return Bundle.create(tmp_path / "small.hfd", manifest, files).path


def test_preflight(bundle: Path) -> None:
    status, out, _ = call("preflight", bundle, "--target", "orin-nano-jp62", "--precision", "fp16")
    assert status == 0, out
    assert "In order" in out
    assert "Errors" not in out
    assert "small.hfd as fp16 for orin-nano-jp62   ready" in out
    status, out, _ = call("preflight", bundle, "--target", "nano-jp46")
    assert status == 1
    assert "Errors: it cannot be built" in out
    assert "TensorRT 8.2.1 has no GridSample; it came with 8.5" in out
    assert "not possible" in out


def test_preflight_as_json(bundle: Path) -> None:
    status, out, _ = call("preflight", bundle, "--target", "nano-jp46", "--json")
    report = json.loads(out)
    assert status == 1
    assert report["ok"] is False
    fault = next(item for item in report["findings"] if item["level"] == "error")
    assert (fault["check"], fault["where"]) == ("operators", "warp")
    assert set(fault) == {"level", "check", "where", "what", "why", "fix"}
    options = ("--precision", "fp16", "--dla", "0", "--json")
    status, out, _ = call("preflight", bundle, "--target", "orin-agx-jp62", *options)
    report = json.loads(out)
    assert status == 0
    devices = {item["node"]: item["device"] for item in report["dla"]["layers"]}
    assert devices["warp"] == "GPU"
    assert 0 <= report["dla"]["fallback_share"] <= 1
    assert report["memory"]["weights_bytes"] > 0


def test_the_layers_of_the_dla_are_listed(bundle: Path) -> None:
    options = ("--precision", "fp16", "--layers")
    status, out, _ = call("preflight", bundle, "--target", "orin-agx-jp62", *options)
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("warp ")]
    assert line.split()[:3] == ["warp", "GridSample", "GPU"]


def test_build_makes_a_kit_where_no_engine_can_be_built(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfd_edge.deploy.build.can_build_here", lambda target: "this machine has no GPU")
    monkeypatch.chdir(tmp_path)
    options = ("--target", "orin-nano-jp62", "--precision", "fp16", "--json")
    status, out, _ = call("build", bundle, *options)
    result = json.loads(out)
    assert status == 0
    assert result["reason"] == "this machine has no GPU"
    kit = result["kits"]["orin-nano-jp62-fp16"]
    assert kit["kit"] == "small-orin-nano-jp62-fp16.kit"
    assert kit["command"][:2] == ["trtexec", "--onnx=model.onnx"]
    assert "--stronglyTyped" in kit["command"]
    assert (tmp_path / kit["kit"] / "build.sh").is_file()
    status, _, err = call("build", bundle, *options)
    assert status == 1
    assert "small-orin-nano-jp62-fp16.kit already exists. Choose another --out" in err


def test_build_makes_an_engine_where_it_can(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("hfd_edge.deploy.build.can_build_here", lambda target: None)
    monkeypatch.setattr(
        "hfd_edge.deploy.build.build",
        lambda opened, target, *, precisions, progress: asked.append((target.name, precisions)) or [],
    )
    assert call("build", bundle, "--target", "tensorrt-t4", "--precision", "fp16")[0] == 0
    assert call("build", bundle, "--json")[0] == 0
    assert asked == [("tensorrt-t4", ("fp16",)), ("desktop-rtx", None)]


def test_a_kit_on_request(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "for-the-nano"
    options = ("--target", "orin-nano-jp62", "--precision", "fp16", "--kit", "--out", out)
    status, text, _ = call("build", bundle, *options)
    assert status == 0
    assert "a kit was asked for" in text
    assert (out / "kit.json").is_file()
    status, _, err = call("build", bundle, "--target", "desktop-rtx", "--kit")
    assert status == 1
    assert "Target desktop-rtx takes no device kit" in err
    twice = ("--precision", "fp16", "--precision", "fp32", "--kit", "--out", tmp_path / "two")
    status, _, err = call("build", bundle, "--target", "orin-nano-jp62", *twice)
    assert status == 1
    assert "--out names one kit, but 2 precisions were asked for: fp16, fp32" in err


def test_an_engine_from_elsewhere_needs_its_sidecar(bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "tensorrt-t4-fp16.engine"
    engine.write_bytes(b"engine")
    status, _, err = call("build", bundle, "--target", "tensorrt-t4", "--engine", engine)
    assert status == 1
    assert "has no sidecar tensorrt-t4-fp16.json" in err


def test_an_engine_from_elsewhere_needs_no_target(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in a kit's README must work for a target of one's own, too: its sidecar names it."""
    taken: list[Path] = []
    monkeypatch.setattr(
        "hfd_edge.deploy.kit.take_engine", lambda opened, engine: taken.append(engine) or opened
    )
    readme = Path("export/kit/README.md").read_text()
    (line,) = [line.split() for line in readme.splitlines() if line.startswith("    hfd-edge build ")]
    values = {"BUNDLE": str(bundle), "@ENGINE@": str(tmp_path / "mine.engine"), "@TARGET@": "lab-of-mine"}
    status, _, err = call(*(values.get(word, word) for word in line[1:]))
    assert (status, taken) == (0, [tmp_path / "mine.engine"]), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "desktop-rtx", "--out", "x"), "--out is for device kits; engines go into the bundle"),
        (("--engine", "x.engine", "--precision", "fp16"), "--precision says nothing about an engine that is"),
        (("--engine", "x.engine", "--kit", "--dla", "0"), "--kit, --dla says nothing about an engine"),
        (("--target", "desktop-torch-tensorrt", "--kit"), "--kit is not for torch-tensorrt"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was started all the same")

    for name in ("build.build", "kit.take_engine", "torch_tensorrt.compile_run"):
        monkeypatch.setattr(f"hfd_edge.deploy.{name}", never)
    status, _, err = call("build", bundle, *options)
    assert status == 1
    assert message in " ".join(err.split())


def test_torch_tensorrt_compiles_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_run(run: Path, out: Path, target: Any, *, precision: str, progress: Any) -> Any:
        from hfd_edge.engine_record import EngineRecord

        asked.append((run, out, precision))
        digest = "0" * 64
        return EngineRecord(
            target.name, "fp16", "torch_tensorrt", "2.14", (89,), "", digest, {}, 1, digest, 1.0
        )

    monkeypatch.setattr("hfd_edge.deploy.torch_tensorrt.compile_run", compile_run)
    status, out, _ = call("build", tmp_path, "--target", "desktop-torch-tensorrt", "--json")
    assert status == 0
    assert asked == [(tmp_path, tmp_path / "engines", "fp16")]
    assert list(json.loads(out)["engines"]) == ["desktop-torch-tensorrt-fp16"]
