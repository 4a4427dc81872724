"""The three kinds of work that are timed: tile after tile, frames at a rate, a scene from file to file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bench.measure import SCENES, TILES, Run, WarmUp
from hfd_edge.bench.result import Kind
from hfd_edge.errors import RasterError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.scene import SceneReader, SceneWriter
from hfd_edge.runtime.segmenter import Segmenter

Array = NDArray[Any]
Tick = Callable[[], None]

_SCENE_TILES = 3  # sides of a simulated scene, in tiles: 25 tiles at half a tile's overlap
_BLOCK_ROWS = 256


@dataclass(frozen=True)
class Series:
    """Timed runs of one visit.

    Attributes:
        runs: In the order in which they were taken.
        wall_s: What they took together, seconds.
        dropped: Frames that a stream left out; None elsewhere.
    """

    runs: tuple[Run, ...]
    wall_s: float
    dropped: int | None = None


class Work(Protocol):
    """Something to time.

    Attributes:
        kind: Its kind.
        megapixels: Of one run.
        runs: Timed runs that were asked for.
        rule: When its warm-up is over.
        rate_hz: Frames a second; streams only.
    """

    @property
    def kind(self) -> Kind: ...
    @property
    def megapixels(self) -> float: ...
    @property
    def runs(self) -> int: ...
    @property
    def rule(self) -> WarmUp: ...
    @property
    def rate_hz(self) -> float | None: ...

    def warm(self, segment: Segmenter, tick: Tick) -> Run:
        """Do it once, and call `tick` where most memory is in use."""
        ...

    def timed(self, segment: Segmenter, runs: int, tick: Tick) -> Series:
        """Do it so many times; `tick` is called after each of them."""
        ...


@dataclass(frozen=True)
class _OneTile:
    """Work whose runs are one and the same tile."""

    tile: Array  # (bands, tile_px, tile_px)
    runs: int

    @property
    def megapixels(self) -> float:
        """Pixels of the tile / 1e6."""
        return float(self.tile[0].size / 1e6)

    def warm(self, segment: Segmenter, tick: Tick) -> Run:
        """Segment the tile once, by itself."""
        run = _tile(segment, self.tile)
        tick()
        return run


@dataclass(frozen=True)
class Tiles(_OneTile):
    """One tile after the other, each waited for."""

    kind: Kind = "tile"
    rule: WarmUp = TILES
    rate_hz: None = None

    def timed(self, segment: Segmenter, runs: int, tick: Tick) -> Series:
        """Segment the tile again and again."""
        return _one_by_one(lambda: _tile(segment, self.tile), runs, tick)


@dataclass(frozen=True)
class Frames(_OneTile):
    """Tiles offered at a steady rate by a source that waits for nobody; the stream drops what is too much.

    Latency counts from the moment when a frame was due, whether the source's thread came to offer it then or
    not: a machine that is too busy to offer frames must not look fast.
    """

    rate_hz: float
    kind: Kind = "stream"
    rule: WarmUp = TILES

    def timed(self, segment: Segmenter, runs: int, tick: Tick) -> Series:
        """Offer so many frames; gives a run for each mask that came."""
        due: list[float] = []
        found: list[Run] = []
        spent: dict[str, float] = {}
        on_device = device_of(segment) is not None
        with segment.stream(self._paced(runs, due), policy="drop-oldest") as masks:
            for _ in masks:
                latency_ms = 1000 * (time.monotonic() - due[masks.position])
                # The stream keeps means; what a frame adds to their sums is the frame's own.
                sums = {name: mean * masks.counts["delivered"] for name, mean in masks.stages_ms.items()}
                stages = {name: max(0.0, total - spent.get(name, 0.0)) for name, total in sums.items()}
                spent = sums
                found.append(Run(latency_ms, stages, on_device))
                tick()
            return Series(tuple(found), time.monotonic() - due[0], masks.dropped)

    def _paced(self, count: int, due: list[float]) -> Iterator[Array]:
        began = time.monotonic()
        for index in range(count):
            due.append(began + index / self.rate_hz)
            time.sleep(max(0.0, due[-1] - time.monotonic()))
            yield self.tile


@dataclass(frozen=True)
class Scene:
    """A scene from file to file."""

    source: Path
    destination: Path
    megapixels: float
    runs: int
    kind: Kind = "scene"
    rule: WarmUp = SCENES
    rate_hz: None = None

    def warm(self, segment: Segmenter, tick: Tick) -> Run:
        """Segment the scene once."""
        return self._once(segment, lambda *_: tick())

    def timed(self, segment: Segmenter, runs: int, tick: Tick) -> Series:
        """Segment the scene again and again."""
        return _one_by_one(lambda: self._once(segment, silent), runs, tick)

    def _once(self, segment: Segmenter, progress: Progress) -> Run:
        started = time.perf_counter()
        report = segment.scene(self.source, self.destination, progress=progress)
        return Run(1000 * (time.perf_counter() - started), dict(report.stages_ms))


def scene_work(source: Path | None, *, tile: Array, folder: Path, runs: int) -> Scene:
    """Prepare a scene.

    Args:
        source: GeoTIFF or another raster; None for one that goes on as the mirror image of `tile`.
        tile: Stored pixels (bands, tile_px, tile_px), in the bundle's units.
        folder: Temporary folder, for the mask and such a scene.
        runs: Timed runs.
    Raises:
        RasterError: the scene cannot be read, or has another number of bands.
        StorageError: there is no room for the files.
    """
    if source is None:
        source = folder / "scene.tif"
        side = _SCENE_TILES * tile.shape[1]
        _write_mirrored(source, tile, side)
        megapixels = side * side / 1e6
    else:
        with SceneReader(source) as reader:
            if reader.bands != len(tile):  # minutes before the first attempt would tell
                raise RasterError(
                    f"{source} has {reader.bands} bands, but the bundle expects {len(tile)}. Give a scene "
                    "with exactly its bands, in their order."
                )
            megapixels = reader.rows * reader.cols / 1e6
    return Scene(source, folder / "mask.tif", megapixels, runs)


def device_of(segment: Segmenter) -> Any:
    """The GPU that a segmenter's pipeline works on with events around its stages; None elsewhere."""
    return getattr(segment.pipeline, "device", None)


def _tile(segment: Segmenter, tile: Array) -> Run:
    started = time.perf_counter()
    pending = segment.submit(tile)
    pending.result()
    ended = time.perf_counter()
    return Run(1000 * (ended - started), dict(pending.stages_ms), device_of(segment) is not None)


def _one_by_one(once: Callable[[], Run], runs: int, tick: Tick) -> Series:
    found, wall_s = [], 0.0
    for _ in range(runs):
        found.append(once())
        wall_s += found[-1].ms / 1000
        tick()
    return Series(tuple(found), wall_s)


def _write_mirrored(path: Path, tile: Array, side: int) -> None:
    position = np.arange(side) % (2 * tile.shape[1])
    index = np.minimum(position, 2 * tile.shape[1] - 1 - position)
    with SceneWriter(path, bands=len(tile), rows=side, cols=side, dtype=tile.dtype) as scene:
        for row0 in range(0, side, _BLOCK_ROWS):
            rows = index[row0 : row0 + _BLOCK_ROWS]
            scene.write_rows(row0, tile[:, rows][:, :, index])
