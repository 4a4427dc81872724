"""Inference of the stand-ins: ONNX Runtime between copies, queued on the stream that TensorRT would use.

All of it goes through the driver's public calls, so the driver sees what TensorRT would show it: a read of
the input, a write of the output, and work in memory of the context, which two streams must not use at once.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
from functools import cached_property
from typing import Any

import numpy as np

from hfd_edge.gpu import current_gpu

from .behaviour import say

_DEVICE = 2  # CU_MEMORYTYPE_DEVICE, cuda.h
_MEMORY_TYPE = 2  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_TYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(float16)": ("HALF", np.float16)}


class Plan:
    """What an engine holds: an ONNX model, and the shapes that it was built for."""

    def __init__(self, found: dict[str, Any]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        content = base64.b64decode(found["onnx"])
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.ports = {port.name: port for port in (*self.inputs, *self.outputs)}
        self.profile = [tuple(shape) for shape in found["profile"]]

    def shape(self, name: str) -> tuple[int, ...]:
        """As TensorRT tells it: -1 for what varies."""
        return tuple(side if isinstance(side, int) else -1 for side in self.ports[name].shape)

    def dtype(self, name: str) -> Any:
        return _TYPES[self.ports[name].type][1]

    @cached_property
    def most(self) -> dict[str, tuple[int, ...]]:
        """The largest shapes of input and output."""
        (source,), (result,) = self.inputs, self.outputs
        low, _, high = self.profile
        (found,) = self.session.run(None, {source.name: np.zeros(low, self.dtype(source.name))})
        return {source.name: high, result.name: (high[0], *found.shape[1:])}


class Driver:
    """The driver's calls."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise OSError(status, f"{name} returned {status}")

    def allocate(self, call: str, nbytes: int) -> int:
        address = ctypes.c_uint64()
        flags = (ctypes.c_uint(0),) if call == "cuMemHostAlloc" else ()
        self(call, ctypes.byref(address), ctypes.c_size_t(nbytes), *flags)
        return address.value

    def on_device(self, address: int) -> bool:
        kind = ctypes.c_uint()
        place = (ctypes.byref(kind), _MEMORY_TYPE, ctypes.c_uint64(address))
        return self._cuda.cuPointerGetAttribute(*place) == 0 and kind.value == _DEVICE

    def copy(self, call: str, to: int, source: int, nbytes: int, stream: int) -> None:
        self(call, *(ctypes.c_uint64(address) for address in (to, source)), ctypes.c_size_t(nbytes),
             ctypes.c_void_p(stream))  # fmt: skip


