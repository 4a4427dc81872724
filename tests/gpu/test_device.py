"""The device layer: life times, streams, kernels, other packages' memory, errors."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hfd_edge.errors import BackendError, MissingExtraError
from hfd_edge.gpu import find_gpu
from hfd_edge.runtime import device as room
from hfd_edge.runtime.device import Device, Module, Stream, external

pytestmark = pytest.mark.gpu

SOURCE = """
struct AddArgs { const float* a; float* out; float b; int n; };
extern "C" __global__ void add(const AddArgs args) {
  extern __shared__ float held[];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < args.n) held[threadIdx.x] = args.a[i];
  __syncthreads();
  if (i < args.n) args.out[i] = held[threadIdx.x] + args.b;
}
"""
ADD = np.dtype([("a", np.uint64), ("out", np.uint64), ("b", np.float32), ("n", np.int32)], align=True)
ILLEGAL_ADDRESS, NO_DEVICE, OUT_OF_MEMORY = 700, 100, 2


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    if find_gpu() is None:
        pytest.skip("no NVIDIA driver or GPU")


@pytest.fixture
def device() -> Iterator[Device]:
    with Device.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    gpu = find_gpu()
    assert gpu is not None
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "add.cu").write_text(SOURCE)
    command = ["nvcc", "-std=c++14", f"-arch=sm_{gpu.compute_capability}", "-cubin"]
    subprocess.run([*command, "-o", folder / "add.cubin", folder / "add.cu"], check=True)
    return (folder / "add.cubin").read_bytes()


def current_context() -> int | None:
    """What the driver has current in this thread."""
    found = ctypes.c_void_p()
    ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(found))
    return found.value


def numbers(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=count).astype(np.float32)


def launch(module: Module, stream: Stream, addresses: tuple[int, int], count: int, **options: Any) -> None:
    args = np.array((*addresses, 2.5, count), ADD)[()]
    chosen: dict[str, Any] = {"grid": (-(-count // 128),), "block": (128,), "shared_bytes": 512, **options}
    module.function("add")(stream, args=args, **chosen)


def test_limits(device: Device) -> None:
    limits = device.limits
    assert limits.name
    assert 50 <= limits.compute_capability < 200
    assert limits.shared_bytes_optin >= limits.shared_bytes >= 48 << 10
    assert limits.max_threads >= 1024
    assert min(limits.max_grid) >= 65535
    assert 0 < device.free_bytes() <= limits.total_bytes


def test_there_and_back(device: Device) -> None:
    sent, back, stream = numbers(1000), np.zeros(1000, np.float32), device.stream()
    first, second = device.buffer(4000), device.buffer(4000)
    stream.copy_in(first.address, sent)
    stream.copy(second.address, first.address, 4000)
    stream.fill(second.address + 3996, 0, 4)
    stream.copy_out(back, second.address)
    stream.synchronize()
    assert np.array_equal(back[:-1], sent[:-1])
    assert back[-1] == 0


def test_rows_of_another_pitch(device: Device) -> None:
    stream, sent, back = device.stream(), numbers(60).reshape(6, 10), np.zeros((4, 5), np.float32)
    wide, narrow = device.buffer(240), device.buffer(80)
    stream.copy_in(wide.address, sent)
    stream.copy2d(narrow.address, 20, wide.address + 40 + 8, 40, 20, 4)
    stream.copy_out(back, narrow.address)
    stream.synchronize()
    assert np.array_equal(back, sent[1:5, 2:7])
    with pytest.raises(BackendError, match="rows of 41 bytes overlap at pitches 40 and 80"):
        stream.copy2d(narrow.address, 80, wide.address, 40, 41, 2)


def test_arrays_that_cannot_be_copied(device: Device) -> None:
    buffer, stream, array = device.buffer(400), device.stream(), np.zeros((10, 10), np.float32)
    with pytest.raises(BackendError, match=r"copy_in needs a C-contiguous array.*ascontiguousarray"):
        stream.copy_in(buffer.address, array[:, ::2])
    array.flags.writeable = False
    with pytest.raises(BackendError, match="copy_out needs a writable C-contiguous array"):
        stream.copy_out(array, buffer.address)


def test_pinned_memory(device: Device) -> None:
    pinned, buffer, stream = device.pinned((3, 5), np.uint16), device.buffer(30), device.stream()
    pinned.array[:] = np.arange(15).reshape(3, 5)
    stream.copy_in(buffer.address, pinned.array)
    stream.fill(buffer.address, 255, 2)
    stream.copy_out(pinned.array, buffer.address)
    stream.synchronize()
    assert pinned.array.ravel()[:3].tolist() == [65535, 1, 2]
    assert pinned.address == pinned.array.ctypes.data
    assert (pinned.device_address is None) == (device.memory_mode == "copy")
    pinned.free()
    pinned.free()
    with pytest.raises(BackendError, match="This pinned was freed before it was used"):
        _ = pinned.array


def test_life_times(device: Device) -> None:
    buffer = device.buffer(256)
    assert not buffer.closed
    buffer.free()
    buffer.free()
    assert buffer.closed
    with pytest.raises(BackendError, match="This buffer was freed before it was used. Keep it until"):
        _ = buffer.address
    with pytest.raises(BackendError, match="nbytes is 0, expected 1 byte or more"):
        device.buffer(0)
    with pytest.raises(BackendError, match="the size is 0, expected 1 byte or more"):
        device.pinned((0, 7), np.uint8)


def test_a_closed_device(image: bytes) -> None:
    device = Device.open()
    stream, buffer, module = device.stream(), device.buffer(64), device.module(image)
    function = module.function("add")
    device.close()
    device.close()
    assert stream.closed and buffer.closed and module.closed
    with pytest.raises(BackendError, match="GPU 0 was closed before creating a stream. Open it again"):
        device.stream()
    with Device.open() as other, pytest.raises(BackendError, match="This module was freed"):
        function(other.stream(), grid=(1,), block=(32,), args=np.zeros((), ADD)[()])


def test_the_thread_keeps_its_context(device: Device) -> None:
    """Ours is current inside alone, however deep; closing leaves nothing on the driver's stack."""
    before = current_context()
    with device.current(), device.current():
        inside = current_context()
        device.buffer(16).free()
        assert current_context() == inside
    assert inside is not None
    assert current_context() == before
    other = Device.open()
    with other.current():
        assert current_context() == inside, "the primary context is one"
    other.close()
    assert current_context() == before
    other = Device.open()
    with device.current():  # as when the collector finds a device in the middle of a call
        other.close()
        assert current_context() == inside
    assert current_context() == before
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()
    assert current_context() == before


