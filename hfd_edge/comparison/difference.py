"""How much better one model is than another on the same tiles, and how far that could be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.comparison.bootstrap import Draws, difference_draws, iou_of
from hfd_edge.errors import DatasetError

Counts = Mapping[str, NDArray[np.int64]]
"""Confusion counts (classes, classes + 1) of each tile, by its name."""


@dataclass(frozen=True)
class Gain:
    """A difference with its bounds, points of 100.

    Attributes:
        points: First side minus second; None for a class that does not occur on one of them.
        low_points: Lower bound in 95 of 100 resamples; None with fewer than five tiles.
        high_points: Upper bound.
        share_above: Share of the resamples, 0 to 1, in which the first side is better.
    """

    points: float | None
    low_points: float | None = None
    high_points: float | None = None
    share_above: float | None = None


@dataclass(frozen=True)
class TileGain:
    """What one tile says of a difference, means over seeds.

    Attributes:
        tile: Its name.
        points: Difference of the mIoU on this tile alone, over the classes of its truth; None without truth.
        influence_points: By how much the difference over the split would be smaller without this tile.
    """

    tile: str
    points: float | None
    influence_points: float


@dataclass(frozen=True, eq=False)
class Difference:
    """Two sides on one split.

    Attributes:
        classes: Class names.
        first_miou: mIoU, 0 to 1, of each seed of the first side.
        second_miou: Of the second side.
        miou: Difference of the means over seeds.
        iou: The same of each class.
        tiles: Tiles that both sides have, in the order of the split.
        left_out: Tiles that only some of the models could be scored on; they count for none.
        paired: Whether seeds were drawn in pairs: there are as many on both sides.
        draws: Of the resamples; None with fewer than five tiles.
    """

    classes: tuple[str, ...]
    first_miou: tuple[float, ...]
    second_miou: tuple[float, ...]
    miou: Gain
    iou: dict[str, Gain]
    tiles: tuple[TileGain, ...]
    left_out: int
    paired: bool
    draws: Draws | None

    def best(self, count: int = 5) -> tuple[TileGain, ...]:
        """Tiles that speak most for the first side, by influence."""
        return tuple(
            sorted((t for t in self.tiles if t.influence_points > 0), key=_by_influence)[-count:][::-1]
        )

    def worst(self, count: int = 5) -> tuple[TileGain, ...]:
        """Tiles that speak most against it, the worst first."""
        return tuple(sorted((t for t in self.tiles if t.influence_points < 0), key=_by_influence)[:count])

    def as_json(self) -> dict[str, Any]:
        """All but the resamples as one JSON-ready mapping, tiles from the best to the worst."""
        return {
            "a_miou": list(self.first_miou),
            "b_miou": list(self.second_miou),
            "miou": asdict(self.miou),
            "iou": {name: asdict(gain) for name, gain in self.iou.items()},
            "tiles": len(self.tiles),
            "left_out": self.left_out,
            "paired": self.paired,
            "best": [tile.tile for tile in self.best()],
            "worst": [tile.tile for tile in self.worst()],
            "per_tile": [asdict(tile) for tile in sorted(self.tiles, key=_by_influence, reverse=True)],
        }


def difference(first: Sequence[Counts], second: Sequence[Counts], *, classes: tuple[str, ...]) -> Difference:
    """Compare two sides, each measured with one or several seeds, tile by tile.

    Tiles are drawn with replacement, the same ones for all, and so are seeds; see
    `hfd_edge.comparison.bootstrap.gain_interval`. Where tiles lie side by side in one scene, which makes them
    alike, the true interval is wider. The influence of a tile is the difference with all tiles minus that
    without it (the jackknife; Efron and Tibshirani 1993, ch. 11).

    Args:
        first: Counts by tile of each seed.
        second: Of the other side. With as many seeds on both sides, those at the same place make a pair.
        classes: Class names.
    Returns:
        First minus second.
    Raises:
        DatasetError: the sides share no tile, or differ in the truth of one.
    """
    models = [*first, *second]
    names = [name for name in models[0] if all(name in other for other in models)]
    everything = {name for counts in models for name in counts}
    if not names:
        raise DatasetError(
            f"The models were scored on {len(everything)} tiles, but none of these is common to all, so they "
            "cannot be compared. Choose another split with --split."
        )
    sides = [
        np.array([[counts[name] for name in names] for counts in side], np.int64) for side in (first, second)
    ]
    _check_truth(names, np.concatenate(sides))
    draws = difference_draws(*([list(seed) for seed in side] for side in sides))
    whole = [side.sum(1) for side in sides]
    seeds = [_miou(counts) for counts in whole]
    by_class = _class_means(whole[0]) - _class_means(whole[1])
    return Difference(
        classes=classes,
        first_miou=tuple(seeds[0].tolist()),
        second_miou=tuple(seeds[1].tolist()),
        miou=_gain(seeds[0].mean() - seeds[1].mean(), None if draws is None else draws.miou),
        iou={
            name: _gain(by_class[place], None if draws is None else draws.iou[:, place])
            for place, name in enumerate(classes)
        },
        tiles=_tile_gains(names, *sides),
        left_out=len(everything) - len(names),
        paired=len(first) == len(second),
        draws=draws,
    )


def _check_truth(names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """Refuse counts (models, tiles, classes, classes + 1) that were not taken against one truth."""
    truth = counts.sum(3)
    for model, place in np.argwhere((truth != truth[0]).any(2))[:1]:
        raise DatasetError(
            f"Tile {names[place]} had {truth[0, place].tolist()} labelled pixels by class for one model, but "
            f"{truth[model, place].tolist()} for another: its labels were changed in between. Measure all "
            "models again on the same data."
        )


def _miou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mIoU (matrices,) of matrices (matrices, classes, classes + 1)."""
    values, present = iou_of(counts)
    return np.asarray(values.sum(1) / np.maximum(present.sum(1), 1))


