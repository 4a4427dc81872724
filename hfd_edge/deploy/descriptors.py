"""What a tile looks like to a calibration, in a few numbers, and how to pick tiles that cover a split.

A range is measured on the tiles that are chosen, so they must hold what the device will see: dark water
and bright cities, smooth and speckled areas, every class, and tiles at the edge of the swath.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.deploy.record import CalibrationTile
from hfd_edge.deploy.tiles import cut, tile_sha256
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.statistics import LOG_ENL_LIMITS, block_log_enl, linear_power

Array = NDArray[Any]

BACKSCATTER_BINS = 128
_QUANTILES = 8


@dataclass(frozen=True)
class Described:
    """A window of a split and what it holds.

    Attributes:
        tile: Where it is.
        backscatter: Valid pixels by band and bin of equal width between the clip limits (bands,
            `BACKSCATTER_BINS`).
        log_enl: log10 of its equivalent number of looks before any speckle filter, see `log_enl`; NaN where
            it cannot be estimated.
        classes: Labelled pixels by class; all zero for a window without label.
        nodata_share: Share of pixels without data, 0 to 1.
    """

    tile: CalibrationTile
    backscatter: NDArray[np.int64]
    log_enl: float
    classes: NDArray[np.int64]
    nodata_share: float


def describe_split(
    folder: PairFolder,
    preprocessing: Preprocessing,
    *,
    tile_px: int,
    split: str,
    progress: Progress = silent,
) -> list[Described]:
    """Describe every tile of a split; one image is in memory at a time.

    Images are cut into windows side by side; the last ones of a row and column end at the border and may
    overlap their neighbours.

    Args:
        folder: Data folder.
        preprocessing: What the network's input goes through.
        tile_px: Side of the tiles; smaller images are one tile each.
        split: "train", "val" or "test".
        progress: Counts pairs.
    Raises:
        DatasetError: the split is missing or a file of it is unreadable.
    """
    pairs = folder.pairs(split)
    found: list[Described] = []
    for done, pair in enumerate(pairs):
        progress(done, len(pairs), f"describing {pair.name}")
        found.extend(_describe(folder, pair, preprocessing, tile_px))
    progress(len(pairs), len(pairs), f"described {len(found)} tiles")
    return found


def log_enl(intensity: Array) -> float:
    """log10 of the number of looks, mean over the bands; see `sar.statistics.block_log_enl`.

    Args:
        intensity: Linear power (bands, rows, cols); NaN marks no-data. Blocks with no-data are left out.
    Returns:
        Within `LOG_ENL_LIMITS`; NaN without a whole block of varying pixels.
    """
    looks = block_log_enl(intensity)
    known = looks[np.isfinite(looks)]
    return float(np.clip(known.mean(), *LOG_ENL_LIMITS)) if known.size else math.nan


def features(described: Sequence[Described], preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Put descriptions into a space in which distance means "looks different" (tiles, features).

    Backscatter enters as quantiles of every band, so a distance is how far the values moved and not which
    bins they left; then ENL, class mix and no-data share. Each of the four has the same total variance, so
    none of them rules by its units. What is unknown of a tile (a class mix without label, an ENL) counts
    as average.
    """
    limits = backscatter_limits(preprocessing)
    quantiles = [_quantiles(item.backscatter, limits) for item in described]
    labelled = np.stack([item.classes for item in described]).astype(np.float64)
    pixels = labelled.sum(1, keepdims=True)
    groups = (
        np.stack(quantiles),
        np.array([[item.log_enl] for item in described]),
        np.divide(labelled, pixels, out=np.full(labelled.shape, np.nan), where=pixels > 0),
        np.array([[item.nodata_share] for item in described]),
    )
    return np.concatenate([_equalised(group) for group in groups], axis=1)


def backscatter_limits(preprocessing: Preprocessing) -> list[tuple[float, float]]:
    """Clip limits by band in standardised units: all network input lies between them."""
    return [
        ((low - mean) / std, (high - mean) / std)
        for (low, high), mean, std in zip(
            preprocessing.clip, preprocessing.mean, preprocessing.std, strict=True
        )
    ]