def test_what_is_dropped_is_freed(softcuda: ModuleType) -> None:
    """Also in a thread where the context was never current, and without close."""
    before = softcuda.live()
    device = Device.open()
    held: list[Any] = [device.buffer(100), device.stream(), device.event(), device.pinned(10, np.uint8)]
    assert softcuda.live().allocations == before.allocations + 2
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert softcuda.live() == before
    kept = device.pinned(16, np.uint8).array
    gc.collect()
    kept[:] = 7  # the array outlives its owner
    assert softcuda.live().pinned_bytes == before.pinned_bytes + 16
    del kept, device
    gc.collect()
    assert softcuda.live() == before
    assert softcuda.calls("cuDevicePrimaryCtxRetain") == softcuda.calls("cuDevicePrimaryCtxRelease")


def test_kernels_that_are_held_do_not_keep_their_module(softcuda: ModuleType, image: bytes) -> None:
    """Who launches them often outlives the module, and torch the context that it was loaded in."""
    with Device.open() as other, Device.open() as device:
        before = softcuda.live().modules
        module = device.module(image)
        held = module.function("add"), module.function("add")
        assert softcuda.live().modules == before + 1
        module.close()
        assert softcuda.live().modules == before
        assert not other.stream().closed
        with pytest.raises(BackendError, match="This module was freed before it was used"):
            _ = held[0].attributes


