"""What the emulated driver's own tests share: three kernels, and PyCUDA on the emulated driver."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from . import control

emulated = [
    pytest.mark.gpu,
    pytest.mark.skipif(not control.wanted(), reason=f"tests the emulated driver: {control.SWITCH}=1"),
]

SOURCE = r"""
struct ScaleArgs { float* values; int count; float factor; };
extern "C" __global__ void scale(const ScaleArgs a) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < a.count) a.values[i] *= a.factor;
}
struct GatherArgs { const float* from; float* to; int count; };
extern "C" __global__ void gather(const GatherArgs a) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < a.count) a.to[i] = a.from[i];
}
extern "C" __global__ void __launch_bounds__(64) small(const ScaleArgs a) {
  __shared__ float block[64];
  block[threadIdx.x] = a.factor;
  __syncthreads();
  if (blockIdx.x == 0) a.values[threadIdx.x] = block[63 - threadIdx.x];
}
"""
SCALE = np.dtype([("values", "u8"), ("count", "i4"), ("factor", "f4")], align=True)
GATHER = np.dtype([("source", "u8"), ("target", "u8"), ("count", "i4")], align=True)
N = 1000


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The kernels above, compiled by the nvcc that PATH names."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "driver.cu").write_text(SOURCE)
    command = ["nvcc", "-cubin", "-arch=sm_86", "-o", str(folder / "driver.cubin"), str(folder / "driver.cu")]
    subprocess.run(command, check=True)
    return (folder / "driver.cubin").read_bytes()


@pytest.fixture
def gpu(softcuda: Any, image: bytes) -> Iterator[SimpleNamespace]:
    """PyCUDA on the primary context, with the kernels; checks that nothing stays alive."""
    import pycuda.driver as cuda

    softcuda.reset()  # these tests choose the order of things themselves
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    before = softcuda.live()
    context.push()
    module = cuda.module_from_buffer(image)
    kernels = {name: module.get_function(name) for name in ("scale", "gather", "small")}
    yield SimpleNamespace(cuda=cuda, context=context, **kernels)
    softcuda.drain()
    kernels.clear()
    del module
    context.pop()
    context.detach()
    assert softcuda.live() == before


def scale(gpu: Any, stream: Any, values: Any, factor: float, *, count: int = N) -> None:
    """Multiply the values, float32 on the device; in the default stream for None."""
    args = np.zeros((), SCALE)
    args["values"], args["count"], args["factor"] = int(values), count, factor
    gpu.scale(args[()], block=(128, 1, 1), grid=(-(-count // 128), 1), stream=stream)


def gather(gpu: Any, stream: Any, source: Any, target: Any) -> None:
    """Copy N values by a kernel."""
    args = np.zeros((), GATHER)
    args["source"], args["target"], args["count"] = int(source), int(target), N
    gpu.gather(args[()], block=(128, 1, 1), grid=(-(-N // 128), 1), stream=stream)


def pinned(gpu: Any, values: Any) -> Any:
    """Page-locked copy, float32."""
    array = gpu.cuda.pagelocked_empty(len(values), np.float32)
    array[:] = values
    return array


def on_device(gpu: Any, values: Any) -> Any:
    """Copy on the device, float32."""
    values = np.asarray(values, np.float32)
    memory = gpu.cuda.mem_alloc(values.nbytes)
    gpu.cuda.memcpy_htod(memory, values)
    return memory


def fetch(gpu: Any, memory: Any, count: int = N) -> Any:
    """Values of the device, waited for."""
    back = np.empty(count, np.float32)
    gpu.cuda.memcpy_dtoh(back, memory)
    return back


HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_keep: list[Any] = []


def host_function(stream: Any, function: Callable[[], Any]) -> None:
    """cuLaunchHostFunc; what it calls lives as long as the process."""

    def call(_: Any) -> None:
        function()

    _keep.append(HOST_FUNCTION(call))
    assert control.load().cuLaunchHostFunc(ctypes.c_void_p(stream.handle), _keep[-1], None) == 0
