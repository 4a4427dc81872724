"""What an engine is: its sidecar, its key, and the checks that need no TensorRT.

Below both `deploy`, which writes sidecars, and `runtime`, which must refuse a stale engine before TensorRT
sees it. The key is plain SHA-256 over JSON, so that a script on a device can compute it with the standard
library alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hfd_edge.bundle import Precision
from hfd_edge.errors import EngineError
from hfd_edge.files import sha256

NO_INSPECTION = "An engine can be inspected only where it can be loaded: on a GPU that it was built for."
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Layers:
    """Summary of TensorRT's inspector; see `deploy.inspector`.

    Attributes:
        count: Layers of the engine, after fusion.
        by_precision: Layers that compute, by precision: "int8", "fp16", "fp32", ...
        reformats: The others, which only change a tensor's type or layout. INT8 that is slower than FP16
            mostly has many of them.
    """

    count: _Count
    by_precision: dict[str, int]
    reformats: _Count


@dataclass(frozen=True)
class EngineRecord:
    """The sidecar of an engine, `<target>-<precision>.json` beside it.

    Attributes:
        target: Profile that it was built for.
        precision: Variant of the bundle that it was built from.
        flavour: Compiler, by its Python module: "tensorrt_rtx", "tensorrt" or "torch_tensorrt".
        version: The compiler's version.
        compute_capabilities: GPUs that it runs on; 75 is sm_75.
        engine_key: Hash of everything it depends on; see `engine_key`.
        onnx_sha256: Hash of the ONNX file that was compiled.
        options: Everything else that shaped it, as JSON values.
        bytes: Size of the engine.
        sha256: Hash of the engine.
        seconds: Time of the compilation.
        weights_bytes: Memory of its weights, as the compiler's log says; None where it does not.
        activation_bytes: Memory of its activations for the largest batch; None where the log has none.
        layers: Summary of the inspector; None where the engine could not be loaded.
        note: Why `layers` is None; else "".
    """

    target: str
    precision: Precision
    flavour: str
    version: str
    compute_capabilities: tuple[int, ...]
    engine_key: str
    onnx_sha256: str
    options: dict[str, Any]
    bytes: _Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    seconds: Annotated[float, Field(ge=0)]
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    layers: Layers | None = None
    note: str = ""

    def to_json(self) -> str:
        """The sidecar's content."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def rebuild(self, source: Path | str | None = None) -> str:
        """The command that builds it again from its bundle, or from its run for torch-tensorrt."""
        source = source or ("RUN" if self.flavour == "torch_tensorrt" else "BUNDLE")
        return f"hfd-edge build {source} --target {self.target} --precision {self.precision}"


@dataclass(frozen=True)
class Here:
    """What would load an engine.

    Attributes:
        flavour: TensorRT's Python module.
        version: Its version.
        compute_capability: Of the GPU; None where it cannot be told.
    """

    flavour: str
    version: str
    compute_capability: int | None


