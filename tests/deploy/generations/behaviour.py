"""What the stand-ins do behind their names."""

from __future__ import annotations

import base64
import enum
import json
from dataclasses import dataclass
from typing import Any

import onnx

from .names import GENERATIONS

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
OPSETS = {"8.6.2": 17, "10.3.0": 20, "11.4.1": 24, "1.7.1.116": 24}
KINDS = {"Conv": "CONVOLUTION", "GridSample": "GRID_SAMPLE", "Resize": "RESIZE", "Constant": "CONSTANT"}
PHASES = (("Building Engine", 2), ("Tactics", 3))


def plan(version: str, onnx: bytes, *, profile: Any, capability: int) -> bytes:
    """An engine, as a stand-in's builder makes it and its runtime reads it.

    Args:
        version: Of TensorRT.
        onnx: The model that it runs.
        profile: Smallest, usual and largest shape of its input.
        capability: Of the GPU.
    """
    held = {"onnx": base64.b64encode(onnx).decode(), "profile": profile}
    return json.dumps({"version": version, "capability": capability, **held}).encode()


@dataclass(frozen=True)
class Kind:
    """What the classes of one stand-in share.

    Attributes:
        version: Of TensorRT.
        parts: Enums by name.
        made: Classes by name with this generation's names alone; they make each other from them.
        world: What the test arranges.
    """

    version: str
    parts: dict[str, Any]
    made: dict[str, Any]
    world: Any

    @property
    def generation(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def rtx(self) -> bool:
        return self.generation == 1

    def need_driver(self, logger: Any) -> None:
        """TensorRT starts on a GPU alone; RTX anywhere."""
        if not self.world.gpu and not self.rtx:
            say(logger, "ERROR", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")


def say(logger: Any, severity: str, message: str) -> None:
    logger.log(ILogger.Severity[severity], message)


class ILogger:
    Severity = enum.IntEnum("Severity", SEVERITIES, start=0)
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self._ready = True


class IHostMemory:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.nbytes = len(content)

    def __bytes__(self) -> bytes:
        return self._content


class IProgressMonitor:
    def __init__(self) -> None:
        self._ready = True


class IInt8EntropyCalibrator2:
    def __init__(self) -> None:
        self._ready = True


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return self._kind.made["IHostMemory"](self._content)


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.dtype = name, shape, self._kind.parts["DataType"].FLOAT


class ILayer:
    def __init__(self, node: Any) -> None:
        self.name = node.name
        self.type = self._kind.parts["LayerType"][KINDS.get(node.op_type, "ELEMENTWISE")]


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._flags, self._content, self._layers, self._inputs = flags, b"", [], []
        self.num_inputs = self.num_layers = 0

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class ParserError:
    def __init__(self, code: str, desc: str, node: int = -1, item: Any = None) -> None:
        self._code, self._desc, self._node, self._item = self._kind.parts["ErrorCode"][code], desc, node, item

    def code(self) -> Any:
        return self._code

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return "" if self._item is None else self._item.name

    def node_operator(self) -> str:
        return "" if self._item is None else self._item.op_type


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        if network is None:
            raise TypeError("__init__(): incompatible constructor arguments")
        self._network, self._errors = network, []
        self.num_errors = 0

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse(self, content: bytes, path: str | None = None) -> bool:
        self._errors = [self._kind.made["ParserError"](*fault) for fault in self._faults(content)]
        self.num_errors = len(self._errors)
        return not self._errors

    def _faults(self, content: bytes) -> list[tuple[Any, ...]]:
        try:
            model = onnx.load_model_from_string(content)
            onnx.checker.check_model(model)
        except Exception:
            return [("MODEL_DESERIALIZE_FAILED", "Failed to parse the ONNX model.")]
        opset = model.opset_import[0].version
        if opset > OPSETS[self._kind.version]:
            return [("UNSUPPORTED_GRAPH", f"opset {opset} is not supported")]
        if self._kind.generation == 8 and not self._network._flags & 1:
            return [("UNSUPPORTED_GRAPH", "This version only supports explicit batch")]
        nodes = list(model.graph.node)
        for index, node in enumerate(nodes):
            if node.op_type in self._kind.world.refused:
                return [("UNSUPPORTED_NODE", self._kind.world.refusal, index, node)]
        network, item = self._network, model.graph.input[0]
        network._content = content
        network._layers = [self._kind.made["ILayer"](node) for node in nodes]
        network.num_layers = len(nodes)
        axes = item.type.tensor_type.shape.dim
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes)
        network._inputs = [self._kind.made["ITensor"](item.name, shape)]
        network.num_inputs = 1
        return []


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes = (input, tuple(min), tuple(opt), tuple(max))


class IBuilderConfig:
    def __init__(self) -> None:
        self._seen: dict[str, Any] = {"flags": set(), "capabilities": {}, "profiles": []}
        self._cache: Any = None
        for name in ("progress_monitor", "int8_calibrator"):
            if name in GENERATIONS[self._kind.version]["IBuilderConfig"]:
                setattr(self, name, None)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._seen[pool.name] = pool_size

    def set_flag(self, flag: Any) -> None:
        self._seen["flags"].add(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self._seen["profiles"].append(profile._shapes)
        return 0

    def set_calibration_profile(self, profile: Any) -> bool:
        self._seen["calibration_profile"] = profile._shapes
        return True

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self._seen["capabilities"][index] = capability.name
        return True

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return self._kind.made["ITimingCache"](serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._content and not cache._content.startswith(b"timing "):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class Builder:
    def __init__(self, logger: Any) -> None:
        self._kind.need_driver(logger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        known = sum(1 << int(flag) for flag in self._kind.parts["NetworkDefinitionCreationFlag"])
        if flags & ~known:
            say(self._logger, "ERROR", "createNetworkV2: Parameter check failed")
            return None
        return self._kind.made["INetworkDefinition"](flags)

    def create_builder_config(self) -> Any:
        return self._kind.made["IBuilderConfig"]()

    def create_optimization_profile(self) -> Any:
        return self._kind.made["IOptimizationProfile"]()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        seen = self._kind.world.seen = {**config._seen, "layers": network._layers, "network": network._flags}
        seen["content"] = network._content
        if self._kind.world.fault:
            say(self._logger, "ERROR", self._kind.world.fault)
            return None
        fault = self._typing_fault(network, config)
        if fault:
            say(self._logger, "ERROR", fault)
            return None
        if not self._report(getattr(config, "progress_monitor", None)):
            return None
        unit = "" if self._kind.generation == 8 else " bytes"
        say(self._logger, "INFO", f"Total Activation Memory: 4096{unit}")
        say(self._logger, "INFO", f"Total Weights Memory: 1024{unit}")
        if config._cache is not None:
            config._cache._content = b"timing " + self._kind.version.encode()
        capability = 0 if self._kind.rtx else self._kind.world.capability
        profile = [shape for profile in config._seen["profiles"] for shape in profile[1:]]
        return self._kind.made["IHostMemory"](
            plan(self._kind.version, network._content, profile=profile, capability=capability)
        )

    def _typing_fault(self, network: Any, config: Any) -> str:
        """TensorRT's rules about precision; "" when they are kept."""
        flags = config._seen["flags"]
        operators = {node.op_type for node in onnx.load_model_from_string(network._content).graph.node}
        if not self._kind.rtx and self._kind.generation < 11 and not network._flags & 2:
            if "QuantizeLinear" in operators and "INT8" not in flags:
                return "Int8 (Q/DQ) network without the INT8 flag"
            if "INT8" in flags and "QuantizeLinear" not in operators:
                return self._calibration_fault(config.int8_calibrator)
            return ""
        if flags & {"FP16", "INT8"}:
            return "precision flags are not allowed in strongly typed networks"
        return ""

    def _calibration_fault(self, calibrator: Any) -> str:
        text = bytes(calibrator.read_calibration_cache()).decode()
        major, minor, patch = (int(part) for part in self._kind.version.split("."))
        number = major * (1000 if major < 10 else 10000) + minor * 100 + patch
        known = text.startswith(f"TRT-{number}-EntropyCalibration2\n")
        if not known and calibrator.get_batch(["sar"]) is None:
            return "Calibration failure occurred with no scaling factors detected."
        self._kind.world.seen["cache"] = text
        return ""

    def _report(self, monitor: Any) -> bool:
        if monitor is None:
            return True
        parent = None
        for name, steps in PHASES:
            monitor.phase_start(name, parent, steps)
            parent = name
        for name, steps in reversed(PHASES):
            for step in range(steps):
                if monitor.step_complete(name, step) is not True:
                    self._kind.world.seen["cancelled_at"] = name
                    return False
            monitor.phase_finish(name)
        return True


class EngineInspector:
    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        tensors: dict[str, Any] = {"Bindings": ["sar", "logits"]}
        if self._kind.generation >= 11 or self._kind.rtx:
            tensors = {"I/O Tensors": [{"Name": "sar", "IOMode": "Input"}, {"Name": "logits"}]}
        layers = [{"Name": "conv", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8"}}]
        layers.append({"Name": "copy", "LayerType": "Reformat", "Outputs": []})
        return json.dumps({"Layers": layers, **tensors})


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._kind.need_driver(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        try:
            found = json.loads(serialized_engine)
        except ValueError:
            found = {}
        self._kind.world.seen["deserialized"] = self._kind.world.seen.get("deserialized", 0) + 1
        if not self._kind.world.gpu or found.get("version") != self._kind.version:
            say(self._logger, "ERROR", "Serialization assertion stdVersionRead == current failed")
            return None
        return self._kind.made["ICudaEngine"](found, self._logger)

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return self._kind.parts["EngineValidity"][self._kind.world.validity], self._kind.world.diagnostics


CLASSES: tuple[Any, ...] = (
    *(ILogger, IHostMemory, IProgressMonitor, IInt8EntropyCalibrator2, ITimingCache, ITensor, ILayer),
    *(INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile, IBuilderConfig, Builder),
    *(EngineInspector, Runtime),
)
"""Each gets a `_kind` when it is made strict."""
