"""Contexts, errors, threads, host functions and graphs of the emulated driver."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

import numpy as np
import pytest

from .driver_tools import N, emulated, fetch, host_function, on_device, pinned, scale

pytestmark = emulated


def test_calls_need_a_current_context(gpu: Any) -> None:
    errors: list[str] = []

    def without() -> None:
        try:
            gpu.cuda.mem_alloc(8)
        except gpu.cuda.Error as error:
            errors.append(str(error))

    thread = threading.Thread(target=without)
    thread.start()
    thread.join()
    assert errors == ["cuMemAlloc failed: invalid device context"]


def test_a_context_takes_what_was_made_in_it_along(softcuda: Any, gpu: Any) -> None:
    library, context, memory = softcuda.load(), ctypes.c_void_p(), ctypes.c_uint64()
    before = softcuda.live()
    assert library.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    assert library.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(64)) == 0
    assert softcuda.live().device_bytes == before.device_bytes + 64
    assert library.cuCtxDestroy_v2(context) == 0
    assert softcuda.live() == before
    assert library.cuCtxPushCurrent_v2(context) == 201


def test_stale_handles_are_known(softcuda: Any, gpu: Any) -> None:
    stream = gpu.cuda.Stream()
    handle = ctypes.c_void_p(stream.handle)
    del stream
    gc.collect()
    assert softcuda.load().cuStreamSynchronize(handle) == 400


def test_injected_errors_come_at_their_turn(softcuda: Any, gpu: Any) -> None:
    softcuda.inject("cuMemAlloc", softcuda.OUT_OF_MEMORY, after=1, times=2)  # PyCUDA tries twice
    first = gpu.cuda.mem_alloc(8)
    assert softcuda.pending_injections() == 1
    with pytest.raises(gpu.cuda.MemoryError, match="out of memory"):
        gpu.cuda.mem_alloc(8)
    assert softcuda.pending_injections() == 0
    assert int(gpu.cuda.mem_alloc(8)) != int(first)


def test_a_kernel_that_fails_breaks_everything_after_it(softcuda: Any, gpu: Any) -> None:
    stream, memory, back = gpu.cuda.Stream(), on_device(gpu, np.ones(N)), pinned(gpu, np.ones(N))
    softcuda.inject("kernel scale", softcuda.LAUNCH_FAILED)
    scale(gpu, stream, memory, 2)
    gpu.cuda.memcpy_dtoh_async(back, memory, stream)
    with pytest.raises(gpu.cuda.LaunchError, match="unspecified launch failure"):
        stream.synchronize()
    assert (back.view(np.uint8) == 0xA5).all()
    with pytest.raises(gpu.cuda.LaunchError, match="unspecified launch failure"):
        gpu.cuda.mem_alloc(8)
    softcuda.reset()


def test_host_functions_run_in_their_turn_and_account_for_memory(softcuda: Any, gpu: Any) -> None:
    stream, source, target = gpu.cuda.Stream(), on_device(gpu, np.ones(N)), gpu.cuda.mem_alloc(4 * N)

    def double() -> None:
        assert softcuda.touch(int(source), 4 * N, write=False)
        assert softcuda.touch(int(target), 4 * N, write=True)
        values = softcuda.memory(int(source), 4 * N).view(np.float32)
        softcuda.memory(int(target), 4 * N).view(np.float32)[:] = 2 * values

    scale(gpu, stream, source, 3)
    host_function(stream, double)
    scale(gpu, stream, target, 5)
    stream.synchronize()
    assert (fetch(gpu, target) == 30).all()


def test_a_host_function_must_not_call_the_driver(softcuda: Any, gpu: Any) -> None:
    stream, answers = gpu.cuda.Stream(), []
    host_function(stream, lambda: answers.append(softcuda.load().cuCtxSynchronize()))
    with softcuda.expect_faults("callback"):
        stream.synchronize()
    assert answers == [800]


def test_threads_wait_for_each_other_without_deadlock(gpu: Any) -> None:
    """Host functions need Python's lock while other threads hold it in calls of their own."""
    sums: list[int] = []

    def work() -> None:
        gpu.context.push()
        try:
            stream, memory, hits = gpu.cuda.Stream(), on_device(gpu, np.ones(N)), []
            for _ in range(20):
                scale(gpu, stream, memory, 1)
                host_function(stream, lambda: hits.append(1))
                gpu.cuda.mem_alloc(64).free()
            stream.synchronize()
            sums.append(len(hits))
            memory.free()
            del stream
        finally:
            gpu.context.pop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums == [20] * 4


