"""Progress and cancelling of a build: TensorRT's phases become a bar, Ctrl-C becomes a clean end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

from hfd_edge.progress import Progress
from hfd_edge.tensorrt_api import TensorRT, member


class Watch:
    """Follows one build and remembers what ended it.

    Attributes:
        stopped: What the progress raised, or KeyboardInterrupt; the build shall end and raise it.
    """

    def __init__(self, progress: Progress, label: str) -> None:
        self.stopped: BaseException | None = None
        self._progress, self._label = progress, label
        self._phases: dict[str, tuple[int, int]] = {}  # running phases, outermost first: steps, done
        self._share = 0.0
        # TensorRT may report from several threads (IProgressMonitor, TensorRT 10 API reference).
        self._lock = threading.RLock()

    def start(self, phase: str, steps: int) -> None:
        """A phase begins, inside the ones that run."""
        with self._lock:
            self._phases[phase] = (steps, 0)
            self.tell(phase)

    def step(self, phase: str) -> bool:
        """A phase has done a step. Returns whether the build shall go on."""
        with self._lock:
            steps, done = self._phases.get(phase, (1, 0))
            self._phases[phase] = (steps, done + 1)
            self.tell(phase)
        return self.stopped is None

    def finish(self, phase: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(phase, None)

    def tell(self, text: str) -> None:
        """Report to the progress; an exception of it is kept, because none may cross the C++ frames."""
        if self.stopped is not None:
            return
        try:
            self._progress(self._done(), 1.0, f"{self._label}: {text.lower()}")
        except BaseException as error:
            self.stopped = error

    def raise_if_stopped(self) -> None:
        """Raise what stopped the build, if something did."""
        if self.stopped is not None:
            raise self.stopped

    def _done(self) -> float:
        """Share of the work done: the running phases are nested, each a step of its parent."""
        share, weight = 0.0, 1.0
        for steps, done in self._phases.values():
            weight /= max(steps, 1)
            share += weight * min(done, steps)
        # A phase ends shortly before its parent counts it; a bar must not run backwards.
        self._share = min(max(self._share, share), 1.0)
        return self._share


def attach(trt: TensorRT, config: Any, watch: Watch) -> None:
    """Let a build report to `watch`; TensorRT 8.6 has no monitor, so its builds only say that they run."""
    base = member(trt, "IProgressMonitor")
    if base is None:
        watch.tell("compiling, without news until it is done")
        return
    config.progress_monitor = _monitor(base)(watch)


@contextlib.contextmanager
def interrupt_stops(watch: Watch) -> Iterator[None]:
    """Let Ctrl-C stop the build at its next step, as a progress that raises does.

    Python would raise it inside whichever callback runs next, and TensorRT drops what its logger raises.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return

    def note(number: int, frame: object) -> None:
        watch.stopped = watch.stopped or KeyboardInterrupt()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@cache
def _monitor(base: Any) -> Any:
    class Monitor(base):
        """TensorRT's view of a `Watch`."""

        def __init__(self, watch: Watch) -> None:
            super().__init__()
            self._watch = watch

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._watch.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._watch.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._watch.finish(phase_name)

    return Monitor
