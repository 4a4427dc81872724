"""What the driver asks of an engine of rows, whatever the engine is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfd_edge.errors import RadiometryError
from hfd_edge.progress import silent
from hfd_edge.raster.logits import labels_from_logits
from hfd_edge.raster.tiling import TileRow, blend_weights
from hfd_edge.runtime import scene
from hfd_edge.runtime.rows import CpuRows, Decided, Ran, Tiler, nobody
from hfd_edge.runtime.scene import ArraySink, ArraySource, RowDriver, segment_rows

from .conftest import make_manifest

Make = Callable[..., np.ndarray]


def make_tiler(**changes: Any) -> Tiler:
    manifest = make_manifest(**changes)
    return Tiler(
        preprocessing=manifest.preprocessing,
        classes=4,
        stride=manifest.stride,
        tile_px=64,
        overlap_px=changes.get("overlap_px", 32),
        nodata_label=255,
    )


class Network:
    """Logits that depend on every pixel of the tile, so that each tile says something else of a place."""

    name, precision, batch = "fake", "fp32", 2

    def __init__(self, tiler: Tiler) -> None:
        self._tiler = tiler

    def run(self, batch: np.ndarray) -> np.ndarray:
        count, bands, size, _ = batch.shape
        stride, low = self._tiler.stride, size // self._tiler.stride
        blocks = batch.reshape(count, bands, low, stride, low, stride).mean(axis=(1, 3, 5))
        means = batch.mean(axis=(1, 2, 3))[:, None, None]
        logits = [blocks, 0.5 * means + 0 * blocks, -blocks, blocks - means]
        return np.stack(logits, axis=1).astype(np.float32)

    def close(self) -> None: ...


def segment_by_definition(image: np.ndarray, tiler: Tiler) -> tuple[np.ndarray, int]:
    """The whole raster at once: every tile, blended over the whole map of logits, then labelled.

    Gives the labels, and how many tiles hold a valid pixel.
    """
    rows, cols = image.shape[1:]
    plan = tiler.plan(rows=rows, cols=cols)
    pixels, valid = tiler.preprocessing(image)
    padding = ((0, 0), (0, plan.padded_rows - rows), (0, plan.padded_cols - cols))
    pixels = np.pad(pixels, padding, mode="symmetric")
    valid = np.pad(valid, padding[1:])
    size, low = tiler.tile_px, tiler.tile_px // tiler.stride
    options = {"tile_px": size, "overlap_px": tiler.overlap_px, "stride": tiler.stride}
    row_weights = blend_weights(plan.row_origins, **options)
    col_weights = blend_weights(plan.col_origins, **options)
    shape = (plan.padded_rows // tiler.stride, plan.padded_cols // tiler.stride)
    logits, tiles = np.zeros((tiler.classes, *shape), np.float32), 0
    for top, of_row in zip(plan.row_origins, row_weights, strict=True):
        for left, of_col in zip(plan.col_origins, col_weights, strict=True):
            if not valid[top : top + size, left : left + size].any():
                continue
            tiles += 1
            tile = pixels[np.newaxis, :, top : top + size, left : left + size]
            row, col = top // tiler.stride, left // tiler.stride
            weights = of_row[:, np.newaxis] * of_col
            logits[:, row : row + low, col : col + low] += Network(tiler).run(tile)[0] * weights
    labels = labels_from_logits(logits, stride=tiler.stride, rows=rows, cols=cols)
    labels[~valid[:rows, :cols]] = tiler.nodata_label
    return labels, tiles


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 200),
    st.sampled_from([0, 32]),
    st.sampled_from(["quarter", "full"]),
    st.sampled_from([1, 700, 1 << 22]),
)
def test_row_by_row_equals_all_at_once(rows: int, cols: int, overlap_px: int, head: str, chunk: int) -> None:
    tiler = make_tiler(head=head, overlap_px=overlap_px)
    image = np.random.default_rng(rows * 1000 + cols).gamma(4, 1, (2, rows, cols)).astype(np.float32)
    image[:, rows // 3 : rows // 3 + 80, : cols - 9] = 0  # some tiles are left out
    sink = ArraySink(rows=rows, cols=cols)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "_CHUNK_VALUES", chunk)
        engine = CpuRows(Network(tiler), tiler, cols=cols)
        count = segment_rows(ArraySource(image), sink, engine=engine, tiler=tiler)
    labels, tiles = segment_by_definition(image, tiler)
    assert np.array_equal(sink.labels, labels)
    assert count.tiles == tiles
    assert count.tiles + count.skipped == tiler.plan(rows=rows, cols=cols).tiles


@dataclass
class Recorder:
    """An engine that keeps what it is told, and complains about what the contract excludes."""

    tiler: Tiler
    cols: int
    events: list[str] = field(default_factory=list)
    raws: list[np.ndarray] = field(default_factory=list)
    filled: int = 0  # rows of the raster that were appended
    row: TileRow | None = None
    closed: int = 0
    waiting: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)

    def prepare(self, raw: np.ndarray, *, above: int, below: int) -> None:
        halo = self.tiler.preprocessing.halo_px
        rows = raw.shape[1] - above - below
        assert rows > 0
        assert above == min(self.filled, halo)
        assert 0 <= below <= halo
        origin = 0 if self.row is None else self.row.following
        assert self.filled + rows <= origin + self.tiler.tile_px
        assert np.array_equal(raw[0, :, 0], np.arange(self.filled - above, self.filled + rows + below))
        self.raws.append(raw)
        self.filled += rows
        self.events.append("prepare")

    def segment(self, row: TileRow, *, ran: Ran = nobody) -> Decided:
        assert row.index == (0 if self.row is None else self.row.index + 1)
        assert row.origin == (0 if self.row is None else self.row.following)
        assert self.filled == row.origin + row.used
        self.row = row
        self.waiting += 1
        assert self.waiting <= 2
        self.events.append(f"segment {row.index}")
        return RecordedRows(self, row)

    def close(self) -> None:
        self.closed += 1


@dataclass
class RecordedRows:
    """Labels that tell the row that they are of."""

    engine: Recorder
    row: TileRow
    tiles: int = 1
    skipped: int = 0

    @property
    def start(self) -> int:
        return self.row.start

    @property
    def stop(self) -> int:
        return self.row.stop

    def labels(self) -> np.ndarray:
        self.engine.waiting -= 1
        self.engine.events.append(f"labels {self.row.index}")
        return np.tile(np.arange(self.start, self.stop)[:, None], (1, self.engine.cols)).astype(np.uint8)


def numbered(rows: int, cols: int = 5) -> np.ndarray:
    """Pixels that hold their row."""
    return np.tile(np.arange(rows, dtype=np.float32)[:, None], (2, 1, cols))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=9), st.booleans(), st.sampled_from([1, 90, 1 << 22])
)
def test_rows_reach_the_engine_in_order_and_once(pushes: list[int], known: bool, chunk: int) -> None:
    tiler, rows = make_tiler(), sum(pushes)
    engine, image, received = Recorder(tiler, 5), numbered(rows), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "_CHUNK_VALUES", chunk)
        driver = RowDriver(engine, tiler, cols=5, name="test", rows=rows if known else None)
    out = []
    for count in pushes:
        out += list(driver.push(image[:, received : received + count]))
        received += count
        assert driver.received == received
    out += list(driver.drain() if known else driver.finish())
    assert [done.start for done in out] == [0, *(done.stop for done in out[:-1])]
    assert np.array_equal(np.concatenate([done.values for done in out])[:, 0], np.arange(rows) % 256)
    assert engine.filled == rows
    assert len(out) == tiler.plan(rows=rows, cols=5).tile_rows


def test_the_next_rows_are_submitted_before_labels_are_waited_for() -> None:
    tiler = make_tiler()
    engine, sink = Recorder(tiler, 5), ArraySink(rows=150, cols=5)
    segment_rows(ArraySource(numbered(150)), sink, engine=engine, tiler=tiler)
    assert engine.events == [
        "prepare", "segment 0",
        "prepare", "segment 1", "labels 0",
        "prepare", "segment 2", "labels 1",
        "prepare", "segment 3", "labels 2",
        "labels 3",
    ]  # fmt: skip
    assert engine.closed == 1


def test_a_row_pushed_is_not_read_again_from_the_caller() -> None:
    """Sources use their buffers again: what the driver still needs must be its own."""
    tiler = make_tiler()
    engine, buffer, image = Recorder(tiler, 5), np.empty((2, 7, 5), np.float32), numbered(203)
    driver = RowDriver(engine, tiler, cols=5, name="test")
    for start in range(0, 203, 7):
        buffer[:] = image[:, start : start + 7]
        list(driver.push(buffer))
        buffer[:] = np.nan  # `Recorder.prepare` compares every row with its number
    list(driver.finish())
    assert engine.filled == 203


def test_an_image_in_one_piece_is_not_copied() -> None:
    tiler, image = make_tiler(), numbered(60)
    engine = Recorder(tiler, 5)
    segment_rows(ArraySource(image), ArraySink(rows=60, cols=5), engine=engine, tiler=tiler)
    assert [np.shares_memory(raw, image) for raw in engine.raws] == [True]


def test_errors_in_pixels_name_the_raster_even_when_they_show_late() -> None:
    class Late(Recorder):
        def segment(self, row: TileRow, *, ran: Ran = nobody) -> Decided:
            decided = super().segment(row, ran=ran)
            return Failing(self, row) if row.index == 1 else decided

    class Failing(RecordedRows):
        def labels(self) -> np.ndarray:
            raise RadiometryError("negative values")

    tiler = make_tiler()
    engine, sink = Late(tiler, 5), ArraySink(rows=150, cols=5)
    # The rows before the bad ones are out, and the engine is closed.
    with pytest.raises(RadiometryError, match=r"^The image: negative values$"):
        segment_rows(ArraySource(numbered(150)), sink, engine=engine, tiler=tiler)
    assert engine.closed == 1
    assert np.array_equal(sink.labels[:30, 0], np.arange(30))


@pytest.mark.parametrize("failing", ["source", "sink", "progress"])
def test_the_engine_is_closed_whatever_fails(failing: str) -> None:
    class Broken(ArraySource):
        def read(self, row0: int, row1: int) -> np.ndarray:
            raise OSError("read")

    class Full(ArraySink):
        def write_rows(self, row0: int, labels: np.ndarray) -> None:
            raise OSError("write")

    def stop(done: float, total: float, text: str) -> None:
        raise OSError("stopped")

    tiler = make_tiler()
    engine = Recorder(tiler, 5)
    source = (Broken if failing == "source" else ArraySource)(numbered(150))
    sink = (Full if failing == "sink" else ArraySink)(rows=150, cols=5)
    with pytest.raises(OSError, match=r"read|write|stopped"):
        segment_rows(
            source, sink, engine=engine, tiler=tiler, progress=stop if failing == "progress" else silent
        )
    assert engine.closed == 1


def test_halo_free_preprocessing_needs_no_neighbours(make_image: Make) -> None:
    tiler = make_tiler(speckle="none")
    assert tiler.preprocessing.halo_px == 0
    image = make_image(100, 90)
    sink = ArraySink(rows=100, cols=90)
    segment_rows(ArraySource(image), sink, engine=CpuRows(Network(tiler), tiler, cols=90), tiler=tiler)
    assert np.array_equal(sink.labels, segment_by_definition(image, tiler)[0])
