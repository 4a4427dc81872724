"""Sidecars and keys of engines, without any TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.engine_record import (
    EngineRecord,
    Here,
    Layers,
    check_engine,
    check_fits,
    engine_key,
    read_engine_record,
)
from hfd_edge.errors import EngineError

ONNX = "ab" * 32
IDENTITY: dict[str, Any] = {
    "flavour": "tensorrt",
    "version": "10.3.0",
    "compute_capabilities": (87, 110),
    "options": {"batch": [1, 1, 8], "workspace_mb": 4096},
}
HERE = Here("tensorrt", "10.3.0", 87)


def make_record(content: bytes = b"engine", **changes: Any) -> EngineRecord:
    values: dict[str, Any] = {
        "target": "orin",
        "precision": "int8",
        **IDENTITY,
        "engine_key": engine_key(ONNX, **IDENTITY),
        "onnx_sha256": ONNX,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": 1.5,
    }
    return EngineRecord(**{**values, **changes})


def write(folder: Path, record: EngineRecord, content: bytes = b"engine") -> Path:
    path = folder / "orin-int8.engine"
    path.write_bytes(content)
    path.with_suffix(".json").write_text(record.to_json())
    return path


def test_the_key_is_plain_json_and_sha256() -> None:
    """A script on a device computes it with the standard library."""
    text = (
        '{"compute_capabilities": [87, 110], "flavour": "tensorrt", "onnx_sha256": "' + ONNX + '", '
        '"options": {"batch": [1, 1, 8], "workspace_mb": 4096}, "version": "10.3.0"}'
    )
    assert engine_key(ONNX, **IDENTITY) == hashlib.sha256(text.encode()).hexdigest()
    assert engine_key(ONNX, **{**IDENTITY, "compute_capabilities": (110, 87)}) == engine_key(ONNX, **IDENTITY)


@pytest.mark.parametrize(
    "change",
    [
        {"flavour": "tensorrt_rtx"},
        {"version": "10.3.1"},
        {"compute_capabilities": (87,)},
        {"options": {"batch": [1, 1, 8], "workspace_mb": 1}},
    ],
)
def test_the_key_depends_on_everything(change: dict[str, Any]) -> None:
    assert engine_key(ONNX, **{**IDENTITY, **change}) != engine_key(ONNX, **IDENTITY)
    assert engine_key("ac" * 32, **IDENTITY) != engine_key(ONNX, **IDENTITY)


def test_a_sidecar_comes_back(tmp_path: Path) -> None:
    record = make_record(weights_bytes=12, layers=Layers(3, {"int8": 2}, 1), note="")
    path = write(tmp_path, record)
    assert read_engine_record(path) == record
    assert check_engine(path) == {"engine": str(path), **dataclasses.asdict(record)}


@pytest.mark.parametrize(
    "change", [{"version": "10.3.1"}, {"compute_capabilities": (89,)}, {"options": {}}, {"onnx_sha256": "cd"}]
)
def test_an_edited_sidecar_is_noticed(tmp_path: Path, change: dict[str, Any]) -> None:
    """Nobody makes an old engine fit by writing another version into its sidecar."""
    path = write(tmp_path, make_record(**change))
    with pytest.raises(EngineError, match="was changed after the engine was built: its engine key is .*hfd-"):
        check_engine(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"bytes": null, "sha256": 1}'])
def test_a_damaged_sidecar(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, make_record())
    path.with_suffix(".json").write_text(text)
    with pytest.raises(EngineError, match=r"orin-int8\.json is damaged"):
        check_engine(path)


def test_a_sidecar_with_a_wrong_value_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, make_record())
    values = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**values, "precision": "int4"}))
    with pytest.raises(EngineError, match=r"is damaged \(precision: "):
        read_engine_record(path)


def test_another_engine_beside_a_sidecar(tmp_path: Path) -> None:
    record = make_record()
    path = write(tmp_path, record, b"eng")
    with pytest.raises(EngineError, match="is truncated: it has 3 bytes, its sidecar says 6"):
        check_engine(path)
    with pytest.raises(EngineError, match="longer than it was built"):
        check_engine(write(tmp_path, record, b"engine."))
    with pytest.raises(EngineError, match="its SHA-256 differs"):
        check_engine(write(tmp_path, record, b"engina"))
    path.with_suffix(".json").unlink()
    with pytest.raises(EngineError, match=r"has no sidecar orin-int8\.json"):
        check_engine(path)
    with pytest.raises(EngineError, match="There is no engine"):
        check_engine(tmp_path / "none.engine")


def test_an_engine_that_fits() -> None:
    check_fits(make_record(), HERE, onnx_sha256=ONNX)
    check_fits(make_record(), dataclasses.replace(HERE, compute_capability=110), onnx_sha256=ONNX)
    # Without a driver the GPU cannot be told; the loader then fails for want of one.
    check_fits(make_record(), dataclasses.replace(HERE, compute_capability=None), onnx_sha256=ONNX)


def test_versions_are_compared_as_far_as_both_tell() -> None:
    """trtexec says 10.3.0, the Python package of the same TensorRT 10.3.0.26."""
    record = make_record(version="10.3.0.26")
    check_fits(make_record(), dataclasses.replace(HERE, version="10.3.0.26"), onnx_sha256=ONNX)
    check_fits(record, HERE, onnx_sha256=ONNX)
    with pytest.raises(EngineError, match=r"10\.3\.0\.26, but this machine has 10\.3\.0\.30"):
        check_fits(record, dataclasses.replace(HERE, version="10.3.0.30"), onnx_sha256=ONNX)


def test_what_builds_a_torch_tensorrt_program_again() -> None:
    """It is compiled from a run, not from a bundle."""
    record = make_record(flavour="torch_tensorrt", precision="fp16")
    assert record.rebuild() == "hfd-edge build RUN --target orin --precision fp16"
    assert record.rebuild("runs/s") == "hfd-edge build runs/s --target orin --precision fp16"
    assert make_record().rebuild() == "hfd-edge build BUNDLE --target orin --precision int8"


@pytest.mark.parametrize(
    ("here", "onnx_sha256", "reason"),
    [
        (
            HERE,
            "cd" * 32,
            "was built from another int8 model (abababababab...) than the bundle's (cdcdcdcdcdcd...)",
        ),
        (Here("tensorrt_rtx", "10.3.0", 87), ONNX, "was built by tensorrt, but tensorrt_rtx would load it"),
        (Here("tensorrt", "10.3.1", 87), ONNX, "was built by tensorrt 10.3.0, but this machine has 10.3.1"),
        (Here("tensorrt", "10.3.0", 89), ONNX, "was built for sm_87, sm_110, but this GPU is sm_89"),
    ],
)
def test_an_engine_that_does_not_fit(here: Here, onnx_sha256: str, reason: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_fits(make_record(), here, onnx_sha256=onnx_sha256, bundle="flood.hfd")
    assert str(caught.value) == (
        f"Engine orin-int8 {reason}. Build it for this machine with: "
        "hfd-edge build flood.hfd --target orin --precision int8"
    )
