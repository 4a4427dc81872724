"""Engines into a bundle, each with a sidecar that says what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfd_edge.bundle import Bundle, Precision
from hfd_edge.deploy.engine import build_engine, build_options, engine_key
from hfd_edge.deploy.targets import Target
from hfd_edge.errors import EngineError
from hfd_edge.files import sha256
from hfd_edge.progress import Progress, silent


@dataclass(frozen=True)
class EngineRecord:
    """The sidecar of an engine.

    Attributes:
        target: Profile that it was built for.
        precision: Variant of the bundle that it was built from.
        flavour: Compiler, by its Python module.
        version: The compiler's version.
        compute_capabilities: GPUs that it runs on; 75 is sm_75.
        engine_key: Hash of everything it depends on; see `engine.engine_key`.
        onnx_sha256: Hash of the ONNX file.
        options: See `engine.build_options`.
        bytes: Size of the engine.
        sha256: Hash of the engine.
        seconds: Time of the compilation.
    """

    target: str
    precision: Precision
    flavour: str
    version: str
    compute_capabilities: tuple[int, ...]
    engine_key: str
    onnx_sha256: str
    options: dict[str, Any]
    bytes: int
    sha256: str
    seconds: float


def build(
    bundle: Bundle,
    target: Target,
    *,
    precisions: Sequence[str] | None = None,
    progress: Progress = silent,
) -> list[EngineRecord]:
    """Build engines for a target and put them into the bundle, each as soon as it is built.

    Args:
        bundle: Gets engines/<target>-<precision>.engine and .json.
        target: What to build for.
        precisions: Variants to build; None builds those of the target that the bundle has.
        progress: Told of every step of the compiler; when it raises, the running build leaves nothing.
    Raises:
        EngineError: the target does not take a precision, or the compiler refuses the model.
        BundleError: the bundle lacks a precision, or its file was changed.
        StorageError: the disk is full; the bundle is as it was.
    """
    known: dict[str, Precision] = {str(name): name for name in target.precisions}
    wanted = [name for name in known if name in bundle.precisions] if precisions is None else precisions
    for precision in wanted:
        if precision not in known:
            raise EngineError(
                f"Target {target.name} has no precision {precision!r}; it takes: {', '.join(known)}. "
                "Choose one of these."
            )
        bundle.model(precision)
    if not wanted:
        raise EngineError(
            f"{bundle.path} has none of the precisions of target {target.name} ({', '.join(known)}). "
            f"Make them with: hfd-edge quantize {bundle.path} --data DIR"
        )
    records = []
    for precision in wanted:
        record, content = _build_one(bundle, target, known[precision], progress)
        name = f"{record.target}-{record.precision}"
        bundle = bundle.add(
            {
                f"engines/{name}.engine": content,
                f"engines/{name}.json": (json.dumps(asdict(record), indent=2) + "\n").encode(),
            },
            engines={name: f"engines/{name}.engine"},
        )
        records.append(record)
    return records


def check_engine(path: Path | str) -> dict[str, Any]:
    """Compare an engine with its sidecar.

    Returns:
        The sidecar's values, and "engine", the path.
    Raises:
        EngineError: a file is missing, the sidecar is damaged, or the engine is not the one it describes.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    if not path.is_file():
        raise EngineError(f"There is no engine {path}. Check the path.")
    try:
        record = json.loads(sidecar.read_text("utf-8"))
        size, digest = int(record["bytes"]), str(record["sha256"])
    except FileNotFoundError as error:
        raise EngineError(
            f"{path} has no sidecar {sidecar.name}, which says what it is. Copy both files, or build again."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{sidecar} is damaged ({error}). Copy it again, or build the engine again."
        ) from error
    found = path.stat().st_size
    if found != size:
        state = "truncated" if found < size else "longer than it was built"
        raise EngineError(
            f"{path} is {state}: it has {found} bytes, its sidecar says {size}. Copy or build it again."
        )
    if sha256(path) != digest:
        raise EngineError(f"{path} was changed after it was built: its SHA-256 differs. Build it again.")
    return {"engine": str(path), **record}


def _build_one(
    bundle: Bundle, target: Target, precision: Precision, progress: Progress
) -> tuple[EngineRecord, bytes]:
    model = bundle.model(precision)
    onnx_sha256 = bundle.manifest.files[bundle.manifest.precisions[precision]]
    engine = build_engine(model, target=target, progress=progress, label=f"{target.name} {precision}")
    options = build_options(target)
    key = engine_key(
        onnx_sha256,
        flavour=target.flavour,
        version=engine.version,
        compute_capabilities=target.compute_capabilities,
        options=options,
    )
    record = EngineRecord(
        target=target.name,
        precision=precision,
        flavour=target.flavour,
        version=engine.version,
        compute_capabilities=target.compute_capabilities,
        engine_key=key,
        onnx_sha256=onnx_sha256,
        options=options,
        bytes=len(engine.content),
        sha256=hashlib.sha256(engine.content).hexdigest(),
        seconds=round(engine.seconds, 3),
    )
    return record, engine.content
