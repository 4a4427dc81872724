"""A network and its configuration in TensorRT: one road for 8.6, 10, 11 and RTX.

Precision lives in the ONNX wherever the network can be strongly typed (10, 11, RTX). Flags, layer precisions
and a calibration cache are used only where it cannot: in TensorRT 8.6, and for implicit INT8 before 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfd_edge.bundle import Precision
from hfd_edge.deploy.graph import onnx_package
from hfd_edge.deploy.targets import Target
from hfd_edge.errors import EngineError
from hfd_edge.gpu import Gpu
from hfd_edge.tensorrt_api import TensorRT, ahead_of_time, member, product, strongly_typed

if TYPE_CHECKING:
    import tensorrt

_MEGABYTE = 1 << 20
# The rest is for weights, and for what other programs take while the build runs.
_SHARE_OF_FREE = 0.75
_TURING = 75
_MOVES_DATA = (
    "CONSTANT SHAPE SHUFFLE SLICE GATHER CONCATENATION CAST IDENTITY SELECT FILL SCATTER ASSERTION"
).split()
"""Layers without arithmetic of their own: TensorRT refuses a precision for those that handle shapes."""


@dataclass(frozen=True)
class Arithmetic:
    """How a variant computes, for a TensorRT that the ONNX alone does not tell.

    Attributes:
        precision: The variant.
        cache: Calibration cache of implicit INT8; None where Q/DQ nodes, or no INT8, are in the ONNX.
        kept: Nodes that compute in FP32 whatever the flags allow; those that an accuracy gate took back among
            them, which INT8 with FP16 would give FP16: one type is what every TensorRT takes for sure.
    """

    precision: Precision
    cache: bytes | None = None
    kept: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Builder flags that allow the variant's types in a weakly typed network."""
        return {
            "fp32": (),
            "fp16": ("FP16",),
            "int8": ("INT8",),
            "int8_fp16": ("INT8", "FP16"),
        }[self.precision]


def typed_by_onnx(trt: TensorRT, arithmetic: Arithmetic) -> bool:
    """Whether the network takes its precision from the ONNX alone."""
    return strongly_typed(trt) and arithmetic.cache is None


def create_network(trt: TensorRT, builder: tensorrt.Builder, *, typed: bool) -> tensorrt.INetworkDefinition:
    """An empty network, strongly typed or with explicit batch, whichever the generation has."""
    name = "STRONGLY_TYPED" if typed else "EXPLICIT_BATCH"
    flag = member(trt.NetworkDefinitionCreationFlag, name)
    # Flags are positions, and differ: STRONGLY_TYPED is 1 in TensorRT 10 and 0 in RTX.
    return builder.create_network(0 if flag is None else 1 << int(flag))


def parse(trt: TensorRT, parser: tensorrt.OnnxParser, content: bytes, *, model: Path, flavour: str) -> None:
    """Fill the parser's network.

    Args:
        trt: The module.
        parser: Of the network to fill.
        content: ONNX.
        model: File that the content comes from, for messages.
        flavour: Of the module.
    Raises:
        EngineError: the content is damaged or holds what TensorRT refuses; the node is named.
    """
    parsed: Any = parser.parse(content)  # the stubs mix up bool with TensorRT's own trt.bool
    if parsed:
        return
    find: Any = parser.get_error  # the stubs leave its type open
    errors: list[tensorrt.ParserError] = [find(index) for index in range(parser.num_errors)]
    reasons = [_reason(trt, error, content) for error in errors]
    raise EngineError(
        f"{product(flavour, trt)} cannot use {model.name}: {told(reasons)}. {_parser_advice(reasons)}"
    )


def configure(
    trt: TensorRT,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    *,
    target: Target,
    arithmetic: Arithmetic,
    gpu: Gpu | None,
) -> tensorrt.IBuilderConfig:
    """Everything that shapes the engine beside the network.

    Args:
        trt: The module.
        builder: Of the network.
        network: Parsed.
        target: What to build for.
        arithmetic: The variant.
        gpu: Where it is built; None ahead of time.
    Raises:
        EngineError: a capability, batch or precision of the target is not one that the compiler knows.
    """
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes(target, gpu))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if ahead_of_time(trt):
        _set_capabilities(trt, config, target)
    profile = _profile(builder, network, target)
    if profile is not None:
        config.add_optimization_profile(profile)
    if not typed_by_onnx(trt, arithmetic):
        _allow(trt, config, network, arithmetic)
        if arithmetic.cache is not None:
            _calibrate(trt, config, arithmetic.cache, profile)
    return config


def workspace_bytes(target: Target, gpu: Gpu | None) -> int:
    """Memory that a layer may use while it runs: what is free, at most what the target allows."""
    allowed = target.workspace_mb * _MEGABYTE
    return allowed if gpu is None else min(allowed, int(gpu.free_bytes * _SHARE_OF_FREE))


def told(reasons: list[str]) -> str:
    """The first reasons as one clause, each once."""
    return "; ".join(list(dict.fromkeys(reason.strip() for reason in reasons))[:3]) or "no reason given"


