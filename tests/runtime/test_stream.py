"""Streams: in order, bounded, failing in place, and never hanging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import RadiometryError
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.segmenter import Segmenter

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
