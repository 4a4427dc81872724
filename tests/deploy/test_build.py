"""Engines in a bundle: sidecars, and builds that fail or are cancelled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.build import build
from hfd_edge.deploy.compiler import Arithmetic
from hfd_edge.deploy.engine import build_options, compiler_version
from hfd_edge.deploy.precision import to_fp16
from hfd_edge.deploy.targets import load_target
from hfd_edge.engine_record import check_engine, engine_key
from hfd_edge.errors import BundleError, EngineError, StorageError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only")

ADA = load_target("rtx-ada")
Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def engine(bundle: Bundle) -> Path:
    build(bundle, ADA, precisions=("fp32",))
    return bundle.path / "engines" / "rtx-ada-fp32.engine"


def test_the_sidecar_describes_the_engine(bundle: Bundle, mini_onnx: Path) -> None:
    (record,) = build(bundle, ADA, precisions=("fp32",))
    opened = Bundle.open(bundle.path)
    content = opened.engine("rtx-ada-fp32").read_bytes()
    sidecar = json.loads(opened.file("engines/rtx-ada-fp32.json").read_text())
    onnx_sha256 = hashlib.sha256(mini_onnx.read_bytes()).hexdigest()
    assert sidecar["engine_key"] == record.engine_key
    assert sidecar["engine_key"] == engine_key(
        onnx_sha256,
        flavour="tensorrt_rtx",
        version=compiler_version(),
        compute_capabilities=(89,),
        options=build_options(ADA, Arithmetic("fp32")),
    )
    assert sidecar["onnx_sha256"] == onnx_sha256
    assert sidecar["bytes"] == len(content)
    assert sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert (sidecar["target"], sidecar["precision"]) == ("rtx-ada", "fp32")
    assert sidecar["compute_capabilities"] == [89]
    assert sidecar["seconds"] > 0
    assert check_engine(opened.engine("rtx-ada-fp32"))["engine_key"] == record.engine_key
    opened.verify()


def test_without_a_choice_all_variants_of_the_bundle_are_built(bundle: Bundle, tmp_path: Path) -> None:
    to_fp16(bundle.model("fp32"), tmp_path / "model.fp16.onnx")
    both = bundle.add(
        {"model.fp16.onnx": tmp_path / "model.fp16.onnx"}, precisions={"fp16": "model.fp16.onnx"}
    )
    records = build(both, ADA)
    assert [record.precision for record in records] == ["fp32", "fp16"]
    assert set(Bundle.open(bundle.path).manifest.engines) == {"rtx-ada-fp32", "rtx-ada-fp16"}
    assert records[0].engine_key != records[1].engine_key


def test_building_again_replaces(bundle: Bundle, engine: Path) -> None:
    before = json.loads(engine.with_suffix(".json").read_text())["engine_key"]
    (record,) = build(Bundle.open(bundle.path), ADA, precisions=("fp32",))
    assert record.engine_key == before
    Bundle.open(bundle.path).verify()


def test_an_inspector_that_answers_nonsense_costs_no_engine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfd_edge.deploy.engine.inspect_engine", lambda trt, blob: ("Layer(Reformat)", ""))
    (record,) = build(bundle, ADA, precisions=("fp32",))
    assert record.layers is None
    assert "gave something else than JSON with Layers" in record.note
    Bundle.open(bundle.path).engine("rtx-ada-fp32")


def test_layers_of_an_earlier_engine_do_not_stay(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built where there is a GPU, then again where there is none."""
    said = ['{"Layers": ["conv"]}', ""]
    monkeypatch.setattr("hfd_edge.deploy.engine.inspect_engine", lambda trt, blob: (said.pop(0), "no GPU"))
    build(bundle, ADA, precisions=("fp32",))
    (record,) = build(Bundle.open(bundle.path), ADA, precisions=("fp32",))
    layers = Bundle.open(bundle.path).file("engines/rtx-ada-fp32.layers.json")
    assert json.loads(layers.read_text()) == {"Layers": [], "note": "no GPU"}
    assert (record.layers, record.note) == (None, "no GPU")


def test_a_cancelled_build_leaves_nothing(bundle: Bundle, snapshot: Snapshot) -> None:
    before = snapshot(bundle.path)

    def stop(done: float, total: float, text: str) -> None:
        if done > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle, ADA, progress=stop)
    assert snapshot(bundle.path) == before


def test_a_full_disk_leaves_the_bundle_as_it_was(
    bundle: Bundle, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bundle.path)
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.suffix == ".engine":
            real(self, content[:100])
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Free some space"):
        build(bundle, ADA)
    monkeypatch.undo()
    assert snapshot(bundle.path) == before


def test_what_cannot_be_built(bundle: Bundle) -> None:
    half = ADA.model_copy(update={"precisions": ("fp16",), "default_precision": "fp16"})
    with pytest.raises(EngineError, match="Target rtx-ada has no precision 'fp32'; it takes: fp16"):
        build(bundle, half, precisions=("fp32",))
    with pytest.raises(BundleError, match="has no int8 model; it has: fp32.*hfd-edge quantize"):
        build(bundle, ADA, precisions=("int8",))
    with pytest.raises(EngineError, match=r"has none of the precisions of target rtx-ada \(fp16\)"):
        build(bundle, half)


def test_a_model_that_was_changed(bundle: Bundle) -> None:
    path = bundle.path / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        build(bundle, ADA)


def test_a_truncated_engine(engine: Path) -> None:
    size = engine.stat().st_size
    engine.write_bytes(engine.read_bytes()[:1000])
    with pytest.raises(EngineError, match=f"is truncated: it has 1000 bytes, its sidecar says {size}"):
        check_engine(engine)
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        Bundle.open(engine.parents[1]).engine("rtx-ada-fp32")


def test_an_engine_that_does_not_fit_its_sidecar(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    engine.write_bytes(content + b"x")
    with pytest.raises(EngineError, match="is longer than it was built"):
        check_engine(engine)
    content[-1] ^= 1
    engine.write_bytes(content)
    with pytest.raises(EngineError, match="was changed after it was built: its SHA-256 differs"):
        check_engine(engine)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"bytes": null, "sha256": 1}'])
def test_a_damaged_sidecar(engine: Path, text: str) -> None:
    engine.with_suffix(".json").write_text(text)
    with pytest.raises(EngineError, match=r"rtx-ada-fp32\.json is damaged"):
        check_engine(engine)


def test_a_missing_sidecar_or_engine(engine: Path) -> None:
    engine.with_suffix(".json").unlink()
    with pytest.raises(EngineError, match=r"has no sidecar rtx-ada-fp32\.json"):
        check_engine(engine)
    with pytest.raises(EngineError, match="There is no engine"):
        check_engine(engine.with_name("none.engine"))
