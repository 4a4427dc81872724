"""Memory, modules and launches of the emulated driver, with CUDA's limits."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import control
from .driver_tools import SCALE, N, emulated, fetch, on_device, scale

pytestmark = emulated


# ---- launches and modules ----------------------------------------------------------------------------
def small(gpu: Any, memory: Any, **options: Any) -> None:
    args = np.zeros((), SCALE)
    args["values"], args["factor"] = int(memory), 3
    gpu.small(args[()], **{"block": (64, 1, 1), "grid": (2, 1), **options})


def test_shared_memory_and_counters(gpu: Any) -> None:
    memory = on_device(gpu, np.zeros(64))
    small(gpu, memory)
    assert (fetch(gpu, memory, 64) == 3).all()
    seen = control.counters("small")
    assert (seen.launches, seen.blocks, seen.threads) == (1, 2, 128)
    assert (seen.loads, seen.stores, seen.store_bytes) == (0, 64, 256)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"block": (65, 1, 1)}, "too many resources"),  # __launch_bounds__(64)
        ({"block": (1025, 1, 1)}, "invalid argument"),
        ({"grid": (1, 65536)}, "invalid argument"),
        ({"grid": (0, 1)}, "invalid argument"),
        ({"shared": 48 * 1024 + 1}, "invalid argument"),  # more must be asked for
    ],
)
def test_a_launch_beyond_the_limits_is_refused(gpu: Any, options: dict[str, Any], error: str) -> None:
    with pytest.raises(gpu.cuda.Error, match=error):
        small(gpu, 0, **options)


def test_more_shared_memory_must_be_asked_for(gpu: Any) -> None:
    memory = on_device(gpu, np.zeros(64))
    most = gpu.cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
    with pytest.raises(gpu.cuda.LogicError, match="invalid argument"):
        gpu.small.set_attribute(most, 100 * 1024)  # sm_86 has 99 KiB
    gpu.small.set_attribute(most, 60 * 1024)
    small(gpu, memory, shared=60 * 1024)
    assert (fetch(gpu, memory, 64) == 3).all()
    assert gpu.small.max_threads_per_block == 64


def test_images_that_are_no_emulated_module_are_refused(gpu: Any, image: bytes) -> None:
    cubin = bytearray(image)
    cubin[18:20] = (190).to_bytes(2, "little")  # e_machine of a real cubin
    for content, error in ((b"garbage", "image is invalid"), (bytes(cubin), "no kernel image")):
        with pytest.raises(gpu.cuda.Error, match=error):
            gpu.cuda.module_from_buffer(content)
    with pytest.raises(gpu.cuda.LogicError, match="named symbol not found"):
        gpu.cuda.module_from_buffer(image).get_function("absent")


# ---- memory ------------------------------------------------------------------------------------------
def test_memory_runs_out_and_says_so(softcuda: Any, gpu: Any) -> None:
    softcuda.configure(total_bytes=1 << 20)
    free, total = gpu.cuda.mem_get_info()
    assert free <= total == 1 << 20
    with pytest.raises(gpu.cuda.MemoryError, match="out of memory"):
        gpu.cuda.mem_alloc((1 << 20) + 1)


def test_freed_memory_goes_back_after_a_while(gpu: Any) -> None:
    def use() -> int:
        for _ in range(25):
            memory = gpu.cuda.mem_alloc(1 << 20)
            gpu.cuda.memset_d8(memory, 0, 1 << 20)
            gpu.context.synchronize()
            memory.free()
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = use()
    use()
    assert use() < before * 1.05


def test_kernels_reach_mapped_host_memory(gpu: Any) -> None:
    flags, stream = gpu.cuda.host_alloc_flags.DEVICEMAP, gpu.cuda.Stream()
    array = gpu.cuda.pagelocked_empty(N, np.float32, mem_flags=flags)
    array[:] = 1
    scale(gpu, stream, array.base.get_device_pointer(), 4)
    assert (array == 1).all()
    stream.synchronize()
    assert (array == 4).all()


def test_kernels_reach_registered_host_memory(softcuda: Any, gpu: Any) -> None:
    """Through the driver itself: register_host_memory of PyCUDA 2026.1 crashes, whatever the driver."""
    array, stream, mapped = np.ones(N, np.float32), gpu.cuda.Stream(), ctypes.c_uint64()
    library, address = softcuda.load(), ctypes.c_void_p(array.ctypes.data)
    assert library.cuMemHostRegister_v2(address, ctypes.c_size_t(array.nbytes), 2) == 0
    assert library.cuMemHostRegister_v2(address, ctypes.c_size_t(8), 2) == 712
    assert library.cuMemHostGetDevicePointer_v2(ctypes.byref(mapped), address, 0) == 0
    scale(gpu, stream, mapped.value, 4)
    stream.synchronize()
    assert (array == 4).all()
    memory = gpu.cuda.mem_alloc(4 * N)
    gpu.cuda.memcpy_htod_async(memory, array, stream)
    with control.expect_faults("use-after-free") as found:
        assert library.cuMemHostUnregister(address) == 0
    assert "host memory is unregistered while an operation in a queue still uses it" in found[0]
    assert library.cuMemHostUnregister(address) == 713
    stream.synchronize()


def test_copies_of_two_and_three_dimensions(gpu: Any) -> None:
    volume = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    memory, stream = gpu.cuda.mem_alloc(volume.nbytes), gpu.cuda.Stream()
    flat = gpu.cuda.Memcpy2D()
    flat.set_src_host(volume.reshape(10, 7))
    flat.set_dst_device(memory)
    flat.width_in_bytes, flat.height = 28, 10
    flat.src_pitch = flat.dst_pitch = 28
    flat(aligned=True)
    part = gpu.cuda.pagelocked_empty((2, 3, 4), np.float32)
    block = gpu.cuda.Memcpy3D()
    block.set_src_device(memory)
    block.set_dst_host(part)
    block.src_pitch, block.src_height, block.src_x_in_bytes, block.src_y = 28, 5, 8, 1
    block.dst_pitch, block.dst_height = 16, 3
    block.width_in_bytes, block.height, block.depth = 16, 3, 2
    block(stream)
    assert (part.view(np.uint8) == 0xA5).all()
    stream.synchronize()
    np.testing.assert_array_equal(part, volume[:, 1:4, 2:6])


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_fills(gpu: Any, bits: int) -> None:
    back = np.empty((8, 12), f"u{bits // 8}")
    memory = gpu.cuda.mem_alloc(back.nbytes)
    getattr(gpu.cuda, f"memset_d{bits}")(memory, 3, 8 * 12)
    getattr(gpu.cuda, f"memset_d2d{bits}")(memory, back.strides[0], 7, 5, 8)
    gpu.cuda.memcpy_dtoh(back, memory)
    assert (back[:, :5] == 7).all()
    assert (back[:, 5:] == 3).all()


def test_what_a_pointer_is(softcuda: Any, gpu: Any) -> None:
    memory, array = gpu.cuda.mem_alloc(100), gpu.cuda.pagelocked_empty(8, np.uint8)
    library, kind = softcuda.load(), ctypes.c_uint()
    for address, expected in ((int(memory) + 5, 2), (array.ctypes.data, 1)):
        assert library.cuPointerGetAttribute(ctypes.byref(kind), 2, ctypes.c_uint64(address)) == 0
        assert kind.value == expected
    assert library.cuPointerGetAttribute(ctypes.byref(kind), 2, ctypes.c_uint64(0x1234)) == 1
