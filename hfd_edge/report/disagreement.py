"""Pictures of the tiles on which variants disagree: a second look at a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.comparison import Comparison, Disagreement, disagreements
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.progress import Progress, silent
from hfd_edge.report.pictures import eo_picture, flip_picture, label_picture, sar_picture
from hfd_edge.report.tiles import display_values, voided
from hfd_edge.runtime.segmenter import Segmenter

Array = NDArray[Any]
Window = tuple[slice, slice]

SIDE_PX = 512
"""Longest side of a picture; of a larger image the part that differs most is shown, at full resolution."""


@dataclass(frozen=True)
class DisagreementPictures:
    """One tile; pictures are uint8 RGB (3, rows, cols).

    Attributes:
        found: The tile and the row that differs on it.
        part: Which rows and columns are shown, in words; "" for all.
        sar: SAR.
        eo: Optical image; None when the pair has none.
        truth: Reference labels.
        reference: What FP32 says.
        variant: What the variant says.
        flips: Where they differ; see `pictures.flip_picture`.
    """

    found: Disagreement
    part: str
    sar: Array
    eo: Array | None
    truth: Array
    reference: Array
    variant: Array
    flips: Array


def draw_disagreements(
    bundle: Bundle,
    folder: PairFolder,
    comparison: Comparison,
    *,
    count: int = 4,
    progress: Progress = silent,
) -> list[DisagreementPictures]:
    """Segment the tiles that differ most once more and draw them, worst first.

    FP32 and one variant are loaded at a time, and one tile is in memory.

    Args:
        bundle: The bundle that was compared.
        folder: The data that it was compared on.
        comparison: What `hfd_edge.comparison.compare` gave.
        count: Tiles to draw; fewer when fewer differ.
        progress: Counts tiles.
    Raises:
        BackendError: a variant that ran before does not run any more.
        DatasetError: a file was changed or removed in between.
    """
    chosen = disagreements(comparison, count=count)
    pairs = {pair.name: pair for pair in folder.pairs(comparison.split)}
    drawn: dict[str, DisagreementPictures] = {}

    def open_one(precision: str, backend: str) -> Segmenter:
        return Segmenter(bundle, backend=backend, precision=precision, threads=comparison.threads)

    for precision, backend in dict.fromkeys((found.precision, found.backend) for found in chosen):
        with (
            open_one(comparison.rows[0].precision, comparison.reference) as reference,
            open_one(precision, backend) as variant,
        ):
            for found in chosen:
                if (found.precision, found.backend) == (precision, backend):
                    progress(len(drawn), len(chosen), "drawing tiles that differ")
                    drawn[found.tile] = _draw(found, pairs[found.tile], folder, (reference, variant))
    progress(len(chosen), len(chosen), "drawing tiles that differ")
    return [drawn[found.tile] for found in chosen]


def _draw(
    found: Disagreement, pair: Pair, folder: PairFolder, segmenters: tuple[Segmenter, Segmenter]
) -> DisagreementPictures:
    config = folder.config
    image, truth = folder.load_sar(pair), folder.load_label(pair)
    reference, variant = (voided(segment(image), config) for segment in segmenters)
    window = densest(reference != variant, side_px=SIDE_PX)
    rows, cols = window
    sar = display_values(image, units=config.sar.units, nodata=config.sar.nodata)

    def labels(values: Array) -> Array:
        return label_picture(values[window], config.palette, void=config.ignore_index)

    return DisagreementPictures(
        found=found,
        part=_part(window, truth.shape),
        sar=sar_picture(sar[:, rows, cols]),
        eo=None if pair.eo is None else eo_picture(folder.load_eo(pair)[:, rows, cols]),
        truth=labels(truth),
        reference=labels(reference),
        variant=labels(variant),
        flips=flip_picture(variant[window], reference[window], truth[window], void=config.ignore_index),
    )


def densest(where: Array, *, side_px: int) -> Window:
    """The window of at most `side_px` squared that holds most true pixels of a map (rows, cols)."""
    rows, cols = (min(size, side_px) for size in where.shape)
    total = cv2.integral(np.ascontiguousarray(where, np.uint8))
    inside = total[rows:, cols:] - total[:-rows, cols:] - total[rows:, :-cols] + total[:-rows, :-cols]
    top, left = (int(start) for start in np.unravel_index(int(inside.argmax()), inside.shape))
    return slice(top, top + rows), slice(left, left + cols)


def _part(window: Window, shape: Sequence[int]) -> str:
    rows, cols = window
    if (rows.stop - rows.start, cols.stop - cols.start) == tuple(shape):
        return ""
    shown = f"rows {rows.start} to {rows.stop - 1}, columns {cols.start} to {cols.stop - 1}"
    return f"{shown} of {shape[0]} x {shape[1]}"