def test_events_order_streams(device: Device) -> None:
    first, second, buffer = device.stream(), device.stream(), device.buffer(4 << 20)
    start, end, back = device.event(timing=True), device.event(timing=True), np.zeros(4 << 20, np.uint8)
    first.record(start)
    first.fill(buffer.address, 3, buffer.nbytes)
    first.record(end)
    second.wait(end)
    second.copy_out(back, buffer.address)
    second.synchronize()
    assert end.done()
    assert (back == 3).all()
    cuda = pytest.importorskip("cuda.bindings.driver", reason="pip install 'hfd-edge[cuda]'")
    with device.current():  # CU_STREAM_NON_BLOCKING: torch's default stream does not hold it up
        assert cuda.cuStreamGetFlags(cuda.CUstream(first.handle)) == (cuda.CUresult.CUDA_SUCCESS, 1)
    end.synchronize()
    assert end.ms_since(start) >= 0
    assert device.event().done(), "never recorded"
    with pytest.raises(BackendError, match=r"needs events that keep the time. .*event\(timing=True\)"):
        end.ms_since(device.event())


def test_a_kernel(device: Device, image: bytes) -> None:
    sent, back, stream, module = (
        numbers(1000),
        np.zeros(1000, np.float32),
        device.stream(),
        device.module(image),
    )
    source, result = device.buffer(4000), device.buffer(4000)
    stream.copy_in(source.address, sent)
    grid = (np.int64(8), 1, 1)
    launch(module, stream, (source.address, result.address), 1000, grid=grid)
    stream.copy_out(back, result.address)
    stream.synchronize()
    assert np.array_equal(back, sent + np.float32(2.5))
    attributes = module.function("add").attributes
    assert attributes["max_threads_per_block"] >= 128
    assert set(attributes) == {"num_regs", "shared_size_bytes", "local_size_bytes", "max_threads_per_block"}
    if device.limits.shared_bytes_optin > device.limits.shared_bytes:
        launch(module, stream, (source.address, result.address), 1000, shared_bytes=50 << 10)
        stream.synchronize()


def test_launches_that_do_not_fit(device: Device, image: bytes) -> None:
    stream, module, nothing = device.stream(), device.module(image), (256, 256)
    for options, message in (
        ({"grid": (0,)}, r"add cannot be launched with grid \(0,\) and block \(128,\)"),
        ({"grid": (1, 1, 65536)}, r"grid \(1, 1, 65536\)"),
        ({"block": (2048,)}, "takes 1 to 1024 threads"),
        ({"shared_bytes": 1 << 20}, "needs 1048576 bytes of shared memory a block, but "),
    ):
        with pytest.raises(BackendError, match=message):
            launch(module, stream, nothing, 1000, **options)
    with pytest.raises(BackendError, match=r"Finding kernel nobody failed: cuModuleGetFunction failed"):
        module.function("nobody")
    with pytest.raises(BackendError, match=r"Loading kernels for sm_\d+ failed: cuModuleLoadDataEx failed"):
        device.module(b"no kernels")


def test_no_room(device: Device) -> None:
    asked = 2 * device.limits.total_bytes
    with pytest.raises(
        BackendError, match=rf"has no room for {asked:,} bytes: [\d,]+ of [\d,]+ are free .*cuMem"
    ):
        device.buffer(asked)
    device.buffer(1 << 20).free()


def test_errors_name_the_call(device: Device, softcuda: ModuleType) -> None:
    softcuda.inject("cuStreamCreate", OUT_OF_MEMORY)
    with pytest.raises(
        BackendError, match="Creating a stream failed: cuStreamCreate failed: .*Close other prog"
    ):
        device.stream()
    softcuda.inject("cuMemAlloc", 3)
    with pytest.raises(
        BackendError, match="Allocating 64 bytes on the GPU failed: cuMemAlloc failed: .*nvidia-smi"
    ):
        device.buffer(64)
    softcuda.inject("cuInit", NO_DEVICE)
    with pytest.raises(BackendError, match="Opening GPU 0 failed: cuInit failed: .*hfd-edge doctor"):
        Device.open()
    with pytest.raises(BackendError, match="Opening GPU 7 failed: cuDeviceGet failed"):
        Device.open(7)