def _reason(trt: TensorRT, error: tensorrt.ParserError, content: bytes) -> str:
    """The parser's message with the node that it is about."""
    description = error.desc().strip().rstrip(".")
    name, operator = _node(error, content)
    if not operator:
        return description
    node = f"node {name} ({operator})"
    if error.code() == trt.ErrorCode.UNSUPPORTED_NODE:
        # An unknown operator fails a bare "assert false"; a known one says what TensorRT lacks.
        return f"{node} is not supported" + ("" if description == "false" else f": {description}")
    return f"{node}: {description}"


def _node(error: tensorrt.ParserError, content: bytes) -> tuple[str, str]:
    """Name and operator of the node; TensorRT before 10 tells its position in the graph alone."""
    if member(error, "node_operator") is not None:
        return error.node_name(), error.node_operator()
    index = error.node()
    if index < 0:  # about the file, which may not even be ONNX
        return "", ""
    nodes = onnx_package().load_model_from_string(content).graph.node
    return (nodes[index].name, nodes[index].op_type) if index < len(nodes) else ("", "")


def _parser_advice(reasons: list[str]) -> str:
    if any("zero" in reason.lower() and "point" in reason.lower() for reason in reasons):
        return "It takes symmetric INT8 alone, all zero points 0: quantize again with hfd-edge quantize."
    if any("(GridSample)" in reason for reason in reasons):
        return "Export again without --warp grid_sample: the default form of the warp has other operators."
    if any(reason.startswith("node ") for reason in reasons):
        return "Try another precision; if the node belongs to a warp, export with --warp grid_sample."
    return "The file is damaged: export or quantize again."


def _set_capabilities(trt: TensorRT, config: tensorrt.IBuilderConfig, target: Target) -> None:
    known = member(trt, "ComputeCapability")
    rtx: Any = config  # the stubs describe TensorRT, which lacks these two
    rtx.num_compute_capabilities = len(target.compute_capabilities)
    for index, capability in enumerate(target.compute_capabilities):
        value = member(known, f"SM{capability}")
        if value is None:
            raise EngineError(
                f"{product('tensorrt_rtx', trt)} cannot build for sm_{capability}, which target "
                f"{target.name} asks for. It knows: {', '.join(_capabilities(known))}. Correct the target."
            )
        rtx.set_compute_capability(value, index)


def _capabilities(known: Any) -> list[str]:
    names = [name for name in dir(known) if name.startswith("SM") and name[2:].isdigit()]
    return [f"sm_{name[2:]}" for name in sorted(names, key=lambda name: int(name[2:]))]


def _profile(
    builder: tensorrt.Builder, network: tensorrt.INetworkDefinition, target: Target
) -> tensorrt.IOptimizationProfile | None:
    """Shapes of the inputs for the target's batches; None if the model fixes its batch itself."""
    sizes = [target.batch.min, target.batch.opt, target.batch.max]
    profile = builder.create_optimization_profile()
    varies = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tensor.shape
        batch, rest = shape[0], [shape[axis] for axis in range(1, len(shape))]
        if batch == -1:
            varies = True
            if target.flavour == "tensorrt_rtx" and _TURING in target.compute_capabilities:
                # One size alone makes TensorRT-RTX 1.7.1 unroll by it for this generation: preset s took
                # 177 MB of weights for one tile a call, 15 MB for one or two.
                sizes[2] = max(sizes[2], sizes[0] + 1)
            set_shape: Any = profile.set_shape  # takes tuples for Dims, which the stubs do not say
            set_shape(tensor.name, *((size, *rest) for size in sizes))
        elif set(sizes) != {batch}:
            raise EngineError(
                f"The model takes batches of {batch} alone, but target {target.name} asks for "
                f"{sizes[0]} to {sizes[2]}. Set min, opt and max of its [batch] to {batch}, or export again."
            )
    return profile if varies else None


def _allow(
    trt: TensorRT,
    config: tensorrt.IBuilderConfig,
    network: tensorrt.INetworkDefinition,
    arithmetic: Arithmetic,
) -> None:
    """Flags of a weakly typed network, and FP32 for the nodes that must keep it."""
    for name in arithmetic.flags:
        flag = member(trt.BuilderFlag, name)
        if flag is None:
            raise EngineError(
                f"TensorRT {member(trt, '__version__')} has no {name} flag: calibration caches and weakly "
                'typed networks ended with TensorRT 10. Set int8 = "qdq" in the target.'
            )
        config.set_flag(flag)
    if not arithmetic.flags:
        return
    kinds = member(trt, "LayerType")
    moves = [member(kinds, name) for name in _MOVES_DATA]
    # Obey, not prefer: TensorRT would drop a preference without an error, and the flow head with it.
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in arithmetic.kept and layer.type not in moves:
            layer.precision = trt.DataType.FLOAT


def _calibrate(
    trt: TensorRT,
    config: tensorrt.IBuilderConfig,
    content: bytes,
    profile: tensorrt.IOptimizationProfile | None,
) -> None:
    base = member(trt, "IInt8EntropyCalibrator2")
    config.int8_calibrator = _calibrator(base)(content)
    if profile is not None:
        config.set_calibration_profile(profile)


@cache
def _calibrator(base: Any) -> Any:
    class Calibrator(base):
        """Hands over a calibration cache; it has no data, so a cache that is refused fails the build."""

        def __init__(self, content: bytes) -> None:
            super().__init__()
            self._content = content

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return self._content

        def write_calibration_cache(self, cache: object) -> None:
            """Nothing to keep: the bundle's calibration record is the one source of ranges."""

    return Calibrator
