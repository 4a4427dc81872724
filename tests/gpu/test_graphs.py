"""CUDA graphs, with one of the project's own kernels standing for an engine."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest

from hfd_edge.errors import BackendError, MissingExtraError
from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.graphs import MOST_GRAPHS, Batch, Graph, Replays
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Plane
from hfd_edge.runtime.launch_logits import CutTiles

pytestmark = pytest.mark.gpu
pytest.importorskip("cuda.bindings.driver", reason="CUDA graphs need cuda-bindings")
SIDE = 16
NBYTES = SIDE * SIDE * 4


@dataclass
class Engine:
    """Copies its input to its output, tile by tile; notes each run that is no replay."""

    device: Device
    runs: list[Batch] = field(default_factory=list)
    fault: Callable[[Batch, int], None] = lambda batch, handle: None

    def __post_init__(self) -> None:
        self.cut = CutTiles(Kernels(self.device), self.device.limits)
        self.stream = self.device.stream()

    def prepare(self, batch: Batch) -> Callable[[int], None]:
        def execute(handle: int) -> None:
            self.runs.append(batch)
            pixels = Plane(batch.input_address, SIDE, SIDE * SIDE)
            streams = [found for found in self.device._living if isinstance(found, Stream)]
            (stream,) = (found for found in streams if not found.closed and found.handle == handle)
            self.cut(
                stream, pixels, half=False, shape=(batch.tiles, SIDE, SIDE), first_row=0, origins=(0,),
                tile_px=SIDE, out_address=batch.output_address,
            )  # fmt: skip
            self.fault(batch, len(self.runs))

        return execute


@pytest.fixture
def engine(device: Device) -> Engine:
    return Engine(device)


@pytest.fixture
def replays(engine: Engine) -> Iterator[Replays]:
    made = Replays(
        engine.device,
        engine.prepare,
        logits_bytes=lambda tiles: tiles * NBYTES,
        half=False,
        what="engine T",
    )
    yield made
    made.close()


def run(engine: Engine, replays: Replays, batch: Batch, values: np.ndarray) -> np.ndarray:
    found = np.empty_like(values)
    engine.stream.copy_in(batch.input_address, values)
    replays.enqueue(batch, engine.stream)
    engine.stream.copy_out(found, batch.output_address)
    engine.stream.synchronize()
    return found


def batch_of(engine: Engine, tiles: int = 2) -> Batch:
    buffers = [engine.device.buffer(tiles * NBYTES) for _ in range(2)]
    KEEP.extend(buffers)
    return Batch(buffers[0].address, buffers[1].address, tiles)


KEEP: list[object] = []


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    KEEP.clear()


def noise(tiles: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tiles, SIDE, SIDE)).astype(np.float32)


def test_replays_follow_their_input(engine: Engine, replays: Replays) -> None:
    batch = batch_of(engine)
    for seed in range(4):
        values = noise(seed=seed)
        np.testing.assert_array_equal(run(engine, replays, batch, values), values)
    assert engine.runs == [batch, batch], "once to warm up, once to record"


def test_another_size_or_address_is_recorded_anew(engine: Engine, replays: Replays) -> None:
    one, other = batch_of(engine), batch_of(engine)
    smaller = Batch(one.input_address, one.output_address, 1)
    for _ in range(2):
        for batch in (one, other, smaller):
            values = noise(batch.tiles, seed=batch.tiles)
            np.testing.assert_array_equal(run(engine, replays, batch, values), values)
    assert engine.runs == [one, one, other, other, smaller, smaller]


def test_only_so_many_graphs_are_kept(engine: Engine, replays: Replays) -> None:
    batches = [batch_of(engine) for _ in range(MOST_GRAPHS + 1)]
    for batch in batches:
        run(engine, replays, batch, noise())
    run(engine, replays, batches[1], noise())
    assert len(engine.runs) == 2 * len(batches), "the second is still kept"
    run(engine, replays, batches[0], noise())
    assert engine.runs[-2:] == [batches[0]] * 2, "the first was dropped"


def test_a_replay_that_gives_other_logits_is_refused(engine: Engine, replays: Replays) -> None:
    """The recorded run writes elsewhere, as after a stale address."""
    batch, other = batch_of(engine), batch_of(engine)
    engine.cut = _Redirected(engine.cut, other.output_address, when=lambda: len(engine.runs) == 2)  # type: ignore[assignment]
    with pytest.raises(BackendError, match=r"CUDA graph of engine T gives other .*512 of 512 differ"):
        run(engine, replays, batch, noise())
    np.testing.assert_array_equal(run(engine, replays, batch, noise()), noise())


class _Redirected:
    def __init__(self, cut: CutTiles, address: int, *, when: Callable[[], bool]) -> None:
        self._cut, self._address, self._when = cut, address, when

    def __call__(self, *arguments: object, out_address: int, **options: object) -> None:
        self._cut(*arguments, out_address=self._address if self._when() else out_address, **options)  # type: ignore[arg-type]


def test_logits_that_vary_a_little_are_taken(engine: Engine, replays: Replays) -> None:
    values = noise()
    near, far = values * np.float32(1 + 1e-5), values.copy()
    far[0, 3, 3] += 1
    replays._compare(values, near)
    for wrong in (far, np.full_like(values, np.nan)):
        with pytest.raises(BackendError, match="other logits"):
            replays._compare(values, wrong)
    nothing = np.full_like(values, np.nan)
    replays._compare(nothing, nothing)


def test_other_threads_go_on_while_a_graph_is_recorded(engine: Engine, replays: Replays) -> None:
    """What a pipeline's frames and rasters put into the stream meanwhile runs once, and is not replayed."""
    batch, mark, found = batch_of(engine), engine.device.buffer(64), np.zeros(64, np.uint8)
    failures: list[BaseException] = []

    def meanwhile() -> None:
        try:
            engine.stream.fill(mark.address, 7, 64)
            engine.stream.synchronize()
        except BaseException as error:
            failures.append(error)

    def fault(_: Batch, runs: int) -> None:
        if runs == 2:  # the one that is recorded
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()

    engine.fault = fault
    np.testing.assert_array_equal(run(engine, replays, batch, noise()), noise())
    assert not failures
    for value in (7, 1):
        engine.stream.copy_out(found, mark.address)
        engine.stream.synchronize()
        assert (found == value).all()
        engine.stream.fill(mark.address, 1, 64)
        run(engine, replays, batch, noise())
    assert len(engine.runs) == 2


