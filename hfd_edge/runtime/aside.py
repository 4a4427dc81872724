"""Reading ahead and writing behind in threads of their own, never more than one call early or late."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Stages:
    """Adds up the time of stages by their names; each name belongs to one thread.

    Attributes:
        ms: Time of each stage so far, milliseconds.
    """

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the time that a block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + 1000 * (time.perf_counter() - started)

    def timing(self, name: str, call: Callable[P, T]) -> Callable[P, T]:
        """Give a function that does the same and counts the time that it takes."""

        def timed(*args: P.args, **options: P.kwargs) -> T:
            with self.timed(name):
                return call(*args, **options)

        return timed


def ahead(calls: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """Make calls one after the other in a thread, and give their results in order.

    While the caller uses one result, the next is in the making; no more wait. Close the generator, or what a
    caller's exception leaves behind keeps the thread.

    Raises:
        Exception: what a call raised, in its place; the calls after it are not made.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="hfd-ahead") as pool:
        pending: Future[T] | None = None
        for call in calls:
            result = None if pending is None else (pending.result(),)
            pending = pool.submit(call)
            if result is not None:
                yield result[0]
        if pending is not None:
            yield pending.result()


class Behind:
    """Makes calls in a thread, in order; use it in a `with` statement, which waits for the last one.

    One call may be under way; the next one waits for it, and raises what it raised.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hfd-behind")
        self._pending: Future[Any] | None = None

    def __call__(self, *args: Any) -> None:
        """Call it with these, which must not change any more. Raises what the call before raised."""
        self._wait()
        self._pending = self._pool.submit(self._call, *args)

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown()

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
