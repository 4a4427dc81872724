"""Device kits: a folder that builds an engine on the device, and proves there that it is right.

An engine of TensorRT runs only on the kind of GPU and with the version that built it, and a Jetson builds its
own. The kit holds the model in the form that the device's TensorRT reads, the calibration cache, the exact
`trtexec` command, golden tiles with the expected logits, and a script that compares; see export/kit.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Precision
from hfd_edge.deploy.cache import write_cache
from hfd_edge.deploy.graph import INPUT, OUTPUT, logits_of, session
from hfd_edge.deploy.opset import opset_of
from hfd_edge.deploy.plan import Plan, device_model, layer_types, make_plan, record_of
from hfd_edge.deploy.preflight import Finding, preflight
from hfd_edge.deploy.shapes import batch_of, infer
from hfd_edge.deploy.targets import Target
from hfd_edge.deploy.tiles import pad_to_tile
from hfd_edge.deploy.trtexec import Job, build_flags, run_flags
from hfd_edge.engine_record import check_engine
from hfd_edge.errors import EngineError
from hfd_edge.files import atomic_folder, resource_folder, sha256, write_bytes, write_json, write_text
from hfd_edge.progress import Progress, silent

MODEL, CACHE, KIT = "model.onnx", "calibration.cache", "kit.json"
_GOLDEN = 8
_MINIMUM: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {"agreement": 0.999, "miou": 0.99},
    "fp16": {"agreement": 0.995, "miou": 0.97},
    "int8": {"agreement": 0.97, "miou": 0.90},
    "int8_fp16": {"agreement": 0.97, "miou": 0.90},
}
_MAXIMUM: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {"difference": 0.02},
    "fp16": {"difference": 0.05},
    "int8": {"difference": 0.3},
    "int8_fp16": {"difference": 0.3},
}
"""What verify.py asks for, against the same variant on ONNX Runtime: share of equal labels, mean IoU between
both label maps, and root mean square difference of the logits relative to their spread. Our choice: another
order of sums moves labels between classes that are nearly equal, a wrong warp, range or layout moves far
more. Labels alone are not enough: where one class fills the tiles, a mirrored map agrees on 97 % of them."""


@dataclass(frozen=True)
class Kit:
    """A kit on disk.

    Attributes:
        path: Its folder.
        target: Name of the target.
        precision: Variant.
        command: Arguments of trtexec.
        warnings: What the preflight warned of.
        bytes: Size of all files.
    """

    path: Path
    target: str
    precision: Precision
    command: tuple[str, ...]
    warnings: tuple[Finding, ...]
    bytes: int


@dataclass(frozen=True)
class _Parts:
    """Everything that goes into a kit."""

    bundle: Bundle
    target: Target
    plan: Plan
    job: Job
    command: tuple[str, ...]
    shape: tuple[int, ...]  # of one call in the verification: (batch, bands, rows, cols)
    opset: int

    @property
    def stem(self) -> str:
        return f"{self.target.name}-{self.plan.precision}"


def make_kit(
    bundle: Bundle,
    target: Target,
    out: Path | str,
    *,
    precision: str | None = None,
    dla_core: int | None = None,
    progress: Progress = silent,
) -> Kit:
    """Write a device kit.

    Args:
        bundle: Needs golden tiles, and its calibration record for a target that takes INT8 from a cache.
        target: Profile with flavour "tensorrt".
        out: Folder to make; must not exist.
        precision: Variant; None takes the target's default.
        dla_core: DLA core that takes what it can; None for the GPU alone.
        progress: Told of the steps.
    Raises:
        EngineError: the target needs no kit, the preflight finds errors, or the bundle has no golden tiles.
        ExportError: the calibration record is missing or of another model.
        BundleError: a file was changed.
        StorageError: `out` exists or cannot be written.
    """
    if target.flavour != "tensorrt":
        raise EngineError(
            f"Target {target.name} takes no device kit: {target.flavour} engines are built on this machine. "
            f"Build one with: hfd-edge build {bundle.path} --target {target.name}"
        )
    plan = make_plan(target, precision, dla_core=dla_core)
    warnings = _require_possible(bundle, target, plan)
    with atomic_folder(Path(out)) as staged:
        progress(0, 3, f"kit: model for {target.name}")
        parts = _write_model(staged, bundle, target, plan)
        progress(1, 3, "kit: golden tiles")
        golden = _write_golden(staged, parts)
        progress(2, 3, "kit: scripts")
        _write_scripts(staged, parts, warnings)
        _write_description(staged, parts, golden)
        size = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file())
    progress(3, 3, "kit: done")
    return Kit(Path(out), target.name, plan.precision, parts.command, warnings, size)


def _require_possible(bundle: Bundle, target: Target, plan: Plan) -> tuple[Finding, ...]:
    """The preflight's warnings; its errors are raised."""
    report = preflight(bundle, target, precision=plan.precision, dla_core=plan.dla_core)
    if not report.ok:
        faults = "; ".join(
            ": ".join(filter(None, (item.where, item.what, item.fix))) for item in report.of("error")
        )
        raise EngineError(
            f"{bundle.path} cannot be built for {target.name} as {plan.precision}. {faults}. "
            f"See all with: hfd-edge preflight {bundle.path} --target {target.name} "
            f"--precision {plan.precision}"
        )
    return report.of("warning")