def _class_means(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The IoU (classes,), mean over seeds in which a class occurs; NaN where in none."""
    values, present = iou_of(counts)
    weight = present.sum(0)
    return np.asarray(np.divide(values.sum(0), weight, out=np.full(len(weight), np.nan), where=weight > 0))


def _gain(value: float, draws: NDArray[np.float64] | None) -> Gain:
    """Value and draws as points; both 0 to 1."""
    if np.isnan(value):
        return Gain(None)
    known = np.empty(0) if draws is None else draws[~np.isnan(draws)]
    if not known.size:
        return Gain(100 * float(value))
    low, high = np.percentile(100 * known, (2.5, 97.5))
    return Gain(100 * float(value), float(low), float(high), float(np.mean(known > 0)))


def _tile_gains(
    names: Sequence[str], first: NDArray[np.int64], second: NDArray[np.int64]
) -> tuple[TileGain, ...]:
    """Compare tile by tile; counts (seeds, tiles, classes, classes + 1)."""
    alone, without = np.zeros(len(names)), np.zeros(len(names))
    in_truth = first[0].sum(2) > 0
    for side, sign in ((first, 1), (second, -1)):
        for tiles in side:
            values = np.where(in_truth, iou_of(tiles)[0], 0.0)
            alone += sign / len(side) * (values.sum(1) / np.maximum(in_truth.sum(1), 1))
            without += sign / len(side) * _miou(tiles.sum(0) - tiles)
    whole = float(_miou(first.sum(1)).mean() - _miou(second.sum(1)).mean())
    return tuple(
        TileGain(name, 100 * float(own) if known else None, 100 * (whole - float(rest)))
        for name, own, rest, known in zip(names, alone, without, in_truth.any(1), strict=True)
    )


def _by_influence(tile: TileGain) -> float:
    return tile.influence_points
