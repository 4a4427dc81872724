"""Streams: in order, bounded, failing in place, and never hanging."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.stream import MaskStream

Make = Callable[..., np.ndarray]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def segment(make_bundle: Callable[..., Bundle]) -> Iterator[Segmenter]:
    with Segmenter(make_bundle(tile_px=64), threads=1) as opened:
        yield opened


def workers() -> int:
    return sum(thread.name == "hfd-edge-stream" for thread in threading.enumerate())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 20 s"
        time.sleep(0.005)


def test_masks_in_order(segment: Segmenter, make_image: Make) -> None:
    frames = [make_image(40 + 7 * index, 90 - 5 * index) for index in range(9)]
    masks = list(segment.stream(frames))
    assert len(masks) == 9
    for frame, mask in zip(frames, masks, strict=True):
        assert np.array_equal(mask, segment(frame))
    wait_until(lambda: workers() == 0)


def test_no_frames(segment: Segmenter) -> None:
    assert list(segment.stream([])) == []


def test_runs_ahead_but_not_far(segment: Segmenter, make_image: Make) -> None:
    taken: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for index in range(50):
            taken.append(index)
            yield make_image(40, 40)

    masks = segment.stream(frames())
    assert taken == []  # nothing happens before the first mask is asked for
    next(masks)
    wait_until(lambda: len(taken) >= 4)  # one delivered, two waiting, one in hand
    time.sleep(0.2)
    assert len(taken) == 4
    masks.close()
    wait_until(lambda: workers() == 0)
    assert len(taken) == 4


def test_a_bad_frame_fails_in_its_place(segment: Segmenter, make_image: Make) -> None:
    good = make_image(40, 40)
    masks = segment.stream([good, good, good[:1], good])
    assert next(masks).shape == (40, 40)
    assert next(masks).shape == (40, 40)
    with pytest.raises(RadiometryError, match="has 1 band, but bundle 'small' expects 2"):
        next(masks)
    with pytest.raises(StopIteration):
        next(masks)
    wait_until(lambda: workers() == 0)


def test_a_failing_source_fails_in_its_place(segment: Segmenter, make_image: Make) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield make_image(40, 40)
        raise OSError("camera unplugged")

    masks = segment.stream(frames())
    next(masks)
    with pytest.raises(OSError, match="camera unplugged"):
        next(masks)


def test_something_that_is_not_a_series_of_frames(segment: Segmenter) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(segment.stream(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_early_close_does_not_hang(segment: Segmenter, make_image: Make, taken: int) -> None:
    closed = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        try:
            while True:
                yield make_image(40, 40)
        finally:
            closed.set()

    masks = segment.stream(frames())
    for _ in range(taken):
        next(masks)
    masks.close()
    if taken:
        assert closed.wait(20)  # the source is told, in the thread that ran it
    wait_until(lambda: workers() == 0)
    assert segment(make_image(40, 40)).shape == (40, 40)


def test_close_while_the_source_blocks(segment: Segmenter, make_image: Make) -> None:
    release = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        yield make_image(40, 40)
        release.wait(30)
        yield make_image(40, 40)

    masks = segment.stream(frames())
    next(masks)
    started = time.monotonic()
    masks.close()
    assert time.monotonic() - started < 10
    release.set()
    wait_until(lambda: workers() == 0)


def test_close_waits_for_the_frame_at_hand(
    segment: Segmenter, make_image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the stream and then the segmenter must not take the model from under a running frame."""
    running = threading.Event()
    run = OnnxRuntimeBackend.run

    def slowly(backend: OnnxRuntimeBackend, batch: np.ndarray) -> np.ndarray:
        running.set()
        time.sleep(0.2)
        logits = run(backend, batch)
        running.clear()
        return logits

    monkeypatch.setattr(OnnxRuntimeBackend, "run", slowly)
    masks = segment.stream(make_image(40, 40) for _ in range(100))
    next(masks)
    running.wait(20)
    masks.close()
    assert not running.is_set()