def k_centre(points: NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Pick points so that every point is near a picked one: the farthest from all picked, again and again.

    The largest distance to a picked point is at most twice the smallest possible.

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    chosen = [int(rng.integers(len(points)))]
    distance = _distances(points, chosen[0])
    distance[chosen[0]] = -1  # never again, even where all that is left are copies of picked points
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance)))
        np.minimum(distance, _distances(points, chosen[-1]), out=distance)
        distance[chosen[-1]] = -1
    return chosen


def at_random(points: NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Pick points with equal chance, none twice."""
    return [int(index) for index in rng.choice(len(points), count, replace=False)]


def evenly(points: NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Pick points at equal distances in the order of their names and places; `rng` is not used."""
    return [index * len(points) // count for index in range(count)]


CHOOSERS: Mapping[str, Callable[[NDArray[np.float64], int, np.random.Generator], list[int]]] = {
    "k-centre": k_centre,
    "random": at_random,
    "even": evenly,
}
"""Ways to pick `count` of the points, 1 <= count <= number of points."""


def covering(points: NDArray[np.float64], chosen: Sequence[int]) -> tuple[float, float]:
    """Largest and mean distance from a point to the nearest chosen one."""
    nearest = np.full(len(points), np.inf)
    for index in chosen:
        np.minimum(nearest, _distances(points, index), out=nearest)
    return float(nearest.max()), float(nearest.mean())


def _describe(
    folder: PairFolder, pair: Pair, preprocessing: Preprocessing, tile_px: int
) -> Iterator[Described]:
    image = folder.load_sar(pair)
    pixels, valid = preprocessing(image)
    label = folder.load_label(pair) if pair.label is not None else None
    classes = len(folder.config.classes)
    limits = backscatter_limits(preprocessing)
    for row in _origins(valid.shape[0], tile_px):
        for col in _origins(valid.shape[1], tile_px):
            rows, cols = slice(row, row + tile_px), slice(col, col + tile_px)
            tile = cut(pixels, row=row, col=col, tile_px=tile_px)
            seen = valid[rows, cols]
            truth = np.empty(0, np.uint8) if label is None else label[rows, cols]
            yield Described(
                tile=CalibrationTile(name=pair.name, row=row, col=col, sha256=tile_sha256(tile)),
                backscatter=_histograms(pixels[:, rows, cols], seen, limits),
                log_enl=log_enl(linear_power(image[:, rows, cols], preprocessing)),
                classes=np.bincount(truth[truth < classes], minlength=classes),
                nodata_share=1 - float(seen.mean()),
            )


def _origins(length: int, tile_px: int) -> list[int]:
    """Origins of windows that cover an axis, the last one flush with its end."""
    return [min(start, max(length - tile_px, 0)) for start in range(0, length, tile_px)]


def _histograms(
    pixels: NDArray[np.float32], valid: NDArray[np.bool_], limits: Sequence[tuple[float, float]]
) -> NDArray[np.int64]:
    found = np.zeros((len(limits), BACKSCATTER_BINS), np.int64)
    for counts, band, (low, high) in zip(found, pixels, limits, strict=True):
        values = (band[valid] - np.float32(low)) * np.float32(BACKSCATTER_BINS / (high - low))
        codes = np.clip(values, 0, BACKSCATTER_BINS - 1).astype(np.uint8)
        if codes.size:  # OpenCV refuses an empty array
            histogram = cv2.calcHist([codes[None]], [0], None, [BACKSCATTER_BINS], [0, BACKSCATTER_BINS])
            counts += histogram.ravel().astype(np.int64)
    return found


def _quantiles(counts: NDArray[np.int64], limits: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Values below which 1/16, 3/16 ... 15/16 of each band's pixels lie, interpolated within bins."""
    wanted = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    found = []
    for band, (low, high) in zip(counts, limits, strict=True):
        edges = np.linspace(low, high, BACKSCATTER_BINS + 1)
        running = np.concatenate(([0], np.cumsum(band)))
        found.append(np.interp(wanted * running[-1], running, edges) if running[-1] else wanted * np.nan)
    return np.concatenate(found)


def _equalised(group: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre a group of features and bring it to a total variance of 1; unknown is 0, constant is 0."""
    known = np.isfinite(group)
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, group - np.where(known, group, 0).sum(0) / count, 0.0)
    total = float(np.sum(centred**2 / count))
    return centred / math.sqrt(total) if total > np.finfo(np.float32).eps ** 2 else np.zeros_like(centred)


def _distances(points: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    return np.sqrt(np.square(points - points[index]).sum(1))