def engine_key(
    onnx_sha256: str,
    *,
    flavour: str,
    version: str,
    compute_capabilities: Sequence[int],
    options: dict[str, Any],
) -> str:
    """Hash all that an engine depends on; an engine with another key must be built again.

    Args:
        onnx_sha256: Hash of the ONNX file's bytes.
        flavour: "tensorrt_rtx", "tensorrt" or "torch_tensorrt".
        version: The compiler's.
        compute_capabilities: In any order.
        options: Everything else that shapes the engine, as JSON values.
    Returns:
        SHA-256, hex, of the five as JSON with sorted keys.
    """
    content = {
        "onnx_sha256": onnx_sha256,
        "flavour": flavour,
        "version": version,
        "compute_capabilities": sorted(compute_capabilities),
        "options": options,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_engine_record(engine: Path | str) -> EngineRecord:
    """Read an engine's sidecar.

    Raises:
        EngineError: there is no engine or no sidecar, the sidecar is damaged, or its key is not the hash of
            what it says.
    """
    engine = Path(engine)
    sidecar = engine.with_suffix(".json")
    if not engine.is_file():
        raise EngineError(f"There is no engine {engine}. Check the path.")
    try:
        record = TypeAdapter(EngineRecord).validate_python(json.loads(sidecar.read_text("utf-8")))
    except FileNotFoundError as error:
        raise EngineError(
            f"{engine} has no sidecar {sidecar.name}, which says what it is. Copy both files, or build again."
        ) from error
    except (ValueError, ValidationError) as error:
        raise EngineError(
            f"{sidecar} is damaged ({_first(error)}). Copy it again, or build the engine again."
        ) from error
    key = engine_key(
        record.onnx_sha256,
        flavour=record.flavour,
        version=record.version,
        compute_capabilities=record.compute_capabilities,
        options=record.options,
    )
    if key != record.engine_key:
        raise EngineError(
            f"{sidecar} was changed after the engine was built: its engine key is "
            f"{record.engine_key[:12]}..., but what it says gives {key[:12]}.... "
            f"Build it again with: {record.rebuild()}"
        )
    return record


def check_engine(path: Path | str) -> dict[str, Any]:
    """Compare an engine with its sidecar.

    Returns:
        The sidecar's values, and "engine", the path.
    Raises:
        EngineError: a file is missing, the sidecar is damaged, or the engine is not the one it describes.
    """
    path = Path(path)
    record = read_engine_record(path)
    found = path.stat().st_size
    if found != record.bytes:
        state = "truncated" if found < record.bytes else "longer than it was built"
        raise EngineError(
            f"{path} is {state}: it has {found} bytes, its sidecar says {record.bytes}. "
            "Copy or build it again."
        )
    if sha256(path) != record.sha256:
        raise EngineError(f"{path} was changed after it was built: its SHA-256 differs. Build it again.")
    return {"engine": str(path), **asdict(record)}


def check_fits(
    record: EngineRecord, here: Here, *, onnx_sha256: str, bundle: Path | str | None = None
) -> None:
    """Refuse an engine that was built from another model, by another compiler or for another GPU.

    TensorRT's own answer is a null pointer and a log line, or a crash, so this comes before it.

    Args:
        record: The engine's sidecar.
        here: What would load it.
        onnx_sha256: Hash of the bundle's model of the same precision.
        bundle: Named in the command that mends it.
    Raises:
        EngineError: with the value seen, the value expected and the command that builds it again.
    """
    reason = None
    gpus = ", ".join(f"sm_{capability}" for capability in record.compute_capabilities)
    if record.onnx_sha256 != onnx_sha256:
        reason = (
            f"was built from another {record.precision} model ({record.onnx_sha256[:12]}...) than the "
            f"bundle's ({onnx_sha256[:12]}...)"
        )
    elif record.flavour != here.flavour:
        reason = f"was built by {record.flavour}, but {here.flavour} would load it"
    elif not _same_version(record.version, here.version):
        # Plans are not portable between TensorRT versions (TensorRT developer guide, version compatibility);
        # the version-compatible mode costs speed and is not used.
        reason = f"was built by {record.flavour} {record.version}, but this machine has {here.version}"
    elif here.compute_capability is not None and here.compute_capability not in record.compute_capabilities:
        reason = f"was built for {gpus}, but this GPU is sm_{here.compute_capability}"
    if reason is not None:
        raise EngineError(
            f"Engine {record.target}-{record.precision} {reason}. "
            f"Build it for this machine with: {record.rebuild(bundle)}"
        )


def _same_version(first: str, second: str) -> bool:
    """Compare the numbers that both have: trtexec says 10.3.0, the Python package 10.3.0.26."""
    return all(one == other for one, other in zip(first.split("."), second.split("."), strict=False))


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(str(part) for part in fault['loc']) or 'sidecar'}: {fault['msg']}"
    return str(error)