def test_a_lost_context(softcuda: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Cleaning up after the fault neither raises nor hides it; a new start works."""
    device = Device.open()
    stream, buffer = device.stream(), device.buffer(64)
    softcuda.inject("cuStreamSynchronize", ILLEGAL_ADDRESS, sticky=True)
    with pytest.raises(BackendError, match="fault may be of earlier work.* context is lost to everything"):
        stream.synchronize()
    with caplog.at_level(logging.WARNING, logger="hfd_edge.runtime"):
        device.close()
    assert buffer.closed
    assert "freeing GPU memory failed" in caplog.text
    softcuda.reset()
    with Device.open() as again:
        again.buffer(64).free()


def test_missing_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        room, "require", lambda *_, **__: (_ for _ in ()).throw(MissingExtraError("no pycuda"))
    )
    with pytest.raises(MissingExtraError, match="no pycuda"):
        Device.open()


class TestMemoryMode:
    def test_a_gpu_with_memory_of_its_own(self, device: Device) -> None:
        if device.limits.integrated:
            pytest.skip("this GPU shares the CPU's memory")
        assert (device.memory_mode, device.memory_reason) == ("copy", "the GPU has memory of its own")

    def test_mapped_memory_is_the_same_memory(self) -> None:
        with Device.open(memory="mapped") as device:
            assert device.memory_reason == "asked for"
            pinned, buffer, stream = device.pinned(64, np.uint8), device.buffer(64), device.stream()
            pinned.array[:] = 5
            assert pinned.device_address is not None
            stream.copy(buffer.address, pinned.device_address, 64)
            stream.fill(pinned.device_address, 9, 32)
            back = np.zeros(64, np.uint8)
            stream.copy_out(back, buffer.address)
            stream.synchronize()
            assert (back == 5).all()
            assert pinned.array.tolist() == [9] * 32 + [5] * 32

    def test_the_probe_on_an_integrated_gpu(
        self, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        softcuda.become("orin")
        before = softcuda.live()
        for slower, mode in ((0.5, "copy"), (2.0, "mapped")):
            times = iter([1.0, slower] * 3)
            monkeypatch.setattr(room.Event, "ms_since", lambda *_, times=times: 1 / next(times))
            with Device.open() as device:
                assert device.memory_mode == mode
                assert "in place and 1.00 ms with a copy" in device.memory_reason
        assert softcuda.live() == before

    def test_mapped_memory_that_lies(self, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        softcuda.become("orin")
        monkeypatch.setattr(np, "array_equal", lambda *_: False)
        with Device.open() as device:
            assert (device.memory_mode, device.memory_reason) == ("copy", "mapped memory came back changed")

    def test_what_needs_no_probe(self, softcuda: ModuleType) -> None:
        softcuda.become("orin")
        softcuda.configure(capability=62)
        with Device.open() as device:
            assert device.memory_reason == "the CPU does not cache mapped memory on sm_62"
        softcuda.configure(maps_host=0)
        with Device.open() as device:
            assert device.memory_reason == "the GPU cannot map host memory"
        live = softcuda.live()
        with pytest.raises(
            BackendError, match="memory='mapped' was asked for, but .* cannot map host memory"
        ):
            Device.open(memory="mapped")
        with pytest.raises(BackendError, match="memory is 'zero', expected one of auto, copy, mapped"):
            Device.open(memory="zero")
        assert softcuda.live() == live
        assert softcuda.calls("cuDevicePrimaryCtxRetain") == softcuda.calls("cuDevicePrimaryCtxRelease")


def interface(address: int, **changes: Any) -> Any:
    """An object with the CUDA array interface."""
    found = {"shape": (2, 3), "typestr": "<f4", "data": (address, False), "version": 3, **changes}
    return SimpleNamespace(__cuda_array_interface__=found)


class TestExternal:
    def test_shapes_and_strides(self, device: Device) -> None:
        buffer = device.buffer(256)
        array = interface(buffer.address)
        found = external(array)
        assert (found.address, found.shape, found.strides) == (buffer.address, (2, 3), (12, 4))
        assert (found.dtype, found.stream, found.owner) == (np.dtype(np.float32), 1, array)
        found = external(interface(buffer.address, strides=(64, 4), stream=2), writable=True)
        assert (found.strides, found.stream) == ((64, 4), 2)
        assert external(interface(0, shape=(0, 3))).address == 0

    def test_what_is_refused(self, device: Device) -> None:
        buffer = device.buffer(256)
        address = buffer.address
        for array, message in (
            (np.zeros(3), "A ndarray is not a device array: it has no __cuda_array_interface__"),
            (interface(address, version=1), "is of version 1, expected 2 or 3"),
            (interface(address, mask=interface(address)), "has a mask, which is not supported"),
            (interface(address, data=(address, True)), "is read-only, but it would be written to"),
            (interface(address, stream=0), "names stream 0, which version 3 forbids"),
            (interface(0), r"of shape \(2, 3\) has no address: it was freed, or never filled"),
        ):
            with pytest.raises(BackendError, match=message):
                external(array, writable=True)
        with pytest.raises(BackendError, match="is on GPU 0, but this runs on GPU 1. Move it there first"):
            external(interface(address), ordinal=1)
        buffer.free()
        with pytest.raises(
            BackendError, match=r"is not known to the driver \(cuPointerGetAttribute: CUDA_ERROR_"
        ):
            external(interface(address))

    def test_its_stream_comes_first(self, device: Device) -> None:
        theirs, ours, buffer = device.stream(), device.stream(), device.buffer(1 << 20)
        back = np.zeros(1 << 20, np.uint8)
        theirs.fill(buffer.address, 8, buffer.nbytes)
        array = interface(buffer.address, shape=(1 << 20,), typestr="|u1", stream=theirs.handle)
        ours.follow(external(array).stream)
        ours.copy_out(back, buffer.address)
        ours.synchronize()
        assert (back == 8).all()

    @pytest.mark.parametrize("named", [{"version": 2}, {"stream": None}, {"stream": 1}])
    def test_the_default_stream_comes_first(self, device: Device, named: dict[str, Any]) -> None:
        """PyTorch (version 2) and PyCUDA name no stream; theirs is one that ours are not ordered with."""
        ours, buffer, back = device.stream(), device.buffer(1 << 20), np.zeros(1 << 20, np.uint8)
        with device.current():
            device.driver.memset_d8_async(buffer.address, 8, buffer.nbytes, None)
        ours.follow(external(interface(buffer.address, **named)).stream)
        ours.copy_out(back, buffer.address)
        ours.synchronize()
        assert (back == 8).all()

    def test_its_stream_is_gone(self, device: Device, softcuda: ModuleType) -> None:
        buffer = device.buffer(64)
        array = external(interface(buffer.address, stream=1))
        softcuda.inject("cuEventRecord", 400)
        with pytest.raises(
            BackendError, match="Waiting for stream 0x1 .* failed: cuEventRecord: CUDA_ERROR_INVALID"
        ):
            device.stream().follow(array.stream)


def test_two_threads(image: bytes) -> None:
    """A device each, at the same time, and nothing in common but the primary context."""
    results: dict[int, bool] = {}

    def work(seed: int) -> None:
        with Device.open() as device:
            module, stream = device.module(image), device.stream()
            source, result = device.buffer(4000), device.buffer(4000)
            for turn in range(20):
                sent, back = numbers(1000) * (seed + turn), np.zeros(1000, np.float32)
                stream.copy_in(source.address, sent)
                launch(module, stream, (source.address, result.address), 1000)
                stream.copy_out(back, result.address)
                stream.synchronize()
                results[seed] = results.get(seed, True) and np.array_equal(back, sent + np.float32(2.5))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {1: True, 2: True}


@pytest.mark.filterwarnings("ignore:CUDA initialization")  # of torch on the emulated driver
def test_beside_torch(device: Device) -> None:
    """In one process, in turns; on a GPU torch's own context must stay current."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hfd-edge[train]'")
    place = "cuda" if torch.cuda.is_available() else "cpu"
    values, stream, back = torch.arange(6.0, device=place), device.stream(), np.zeros(6, np.float32)
    for _ in range(3):
        buffer = device.buffer(24)
        stream.copy_in(buffer.address, (values * 2).cpu().numpy())
        stream.copy_out(back, buffer.address)
        stream.synchronize()
        assert back.tolist() == (values + values).tolist()
    if place == "cuda":
        found = external(values)
        stream.follow(found.stream)
        stream.copy_out(back, found.address)
        stream.synchronize()
        assert back.tolist() == values.tolist()
