"""The accuracy gate: INT8 only where the segmentation stands it.

Layers are ranked by what each alone does to the labels when only it computes in INT8. The shortest part of
that ranking is taken back to high precision that brings the drop on held-out tiles within the bound, and
then every layer that turns out not to be needed is given back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfd_edge.deploy.qdq import Rest, int8_model, layers
from hfd_edge.deploy.scoring import Bench, Drop
from hfd_edge.errors import ExportError
from hfd_edge.progress import Progress, silent

RANKING_TILES = 16
"""Tiles on which layers are ranked: one run for every layer, so few; the bound is checked on all."""


@dataclass(frozen=True)
class Bound:
    """What INT8 may lose against FP32, in points (hundredths of IoU).

    The default per class is 1.5: published INT8 conversions of mobile networks lose up to 1.8 points of
    mean IoU, and a class that loses more than three times the mean bound is what the mean hides.

    Attributes:
        miou_points: Mean IoU.
        class_points: IoU of every single class.
    """

    miou_points: float = 0.5
    class_points: float = 1.5

    def __post_init__(self) -> None:
        if not (self.miou_points >= 0 and self.class_points >= 0):
            raise ExportError(
                f"The accuracy gate allows a drop of {self.miou_points} points mIoU and {self.class_points} "
                "points per class, expected 0 or more for both."
            )

    def holds(self, drop: Drop) -> bool:
        """Whether a drop is within the bound."""
        return self.excess(drop) <= 0

    def excess(self, drop: Drop) -> float:
        """Points by which a drop is beyond the bound; 0 or less where it is within."""
        return max(drop.miou_points - self.miou_points, drop.worst_class_points - self.class_points)

    def __str__(self) -> str:
        return f"{self.miou_points:g} mIoU points and {self.class_points:g} points per class"


@dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Attributes:
        keep: Layers to keep in high precision, the worst first; none if INT8 was good enough at once.
        harm: One-only fidelity drop of those layers, points.
        layers: Layers that INT8 could take.
        before: Drop with every layer in INT8.
        before_fp16: The same with FP16 in what is not INT8.
        after: Drop of the INT8 model that the gate lets pass.
        after_fp16: The same with FP16 in what is not INT8.
        tiles: Held-out tiles that the drops were measured on.
        runs: Models scored on them.
    """

    keep: tuple[str, ...]
    harm: dict[str, float]
    layers: int
    before: Drop
    before_fp16: Drop
    after: Drop
    after_fp16: Drop
    tiles: int
    runs: int