def test_leaving_the_loop(segment: Segmenter, make_image: Make) -> None:
    for index, _ in enumerate(segment.stream(make_image(40, 40) for _ in range(100))):
        if index == 2:
            break
    wait_until(lambda: workers() == 0)


class Clockwork:
    """Takes frames that are numbers, and gives masks that are the same numbers after a while."""

    def __init__(self, *, depth: int = 2, submit_s: float = 0.0, result_s: float = 0.0) -> None:
        self.depth = depth
        self.submit_s, self.result_s = submit_s, result_s
        self.gate = threading.Event()  # `submit` waits for it
        self.gate.set()
        self.started: list[int] = []
        self.submitted: list[int] = []
        self.discarded: list[int] = []
        self.bad_submit: int | None = None
        self.bad_result: int | None = None

    def submit(self, image: Any) -> Turn:
        number = int(image[0])
        self.started.append(number)
        time.sleep(self.submit_s)
        assert self.gate.wait(20)
        if number == self.bad_submit:
            raise BackendError(f"frame {number} was refused")
        self.submitted.append(number)
        return Turn(self, number)


class Turn:
    """A mask of `Clockwork`; see `Pending`."""

    def __init__(self, clockwork: Clockwork, number: int) -> None:
        self.clockwork, self.number = clockwork, number
        self.stages_ms: Mapping[str, float] = {}

    def result(self) -> np.ndarray:
        time.sleep(self.clockwork.result_s)
        if self.number == self.clockwork.bad_result:
            raise BackendError(f"frame {self.number} failed")
        self.stages_ms = {"infer": float(self.number), "copy_out": 1.0}
        return np.full((1, 1), self.number, np.uint8)

    def discard(self) -> None:
        self.clockwork.discarded.append(self.number)


def numbers(count: int, *, after: Clockwork | None = None) -> Iterator[np.ndarray]:
    """Give numbers; each once the one before has reached `after`."""
    for number in range(count):
        yield np.array([number])
        if after is not None:
            wait_until(lambda number=number: number in after.started)


def total(stream: MaskStream) -> int:
    return sum(count for fate, count in stream.counts.items() if fate != "taken")


def test_block_loses_nothing() -> None:
    stream = MaskStream(Clockwork(), numbers(30))
    seen = [(int(mask[0, 0]), stream.position) for mask in stream]
    assert seen == [(number, number) for number in range(30)]
    assert stream.counts == {"taken": 30, "delivered": 30, "dropped": 0, "discarded": 0, "failed": 0}
    assert stream.stages_ms == {"infer": sum(range(30)) / 30, "copy_out": 1.0}
    assert 0 < stream.latency_ms < 10_000


def test_block_lets_the_source_use_one_array_again(segment: Segmenter, make_image: Make) -> None:
    frames = [make_image(40, 40) * (1 + index) for index in range(6)]
    buffer = np.empty_like(frames[0])

    def source() -> Iterator[np.ndarray]:
        for image in frames:
            buffer[:] = image
            yield buffer

    for image, mask in zip(frames, segment.stream(source()), strict=True):
        assert np.array_equal(mask, segment(image))


def test_depth_bounds_what_is_under_way() -> None:
    clockwork = Clockwork(depth=3)
    stream = MaskStream(clockwork, numbers(100))
    next(stream)
    wait_until(lambda: len(clockwork.submitted) == 1 + 3 + 2)
    time.sleep(0.1)
    assert len(clockwork.submitted) == 6
    assert stream.counts["taken"] == 6
    stream.close()
    assert clockwork.discarded == [1, 2, 3, 4, 5]
    assert (total(stream), stream.counts["discarded"]) == (6, 5)


