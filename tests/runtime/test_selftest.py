"""The self-test on a machine without a GPU: it must notice what is wrong, and say what it did not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import load_from_string, numpy_helper
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app
from hfd_edge.errors import BackendError
from hfd_edge.raster.image import write_image
from hfd_edge.runtime import selftest
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.selftest import Finding, SelfTest, run_selftest

from .conftest import CLASSES, MakeBundle, make_onnx

MakeImage = Callable[..., np.ndarray]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "find_gpu", lambda: None)


def with_golden(bundle: Bundle, image: np.ndarray, folder: Path, *, flip: float = 0.0) -> Bundle:
    """Add a golden tile with the labels of the FP32 model, of which a share is changed."""
    with Segmenter(bundle, backend="onnxruntime", precision="fp32") as segment:
        labels = segment(image)
    changed = np.random.default_rng(1).random(labels.shape) < flip
    labels = np.where(changed & (labels < 255), (labels + 1) % len(CLASSES), labels)
    write_image(folder / "a.tif", image)
    write_image(folder / "a.png", labels)
    files = {"golden/a.sar.tif": folder / "a.tif", "golden/a.labels.png": folder / "a.png"}
    return bundle.add(files)


def by_name(result: SelfTest) -> dict[str, Finding]:
    return {finding.name: finding for finding in result.findings}


def test_a_sound_bundle(make_bundle: MakeBundle, make_image: MakeImage, tmp_path: Path) -> None:
    bundle = with_golden(make_bundle(), make_image(128, 128), tmp_path)
    result = run_selftest(bundle)
    assert result.ok
    found = by_name(result)
    assert found["kernels"].ok is None
    assert found["kernels"].found == "not run: there is no NVIDIA GPU with a driver"
    assert found["onnxruntime fp32: labels"].values == {"agreement": 1.0}
    assert found["onnxruntime fp32: logits"].values == {"distance_of_range": 0.0}
    assert found["onnxruntime fp32: stream"].ok
    assert result.environment["versions"]["numpy"] == np.__version__


def test_a_bundle_without_golden_tiles_gets_a_simulated_one(make_bundle: MakeBundle) -> None:
    result = run_selftest(make_bundle())
    assert by_name(result)["onnxruntime fp32: labels"].values == {"agreement": 1.0}
    assert result.ok


@pytest.mark.parametrize("size", [(100, 140), (20, 128)])
def test_golden_tiles_of_any_size(
    make_bundle: MakeBundle, make_image: MakeImage, tmp_path: Path, size: tuple[int, int]
) -> None:
    assert run_selftest(with_golden(make_bundle(), make_image(*size), tmp_path)).ok


def test_other_labels_are_wrong(make_bundle: MakeBundle, make_image: MakeImage, tmp_path: Path) -> None:
    bundle = with_golden(make_bundle(), make_image(128, 128), tmp_path, flip=0.01)
    result = run_selftest(bundle, backend="onnxruntime")
    wrong = [finding for finding in result.findings if finding.ok is False]
    assert not result.ok and [finding.name for finding in wrong] == ["onnxruntime fp32: labels"]
    assert "99.0" in wrong[0].found and "at least 99.9% expected" in wrong[0].found
    assert "hfd-edge compare" in wrong[0].fix


def test_another_variant_is_held_to_its_own_measure(make_bundle: MakeBundle) -> None:
    # The second variant is another network altogether.
    bundle = make_bundle(precisions={"fp32": "model.fp32.onnx"})
    model = load_from_string(make_onnx(bands=2, classes=len(CLASSES)))
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        weights.CopyFrom(numpy_helper.from_array(-values, weights.name))
    other = {"model.int8.onnx": model.SerializeToString()}
    bundle = bundle.add(other, precisions={"int8": "model.int8.onnx"})
    found = by_name(run_selftest(bundle))
    assert found["onnxruntime fp32: labels"].ok
    assert not found["onnxruntime int8: labels"].ok
    assert found["onnxruntime int8: logits"].ok  # reported, not judged
    assert [
        finding.name for finding in run_selftest(bundle, precision="fp32").findings if "int8" in finding.name
    ] == []


def test_logits_that_are_no_numbers_are_wrong(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "_distances", lambda *_: (float("nan"), float("nan")))
    found = by_name(run_selftest(make_bundle()))
    assert not found["onnxruntime fp32: logits"].ok and not found["onnxruntime fp32: repeats"].ok
    assert found["onnxruntime fp32: logits"].values == {}


def test_a_stream_in_another_order_is_wrong(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Segmenter.stream
    monkeypatch.setattr(Segmenter, "stream", lambda self, frames: reversed(list(stream(self, frames[1:]))))
    assert not by_name(run_selftest(make_bundle()))["onnxruntime fp32: stream"].ok


def test_a_damaged_bundle_is_not_run(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    (bundle.path / "model.fp32.onnx").write_bytes(b"?")
    result = run_selftest(bundle)
    assert [finding.name for finding in result.findings] == ["bundle", "kernels"]
    assert "was changed after the bundle was made" in result.findings[0].found


def test_what_the_bundle_does_not_have(make_bundle: MakeBundle) -> None:
    (finding,) = [
        item for item in run_selftest(make_bundle(), backend="tensorrt").findings if item.ok is False
    ]
    assert "no model or engine for backend tensorrt and precision auto; it has: fp32" in finding.found
    assert finding.fix.startswith("Build one with: hfd-edge build")
    with pytest.raises(BackendError, match="There is no backend 'cuda'. Choose one of auto, onnxruntime"):
        run_selftest(make_bundle(name="second.hfd"), backend="cuda")


def test_the_command_prints_writes_and_fails(
    make_bundle: MakeBundle, make_image: MakeImage, tmp_path: Path
) -> None:
    bundle = with_golden(make_bundle(), make_image(128, 128), tmp_path, flip=0.5)
    report = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["selftest", str(bundle.path), "--json", "--out", str(report)])
    assert done.exit_code == 1
    content = json.loads(done.stdout)
    assert content == json.loads(report.read_text())
    assert content["ok"] is False and content["environment"]["gpu"] is None
    done = CliRunner().invoke(app, ["selftest", str(make_bundle(name="sound.hfd").path)])
    assert done.exit_code == 0, done.output
    assert "not run: there is no NVIDIA GPU" in done.stdout and "WRONG" not in done.stdout
