"""How far a difference between two variants could be chance: other tiles would have given another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2000
_LEAST_TILES = 5  # below that a resampled split is hardly another one
_SEED = 0


def drop_interval(
    reference: Sequence[NDArray[np.int64]], variant: Sequence[NDArray[np.int64]]
) -> tuple[float, float] | None:
    """Bounds that hold the drop of mIoU in 95 of 100 splits like this one.

    Tiles are drawn with replacement, the same ones for both, so what makes a tile hard cancels out. Tiles
    that lie side by side in one scene are not independent; the true interval is then wider.

    Args:
        reference: Confusion counts (classes, classes + 1) by tile; see `hfd_edge.metrics.Confusion`.
        variant: The same of the variant, tiles in the same order.
    Returns:
        Low and high bound, points; None with fewer than five tiles.
    Raises:
        ValueError: the numbers of tiles differ.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13, percentile interval.
    """
    if len(reference) != len(variant):
        raise ValueError(f"{len(reference)} tiles of the reference, but {len(variant)} of the variant")
    count = len(reference)
    if count < _LEAST_TILES:
        return None
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    drops = 100 * (_miou(draws, reference) - _miou(draws, variant))
    low, high = np.percentile(drops, (2.5, 97.5))
    return float(low), float(high)


def gain_interval(
    reference: Sequence[Sequence[NDArray[np.int64]]], variant: Sequence[Sequence[NDArray[np.int64]]]
) -> tuple[float, float] | None:
    """Bounds of a gain of mIoU that was measured with several seeds on one split.

    Both ways in which another experiment would differ are drawn with replacement: its tiles, the same ones
    for both sides and all seeds, and its seeds, reference and variant of one seed together. With one seed
    the bounds speak of tiles alone. Three seeds are few for this: the true interval is rather wider.

    Args:
        reference: For each seed, confusion counts (classes, classes + 1) by tile.
        variant: The same of the variant; seeds and tiles in the same order.
    Returns:
        Low and high bound of variant minus reference, points, in 95 of 100 draws; None with fewer than five
        tiles.
    Raises:
        ValueError: the numbers of seeds or tiles differ, or there is no seed.
    Source: as in `drop_interval`; drawing along both axes of a crossed design: Owen, "The pigeonhole
        bootstrap" (2007).
    """
    sizes = {len(tiles) for side in (reference, variant) for tiles in side}
    if len(sizes) != 1 or len(reference) != len(variant):
        raise ValueError(
            "reference and variant need the same seeds, at least one, and the same tiles in each"
        )
    found = difference_draws(variant, reference)
    if found is None:
        return None
    low, high = np.percentile(100 * found.miou, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Draws:
    """What the difference of two sides would have been in other experiments. 0 to 1, not points.

    Attributes:
        miou: Difference of mIoU (draws,).
        iou: Difference of the IoU of each class (draws, classes); NaN where a draw holds no pixel of a class.
    """

    miou: NDArray[np.float64]
    iou: NDArray[np.float64]


def difference_draws(
    first: Sequence[Sequence[NDArray[np.int64]]], second: Sequence[Sequence[NDArray[np.int64]]]
) -> Draws | None:
    """Draw tiles and seeds with replacement, as `gain_interval` says, and take the differences.

    Sides with as many seeds as each other are drawn in pairs, in their order, else each by itself.

    Args:
        first: For each seed, confusion counts (classes, classes + 1) by tile.
        second: The same of the other side; tiles in the same order.
    Returns:
        First minus second; None with fewer than five tiles.
    Raises:
        ValueError: the numbers of tiles differ, or a side has no seed.
    """
    sizes = {len(tiles) for side in (first, second) for tiles in side}
    if len(sizes) != 1 or not first or not second:
        raise ValueError("both sides need at least one seed, and the same tiles in each")
    count = sizes.pop()
    if count < _LEAST_TILES:
        return None
    generator = np.random.default_rng(_SEED)
    draws = generator.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    shares = _seed_draws(generator, len(first))
    ours = _over_seeds(draws, first, shares)
    if len(second) != len(first):
        shares = _seed_draws(generator, len(second))
    theirs = _over_seeds(draws, second, shares)
    return Draws(miou=ours.miou - theirs.miou, iou=ours.iou - theirs.iou)


def _seed_draws(generator: np.random.Generator, seeds: int) -> NDArray[np.int64]:
    return np.asarray(generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_DRAWS))


def _over_seeds(
    draws: NDArray[np.int64], side: Sequence[Sequence[NDArray[np.int64]]], shares: NDArray[np.int64]
) -> Draws:
    """Mean scores of a side in each draw, over the seeds that the draw holds."""
    scores = [_iou(draws, tiles) for tiles in side]
    means = np.stack([values.sum(1) / np.maximum(present.sum(1), 1) for values, present in scores], 1)
    total = sum(share[:, None] * values for share, (values, _) in zip(shares.T, scores, strict=True))
    weight = sum(share[:, None] * present for share, (_, present) in zip(shares.T, scores, strict=True))
    iou = np.divide(total, weight, out=np.full(weight.shape, np.nan), where=weight > 0)
    return Draws(miou=(means * (shares / len(side))).sum(1), iou=iou)


def iou_of(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The IoU of many confusion matrices at once, as `Confusion.iou` has it.

    Args:
        counts: (matrices, classes, classes + 1).
    Returns:
        IoU (matrices, classes), 0 for classes that do not occur; and whether they do.
    """
    hits = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(2) + counts[:, :, :-1].sum(1) - hits
    present = union > 0
    return np.where(present, hits / np.maximum(union, 1), 0.0), present


def _miou(draws: NDArray[np.int64], tiles: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """The mIoU (draws,) of each draw (draws, tiles), as `Confusion.miou` has it."""
    values, present = _iou(draws, tiles)
    return np.asarray(values.sum(1) / np.maximum(present.sum(1), 1))


def _iou(
    draws: NDArray[np.int64], tiles: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return iou_of(np.tensordot(draws, np.stack(tiles), axes=1))
