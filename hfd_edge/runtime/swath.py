"""From lines as a push-broom SAR processor delivers them to rows of the mask, while the swath goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.runtime.rows import DecidedRows
from hfd_edge.runtime.scene import RowDriver
from hfd_edge.runtime.segmenter import Segmenter

Array = NDArray[Any]


class SwathSegmenter:
    """Segments a swath whose length is not known; use it in a `with` statement, or `close` it.

    The mask equals what the segmenter makes of the whole swath at once, pixel for pixel, however the lines
    are cut into pushes. Memory does not grow with the number of lines.

        with SwathSegmenter(segment, cols=25_000) as swath:
            for lines in processor:
                for mask in swath.push(lines):
                    sink.write(mask)
            for mask in swath.finish():
                sink.write(mask)

    Attributes:
        cols: Width of the swath, pixels.
        latency_rows: Row r of the mask, counted from 0, is out at the latest with the push that brings row
            r + latency_rows - 1, or with `finish`. It is

                max(tile_px + halo, tile_px + apart - 31) + stride // 2

            A row of tiles reads its own rows and the halo of the speckle filter around them. It must also be
            sure how it blends with those below, the last of which is moved back to end with the swath: that
            one must be `apart` below it, which is tile_px - overlap_px for overlaps up to 128, and
            tile_px - 3/4 overlap_px, rounded up to 32, beyond. stride // 2 rows interpolate with the logits
            below them. 803 for tiles of 512 pixels, an overlap of 256 and stride 4.
        received: Rows that were pushed.
        finished: Rows of the mask that are out.
    """

    def __init__(self, segmenter: Segmenter, *, cols: int) -> None:
        """Start a swath.

        Args:
            segmenter: Must stay open; it may segment other things meanwhile.
            cols: Width of the swath, pixels.
        Raises:
            RadiometryError: `cols` is not positive.
            BackendError: the device is out of memory, or was closed.
        """
        if cols < 1:
            raise RadiometryError(f"The swath is {cols} columns wide, expected 1 or more.")
        self.cols = cols
        self.finished = 0
        self._segmenter = segmenter
        tiler = segmenter.pipeline.tiler
        alone = tiler.tile_px + tiler.preprocessing.halo_px
        settle = tiler.plan(rows=1, cols=cols).settling_px
        self.latency_rows = max(alone, settle) + tiler.stride // 2
        self._engine = segmenter.pipeline.rows(cols=cols)
        self._driver = RowDriver(self._engine, tiler, cols=cols, name="The swath")
        self._dtype: np.dtype[Any] | None = None  # of the first push
        self._over = ""  # why nothing more can be pushed

    @property
    def received(self) -> int:
        """Rows that were pushed."""
        return self._driver.received

    def push(self, rows: Array) -> Iterator[NDArray[np.uint8]]:
        """Take the next rows of the swath and segment what they complete.

        The work is done in this call, whether its result is used or not.

        Args:
            rows: Stored pixels (bands, n, cols) in the manifest's units; n is any number, 0 too. They may be
                changed once this returns.
        Returns:
            The rows of the mask that are finished now, as arrays (m, cols), from top to bottom; each row of
            the swath comes once.
        Raises:
            RadiometryError: the rows have another number of axes, bands or columns, or another type than the
                first (the swath goes on without them), or their pixels are not in the manifest's units (the
                swath ends).
            BackendError: the network failed to run (the swath ends), or the swath is over.
        """
        self._check_open()
        rows = np.asarray(rows)
        if rows.ndim != 3:
            raise RadiometryError(f"The rows are {rows.shape}, expected (bands, rows, cols).")
        self._segmenter.check_bands("The push", len(rows))
        if rows.shape[2] != self.cols:
            raise RadiometryError(
                f"The rows are {rows.shape[2]} columns wide, but the swath is {self.cols}. "
                "Start another SwathSegmenter where the width changes."
            )
        self._dtype = self._dtype or rows.dtype
        if rows.dtype != self._dtype:
            raise RadiometryError(
                f"The rows are {rows.dtype}, but the swath began with {self._dtype}. "
                f"Convert them, for example with rows.astype({self._dtype.name!r})."
            )
        return self._run(self._driver.push(rows))

    def finish(self) -> Iterator[NDArray[np.uint8]]:
        """End the swath with the last row that was pushed.

        Returns:
            The rest of the mask, as `push`.
        Raises:
            RadiometryError: no row was pushed, or as `push`.
            BackendError: the network failed to run, or the swath is over.
        """
        self._check_open()
        if not self.received:
            raise RadiometryError("The swath ended before its first row. Push rows before finish.")
        masks = self._run(self._driver.finish())
        self._end("was finished")
        return masks

    def close(self) -> None:
        """Free the swath's memory, finished or not; the segmenter stays open. More than once is allowed."""
        self._end("was closed")

    def __enter__(self) -> SwathSegmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, decided: Iterable[DecidedRows]) -> Iterator[NDArray[np.uint8]]:
        masks = []
        try:
            # All that was submitted is waited for: the next push may be long in coming.
            for done in (*decided, *self._driver.drain()):
                self.finished = done.stop
                if len(done.values):
                    masks.append(done.values)
        except BaseException:
            self._end("failed")
            raise
        return iter(masks)

    def _end(self, why: str) -> None:
        self._over = self._over or why
        self._engine.close()

    def _check_open(self) -> None:
        if self._over:
            raise BackendError(f"The swath {self._over}. Start another SwathSegmenter.")