def take_engine(bundle: Bundle, engine: Path | str) -> Bundle:
    """Put an engine that a kit built and verified on a device, or a torch-tensorrt program, into the bundle.

    Args:
        bundle: The bundle that the kit was made from, or that was exported from the same run.
        engine: The engine, its sidecar beside it.
    Raises:
        EngineError: the engine is damaged, has no sidecar, or was built from another model.
        StorageError: the disk is full; the bundle is as it was.
    """
    engine = Path(engine)
    record = check_engine(engine)
    relpath = {str(name): file for name, file in bundle.manifest.precisions.items()}.get(record["precision"])
    expected = bundle.manifest.files.get(relpath or "")
    # A torch-tensorrt program names the weights, not a model; its backend compares it with golden tiles.
    if record["onnx_sha256"] != expected and record["flavour"] != "torch_tensorrt":
        raise EngineError(
            f"{engine} was built from another {record['precision']} model "
            f"({record['onnx_sha256'][:12]}...) than {bundle.path} holds ({(expected or 'none')[:12]}...). "
            "Give the bundle that the kit was made from, or make a new kit."
        )
    name = f"{record['target']}-{record['precision']}"
    suffix = ".pt2" if record["flavour"] == "torch_tensorrt" else ".engine"
    files: dict[str, bytes | Path] = {
        f"engines/{name}{suffix}": engine,
        f"engines/{name}.json": engine.with_suffix(".json"),
    }
    return bundle.add(files, engines={name: f"engines/{name}{suffix}"})


def _write_model(staged: Path, bundle: Bundle, target: Target, plan: Plan) -> _Parts:
    model = device_model(bundle, target, plan)
    write_bytes(staged / MODEL, model.SerializeToString(deterministic=True))
    record = record_of(bundle)
    if plan.cache and record is not None:
        # From the record each time, so that it is of this model, these ranges and this TensorRT.
        write_text(staged / CACHE, write_cache(record, tensorrt=str(target.tensorrt)))
    fixed, batch = batch_of(model), target.batch
    tensors = infer(model, batch=batch.opt)
    _, *rest = tensors[INPUT].shape
    sizes = (batch.min, batch.opt, batch.max)
    shapes = tuple((size, *rest) for size in sizes)
    job = Job(
        model=MODEL,
        engine=f"{target.name}-{plan.precision}.engine.partial",
        workspace_mb=target.workspace_mb,
        typed=plan.typed,
        fp16=plan.half and not plan.typed,
        int8=plan.int8 and not plan.typed,
        cache=CACHE if plan.cache else None,
        layers=layer_types(model, tensors, plan, record),
        shapes=None if fixed is not None else (shapes[0], shapes[1], shapes[2]),
        dla_core=plan.dla_core,
    )
    version = target.tensorrt_version
    assert version is not None  # profiles with flavour "tensorrt" have one
    command = build_flags(job, version, input_name=INPUT)
    return _Parts(bundle, target, plan, job, command, (fixed or batch.min, *rest), opset_of(model))


def _write_golden(staged: Path, parts: _Parts) -> list[dict[str, str]]:
    """Standardised tiles, and what the bundle's own variant answers on ONNX Runtime."""
    manifest = parts.bundle.manifest
    reference = session(parts.bundle.model(parts.plan.precision))
    written = session(staged / MODEL)
    copies = parts.shape[0]
    golden, first = [], True
    for tile in islice(parts.bundle.golden(), _GOLDEN):
        pixels, _ = manifest.preprocessing(tile.image)
        inputs = np.repeat(pad_to_tile(pixels, tile_px=manifest.tile_px)[None], copies, 0)
        logits = logits_of(reference, inputs[:1])
        if first:
            _check_model(logits_of(written, inputs), logits, parts)
            first = False
        entry = {"input": f"golden/{tile.name}.f32", "logits": f"golden/{tile.name}.logits.f32"}
        write_bytes(staged / entry["input"], inputs.astype("<f4").tobytes())
        write_bytes(staged / entry["logits"], logits.astype("<f4").tobytes())
        golden.append(entry)
    if not golden:
        raise EngineError(
            f"{parts.bundle.path} has no golden tiles, by which a device checks its engine. Export the run "
            "again with --data DIR."
        )
    return golden


