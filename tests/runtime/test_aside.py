"""Reading ahead and writing behind: in order, bounded, and nothing left over."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from hfd_edge.runtime.aside import Behind, Stages, ahead
from hfd_edge.runtime.rows import CpuRows
from hfd_edge.runtime.scene import ArraySink, ArraySource, RowDriver, segment_rows

from .test_rows import Network, Recorder, make_tiler, numbered


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hfd-")]


def wait_for(said: threading.Event) -> None:
    assert said.wait(10), "the other thread did nothing"


def test_results_come_in_order_and_one_call_ahead() -> None:
    made: list[int] = []
    started = [threading.Event() for _ in range(5)]

    def call(number: int) -> int:
        made.append(number)
        started[number].set()
        return number

    with closing(ahead(partial(call, number) for number in range(5))) as results:
        for wanted in range(5):
            assert next(results) == wanted
            if wanted < 4:
                wait_for(started[wanted + 1])
            time.sleep(0.01)
            assert made == list(range(min(wanted + 2, 5))), "it ran further ahead"
    assert not helpers()


def test_nothing_to_call() -> None:
    assert list(ahead([])) == []


def test_an_error_comes_in_its_place_and_stops_the_calls() -> None:
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        if number == 2:
            raise OSError("truncated")
        return number

    results = ahead(partial(call, number) for number in range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="truncated"):
        next(results)
    assert made == [0, 1, 2]
    assert not helpers()


def test_a_reader_that_is_given_up_waits_for_the_call_under_way() -> None:
    done = []
    results = ahead(partial(lambda n: (time.sleep(0.02), done.append(n)), number) for number in range(9))
    next(results)
    results.close()
    assert done == [0, 1]
    assert not helpers()


def test_calls_behind_are_made_in_order_in_one_other_thread() -> None:
    made: list[tuple[int, bool]] = []
    with Behind(lambda number: made.append((number, threading.current_thread().name == here))) as put:
        here = threading.current_thread().name
        for number in range(20):
            put(number)
    assert made == [(number, False) for number in range(20)]
    assert not helpers()


def test_no_more_than_one_call_is_behind() -> None:
    go, entered = threading.Event(), threading.Event()

    def call(number: int) -> None:
        entered.set()
        wait_for(go)

    with Behind(call) as put:
        put(0)  # returns although the call does not
        wait_for(entered)
        second = threading.Thread(target=put, args=(1,))
        second.start()
        second.join(0.05)
        assert second.is_alive(), "the second call did not wait for the first"
        go.set()
        second.join(10)
        assert not second.is_alive()


@pytest.mark.parametrize("calls", [1, 2])
def test_what_a_call_behind_raises_is_raised_at_the_next_or_at_the_end(calls: int) -> None:
    def full(number: int) -> None:
        raise OSError(f"disk full at {number}")

    with pytest.raises(OSError, match="disk full at 0"), Behind(full) as put:
        for number in range(calls):
            put(number)
    assert not helpers()


def test_the_error_that_ends_the_work_is_not_hidden_by_one_behind() -> None:
    def full() -> None:
        raise OSError("disk full")

    with pytest.raises(KeyboardInterrupt), Behind(full) as put:
        put()
        raise KeyboardInterrupt
    assert not helpers()


def test_stages_add_up() -> None:
    stages = Stages()
    for name in ("read", "write", "read"):
        with stages.timed(name):
            time.sleep(0.002)
    with pytest.raises(ValueError, match="x"), stages.timed("write"):
        raise ValueError("x")
    assert set(stages.ms) == {"read", "write"}
    assert stages.ms["read"] >= 4
    assert stages.ms["write"] >= 2


class Slow(ArraySource):
    """A source that says who reads, and fails at a row."""

    fails_at = 10**9
    threads: set[str] = set()  # noqa: RUF012  # reset by each test

    def read(self, row0: int, row1: int) -> np.ndarray:
        self.threads.add(threading.current_thread().name)
        if row1 > self.fails_at:
            raise OSError(f"truncated at {row0}")
        return super().read(row0, row1)


@pytest.mark.parametrize("aside", [True, False])
def test_a_raster_is_the_same_with_and_without_threads(aside: bool) -> None:
    tiler, image = make_tiler(), np.random.default_rng(0).gamma(4, 1, (2, 230, 90)).astype(np.float32)
    Slow.threads = set()
    sink, plain = ArraySink(rows=230, cols=90), ArraySink(rows=230, cols=90)
    count = segment_rows(
        Slow(image), sink, engine=CpuRows(Network(tiler), tiler, cols=90), tiler=tiler, aside=aside
    )
    segment_rows(
        ArraySource(image), plain, engine=CpuRows(Network(tiler), tiler, cols=90), tiler=tiler, aside=False
    )
    assert np.array_equal(sink.labels, plain.labels)
    assert any(name.startswith("hfd-ahead") for name in Slow.threads) is aside
    assert set(count.stages_ms) == {"read", "preprocess", "infer", "postprocess", "write"}
    assert all(spent > 0 for spent in count.stages_ms.values())
    assert not helpers()


def test_rows_before_a_bad_one_are_written_before_its_error() -> None:
    tiler = make_tiler()
    engine, source, sink = Recorder(tiler, 5), Slow(numbered(200)), ArraySink(rows=200, cols=5)
    source_fails = 150
    Slow.fails_at = source_fails
    try:
        with pytest.raises(OSError, match="truncated at"):
            segment_rows(source, sink, engine=engine, tiler=tiler)
    finally:
        Slow.fails_at = 10**9
    # Tiles of 64 rows at 0 and 32 were segmented for certain, and the first's rows came out.
    assert np.array_equal(sink.labels[:30, 0], np.arange(30))
    assert engine.closed == 1
    assert not helpers()


def test_a_stop_by_the_user_leaves_no_thread() -> None:
    tiler = make_tiler()

    def stop(done: float, total: float, text: str) -> None:
        if done > 2:
            raise KeyboardInterrupt

    engine = CpuRows(Network(tiler), tiler, cols=90)
    image = np.ones((2, 300, 90), np.float32)
    with pytest.raises(KeyboardInterrupt):
        segment_rows(
            ArraySource(image), ArraySink(rows=300, cols=90), engine=engine, tiler=tiler, progress=stop
        )
    assert not helpers()


@pytest.mark.parametrize(
    ("rows", "halo"), [(1, "none"), (64, "lee"), (65, "lee"), (200, "lee"), (230, "none")]
)
@pytest.mark.parametrize("chunk", [1, 90, 1 << 22])
def test_windows_cover_the_raster_once_and_none_waits(
    rows: int, halo: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfd_edge.runtime.scene._CHUNK_VALUES", chunk)
    tiler = make_tiler(speckle=halo)
    engine = Recorder(tiler, 5)
    driver = RowDriver(engine, tiler, cols=5, rows=rows, name="test")
    image, end = numbered(rows), 0
    for first, stop in driver.windows():
        assert first == end
        before = len(engine.raws)
        list(driver.push(image[:, first:stop]))
        assert len(engine.raws) > before, "rows were read that only wait"
        end = stop
    list(driver.drain())
    assert end == engine.filled == rows