def test_a_call_that_is_not_implemented_says_so(softcuda: Any, gpu: Any) -> None:
    assert softcuda.load().cuMemAllocManaged(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(8), 1) == 801
    assert softcuda.calls("unsupported cuMemAllocManaged") == 1


def test_orin_is_integrated(softcuda: Any, gpu: Any) -> None:
    softcuda.become("orin")
    device = gpu.cuda.Device(0)
    assert device.compute_capability() == (8, 7)
    assert device.get_attribute(gpu.cuda.device_attribute.INTEGRATED) == 1
    with pytest.raises(ValueError, match='No emulated GPU "nano"; there are "desktop" and "orin"'):
        softcuda.become("nano")


# ---- graphs, through cuda-bindings -------------------------------------------------------------------
@pytest.fixture
def graphs(gpu: Any) -> Any:
    return pytest.importorskip("cuda.bindings.driver")


def checked(answer: tuple[Any, ...]) -> Any:
    assert answer[0] == 0, answer[0]
    return answer[1] if len(answer) > 1 else None


def begin_capture(graphs: Any, stream: Any, mode: str) -> None:
    modes = graphs.CUstreamCaptureMode
    checked(graphs.cuStreamBeginCapture(stream.handle, getattr(modes, f"CU_STREAM_CAPTURE_MODE_{mode}")))


def end_capture(graphs: Any, stream: Any) -> Any:
    """What was captured, ready to launch."""
    graph = checked(graphs.cuStreamEndCapture(stream.handle))
    executable = checked(graphs.cuGraphInstantiate(graph, 0))
    checked(graphs.cuGraphDestroy(graph))
    return executable


def test_a_graph_replays_what_was_captured(gpu: Any, graphs: Any) -> None:
    stream, other, event = gpu.cuda.Stream(), gpu.cuda.Stream(), gpu.cuda.Event()
    memory = on_device(gpu, np.ones(N))
    begin_capture(graphs, stream, "THREAD_LOCAL")
    scale(gpu, stream, memory, 2)
    event.record(stream)
    other.wait_for_event(event)  # joins the capture
    scale(gpu, other, memory, 3)
    event.record(other)
    stream.wait_for_event(event)
    executable = end_capture(graphs, stream)
    for _ in range(2):
        checked(graphs.cuGraphLaunch(executable, stream.handle))
    stream.synchronize()
    checked(graphs.cuGraphExecDestroy(executable))
    assert (fetch(gpu, memory) == 36).all()  # the capture itself ran nothing


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda gpu, stream: stream.synchronize(), "not permitted when stream is capturing"),
        (lambda gpu, stream: gpu.cuda.mem_alloc(8), "not permitted when stream is capturing"),
        (lambda gpu, stream: gpu.context.synchronize(), "not permitted when stream is capturing"),
        (lambda gpu, stream: gpu.cuda.Event().record(), "legacy stream depend on a capturing"),
    ],
)
def test_what_a_capture_does_not_allow_invalidates_it(gpu: Any, graphs: Any, wrong: Any, error: str) -> None:
    stream = gpu.cuda.Stream()
    begin_capture(graphs, stream, "GLOBAL")
    with pytest.raises(gpu.cuda.Error, match=error):
        wrong(gpu, stream)
    assert graphs.cuStreamEndCapture(stream.handle)[0] == 901


def test_every_stream_of_a_capture_must_come_back(gpu: Any, graphs: Any) -> None:
    stream, other, event = gpu.cuda.Stream(), gpu.cuda.Stream(), gpu.cuda.Event()
    memory = on_device(gpu, np.ones(N))
    begin_capture(graphs, stream, "GLOBAL")
    event.record(stream)
    other.wait_for_event(event)
    scale(gpu, other, memory, 3)
    assert graphs.cuStreamEndCapture(stream.handle)[0] == 904


def test_a_stale_address_in_a_graph_is_found(softcuda: Any, gpu: Any, graphs: Any) -> None:
    stream, memory = gpu.cuda.Stream(), on_device(gpu, np.ones(N))
    begin_capture(graphs, stream, "THREAD_LOCAL")
    scale(gpu, stream, memory, 2)
    executable = end_capture(graphs, stream)
    memory.free()
    with softcuda.expect_faults("use-after-free"):
        checked(graphs.cuGraphLaunch(executable, stream.handle))
        stream.synchronize()
    checked(graphs.cuGraphExecDestroy(executable))
