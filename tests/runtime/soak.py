"""Many short streams with random delays, failures and cancellations; for every pipeline."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.bundle import Bundle
from hfd_edge.errors import RadiometryError
from hfd_edge.runtime.pipeline import FrameTaker
from hfd_edge.runtime.stream import POLICIES, MaskStream

from .conftest import CLASSES, make_manifest

TILE = 32
_DELAY_S = 2e-4
LEVELS = (0.02, 0.1, 0.5, 2.5)  # intensity of each class


class Unplugged(Exception):
    """Raised by the source in the middle of a stream."""


@dataclass
class Tally:
    """What happened over all streams."""

    streams: int = 0
    taken: int = 0
    delivered: int = 0
    dropped: int = 0
    discarded: int = 0
    failed: int = 0
    resident: int = 0  # largest resident set after the first quarter, bytes
    resident_early: int = 0


def make_level_bundle(path: Path) -> Bundle:
    """Make a bundle whose network tells constant images of the four levels apart, in one small layer."""
    manifest = make_manifest(bands=("vv",), speckle="none", tile_px=TILE)
    chain = manifest.preprocessing
    centers = (10 * np.log10(LEVELS) - chain.mean[0]) / chain.std[0]
    # The largest of 2 c x - c^2 belongs to the centre that is nearest to x.
    weights = np.broadcast_to((2 * centers / 16)[:, None, None, None], (len(CLASSES), 1, 4, 4))
    values = [
        numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), "w"),
        numpy_helper.from_array((-(centers**2)).astype(np.float32), "b"),
    ]
    node = helper.make_node("Conv", ["sar", "w", "b"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("sar", ["n", 1, "h", "w"]), ("logits", ["n", len(CLASSES), "i", "j"]))
    ]
    graph = helper.make_graph([node], "levels", tensors[:1], tensors[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Bundle.create(path, manifest, {"model.fp32.onnx": model.SerializeToString()})


def label_of(index: int) -> int:
    """Class of a frame; neighbours differ, and so do frames far apart."""
    return (index * 7 // 3 + index) % len(LEVELS)


def frame(index: int, *, bad: bool = False) -> np.ndarray:
    """Make a small frame that says which one it is: by its size and its level."""
    side = 4 + index % 23
    image = np.full((1, side, 30 - side), LEVELS[label_of(index)], np.float32)
    if bad:
        image[0, -1, -1] = -1.0  # intensity is never negative
    return image


def check_mask(index: int, mask: np.ndarray) -> None:
    side = 4 + index % 23
    assert mask.shape == (side, 30 - side), f"the mask of frame {index} is another frame's"
    assert (mask == label_of(index)).all(), f"the mask of frame {index} is another frame's"


def soak(
    taker: FrameTaker, *, frames: int, pace_s: float, expected: type[Exception] = RadiometryError
) -> Tally:
    """Run streams until `frames` frames were taken.

    Args:
        taker: Segments the frames of a bundle of `make_level_bundle`.
        frames: How many at least.
        pace_s: Longest pause between frames where they may be dropped; a few times what a frame takes.
        expected: Errors that `taker` may raise, beside RadiometryError for bad frames.
    """
    rng, tally = random.Random(0), Tally()
    while tally.taken < frames:
        _run_stream(taker, rng, tally, expected, pace_s)
        tally.streams += 1
        resident = resident_bytes()
        if tally.taken < frames // 4:
            tally.resident_early = max(tally.resident_early, resident)
        else:
            tally.resident = max(tally.resident, resident)
    _until(lambda: all(thread.name != "hfd-edge-stream" for thread in threading.enumerate()))
    return tally


def _run_stream(
    taker: FrameTaker, rng: random.Random, tally: Tally, expected: type[Exception], pace_s: float
) -> None:
    policy = rng.choice(POLICIES)
    length, bad = rng.randrange(1, 200), rng.choice([None, None, rng.randrange(200)])
    unplugged, leave = rng.random() < 0.2, rng.choice([None, None, rng.randrange(200)])
    delays = random.Random(rng.random())

    def source() -> Iterator[np.ndarray]:
        for index in range(length):
            if policy != "block" or delays.random() < 0.2:
                time.sleep(delays.random() * pace_s)
            yield frame(index, bad=index == bad)
        if unplugged:
            raise Unplugged

    stream = MaskStream(taker, source(), policy=policy, deadline_ms=20 if policy == "deadline" else None)
    seen, error = [], None
    try:
        for mask in stream:
            check_mask(stream.position, mask)
            seen.append(stream.position)
            if rng.random() < 0.1:
                time.sleep(rng.random() * _DELAY_S)
            if len(seen) == leave:
                break
    except (RadiometryError, Unplugged, expected) as caught:
        error = caught
    stream.close()
    _check_stream(stream, seen, error, policy=policy, length=length, bad=bad)
    for fate in ("taken", "delivered", "dropped", "discarded", "failed"):
        setattr(tally, fate, getattr(tally, fate) + stream.counts[fate])


def _check_stream(
    stream: MaskStream, seen: list[int], error: Any, *, policy: str, length: int, bad: int | None
) -> None:
    # The source's thread may be at its last frame still.
    _until(lambda: 2 * stream.counts["taken"] == sum(stream.counts.values()))
    counts = stream.counts
    assert seen == sorted(set(seen)), "order was not kept"
    assert counts["delivered"] == len(seen)
    if policy == "block":
        assert seen == list(range(len(seen)))
        assert counts["dropped"] == 0
        if isinstance(error, RadiometryError):
            assert len(seen) == bad
        elif isinstance(error, Unplugged):
            assert len(seen) == length
    # A frame further on may have failed as well before this error came up, or the stream was left.
    assert counts["failed"] >= (error is not None and not isinstance(error, Unplugged))


def resident_bytes() -> int:
    """Resident memory of this process."""
    gc.collect(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "frames or threads are left over"
        time.sleep(0.001)
