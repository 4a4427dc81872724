"""Frames as they come, masks in the same order: what happens when the source and the network differ in speed.

One worker thread takes frames and gives them to the pipeline, which may keep several in flight; the caller's
thread waits for the oldest of them. Where frames may be left out, a second thread takes them from the source
as fast as they come and keeps the newest.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.runtime.pipeline import FrameTaker, Pending

Array = NDArray[Any]

POLICIES = ("block", "drop-oldest", "deadline")

# Masks that may wait for the caller beside the frames that the pipeline has in flight: one is taken while
# the next is made.
_WAITING_MASKS = 2
# Frames that wait for the pipeline where frames may be left out: while one is prepared, the next comes in.
_WAITING_FRAMES = 2


@dataclass(frozen=True)
class _Frame:
    index: int
    taken: float  # seconds, of time.monotonic
    image: Array


@dataclass(frozen=True)
class _Waiting:
    """A frame in the pipeline, or its mask, until the caller takes it."""

    index: int
    taken: float
    pending: Pending


@dataclass(frozen=True)
class _End:
    """Nothing comes after this; `error` is what stopped the frames, if anything did."""

    error: BaseException | None


class MaskStream(Iterator[NDArray[np.uint8]]):
    """The masks of a series of frames, in their order; an iterator to be used by one thread.

    Nothing happens before the first mask is asked for. Every frame that was taken from the source is
    accounted for in `counts`: "taken" is the sum of "delivered", of "dropped" by the policy, of "discarded"
    because the stream was closed or a frame before it failed, of "failed", and of the frames under way.

    What happens when the source is faster than the network or the caller, by `policy`:
        "block": the source waits. At most `pipeline.depth` + 2 frames are under way, beside the one that the
            caller waits for.
        "drop-oldest": the source never waits; of the frames that wait for the pipeline the newest two are
            kept, older ones are dropped.
        "deadline": as "drop-oldest", and no mask is given out later than `deadline_ms` after its frame was
            taken: a frame that is too old already is not started, a mask that is late is dropped.

    Under "block" a source may use one array in host memory again for each frame; with the others it must not.

    Attributes:
        position: Index of the frame whose mask came last, counted from 0; -1 before the first.
        latency_ms: Time from taking that frame to handing out its mask.
    """

    def __init__(
        self,
        pipeline: FrameTaker,
        frames: Iterable[Array],
        *,
        policy: str = "block",
        deadline_ms: float | None = None,
    ) -> None:
        """Prepare a stream; see the class.

        Args:
            pipeline: Segments the frames; the stream does not close it.
            frames: Stored pixels (bands, rows, cols), of any sizes. Taken in a thread of the stream.
            policy: One of `POLICIES`.
            deadline_ms: For "deadline", and only for that.
        Raises:
            BackendError: there is no such policy, or the deadline is missing, in the way, or not positive.
        """
        _check(policy, deadline_ms)
        self.position = -1
        self.latency_ms = 0.0
        self._line = _Line(pipeline.depth + _WAITING_MASKS, deadline_ms)
        self._worker = _Worker(self._line, pipeline, frames, dropping=policy != "block")
        # A loop that is left drops the stream without closing it.
        self._forget = weakref.finalize(self, self._worker.forget)
        self._done = False
        self._stages: dict[str, float] = {}

    @property
    def dropped(self) -> int:
        """Frames without a mask because the policy says so."""
        return self.counts["dropped"]

    @property
    def counts(self) -> dict[str, int]:
        """What became of the frames: "taken", "delivered", "dropped", "discarded" and "failed"."""
        with self._line.changed:
            return dict(self._line.counts)

    @property
    def stages_ms(self) -> dict[str, float]:
        """Mean time of each stage over the masks handed out, by the stage's name."""
        return {stage: total / max(self.counts["delivered"], 1) for stage, total in self._stages.items()}

    def __next__(self) -> NDArray[np.uint8]:
        """Wait for the next mask.

        Raises:
            Exception: what the source or the segmentation raised, in the place of that frame's mask. The
                stream ends with it.
        """
        if self._done:
            raise StopIteration
        if self._worker.ident is None:
            self._worker.start()
        while True:
            waiting = self._line.next()
            if isinstance(waiting, _End):
                self.close()
                raise StopIteration if waiting.error is None else waiting.error
            try:
                mask = waiting.pending.result()
            except BaseException:
                self._line.count("failed")
                self.close()
                raise
            age_s = time.monotonic() - waiting.taken
            if self._line.late(age_s):
                self._line.count("dropped")
                continue
            self.latency_ms = 1000 * age_s
            return self._deliver(waiting, mask)

    def close(self) -> None:
        """Stop: frames under way are discarded. Waits for the frame that is being submitted, but not for the
        source; more than once is allowed."""
        self._done = True
        self._forget.detach()
        self._worker.stop()

    def __enter__(self) -> MaskStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _deliver(self, waiting: _Waiting, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for stage, spent in waiting.pending.stages_ms.items():
            self._stages[stage] = self._stages.get(stage, 0.0) + spent
        self._line.count("delivered")
        self.position = waiting.index
        return mask


class _Line:
    """What the threads of a stream share: the frames under way and what became of the others."""

    def __init__(self, most: int, deadline_ms: float | None) -> None:
        self.changed = threading.Condition()
        self.stopped = False
        self.counts = dict.fromkeys(("taken", "delivered", "dropped", "discarded", "failed"), 0)
        self._most = most
        self._deadline_s = None if deadline_ms is None else deadline_ms / 1000
        self._waiting: deque[_Waiting | _End] = deque()

    def count(self, fate: str, frames: int = 1) -> None:
        """Say what became of frames."""
        with self.changed:
            self.counts[fate] += frames

    def late(self, age_s: float) -> bool:
        """Whether a frame of this age is of no use any more."""
        return self._deadline_s is not None and age_s > self._deadline_s

    def room(self) -> bool:
        """Wait until another frame may be under way; False when the stream has stopped."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or len(self._waiting) < self._most)
            return not self.stopped

    def put(self, item: _Waiting | _End) -> None:
        """Append a frame that the pipeline has taken, or the end; discard it when the stream has stopped."""
        with self.changed:
            self._waiting.append(item)
            self.changed.notify_all()
        if self.stopped:
            self.discard()

    def next(self) -> _Waiting | _End:
        """Wait for the oldest frame under way, and remove it; the end, once the stream was stopped."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self._waiting)
            if self.stopped:
                return _End(None)
            item = self._waiting.popleft()
            self.changed.notify_all()
            return item

    def stop(self) -> None:
        """Let no more frames come."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def discard(self) -> None:
        """Throw away the frames under way."""
        with self.changed:
            left = [item for item in self._waiting if isinstance(item, _Waiting)]
            self._waiting.clear()
        for item in left:
            with suppress(Exception):  # it is of no interest how a frame failed that nobody waits for
                item.pending.discard()
            self.count("discarded")


class _Thread(threading.Thread):
    """A thread of a stream. A daemon: a camera that blocks for ever must not keep the process alive."""

    def __init__(self, line: _Line) -> None:
        super().__init__(name="hfd-edge-stream", daemon=True)
        self._line = line


class _Worker(_Thread):
    """Gives frames to the pipeline until they end, one fails, or nobody wants more."""

    def __init__(self, line: _Line, pipeline: FrameTaker, frames: Iterable[Array], *, dropping: bool) -> None:
        super().__init__(line)
        self._pipeline = pipeline
        self._frames = frames
        self._dropping = dropping
        self._running = threading.Lock()

    def run(self) -> None:
        frames = _numbered(self._frames, self._line)
        if self._dropping:
            frames = _newest(_Reader(frames, self._line))
        # When the program ends, what the frame at hand uses is freed; functions registered last come first.
        atexit.register(self.stop)
        try:
            while self._line.room():
                frame = next(frames, None)
                if frame is None or not self._submit(frame):
                    break
            self._line.put(_End(None))
        except BaseException as error:
            self._line.put(_End(error))
        finally:
            atexit.unregister(self.stop)
            frames.close()

    def stop(self) -> None:
        """Let no more frames be submitted; wait for the one that is, but not for the source."""
        self._line.stop()
        if threading.current_thread() is not self:
            with self._running:
                pass
        self._line.discard()

    def forget(self) -> None:
        """Stop, since nobody holds the stream any more; wait for nothing.

        The garbage collector calls this in any thread, which may hold what the frame that is being submitted
        waits for.
        """
        self._line.stop()
        self._line.discard()

    def _submit(self, frame: _Frame) -> bool:
        with self._running:
            if self._line.stopped:
                self._line.count("discarded")
                return False
            if self._line.late(time.monotonic() - frame.taken):
                self._line.count("dropped")
                return True
            try:
                pending = self._pipeline.submit(frame.image)
            except BaseException:
                self._line.count("failed")
                raise
            self._line.put(_Waiting(frame.index, frame.taken, pending))
            return True


def _numbered(source: Iterable[Array], line: _Line) -> Generator[_Frame, None, None]:
    """Take frames from the source, and tell it when no more are wanted."""
    frames: Iterator[Array] = iter(())
    try:
        frames = iter(source)
        for index, image in enumerate(frames):
            taken = time.monotonic()
            line.count("taken")
            yield _Frame(index, taken, image)
    finally:
        close = getattr(frames, "close", None)
        if close is not None:
            with suppress(Exception):  # the frames' own cleaning up; nobody is left to tell
                close()


class _Reader(_Thread):
    """Takes frames as fast as they come and keeps the newest, so that the source never waits."""

    def __init__(self, frames: Generator[_Frame, None, None], line: _Line) -> None:
        super().__init__(line)
        self._frames = frames
        self._kept: deque[_Frame] = deque()
        self._end: _End | None = None

    def run(self) -> None:
        end = _End(None)
        try:
            for frame in self._frames:
                if not self._keep(frame):
                    break
        except BaseException as error:
            end = _End(error)
        finally:
            self._frames.close()
        with self._line.changed:
            self._end = self._end or end
            self._line.changed.notify_all()

    def next(self) -> _Frame | None:
        """Wait for the oldest frame that is kept; None after the last one.

        Raises:
            Exception: what the source raised.
        """
        with self._line.changed:
            self._line.changed.wait_for(lambda: self._kept or self._end or self._line.stopped)
            if self._kept and not self._line.stopped:
                return self._kept.popleft()
            if self._end is not None and self._end.error is not None:
                raise self._end.error
            return None

    def close(self) -> None:
        """Keep no more frames."""
        with self._line.changed:
            self._end = self._end or _End(None)
            self._line.count("discarded", len(self._kept))
            self._kept.clear()

    def _keep(self, frame: _Frame) -> bool:
        with self._line.changed:
            if self._end is not None or self._line.stopped:
                self._line.count("discarded")
                return False
            self._kept.append(frame)
            if len(self._kept) > _WAITING_FRAMES:
                self._kept.popleft()
                self._line.count("dropped")
            self._line.changed.notify_all()
            return True


def _newest(reader: _Reader) -> Generator[_Frame, None, None]:
    """Give what a reader keeps."""
    reader.start()
    try:
        while (frame := reader.next()) is not None:
            yield frame
    finally:
        reader.close()


def _check(policy: str, deadline_ms: float | None) -> None:
    if policy not in POLICIES:
        raise BackendError(f"policy is {policy!r}, expected one of {', '.join(POLICIES)}.")
    if (policy == "deadline") != (deadline_ms is not None):
        raise BackendError(
            f'policy is "{policy}" and deadline_ms is {deadline_ms}, but a deadline goes with '
            'policy="deadline", and only with that. Pass both, or neither.'
        )
    if deadline_ms is not None and not 0 < deadline_ms < float("inf"):
        raise BackendError(f"deadline_ms is {deadline_ms}, expected a positive number of milliseconds.")
