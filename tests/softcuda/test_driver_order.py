"""Streams of the emulated driver defer as CUDA allows, and what breaks its rules is found."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
import pytest

from . import control
from .driver_tools import N, emulated, fetch, gather, host_function, on_device, pinned, scale

pytestmark = emulated


# ---- streams defer -----------------------------------------------------------------------------------
def test_nothing_is_read_back_before_it_is_waited_for(gpu: Any) -> None:
    stream, memory, source = gpu.cuda.Stream(), gpu.cuda.mem_alloc(4 * N), pinned(gpu, np.arange(N))
    gpu.cuda.memcpy_htod_async(memory, source, stream)
    scale(gpu, stream, memory, 2)
    back = pinned(gpu, np.arange(N) * 2)  # the right answer by luck
    gpu.cuda.memcpy_dtoh_async(back, memory, stream)
    assert (back.view(np.uint8) == 0xA5).all()
    stream.synchronize()
    np.testing.assert_array_equal(back, np.arange(N) * 2)


def test_staging_memory_may_be_the_source_and_the_target_of_queued_copies(gpu: Any) -> None:
    stream, memory, staging = gpu.cuda.Stream(), gpu.cuda.mem_alloc(4 * N), pinned(gpu, np.arange(N))
    gpu.cuda.memcpy_htod_async(memory, staging, stream)
    scale(gpu, stream, memory, 3)
    gpu.cuda.memcpy_dtoh_async(staging, memory, stream)
    stream.synchronize()
    np.testing.assert_array_equal(staging, np.arange(N) * 3)


def test_what_a_waiting_host_function_may_read_is_not_poisoned(gpu: Any) -> None:
    """A later copy to the same memory changes nothing before its turn."""
    stream, memory, staging = gpu.cuda.Stream(), on_device(gpu, np.arange(N)), pinned(gpu, np.zeros(N))
    copied, seen = gpu.cuda.Event(), []
    gpu.cuda.memcpy_dtoh_async(staging, memory, stream)
    copied.record(stream)
    host_function(stream, lambda: seen.append(staging.copy()))
    copied.synchronize()
    gpu.cuda.memcpy_dtoh_async(staging, memory, stream)
    stream.synchronize()
    np.testing.assert_array_equal(seen[0], np.arange(N))


def test_pinned_memory_is_copied_late_and_pageable_memory_at_once(gpu: Any) -> None:
    stream = gpu.cuda.Stream()
    for late, source in ((True, pinned(gpu, np.ones(N))), (False, np.ones(N, np.float32))):
        memory = gpu.cuda.mem_alloc(4 * N)
        gpu.cuda.memcpy_htod_async(memory, source, stream)
        source[:] = 7
        stream.synchronize()
        assert (fetch(gpu, memory) == (7 if late else 1)).all()


def test_a_copy_to_pageable_memory_is_complete_when_it_returns(gpu: Any) -> None:
    stream, memory, back = gpu.cuda.Stream(), on_device(gpu, np.ones(N)), np.empty(N, np.float32)
    scale(gpu, stream, memory, 5)
    gpu.cuda.memcpy_dtoh_async(back, memory, stream)
    assert (back == 5).all()


def test_events_order_streams_and_tell_when_they_are_done(gpu: Any) -> None:
    first, second, event = gpu.cuda.Stream(), gpu.cuda.Stream(), gpu.cuda.Event()
    memory, back = on_device(gpu, np.ones(N)), np.empty(N, np.float32)
    scale(gpu, first, memory, 2)
    event.record(first)
    second.wait_for_event(event)
    scale(gpu, second, memory, 3)
    gpu.cuda.memcpy_dtoh_async(back, memory, second)
    assert (back == 6).all()
    assert event.query()


def test_polling_an_event_makes_progress(gpu: Any) -> None:
    stream, event, memory = gpu.cuda.Stream(), gpu.cuda.Event(), on_device(gpu, np.ones(N))
    for _ in range(5):
        scale(gpu, stream, memory, 2)
    event.record(stream)
    polls = 0
    while not event.query():
        polls += 1
    assert 0 < polls < 20
    assert stream.is_done()


def test_event_times_need_completed_events_that_keep_time(gpu: Any) -> None:
    stream, memory = gpu.cuda.Stream(), on_device(gpu, np.ones(N))
    start, end = gpu.cuda.Event(), gpu.cuda.Event()
    untimed = gpu.cuda.Event(gpu.cuda.event_flags.DISABLE_TIMING)
    start.record(stream)
    scale(gpu, stream, memory, 2)
    end.record(stream)
    untimed.record(stream)
    with pytest.raises(gpu.cuda.Error, match="not ready"):
        start.time_till(end)
    stream.synchronize()
    assert start.time_till(end) > 0
    with pytest.raises(gpu.cuda.Error, match="invalid resource handle"):
        start.time_till(untimed)


def test_the_default_stream_waits_for_the_others_and_they_for_it(gpu: Any) -> None:
    stream, memory = gpu.cuda.Stream(), on_device(gpu, np.ones(N))
    scale(gpu, stream, memory, 2)
    scale(gpu, None, memory, 3)
    scale(gpu, stream, memory, 4)
    stream.synchronize()
    assert (fetch(gpu, memory) == 24).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("eager", [0.0, 0.5, 1.0])
def test_any_order_gives_what_the_program_says(gpu: Any, seed: int, eager: float) -> None:
    control.configure(seed=seed, eager=eager)
    streams = [gpu.cuda.Stream() for _ in range(3)]
    memories = [on_device(gpu, np.full(N, i + 1)) for i in range(3)]
    total, back = on_device(gpu, np.zeros(N)), pinned(gpu, np.zeros(N))
    for _ in range(4):
        for stream, memory in zip(streams, memories, strict=True):
            scale(gpu, stream, memory, 2)
    gpu.context.synchronize()
    gather(gpu, streams[0], memories[1], total)
    gpu.cuda.memcpy_dtoh_async(back, total, streams[0])
    streams[0].synchronize()
    assert (back == 32).all()


def test_unordered_streams_run_in_an_order_that_the_seed_chooses(gpu: Any) -> None:
    def order(seed: int) -> tuple[int, ...]:
        control.configure(seed=seed)
        streams, log = [gpu.cuda.Stream() for _ in range(4)], []
        for i, stream in enumerate(streams):
            host_function(stream, lambda i=i: log.append(i))
        gpu.context.synchronize()
        return tuple(log)

    orders = {seed: order(seed) for seed in range(1, 12)}
    assert len(set(orders.values())) > 3
    assert all(sorted(found) == [0, 1, 2, 3] for found in orders.values())


# ---- what is found -----------------------------------------------------------------------------------
def test_out_of_bounds_accesses_are_found(gpu: Any) -> None:
    memory = on_device(gpu, np.ones(N))
    with control.expect_faults("out-of-bounds") as found:
        scale(gpu, None, memory, 2, count=N + 1)
        control.drain()
    assert found[0].startswith("out-of-bounds: read of 4 bytes at 0x")
    assert re.search(rf"0 bytes after the end of device allocation #\d+ of {4 * N} bytes", found[0])
    assert "kernel scale" in found[0]
    assert "block (7,0,0), thread (104,0,0)" in found[0]


def test_reading_what_nobody_wrote_is_found(gpu: Any) -> None:
    memory = gpu.cuda.mem_alloc(4 * N)
    gpu.cuda.memset_d32(memory, 0, N - 1)
    with control.expect_faults("uninitialised") as found:
        scale(gpu, None, memory, 2)
        control.drain()
    assert f"byte {4 * (N - 1)} of device allocation" in found[0]


def test_copies_on_the_device_carry_uninitialised_bytes_along(gpu: Any) -> None:
    source, target = gpu.cuda.mem_alloc(4 * N), gpu.cuda.mem_alloc(4 * N)
    gpu.cuda.memset_d32(source, 0, N - 1)
    gpu.cuda.memcpy_dtod(target, source, 4 * N)
    fetch(gpu, target, N - 1)
    with control.expect_faults("uninitialised"):
        fetch(gpu, target)


def test_memory_that_is_freed_too_early_is_found(gpu: Any) -> None:
    stream, memory = gpu.cuda.Stream(), on_device(gpu, np.ones(N))
    with control.expect_faults("use-after-free") as found:
        scale(gpu, stream, memory, 2)
        memory.free()
        stream.synchronize()
    assert "byte 0 of freed device allocation" in found[0]


def test_freeing_twice_is_found(softcuda: Any, gpu: Any) -> None:
    memory = gpu.cuda.mem_alloc(8)
    address = ctypes.c_uint64(int(memory))
    memory.free()
    with control.expect_faults("free") as found:
        assert softcuda.load().cuMemFree_v2(address) == 1
    assert "memory is freed that is not allocated" in found[0]


def test_a_copy_beyond_its_allocation_is_refused(gpu: Any) -> None:
    memory = gpu.cuda.mem_alloc(100)
    refused = pytest.raises(gpu.cuda.LogicError, match="invalid argument")
    with control.expect_faults("argument") as found, refused:
        gpu.cuda.memcpy_htod(memory, np.zeros(101, np.uint8))
    assert "cuMemcpyHtoD of 101 bytes" in found[0]


def test_an_address_outside_of_all_memory_breaks_the_context(softcuda: Any, gpu: Any) -> None:
    stream, other = gpu.cuda.Stream(), on_device(gpu, np.ones(N))
    with control.expect_faults("illegal-address"):
        scale(gpu, stream, 0x1000, 2)
        with pytest.raises(gpu.cuda.LogicError, match="illegal memory access"):
            stream.synchronize()
    with pytest.raises(gpu.cuda.LogicError, match="illegal memory access"):
        fetch(gpu, other)
    softcuda.reset()


@pytest.mark.parametrize("second", ["write", "read", "copy"])
def test_two_streams_that_nothing_orders_are_found(gpu: Any, second: str) -> None:
    streams, memory = [gpu.cuda.Stream(), gpu.cuda.Stream()], on_device(gpu, np.ones(N))
    other, source = on_device(gpu, np.ones(N)), pinned(gpu, np.ones(N))
    with control.expect_faults("stream-race") as found:
        scale(gpu, streams[0], memory, 2)
        if second == "write":
            scale(gpu, streams[1], memory, 2)
        elif second == "read":
            gather(gpu, streams[1], memory, other)
        else:
            gpu.cuda.memcpy_htod_async(memory, source, streams[1])
        gpu.context.synchronize()
    assert re.search('which ".*" (wrote|read) in another stream; nothing makes this one wait', found[0])


def test_reading_together_and_waiting_on_the_host_is_no_race(gpu: Any) -> None:
    streams, memory = [gpu.cuda.Stream(), gpu.cuda.Stream()], on_device(gpu, np.ones(N))
    targets = [on_device(gpu, np.ones(N)) for _ in streams]
    for stream, target in zip(streams, targets, strict=True):
        gather(gpu, stream, memory, target)
    for stream in streams:
        stream.synchronize()
    for stream in streams:
        scale(gpu, stream, memory, 2)
        stream.synchronize()


def test_a_wrong_parameter_structure_is_refused(gpu: Any) -> None:
    refused = pytest.raises(gpu.cuda.LogicError, match="invalid argument")
    with control.expect_faults("argument") as found, refused:
        gpu.scale(np.uint64(0), block=(32, 1, 1), grid=(1, 1))
    assert "kernel scale takes 16 bytes of parameters and was given 8" in found[0]
