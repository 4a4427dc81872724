"""How far a difference between two variants could be chance: other tiles would have given another one."""

from __future__ import annotations

from collections.abc import Sequence

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
    seeds, count = len(reference), sizes.pop()
    if count < _LEAST_TILES:
        return None
    generator = np.random.default_rng(_SEED)
    draws = generator.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    gains = [_miou(draws, there) - _miou(draws, here) for here, there in zip(reference, variant, strict=True)]
    shares = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_DRAWS) / seeds
    low, high = np.percentile(100 * (np.stack(gains, 1) * shares).sum(1), (2.5, 97.5))
    return float(low), float(high)


def _miou(draws: NDArray[np.int64], tiles: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """The mIoU (draws,) of each draw (draws, tiles), as `Confusion.miou` has it."""
    counts = np.tensordot(draws, np.stack(tiles), axes=1)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(2) + counts[:, :, :-1].sum(1) - hits
    present = union > 0
    iou = np.where(present, hits / np.maximum(union, 1), 0.0)
    return np.asarray(iou.sum(1) / np.maximum(present.sum(1), 1))
