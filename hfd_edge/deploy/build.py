"""Engines into a bundle, each with a sidecar that says what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from hfd_edge.bundle import Bundle, Precision
from hfd_edge.deploy.cache import write_cache
from hfd_edge.deploy.compiler import Arithmetic
from hfd_edge.deploy.engine import Engine, build_engine, build_options, can_build_here, compiler_version
from hfd_edge.deploy.graph import load
from hfd_edge.deploy.inspector import summarise
from hfd_edge.deploy.plan import layer_types, make_plan, record_of
from hfd_edge.deploy.record import read_record
from hfd_edge.deploy.shapes import infer
from hfd_edge.deploy.targets import Target
from hfd_edge.engine_record import EngineRecord, Layers, engine_key
from hfd_edge.errors import EngineError
from hfd_edge.files import sha256
from hfd_edge.progress import Progress, silent

__all__ = ["EngineRecord", "arithmetic_for", "build", "can_build_here"]


def build(
    bundle: Bundle,
    target: Target,
    *,
    precisions: Sequence[str] | None = None,
    progress: Progress = silent,
) -> list[EngineRecord]:
    """Build engines for a target and put them into the bundle, each as soon as it is built.

    Args:
        bundle: Gets engines/<target>-<precision>.engine and .json, and .layers.json where the inspector
            could be asked.
        target: What to build for.
        precisions: Variants to build; None builds those of the target that the bundle has.
        progress: Told of every step of the compiler; when it raises, the running build leaves nothing.
    Raises:
        EngineError: the target does not take a precision, cannot be built for here (the message says why),
            or the compiler refuses the model.
        MissingExtraError: the target's compiler is not installed.
        BundleError: the bundle lacks a precision, or its file was changed.
        ExportError: the target takes INT8 from the calibration record, which is missing or of another model.
        StorageError: the disk is full; the bundle is as it was.
    """
    chosen = _choose(bundle, target, precisions)
    _require_compiler(bundle, target)
    records = []
    for precision in chosen:
        record, engine = _build_one(bundle, target, precision, progress)
        name = f"{record.target}-{record.precision}"
        files: dict[str, bytes | Path] = {
            f"engines/{name}.engine": engine.content,
            f"engines/{name}.json": record.to_json().encode(),
        }
        layers = f"engines/{name}.layers.json"
        if engine.inspection or layers in bundle.manifest.files:  # an earlier engine's would mislead
            told = engine.inspection or json.dumps({"Layers": [], "note": engine.note})
            files[layers] = told.encode()
        bundle = bundle.add(files, engines={name: f"engines/{name}.engine"})
        records.append(record)
    return records


def arithmetic_for(bundle: Bundle, target: Target, precision: Precision) -> tuple[Path, Arithmetic]:
    """Which ONNX file a target compiles for a variant, and what it must be told beside it.

    The same as in a device kit, by the same `Plan`, but for the type of layers that calibration kept out of
    INT8: see `Arithmetic.kept`.

    Raises:
        EngineError: the target does not take the precision.
        BundleError: the bundle lacks the file, or it was changed.
        ExportError: there is no calibration record, or it is of another model.
        MissingExtraError: this TensorRT is not installed.
    """
    plan = make_plan(target, precision)
    path = bundle.model(plan.source)
    if plan.typed:
        return path, Arithmetic(precision)
    record = read_record(bundle) if plan.cache else record_of(bundle)
    model = load(path)
    kept = tuple(layer_types(model, infer(model), plan, record))
    if record is None or not plan.cache:
        return path, Arithmetic(precision, kept=kept)
    version = ".".join(compiler_version(target.flavour).split(".")[:3])
    return path, Arithmetic(precision, write_cache(record, tensorrt=version).encode(), kept)


def _require_compiler(bundle: Bundle, target: Target) -> None:
    reason = can_build_here(target)
    if target.flavour == "torch_tensorrt":
        raise EngineError(f"{bundle.path} is a bundle: {reason}")
    compiler_version(target.flavour)  # a missing package is its own error, with its own remedy
    if reason is not None:
        raise EngineError(
            f"No engine for {target.name} can be built here: {reason}. Make a device kit and build there: "
            f"hfd-edge build {bundle.path} --target {target.name} --kit"
        )


def _choose(bundle: Bundle, target: Target, precisions: Sequence[str] | None) -> list[Precision]:
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
    return [known[name] for name in wanted]


def _build_one(
    bundle: Bundle, target: Target, precision: Precision, progress: Progress
) -> tuple[EngineRecord, Engine]:
    model, arithmetic = arithmetic_for(bundle, target, precision)
    label = f"{target.name} {precision}"
    engine = build_engine(model, target=target, arithmetic=arithmetic, progress=progress, label=label)
    onnx_sha256 = bundle.manifest.files[bundle.manifest.precisions[precision]]
    options = build_options(target, arithmetic)
    if arithmetic.cache is not None:
        options["cache_sha256"] = hashlib.sha256(arithmetic.cache).hexdigest()
    compiled_sha256 = sha256(model)
    if compiled_sha256 != onnx_sha256:
        options["compiled_sha256"] = compiled_sha256
    layers, note = _summary(engine)
    key = engine_key(
        onnx_sha256,
        flavour=target.flavour,
        version=engine.version,
        compute_capabilities=engine.compute_capabilities,
        options=options,
    )
    record = EngineRecord(
        target=target.name,
        precision=precision,
        flavour=target.flavour,
        version=engine.version,
        compute_capabilities=engine.compute_capabilities,
        engine_key=key,
        onnx_sha256=onnx_sha256,
        options=options,
        bytes=len(engine.content),
        sha256=hashlib.sha256(engine.content).hexdigest(),
        seconds=round(engine.seconds, 3),
        weights_bytes=engine.weights_bytes,
        activation_bytes=engine.activation_bytes,
        layers=layers,
        note=note,
    )
    return record, engine


def _summary(engine: Engine) -> tuple[Layers | None, str]:
    """What the inspector said, or why there is no summary: an engine costs minutes, and works without one."""
    if not engine.inspection:
        return None, engine.note
    try:
        return summarise(engine.inspection), ""
    except EngineError as error:
        return None, str(error)