def test_drop_oldest_keeps_the_newest() -> None:
    clockwork = Clockwork()
    clockwork.gate.clear()

    def source() -> Iterator[np.ndarray]:
        yield np.array([0])
        wait_until(lambda: clockwork.started == [0])  # it is in hand, and takes its time
        for number in range(1, 100):
            yield np.array([number])
        clockwork.gate.set()

    stream = MaskStream(clockwork, source(), policy="drop-oldest")
    seen = [(int(mask[0, 0]), stream.position) for mask in stream]
    assert seen == [(0, 0), (98, 98), (99, 99)]
    assert stream.counts == {"taken": 100, "delivered": 3, "dropped": 97, "discarded": 0, "failed": 0}


def test_drop_oldest_takes_all_from_a_slow_source() -> None:
    clockwork = Clockwork()
    stream = MaskStream(clockwork, numbers(20, after=clockwork), policy="drop-oldest")
    assert len(list(stream)) == 20
    assert stream.dropped == 0


def test_the_source_never_waits_for_a_caller_who_takes_nothing() -> None:
    clockwork = Clockwork(depth=1)

    def source() -> Iterator[np.ndarray]:
        yield from numbers(4, after=clockwork)
        yield from numbers(46)

    stream = MaskStream(clockwork, source(), policy="drop-oldest")
    next(stream)
    wait_until(lambda: stream.counts["taken"] == 50)
    # One was taken, three masks wait for the caller, and the two newest frames for the pipeline.
    assert clockwork.submitted == [0, 1, 2, 3]
    wait_until(lambda: stream.dropped == 50 - 4 - 2)
    stream.close()
    wait_until(lambda: total(stream) == 50)
    assert clockwork.discarded == clockwork.submitted[1:]


def test_a_deadline_drops_what_is_late() -> None:
    clockwork = Clockwork(depth=1)
    stream = MaskStream(clockwork, numbers(12), policy="deadline", deadline_ms=150)
    ages = []
    for mask in stream:
        ages.append(stream.latency_ms)
        if len(ages) == 2:
            time.sleep(0.3)  # what is under way meanwhile is too late
        assert int(mask[0, 0]) == stream.position
    assert max(ages, default=0) <= 150
    assert stream.dropped >= 3
    assert (stream.counts["taken"], total(stream)) == (12, 12)


def test_a_deadline_does_not_start_what_is_too_old() -> None:
    clockwork = Clockwork(depth=1, submit_s=0.1)
    stream = MaskStream(clockwork, numbers(20), policy="deadline", deadline_ms=40)
    assert list(stream) == []  # each takes longer than it may
    assert len(clockwork.started) <= 2  # while the first is in hand, the others grow old
    assert stream.dropped == 20


@pytest.mark.parametrize("where", ["bad_submit", "bad_result"])
@pytest.mark.parametrize("policy", ["block", "drop-oldest"])
def test_a_failure_comes_in_its_place_and_is_counted(where: str, policy: str) -> None:
    clockwork = Clockwork()
    setattr(clockwork, where, 3)
    stream = MaskStream(clockwork, numbers(10, after=clockwork), policy=policy)
    seen = []
    with pytest.raises(BackendError, match="frame 3"):
        for mask in stream:
            seen.append(int(mask[0, 0]))
    assert seen == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(stream)
    wait_until(lambda: total(stream) == stream.counts["taken"])
    assert stream.counts["failed"] == 1
    assert stream.counts["discarded"] == stream.counts["taken"] - 4
    wait_until(lambda: workers() == 0)


@pytest.mark.parametrize("policy", ["drop-oldest", "deadline"])
def test_a_failing_source_fails_under_every_policy(policy: str) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from numbers(2)
        raise OSError("camera unplugged")

    stream = MaskStream(
        Clockwork(), source(), policy=policy, deadline_ms=5000 if policy == "deadline" else None
    )
    assert int(next(stream)[0, 0]) == 0
    assert int(next(stream)[0, 0]) == 1
    with pytest.raises(OSError, match="camera unplugged"):
        next(stream)
    assert stream.counts["delivered"] == 2


