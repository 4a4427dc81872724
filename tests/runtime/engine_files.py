"""Engines of TensorRT's stand-ins in a bundle."""

from __future__ import annotations

import hashlib
from typing import Any

from hfd_edge.bundle import Bundle
from hfd_edge.engine_record import EngineRecord, engine_key


def put_engine(
    bundle: Bundle, version: str, /, *, content: bytes | None = None, name: str = "orin-fp32", **changes: Any
) -> Bundle:
    """Add an engine for sm_87, or whatever `changes` to its record say."""
    if content is None:
        content = b'{"version": "' + version.encode() + b'", "capability": 87}'
    identity: dict[str, Any] = {
        "flavour": "tensorrt_rtx" if version.startswith("1.") else "tensorrt",
        "version": version,
        "compute_capabilities": (87,),
        "options": {},
    }
    onnx_sha256 = changes.get("onnx_sha256", bundle.manifest.files["model.fp32.onnx"])
    identity |= {key: value for key, value in changes.items() if key in identity}
    record = EngineRecord(
        target=name.rpartition("-")[0],
        precision=changes.get("precision", "fp32"),
        engine_key=engine_key(onnx_sha256, **identity),
        onnx_sha256=onnx_sha256,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=1.0,
        **identity,
    )
    files = {f"engines/{name}.engine": content, f"engines/{name}.json": record.to_json().encode()}
    return bundle.add(files, engines={name: f"engines/{name}.engine"})