def gate(
    placed: Any,
    amax: Mapping[str, float],
    bench: Bench,
    *,
    bound: Bound,
    harm: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Find the fewest layers to keep in high precision so that INT8 stays within a bound.

    It has to stay within it twice, with FP32 and with FP16 in what is not INT8: one list serves both models.
    The result is the fewest in this sense: no shorter part of the ranking passes, as far as bisection can
    tell, and no single layer of the result can be given back to INT8.

    Args:
        placed: What `precision.place` gives.
        amax: Range of every quantised tensor.
        bench: Held-out tiles.
        bound: What INT8 may lose on them against FP32.
        harm: Every layer's harm, to rank them by; None measures it where needed (`one_only_harm`).
        progress: Told of the steps.
    Raises:
        ExportError: INT8 stays out of bounds as long as anything is INT8; says what is possible.
    """
    trials = _Trials(placed, amax, bench, bound, progress)
    names = layers(placed)
    keep: tuple[str, ...] = ()
    if not trials.passes(()):
        if harm is None or not harm.keys() >= set(names):
            harm = one_only_harm(placed, amax, bench.first(RANKING_TILES), progress=progress)
        ranked = harm
        keep = _shortest(trials, sorted(names, key=lambda name: -ranked[name]))
        keep = _give_back(trials, keep)
    return Verdict(
        keep=keep,
        harm={name: harm[name] for name in keep} if harm else {},
        layers=len(names),
        before=trials.drop(()),
        before_fp16=trials.drop((), rest="fp16"),
        after=trials.drop(keep),
        after_fp16=trials.drop(keep, rest="fp16"),
        tiles=len(bench),
        runs=trials.runs,
    )


def one_only_harm(
    placed: Any, amax: Mapping[str, float], bench: Bench, *, progress: Progress = silent
) -> dict[str, float]:
    """What each layer costs when only it computes in INT8: points of mIoU against FP32's labels."""
    names = layers(placed)
    harm = {}
    for index, name in enumerate(names):
        progress(index, len(names), "ranking layers")
        others = [other for other in names if other != name]
        harm[name] = bench.drop(int8_model(placed, amax, keep=others)).fidelity_points
    progress(len(names), len(names), "ranking layers")
    return harm


class _Trials:
    """Scores candidates, each once."""

    def __init__(
        self, placed: Any, amax: Mapping[str, float], bench: Bench, bound: Bound, progress: Progress
    ) -> None:
        self._placed, self._amax, self._bench, self._progress = placed, amax, bench, progress
        self.bound = bound
        self._seen: dict[tuple[frozenset[str], Rest], Drop] = {}

    @property
    def runs(self) -> int:
        return len(self._seen)

    @property
    def layers(self) -> int:
        return len(layers(self._placed))

    def drop(self, keep: tuple[str, ...], *, rest: Rest = "fp32") -> Drop:
        key = (frozenset(keep), rest)
        if key not in self._seen:
            model = int8_model(self._placed, self._amax, keep=keep, rest=rest)
            text = f"accuracy gate: {len(keep)} of {self.layers} layers kept in high precision"
            total = len(self._bench)
            self._seen[key] = self._bench.drop(
                model, progress=lambda done, _, __: self._progress(done, total, text)
            )
        return self._seen[key]

    def passes(self, keep: tuple[str, ...]) -> bool:
        return self.bound.holds(self.drop(keep)) and self.bound.holds(self.drop(keep, rest="fp16"))

    def worst(self, keep: frozenset[str]) -> Drop:
        """The worse drop of a choice of layers; only that with FP32 where it did not pass."""
        drops = [drop for (other, _), drop in self._seen.items() if other == keep]
        return max(drops, key=self.bound.excess)

    def best(self) -> frozenset[str]:
        """The choice that came closest, of those that had something left in INT8."""
        tried = {keep for keep, _ in self._seen if len(keep) < self.layers}
        return min(tried, key=lambda keep: (self.bound.excess(self.worst(keep)), len(keep)))


def _shortest(trials: _Trials, order: list[str]) -> tuple[str, ...]:
    """The shortest start of the ranking that passes, by bisection; at least one layer must stay INT8."""
    low, high = 0, len(order) - 1  # `low` fails; `high` is checked here
    if high < 1 or not trials.passes(tuple(order[:high])):
        raise _impossible(trials)
    while high - low > 1:
        middle = (low + high) // 2
        if trials.passes(tuple(order[:middle])):
            high = middle
        else:
            low = middle
    return tuple(order[:high])


def _give_back(trials: _Trials, keep: tuple[str, ...]) -> tuple[str, ...]:
    """Return to INT8, the least harmful first, what is not needed to pass."""
    for name in reversed(keep):
        without = tuple(other for other in keep if other != name)
        if without and trials.passes(without):
            keep = without
    return keep


def _impossible(trials: _Trials) -> ExportError:
    bound, before, kept = trials.bound, trials.worst(frozenset()), trials.best()
    best = trials.worst(kept)
    options = {
        "--max-drop": best.miou_points > bound.miou_points,
        "--max-class-drop": best.worst_class_points > bound.class_points,
    }
    allow = " and ".join(name for name, exceeded in options.items() if exceeded)
    return ExportError(
        f"INT8 does not stay within {bound} of FP32. With all {trials.layers} layers in INT8 it loses "
        f"{before.miou_points:.2f} mIoU points ({before.worst_class_points:.2f} for {before.worst_class}); "
        f"the best found keeps {len(kept)} of them in high precision and loses {best.miou_points:.2f} "
        f"({best.worst_class_points:.2f} for {best.worst_class}). Allow that with {allow}, calibrate on "
        "more tiles or with another --method, fine-tune with train student --qat, or use the fp16 variant."
    )