class ICudaEngine:
    def __init__(self, found: dict[str, Any], logger: Any) -> None:
        self._found, self._logger, self._opened = found, logger, None

    def _plan(self) -> Plan:
        if self._opened is None:
            self._opened = Plan(self._found)
        return self._opened

    @property
    def num_io_tensors(self) -> int:
        return len(self._plan().ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self._plan().ports)[index]

    def get_tensor_mode(self, name: str) -> Any:
        source = any(port.name == name for port in self._plan().inputs)
        return self._kind.parts["TensorIOMode"]["INPUT" if source else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._kind.parts["DataType"][_TYPES[self._plan().ports[name].type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._plan().shape(name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return self._plan().profile

    def create_engine_inspector(self) -> Any:
        return self._kind.made["EngineInspector"]()

    def create_runtime_config(self) -> Any:
        return self._kind.made["IRuntimeConfig"]()

    def create_execution_context(self, *runtime_config: Any) -> Any:
        if runtime_config and not self._kind.rtx:
            raise TypeError("create_execution_context(): incompatible function arguments.")
        if self._kind.world.full:
            say(self._logger, "ERROR", "createExecutionContext: OutOfMemory (requested 4096 bytes)")
            return None
        return self._kind.made["IExecutionContext"](self._plan(), self._logger, *runtime_config)


class IRuntimeCache:
    def __init__(self) -> None:
        self._content = b""

    def _known(self) -> bytes:
        return f"kernels of {self._kind.version}".encode()

    def deserialize(self, blob: bytes) -> bool:
        taken = blob == self._known() and self._kind.world.validity == "VALID"
        self._content = blob if taken else b""
        return taken

    def serialize(self) -> Any:
        return self._kind.made["IHostMemory"](self._content)


class IRuntimeConfig:
    def __init__(self) -> None:
        self._cache: Any = None

    def create_runtime_cache(self) -> Any:
        return self._kind.made["IRuntimeCache"]()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


class IExecutionContext:
    def __init__(self, plan: Plan, logger: Any, config: Any = None) -> None:
        self._plan, self._logger, self._config, self._driver = plan, logger, config, Driver()
        self._tensors: dict[str, int] = {}
        self._functions: dict[int, Any] = {}
        (self._source,), (self._result,) = (
            [port.name for port in ports] for ports in (plan.inputs, plan.outputs)
        )
        dynamic = -1 in plan.shape(self._source)
        self._shape: tuple[int, ...] | None = None if dynamic else plan.profile[2]
        sizes = {name: int(np.prod(shape)) * plan.dtype(name)().itemsize for name, shape in plan.most.items()}
        with current_gpu(0):  # TensorRT uses the CUDA runtime, which makes the primary context current itself
            self._device = {
                name: self._driver.allocate("cuMemAlloc_v2", size) for name, size in sizes.items()
            }
            self._host = {name: self._driver.allocate("cuMemHostAlloc", size) for name, size in sizes.items()}

    def __del__(self) -> None:
        with current_gpu(0), contextlib.suppress(OSError):  # destructors do not throw
            for address in self._device.values():
                self._driver("cuMemFree_v2", ctypes.c_uint64(address))
            for address in self._host.values():
                self._driver("cuMemFreeHost", ctypes.c_void_p(address))

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self._plan.profile
        within = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if name != self._source or not within:
            say(self._logger, "ERROR", f"setInputShape: {tuple(shape)} is not within [{low}, {high}]")
            return False
        self._shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._plan.ports:
            say(self._logger, "ERROR", f"setTensorAddress: no tensor {name}")
            return False
        self._tensors[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        fault = self._usage_fault(stream_handle)
        if fault:
            say(self._logger, "ERROR", f"enqueueV3: {fault}")
            return False
        self._kind.world.seen["executions"] = self._kind.world.seen.get("executions", 0) + 1
        try:
            self._queue(stream_handle)
        except OSError as error:
            say(self._logger, "ERROR", f"enqueueV3: Cuda Runtime ({error.strerror})")
            return False
        if self._config is not None and self._config._cache is not None:
            self._config._cache._content = self._config._cache._known()
        return True

    def _usage_fault(self, stream: int) -> str:
        if not stream:
            return "the default stream is in use"
        if self._shape is None:
            return f"the shape of {self._source} is not set"
        for name in self._plan.ports:
            address = self._tensors.get(name, 0)
            if not address or address % 256 or not self._driver.on_device(address):
                return f"the address of {name}, {address:#x}, is not one of device memory"
        return ""

    def _queue(self, stream: int) -> None:
        assert self._shape is not None
        tiles, copy = self._shape[0], self._driver.copy
        sizes = {
            name: tiles * int(np.prod(shape[1:])) * self._plan.dtype(name)().itemsize
            for name, shape in self._plan.most.items()
        }
        taken, given = self._source, self._result
        copy("cuMemcpyDtoDAsync_v2", self._device[taken], self._tensors[taken], sizes[taken], stream)
        copy("cuMemcpyDtoHAsync_v2", self._host[taken], self._device[taken], sizes[taken], stream)
        self._driver("cuLaunchHostFunc", ctypes.c_void_p(stream), self._function(tiles), None)
        copy("cuMemcpyHtoDAsync_v2", self._device[given], self._host[given], sizes[given], stream)
        copy("cuMemcpyDtoDAsync_v2", self._tensors[given], self._device[given], sizes[given], stream)

    def _function(self, tiles: int) -> Any:
        """Inference of so many tiles between the host buffers; kept, as a graph may call it later."""
        if tiles not in self._functions:
            views = {
                name: _view(address, (tiles, *self._plan.most[name][1:]), self._plan.dtype(name))
                for name, address in self._host.items()
            }

            def run(_: object, plan: Plan = self._plan) -> None:
                (result,) = plan.session.run(None, {self_source: views[self_source].copy()})
                views[self_result][:] = result

            self_source, self_result = self._source, self._result
            self._functions[tiles] = _CALLBACK(run)
        return self._functions[tiles]


def _view(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


EXECUTION: tuple[Any, ...] = (ICudaEngine, IRuntimeCache, IRuntimeConfig, IExecutionContext)