def _check_model(found: NDArray[Any], expected: NDArray[Any], parts: _Parts) -> None:
    """The model in the kit must answer as the bundle's: a kit that cannot be right is not written."""
    least = _MINIMUM[parts.plan.precision]["agreement"]
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    if agreement < least:
        raise EngineError(
            f"The kit's model and the bundle's {parts.plan.precision} model agree on {agreement:.2%} of the "
            f"pixels of a golden tile, expected {least:.1%}. Quantize the bundle again, and report this "
            "if it stays."
        )


def _write_scripts(staged: Path, parts: _Parts, warnings: Iterable[Finding]) -> None:
    target, plan = parts.target, parts.plan
    minimum = _MINIMUM[plan.precision]
    notes = [f"- {item.where}: {item.what}; {item.why}. To mend it: {item.fix}." for item in warnings]
    words = {
        "NAME": parts.bundle.manifest.name,
        "TARGET": target.name,
        "PRECISION": plan.precision,
        "DESCRIPTION": target.description,
        "TENSORRT": str(target.tensorrt),
        "ENGINE": f"{parts.stem}.engine",
        "SIDECAR": f"{parts.stem}.json",
        "FLAGS": " \\\n".join(f"  {shlex.quote(flag)}" for flag in parts.command),
        "AGREEMENT": f"{minimum['agreement']:.1%}",
        "MIOU": f"{minimum['miou']:.2f}",
        "DIFFERENCE": f"{_MAXIMUM[plan.precision]['difference']:.0%}",
        "OPSET": str(parts.opset),
        "QDQ": ", with Q/DQ nodes" if plan.int8 and not plan.cache else "",
        "CACHE_ROW": f"| {CACHE} | INT8 ranges for TensorRT {target.tensorrt} |\n" if plan.cache else "",
        "INPUT": "x".join(map(str, parts.shape)),
        "NOTES": "\n".join(["Before you build:", "", *notes]) if notes else "",
    }
    for name in ("build.sh", "README.md"):
        text = (resource_folder("kit") / name).read_text("utf-8")
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        write_text(staged / name, text.rstrip("\n") + "\n")
    write_text(staged / "verify.py", (resource_folder("kit") / "verify.py").read_text("utf-8"))


def _write_description(staged: Path, parts: _Parts, golden: list[dict[str, str]]) -> None:
    bundle, target, plan = parts.bundle, parts.target, parts.plan
    files = {
        str(path.relative_to(staged)): sha256(path) for path in sorted(staged.rglob("*")) if path.is_file()
    }
    engine = f"{parts.stem}.engine"
    content = {
        "schema_version": 1,
        "name": bundle.manifest.name,
        "classes": list(bundle.manifest.classes),
        "tensorrt": target.tensorrt,
        # TensorRT ignores a cache of another version, and would then calibrate on noise.
        "exact_version": plan.cache,
        "engine": engine,
        "sidecar": f"{parts.stem}.json",
        "input": {"name": INPUT, "shape": list(parts.shape)},
        "output": {"name": OUTPUT},
        "minimum": dict(_MINIMUM[plan.precision]),
        "maximum": dict(_MAXIMUM[plan.precision]),
        "golden": golden,
        "build": list(parts.command),
        "run": list(
            run_flags(
                engine,
                inputs={INPUT: "@INPUT@"},
                output="@OUTPUT@",
                shapes={} if parts.job.shapes is None else {INPUT: parts.shape},
                job=parts.job,
            )
        ),
        "files": files,
        "record": _record(parts, files),
    }
    write_json(staged / KIT, content)


def _record(parts: _Parts, files: Mapping[str, str]) -> dict[str, Any]:
    """What `engine_record.EngineRecord` says, as far as it is known before the engine is built."""
    manifest, target, plan = parts.bundle.manifest, parts.target, parts.plan
    return {
        "target": target.name,
        "precision": plan.precision,
        "flavour": target.flavour,
        "compute_capabilities": list(target.compute_capabilities),
        "onnx_sha256": manifest.files[manifest.precisions[plan.precision]],
        "options": {
            "builder": "trtexec",
            "batch": [target.batch.min, target.batch.opt, target.batch.max],
            "plan": asdict(plan),
            "flags": list(parts.command),
            "model_sha256": files[MODEL],
            "cache_sha256": files.get(CACHE),
        },
        "weights_bytes": None,
        "activation_bytes": None,
        "layers": None,
    }
