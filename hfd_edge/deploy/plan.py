"""Which of a bundle's models a device compiles for a precision, and in which form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfd_edge.bundle import Bundle, Precision
from hfd_edge.deploy.graph import kept_reasons, load
from hfd_edge.deploy.opset import lower_opset
from hfd_edge.deploy.record import RECORD, CalibrationRecord, read_record
from hfd_edge.deploy.shapes import Tensor, with_batch
from hfd_edge.deploy.targets import IMPLICIT_INT8_UNTIL, Target
from hfd_edge.errors import EngineError

_MOVES_DATA = frozenset(
    "Cast Concat Constant Expand Flatten Gather GatherElements GatherND Identity Reshape Shape Slice Split "
    "Squeeze Transpose Unsqueeze".split()
)
"""Operators without arithmetic: TensorRT refuses a precision for those of them that handle shapes."""


@dataclass(frozen=True)
class Plan:
    """How a variant reaches the compiler of a device.

    Attributes:
        precision: The variant.
        source: The variant whose ONNX file is compiled: FP32 where precision comes from flags.
        typed: The ONNX alone tells the precision (strongly typed network).
        cache: INT8 ranges come from a calibration cache instead of Q/DQ nodes.
        dla_core: DLA core that takes what it can; None for the GPU alone.
    """

    precision: Precision
    source: Precision
    typed: bool
    cache: bool
    dla_core: int | None = None

    @property
    def int8(self) -> bool:
        """Whether layers compute in INT8."""
        return self.precision in ("int8", "int8_fp16")

    @property
    def half(self) -> bool:
        """Whether layers may compute in FP16."""
        return self.precision in ("fp16", "int8_fp16")


def make_plan(target: Target, precision: str | None = None, *, dla_core: int | None = None) -> Plan:
    """Decide how a variant is compiled for a target.

    Args:
        target: What to build for.
        precision: One of the target's precisions; None takes its default.
        dla_core: DLA core to use. A DLA before TensorRT 11 takes neither Q/DQ nodes nor strongly typed
            networks.
    Raises:
        EngineError: the target does not take the precision, or has no such DLA core.
    """
    known: dict[str, Precision] = {str(name): name for name in target.precisions}
    wanted = target.default_precision if precision is None else precision
    if wanted not in known:
        raise EngineError(
            f"Target {target.name} has no precision {wanted!r}; it takes: {', '.join(known)}. "
            "Choose one of these."
        )
    if dla_core is not None and not 0 <= dla_core < target.dla_cores:
        cores = f"DLA cores 0 to {target.dla_cores - 1}" if target.dla_cores else "no DLA"
        raise EngineError(
            f"Target {target.name} has {cores}; core {dla_core} was asked for. Leave --dla away."
        )
    chosen = known[wanted]
    int8 = chosen.startswith("int8")
    cache = int8 and target.int8 == "cache"
    version = target.tensorrt_version
    old_dla = dla_core is not None and version is not None and version < IMPLICIT_INT8_UNTIL
    typed = target.strongly_typed and not cache and not old_dla
    source: Precision = chosen if typed else ("int8" if int8 and not cache else "fp32")
    return Plan(chosen, source, typed, cache, dla_core)


def device_model(bundle: Bundle, target: Target, plan: Plan) -> Any:
    """The model as the device gets it.

    At an opset that its parser reads, and with a fixed batch if the target has one.

    Raises:
        ExportError: an operator does not exist in the target's opset, or the file is damaged.
        BundleError: the bundle lacks the model, or its file was changed.
    """
    model = lower_opset(load(bundle.model(plan.source)), target.opset_max)
    batch = target.batch
    if batch.min == batch.max:
        model = with_batch(model, batch.opt)
    return model


def record_of(bundle: Bundle) -> CalibrationRecord | None:
    """The bundle's calibration record; None if it was never quantised.

    Raises:
        ExportError: the record is damaged or of another FP32 model.
    """
    return read_record(bundle) if RECORD in bundle.manifest.files else None


def layer_types(
    model: Any, tensors: Mapping[str, Tensor], plan: Plan, record: CalibrationRecord | None
) -> dict[str, str]:
    """Nodes that precision flags alone would compute too coarsely, with the type that they must keep.

    Flow heads, warps and classifier stay in FP32 as in every variant. Layers that calibration kept out of
    INT8 stay in FP16, or in FP32 where the variant has no FP16. A strongly typed network needs none of it.
    """
    if plan.typed or plan.precision == "fp32":
        return {}
    wide = kept_reasons(model)
    found = dict.fromkeys(wide, "fp32")
    if plan.int8 and record is not None:
        kept = "fp16" if plan.half else "fp32"
        found = {item.node: kept for item in record.kept} | found
    return {
        node.name: found[node.name]
        for node in model.graph.node
        if node.name in found
        and node.op_type not in _MOVES_DATA
        and all(tensors[name].is_float for name in node.output if name)
    }