def test_another_thread_may_cancel_while_one_waits() -> None:
    release = threading.Event()

    def source() -> Iterator[np.ndarray]:
        yield np.array([0])
        release.wait(30)

    with MaskStream(Clockwork(), source(), policy="drop-oldest") as stream:
        next(stream)
        threading.Timer(0.1, stream.close).start()
        assert list(stream) == []
    release.set()
    wait_until(lambda: workers() == 0)


def test_a_forgotten_stream_stops_even_in_a_cycle() -> None:
    holder: dict[str, Any] = {"stream": MaskStream(Clockwork(), numbers(1000))}
    holder["self"] = holder
    next(holder["stream"])
    assert workers() == 1
    del holder
    gc.collect()
    wait_until(lambda: workers() == 0)


def test_a_forgotten_stream_waits_for_nothing() -> None:
    """The collector may run while its thread holds what the worker is waiting for."""
    clockwork = Clockwork()
    stream = MaskStream(clockwork, numbers(1000))
    next(stream)
    wait_until(lambda: 1 in clockwork.submitted)  # else nothing would open the gate for it
    clockwork.gate.clear()
    next(stream)
    wait_until(lambda: len(clockwork.started) > len(clockwork.submitted))  # a frame is in hand
    started = time.monotonic()
    del stream
    gc.collect()
    assert time.monotonic() - started < 10  # the worker waits for 20 s
    clockwork.gate.set()
    wait_until(lambda: workers() == 0)
    assert len(clockwork.discarded) == len(clockwork.submitted) - 2


def test_closing_from_the_source_loses_no_count() -> None:
    clockwork = Clockwork()

    def source() -> Iterator[np.ndarray]:
        yield np.array([0])
        wait_until(lambda: clockwork.submitted == [0])
        clockwork.gate.clear()
        yield np.array([1])
        wait_until(lambda: clockwork.started == [0, 1])
        threading.Timer(0.1, clockwork.gate.set).start()
        stream.close()
        yield np.array([2])

    stream = MaskStream(clockwork, source(), policy="drop-oldest")
    assert len(list(stream)) <= 1
    wait_until(lambda: total(stream) == stream.counts["taken"])
    wait_until(lambda: workers() == 0)


END = """
import itertools, sys, time
import numpy as np
import hfd_edge as hfd
segment = hfd.Segmenter(hfd.Bundle.open(sys.argv[1]), backend="onnxruntime", threads=1)
stream = segment.stream(itertools.repeat(np.full((2, 100, 100), 0.1, np.float32)))
next(stream)
time.sleep(0.1)  # the next frame is in hand
print("leaving", flush=True)
"""
# What frees a device's memory at the end is registered before the first frame, as here.
SLOW = """
import atexit, time
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
run, busy = OnnxRuntimeBackend.run, []
def slowly(backend, batch):
    busy.append(1)
    time.sleep(0.5)
    logits = run(backend, batch)
    busy.pop()
    return logits
OnnxRuntimeBackend.run = slowly
atexit.register(lambda: print("busy" if busy else "idle", flush=True))
"""


@pytest.mark.parametrize(("before", "output"), [("", "leaving\n"), (SLOW, "leaving\nidle\n")])
def test_a_program_ends_in_the_middle_of_a_stream(
    make_bundle: Callable[..., Bundle], before: str, output: str
) -> None:
    command = [sys.executable, "-c", before + END, str(make_bundle().path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "drop-newest"}, "policy is 'drop-newest', expected one of block, drop-oldest, deadline"),
        (
            {"policy": "deadline"},
            'policy is "deadline" and deadline_ms is None, but .* Pass both, or neither',
        ),
        ({"deadline_ms": 5.0}, 'policy is "block" and deadline_ms is 5.0, but'),
        ({"policy": "deadline", "deadline_ms": 0.0}, "deadline_ms is 0.0, expected a positive number"),
        ({"policy": "deadline", "deadline_ms": float("inf")}, "deadline_ms is inf, expected"),
    ],
)
def test_impossible_policies(segment: Segmenter, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        segment.stream([], **options)
