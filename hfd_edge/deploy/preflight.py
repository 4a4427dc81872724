"""Will this bundle run on that device? Answered without the device.

Every check gives findings, also when all is well, so that a report shows what was looked at. A finding says
what was seen, why it matters and how to mend it. The compiler on the device has the last word: a preflight
without errors means that nothing known stands against the build.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from hfd_edge.bundle import Bundle
from hfd_edge.deploy import checks
from hfd_edge.deploy.checks import Finding
from hfd_edge.deploy.dla import LOADABLES, DlaPlacement, Rules, place_on_dla
from hfd_edge.deploy.graph import kept_reasons, load
from hfd_edge.deploy.opset import lower_opset, opset_of
from hfd_edge.deploy.plan import Plan, make_plan, record_of
from hfd_edge.deploy.record import CalibrationRecord
from hfd_edge.deploy.shapes import Memory, Tensor, infer, memory
from hfd_edge.deploy.targets import Target
from hfd_edge.deploy.trtexec import keeps_layers
from hfd_edge.errors import EngineError, ExportError

__all__ = ["Finding", "Preflight", "preflight"]

_SYSTEM_SHARE = 0.5
_MEGABYTE = 1 << 20
_MOSTLY = 0.5
_FACTOR, _FIXED_MB = 3.5, 64
"""Bounds of what compilers took beyond the estimate of activations; see `_memory`."""


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        bundle: Path of the bundle.
        target: Name of the target.
        precision: Variant that was looked at.
        findings: In the order of the checks.
        memory: Estimate for the target's largest batch; None if shapes are not known.
        dla: Where each layer would run; None for targets without a DLA.
    """

    bundle: str
    target: str
    precision: str
    findings: tuple[Finding, ...]
    memory: Memory | None = None
    dla: DlaPlacement | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing stands against the build."""
        return not self.of("error")

    def of(self, level: Literal["ok", "warning", "error"]) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(finding for finding in self.findings if finding.level == level)


def preflight(
    bundle: Bundle, target: Target, *, precision: str | None = None, dla_core: int | None = None
) -> Preflight:
    """Check a variant of a bundle against a target.

    Args:
        bundle: Bundle to build from.
        target: Target to build for.
        precision: Variant; None takes the target's default.
        dla_core: DLA core that the engine shall use; None builds for the GPU, and the DLA's part is
            reported all the same where the target has one.
    Raises:
        BundleError: a file was changed after the bundle was made.
        ExportError: a model is damaged.
    """
    name = str(precision or target.default_precision)
    try:
        plan = make_plan(target, precision, dla_core=dla_core)
    except EngineError as error:
        finding = Finding("error", "precision", target.name, str(error))
        return Preflight(str(bundle.path), target.name, name, (finding,))
    findings = [*_variants(bundle, target, plan)]
    if any(finding.level == "error" for finding in findings):
        return Preflight(str(bundle.path), target.name, name, tuple(findings))
    return _with_model(bundle, target, plan, findings)


def _with_model(bundle: Bundle, target: Target, plan: Plan, findings: list[Finding]) -> Preflight:
    model = load(bundle.model(plan.source))
    record, told = _calibration(bundle, plan)
    findings += told
    if target.flavour == "torch_tensorrt":
        findings.append(_torch_note())
    else:
        findings += _parser(model, target)
        findings += checks.zero_points(model)
    try:
        tensors = infer(model, batch=target.batch.max)
    except ExportError as error:
        findings.append(Finding("error", "shapes", bundle.manifest.name, str(error)))
        return Preflight(str(bundle.path), target.name, plan.precision, tuple(findings))
    findings += checks.shapes(model, tensors, bundle.manifest)
    findings += checks.batch(model, target)
    findings += checks.dtypes(model, tensors, target)
    need, told = _memory(model, tensors, target, plan, record)
    findings += told
    dla = None
    if target.dla_cores:
        dla, told = _dla(model, tensors, target, plan, record)
        findings += told
    return Preflight(str(bundle.path), target.name, plan.precision, tuple(findings), need, dla)


def _variants(bundle: Bundle, target: Target, plan: Plan) -> Iterable[Finding]:
    """Does the bundle have what is compiled, and does the target compute in it?"""
    for needed in dict.fromkeys((plan.precision, plan.source)):
        if needed not in bundle.precisions:
            yield Finding(
                "error",
                "precision",
                needed,
                f"the bundle has no {needed} model; it has {', '.join(bundle.precisions)}",
                f"target {target.name} compiles it for {plan.precision}",
                f"hfd-edge quantize {bundle.path} --data DIR",
            )
    how = "types of the ONNX" if plan.typed else "flags"
    how = "a calibration cache and flags" if plan.cache else how
    yield Finding(
        "ok", "precision", plan.precision, f"compiled from model.{plan.source}.onnx, precision from {how}"
    )
    if target.flavour == "tensorrt_rtx" and plan.int8:
        yield Finding(
            "warning",
            "precision",
            plan.precision,
            "TensorRT-RTX documents no INT8 convolutions as accelerated",
            "INT8 may then be slower than FP16, by its reformats",
            "measure both on the device, or use fp16",
        )
    version = target.tensorrt_version
    if version is not None and not plan.typed and plan.half and not keeps_layers(version):
        yield Finding(
            "warning",
            "precision",
            plan.precision,
            f"trtexec of TensorRT {target.tensorrt} cannot keep single layers in FP32",
            "the warp's positions may be rounded to FP16, which moves features by parts of a pixel",
            "see what verify.py says on the device; if it fails, build --precision fp32",
        )


def _calibration(bundle: Bundle, plan: Plan) -> tuple[CalibrationRecord | None, list[Finding]]:
    if not plan.int8:
        return None, []
    fix = f"hfd-edge quantize {bundle.path} --data DIR"
    try:
        record = record_of(bundle)
    except ExportError as error:
        return None, [Finding("error", "calibration", plan.precision, str(error), "", fix)]
    if record is None:
        level: Literal["error", "warning"] = "error" if plan.cache else "warning"
        what = "the bundle has no calibration record"
        return None, [Finding(level, "calibration", plan.precision, what, "ranges come from it", fix)]
    what = f"{len(record.quantized_nodes)} nodes in INT8, {len(record.kept)} kept, by {record.method} on "
    return record, [
        Finding("ok", "calibration", plan.precision, f"{what}{len(record.tiles)} tiles of {record.split}")
    ]


def _parser(model: Any, target: Target) -> list[Finding]:
    """Operators and opset."""
    findings = checks.operators(model, target)
    found = opset_of(model)
    if any(finding.level == "error" for finding in findings):
        return findings
    if found <= target.opset_max:
        what = f"opset {found}, the device reads up to {target.opset_max}"
        return [*findings, Finding("ok", "opset", "", what)]
    try:
        lower_opset(model, target.opset_max)
    except ExportError as error:
        why = f"the device reads up to opset {target.opset_max}, the model is written in {found}"
        return [*findings, Finding("error", "opset", "", str(error), why)]
    what = f"opset {found} is written as {target.opset_max} for the device, with the same numbers"
    return [*findings, Finding("ok", "opset", "", what)]


def _torch_note() -> Finding:
    return Finding(
        "ok",
        "operators",
        "",
        "torch-tensorrt compiles the run's weights, not this ONNX; its operators are not checked here",
        "benchmarks/torch_tensorrt_coverage.py shows what it takes",
    )


def _memory(
    model: Any,
    tensors: dict[str, Tensor],
    target: Target,
    plan: Plan,
    record: CalibrationRecord | None,
) -> tuple[Memory, list[Finding]]:
    """Compare with the board's.

    Of memory that CPU and GPU share, half is left to the system, the CUDA libraries and the application:
    our assumption. Weights come out within about 10 %. For activations the estimate is a lower bound: of
    TensorRT-RTX 1.7's "Total Activation Memory" for preset s with 8 tiles it is 0.94 in FP32 and FP16 and
    0.32 in INT8, which that compiler fuses less; with one tile scratch of about 40 MB comes on top.
    """
    int8 = record.quantized_nodes if record is not None and plan.cache else ()
    width = 2 if plan.half and not plan.typed else 4
    need = memory(model, tensors, float_bytes=width, int8=int8)
    share = _SYSTEM_SHARE if target.shared_memory else 1.0
    room_mb = target.memory_mb * share
    total_mb = need.total_bytes / _MEGABYTE
    weights_mb, activations_mb = need.weights_bytes / _MEGABYTE, need.activations_bytes / _MEGABYTE
    what = (
        f"weights {weights_mb:.1f} MB, activations at least {activations_mb:.1f} MB for a batch of "
        f"{target.batch.max}; room for {room_mb:.0f} MB"
    )
    why = f"{target.memory_mb} MB" + (", of which the system takes half" if target.shared_memory else "")
    fix = "export smaller tiles (--tile), or lower batch.max in a target of your own"
    if total_mb > room_mb:
        return need, [Finding("error", "memory", target.name, what, why, fix)]
    likely_mb = weights_mb + _FACTOR * activations_mb + _FIXED_MB
    if likely_mb > room_mb:
        what += f", and a compiler may take {likely_mb:.0f} MB"
        return need, [Finding("warning", "memory", target.name, what, why, fix)]
    return need, [Finding("ok", "memory", target.name, what, why)]


def _dla(
    model: Any, tensors: dict[str, Tensor], target: Target, plan: Plan, record: CalibrationRecord | None
) -> tuple[DlaPlacement, list[Finding]]:
    amax = record.amax if plan.int8 and record is not None else None
    wide = set(kept_reasons(model))
    if plan.int8 and not plan.half and record is not None:
        wide.update(item.node for item in record.kept)
    rules = Rules(target.tensorrt_version, amax, wide)
    placed = place_on_dla(model, tensors, rules)
    layers = sum(layer.device == "DLA" for layer in placed.layers)
    what = (
        f"{layers} of {len(placed.layers)} layers run on the DLA in {placed.subgraphs} pieces; "
        f"{placed.fallback_share:.1%} of the multiply-accumulates fall back to the GPU"
    )
    why = "; ".join(f"{len(nodes)} x {reason}" for reason, nodes in placed.reasons.items())
    wanted = plan.dla_core is not None
    if plan.precision == "fp32":
        text = "a DLA computes in FP16 and INT8 only; an FP32 engine runs on the GPU"
        return placed, [
            Finding("error" if wanted else "ok", "dla", target.name, text, "", "use fp16 or int8_fp16")
        ]
    # What nobody asked for is worth a line, not a warning.
    warned: Literal["ok", "warning"] = "warning" if wanted else "ok"
    level = warned if placed.fallback_share > _MOSTLY else "ok"
    fix = "build for the GPU (without --dla)" if level != "ok" else ""
    findings = [Finding(level, "dla", target.name, what, why, fix)]
    if placed.subgraphs > LOADABLES:
        findings.append(
            Finding(
                warned,
                "dla",
                target.name,
                f"the graph falls into {placed.subgraphs} pieces for the DLA, a core holds {LOADABLES}",
                "every change between DLA and GPU begins a new piece; what is beyond runs on the GPU",
                "build for the GPU (without --dla), or in fp16, where INT8 ranges do not matter",
            )
        )
    return placed, findings