def test_work_that_cannot_be_recorded(engine: Engine, device: Device) -> None:
    """The stream is usable again afterwards."""

    def waits() -> None:
        engine.stream.synchronize()

    with pytest.raises(BackendError, match="Waiting for a stream .*capturing"):
        Graph.capture(device, engine.stream, waits)
    with pytest.raises(KeyError):
        Graph.capture(device, engine.stream, lambda: {}["x"])

    def waits_in_silence() -> None:
        with contextlib.suppress(BackendError):
            waits()

    with pytest.raises(
        BackendError, match=r"cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INV.*graphs"
    ):
        Graph.capture(device, engine.stream, waits_in_silence)
    replays = Replays(
        device, engine.prepare, logits_bytes=lambda tiles: tiles * NBYTES, half=False, what="toy"
    )
    np.testing.assert_array_equal(run(engine, replays, batch_of(engine), noise()), noise())
    replays.close()


def test_garbage_does_not_spoil_a_recording(engine: Engine, device: Device) -> None:
    """A collection in the middle of it could free memory in this thread, which no recording survives."""
    buffer, seen = device.buffer(64), []

    def work() -> None:
        before = [found["collections"] for found in gc.get_stats()]
        engine.stream.fill(buffer.address, 1, 64)
        _ = [[] for _ in range(20_000)]  # more than any generation's threshold
        seen.append(before == [found["collections"] for found in gc.get_stats()])

    graph = Graph.capture(device, engine.stream, work)
    assert seen == [True]
    with pytest.raises(KeyError):
        Graph.capture(device, engine.stream, lambda: {}["x"])
    assert gc.isenabled()
    graph.close()


def test_a_closed_graph_is_refused(engine: Engine, device: Device) -> None:
    buffer = device.buffer(64)
    graph = Graph.capture(device, engine.stream, lambda: engine.stream.fill(buffer.address, 1, 64))
    graph.launch(engine.stream)
    engine.stream.synchronize()
    graph.close()
    graph.close()
    with pytest.raises(BackendError, match="graph was freed before it was used"):
        graph.launch(engine.stream)


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphLaunch"])
def test_driver_errors_name_the_call_and_leak_nothing(
    softcuda: ModuleType, engine: Engine, replays: Replays, call: str
) -> None:
    batch = batch_of(engine)
    engine.stream.synchronize()
    before = softcuda.live()
    softcuda.inject(call, 801)
    with pytest.raises(BackendError, match=rf"{call} failed: CUDA_ERROR_NOT_SUPPORTED, .*graphs=False"):
        run(engine, replays, batch, noise())
    engine.stream.synchronize()
    assert softcuda.live() == before
    np.testing.assert_array_equal(run(engine, replays, batch, noise()), noise())


def test_without_cuda_bindings(engine: Engine, replays: Replays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(
        MissingExtraError, match=r"running an engine as a CUDA graph needs .*hfd-edge\[cuda\]"
    ):
        run(engine, replays, batch_of(engine), noise())


def test_two_streams_share_a_graph(engine: Engine, replays: Replays) -> None:
    """Launches in other streams are ordered by whoever enqueues them."""
    batch = batch_of(engine)
    run(engine, replays, batch, noise())
    other: Stream = engine.device.stream()
    values, found = noise(seed=5), np.empty_like(noise())
    other.copy_in(batch.input_address, values)
    replays.enqueue(batch, other)
    other.copy_out(found, batch.output_address)
    other.synchronize()
    np.testing.assert_array_equal(found, values)
