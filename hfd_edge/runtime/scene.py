"""From a source of rows to a sink of labels, whatever the size, in memory for one row of tiles.

Scenes on disk and arrays in memory take the same road, so their labels are equal bit for bit. Rows are
read once, from top to bottom: compressed files need no second decoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import RadiometryError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.scene import SceneReader
from hfd_edge.runtime.aside import Behind, Stages, ahead
from hfd_edge.runtime.rows import Decided, DecidedRows, Ran, RowEngine, Tiler, nobody

Array = NDArray[Any]

# Stored values that are read and preprocessed at a time, beside the strip they end up in.
_CHUNK_VALUES = 1 << 22
# Rows of tiles whose labels are not waited for before the next one is submitted.
_AHEAD = 1


class RowSource(Protocol):
    """Stored SAR pixels that can be read by windows of rows."""

    @property
    def rows(self) -> int:
        """Height, pixels."""
        ...

    @property
    def cols(self) -> int:
        """Width, pixels."""
        ...

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def read(self, row0: int, row1: int) -> Array:
        """Stored values (bands, row1 - row0, cols)."""
        ...


class RowSink(Protocol):
    """Takes labels from top to bottom."""

    def write_rows(self, row0: int, labels: NDArray[np.uint8]) -> None:
        """Take labels (n, cols) of the rows from `row0` on."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """An image in memory, (bands, rows, cols)."""

    image: Array
    name: str = "The image"

    @property
    def rows(self) -> int:
        """Height, pixels."""
        return self.image.shape[1]

    @property
    def cols(self) -> int:
        """Width, pixels."""
        return self.image.shape[2]

    def read(self, row0: int, row1: int) -> Array:
        """Stored values of the rows, a view."""
        return self.image[:, row0:row1]


@dataclass(frozen=True)
class SceneSource:
    """A scene on disk; no-data that the file itself declares becomes NaN where the bundle expects another.

    Attributes:
        scene: The open scene.
        nodata: What the bundle's manifest calls no-data.
    """

    scene: SceneReader
    nodata: float | None

    @property
    def rows(self) -> int:
        """Height, pixels."""
        return self.scene.rows

    @property
    def cols(self) -> int:
        """Width, pixels."""
        return self.scene.cols

    @property
    def name(self) -> str:
        """The file."""
        return str(self.scene.path)

    def read(self, row0: int, row1: int) -> Array:
        """Stored values of the rows. Raises RasterError."""
        return self.scene.read_sar(row0, row1, nodata=self.nodata)


class ArraySink:
    """Collects labels in memory."""

    def __init__(self, *, rows: int, cols: int) -> None:
        self.labels: NDArray[np.uint8] = np.empty((rows, cols), np.uint8)

    def write_rows(self, row0: int, labels: NDArray[np.uint8]) -> None:
        """Take labels (n, cols) of the rows from `row0` on."""
        self.labels[row0 : row0 + len(labels)] = labels


@dataclass(frozen=True)
class TileCount:
    """What a run did.

    Attributes:
        tiles: Tiles that the network saw.
        skipped: Tiles without one valid pixel, which it did not need to see.
        stages_ms: Time of each stage. They add up to more than the whole where they run side by side.
    """

    tiles: int
    skipped: int
    stages_ms: Mapping[str, float] = field(default_factory=dict, compare=False)


def segment_rows(
    source: RowSource,
    sink: RowSink,
    *,
    engine: RowEngine,
    tiler: Tiler,
    progress: Progress = silent,
    aside: bool = True,
) -> TileCount:
    """Segment everything that `source` holds, and close the engine.

    Args:
        source: Pixels; at least one row and column.
        sink: Gets the labels, from top to bottom, each row once.
        engine: Of the source's width, and new.
        tiler: Geometry and preprocessing of the bundle.
        progress: Called with tiles done and tiles in all.
        aside: Read ahead and write behind, one block of rows each, in two threads that live as long as this
            call. It costs a fraction of a millisecond, which arrays in memory can do without.
    Raises:
        RadiometryError: the pixels are not in the units that the bundle expects.
        RasterError: the source cannot be read.
        BackendError: the network failed to run.
    """
    tiles = skipped = ready = 0
    total, text = tiler.plan(rows=source.rows, cols=source.cols).tiles, f"segment {source.name}"

    def ran(more: int) -> None:
        nonlocal ready
        ready += more
        progress(ready, total, text)

    driver = RowDriver(engine, tiler, cols=source.cols, rows=source.rows, name=source.name, ran=ran)
    stages = Stages()
    read, write = stages.timing("read", source.read), stages.timing("write", sink.write_rows)
    with ExitStack() as stack:
        stack.callback(engine.close)
        ran(0)
        calls = (partial(read, *window) for window in driver.windows())
        blocks = stack.enter_context(closing(ahead(calls))) if aside else (call() for call in calls)
        put = stack.enter_context(Behind(write)) if aside else write
        for done in _driven(driver, blocks):
            put(done.start, done.values)
            tiles, skipped = tiles + done.tiles, skipped + done.skipped
        spent = engine.stages_ms
    return TileCount(tiles, skipped, {**stages.ms, **spent})


def _driven(driver: RowDriver, blocks: Iterator[Array]) -> Iterator[DecidedRows]:
    for block in blocks:
        yield from driver.push(block)
    yield from driver.drain()


class RowDriver:
    """Pushes rows, as they come, through a row engine, and gives the rows of labels that they decide.

    Memory is that of the engine and of the stored rows that are not prepared yet. While a device works on
    one row of tiles, the next rows are taken and submitted; only then are its labels waited for.

    Attributes:
        received: Rows that were pushed.
    """

    def __init__(
        self,
        engine: RowEngine,
        tiler: Tiler,
        *,
        cols: int,
        name: str,
        rows: int | None = None,
        ran: Ran = nobody,
    ) -> None:
        """Start a raster.

        Args:
            engine: Of this width, and new; its owner closes it.
            tiler: Geometry and preprocessing of the bundle.
            cols: Width, pixels.
            name: What errors about pixels call the raster.
            rows: Height, if it is known. Rows of tiles then need not wait until the end is far enough.
            ran: Told how many tiles are done; see `RowEngine.segment`.
        """
        self.received = 0
        self._engine = engine
        self._tiler = tiler
        self._cols = cols
        self._rows = rows
        self._name = name
        self._ran = ran
        self._halo = tiler.preprocessing.halo_px
        self._chunk = max(1, _CHUNK_VALUES // (cols * tiler.preprocessing.bands))
        self._raw: deque[Array] = deque()  # stored rows from `_raw_start` to `received`
        self._raw_start = 0
        self._ready = 0  # rows that are prepared
        self._tile_row = 0  # the next row of tiles, and where it starts
        self._origin = 0
        self._running: deque[Decided] = deque()

    def windows(self) -> Iterator[tuple[int, int]]:
        """First row and row after the last of each push for a raster whose height is known.

        Each is enough for one chunk with its halo, and none brings rows that would only wait.
        """
        height = self.received if self._rows is None else self._rows
        ready = received = 0
        for origin in self._tiler.plan(rows=height, cols=self._cols).row_origins:
            full = min(origin + self._tiler.tile_px, height)
            while ready < full:
                ready = min(ready + self._chunk, full)
                stop = min(ready + self._halo, height)
                if stop > received:
                    yield received, stop
                received = stop

    def push(self, raw: Array) -> Iterator[DecidedRows]:
        """Take the next rows (bands, n, cols); they may be changed once the iterator ends.

        Raises:
            RadiometryError: the pixels are not in the units that the bundle expects.
            BackendError: the network failed to run.
        """
        self._raw.append(raw)
        self.received += raw.shape[1]
        yield from self._work()
        # What is left belongs to the caller: keep a copy of the rows that are still needed.
        done = min(max(0, self._ready - self._halo - (self.received - raw.shape[1])), raw.shape[1])
        self._raw[-1] = raw[:, done:].copy()
        self._raw_start += done

    def finish(self) -> Iterator[DecidedRows]:
        """End the raster with the last row that was pushed, where its height was not known."""
        self._rows = self.received
        yield from self._work()
        yield from self.drain()

    def drain(self) -> Iterator[DecidedRows]:
        """Wait for all that was submitted."""
        while self._running:
            yield self._take()

    def _work(self) -> Iterator[DecidedRows]:
        while self._prepare():
            height = self.received if self._rows is None else self._rows
            plan = self._tiler.plan(rows=height, cols=self._cols)
            known = plan.settled if self._rows is None else plan.tile_rows
            if self._tile_row >= known:
                return
            row = plan.tile_row(self._tile_row, stride=self._tiler.stride)
            with _naming(self._name):
                self._running.append(self._engine.segment(row, ran=self._ran))
            self._tile_row, self._origin = row.index + 1, row.following
            if len(self._running) > _AHEAD:
                yield self._take()

    def _prepare(self) -> bool:
        """Prepare what can be, in chunks; say whether the next row of tiles has all its rows."""
        full = self._origin + self._tiler.tile_px
        end = self.received - self._halo
        if self._rows is not None:
            full = min(full, self._rows)
            end = self.received if self.received == self._rows else end
        end = min(end, full)
        while self._ready < end and (end == full or end - self._ready >= self._chunk):
            stop = min(self._ready + self._chunk, end)
            first, last = max(self._ready - self._halo, 0), min(stop + self._halo, self.received)
            with _naming(self._name):
                raw = self._window(first, last)
                self._engine.prepare(raw, above=self._ready - first, below=last - stop)
            self._ready = stop
            self._forget(stop - self._halo)
        return self._ready == full

    def _window(self, first: int, last: int) -> Array:
        """Stored rows, a view where they came in one piece."""
        pieces, start = [], self._raw_start
        for piece in self._raw:
            stop = start + piece.shape[1]
            if start < last and stop > first:
                pieces.append(piece[:, max(0, first - start) : last - start])
            start = stop
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def _forget(self, before: int) -> None:
        """Drop the pieces that end before this row."""
        while len(self._raw) > 1 and self._raw_start + self._raw[0].shape[1] <= before:
            self._raw_start += self._raw.popleft().shape[1]

    def _take(self) -> DecidedRows:
        decided = self._running.popleft()
        with _naming(self._name):
            labels = decided.labels()
        return DecidedRows(decided.start, decided.stop, decided.tiles, decided.skipped, labels)


@contextmanager
def _naming(raster: str) -> Iterator[None]:
    """Say in errors about pixels which raster they are in."""
    try:
        yield
    except RadiometryError as error:
        raise RadiometryError(f"{raster}: {error}") from error
