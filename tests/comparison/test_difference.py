"""Differences whose answer is known: planted, none at all, from other seeds or other tiles."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hfd_edge.comparison.bootstrap import difference_draws, gain_interval
from hfd_edge.comparison.difference import difference
from hfd_edge.errors import DatasetError
from hfd_edge.metrics import Confusion

CLASSES = ("a", "b", "c")
Side = dict[str, np.ndarray]


def side(count: int, *, error: float, seed: int, easy: tuple[str, ...] = ()) -> Side:
    """Counts of tiles on which a share of the pixels is wrong, none on `easy` ones; class c never occurs."""
    rng = np.random.default_rng(seed)
    counts = {}
    for tile in range(count):
        confusion = Confusion(CLASSES)
        truth = np.random.default_rng(tile).integers(0, 2, 1000).astype(np.uint8)
        wrong = rng.random(1000) < (0 if f"t{tile}" in easy else error)
        confusion.add(truth, np.where(wrong, 1 - truth, truth).astype(np.uint8))
        counts[f"t{tile}"] = confusion.counts
    return counts


def whole(counts: Side) -> Confusion:
    confusion = Confusion(CLASSES)
    confusion.counts = sum(counts.values())
    return confusion


def test_a_planted_gain_is_found_and_is_that_of_the_whole_split() -> None:
    better, worse = side(30, error=0.10, seed=1), side(30, error=0.15, seed=2)
    found = difference([better], [worse], classes=CLASSES)
    assert found.miou.points == pytest.approx(100 * (whole(better).miou - whole(worse).miou))
    assert 0 < found.miou.low_points < found.miou.points < found.miou.high_points
    assert found.miou.share_above == 1.0
    for name in ("a", "b"):
        assert found.iou[name].points == pytest.approx(
            100 * (whole(better).iou[name] - whole(worse).iou[name])
        )
        assert found.iou[name].low_points > 0
    assert found.iou["c"].points is None and found.iou["c"].low_points is None
    other = difference([worse], [better], classes=CLASSES)
    assert other.miou.low_points == pytest.approx(-found.miou.high_points)
    assert other.miou.share_above == 0.0


def test_no_difference_is_none() -> None:
    same = side(8, error=0.2, seed=1)
    found = difference([same], [same], classes=CLASSES)
    assert (found.miou.points, found.miou.low_points, found.miou.high_points) == (0.0, 0.0, 0.0)
    assert found.miou.share_above == 0.0
    assert found.best() == found.worst() == ()


def test_noise_holds_zero() -> None:
    found = difference([side(30, error=0.2, seed=1)], [side(30, error=0.2, seed=2)], classes=CLASSES)
    assert found.miou.low_points < 0 < found.miou.high_points
    assert 0 < found.miou.share_above < 1


def test_the_tile_that_makes_the_gain_is_named() -> None:
    better = side(12, error=0.2, seed=1, easy=("t4",))
    worse = side(12, error=0.2, seed=1, easy=("t9",))
    found = difference([better], [worse], classes=CLASSES)
    assert found.best(1)[0].tile == "t4" and found.worst(1)[0].tile == "t9"
    by_name = {tile.tile: tile for tile in found.tiles}
    rest = {name: counts for name, counts in better.items() if name != "t4"}
    other = {name: counts for name, counts in worse.items() if name != "t4"}
    without = 100 * (whole(rest).miou - whole(other).miou)
    assert by_name["t4"].influence_points == pytest.approx(found.miou.points - without)
    own = 100 * np.mean([1 - Confusion.iou.fget(whole({"t4": worse["t4"]}))[name] for name in "ab"])
    assert by_name["t4"].points == pytest.approx(own)


def test_classes_that_are_not_in_a_tile_do_not_count_for_it() -> None:
    """One pixel taken for class c is no loss of a third of the mIoU of that tile."""
    first, second = side(6, error=0.0, seed=1), side(6, error=0.0, seed=1)
    second["t0"] = second["t0"].copy()
    second["t0"][0, 0] -= 1
    second["t0"][0, 2] += 1
    tile = difference([first], [second], classes=CLASSES).tiles[0]
    assert 0 < tile.points < 0.2


def test_seeds_widen_the_interval_and_agree_with_the_ablation_table() -> None:
    first = [side(20, error=error, seed=seed) for seed, error in enumerate((0.10, 0.20, 0.15))]
    second = [side(20, error=error, seed=seed) for seed, error in enumerate((0.18, 0.21, 0.17), 5)]
    found = difference(first, second, classes=CLASSES)
    assert found.paired
    assert found.first_miou == pytest.approx(tuple(whole(counts).miou for counts in first))
    assert (found.miou.low_points, found.miou.high_points) == pytest.approx(
        gain_interval([list(c.values()) for c in second], [list(c.values()) for c in first])
    )
    one = difference(first[:1], second[:1], classes=CLASSES)
    width = found.miou.high_points - found.miou.low_points
    assert width > one.miou.high_points - one.miou.low_points


def test_other_numbers_of_seeds_are_drawn_apart() -> None:
    first = [side(20, error=error, seed=seed) for seed, error in enumerate((0.10, 0.20, 0.15))]
    found = difference(first, [side(20, error=0.30, seed=9)], classes=CLASSES)
    assert not found.paired
    assert found.miou.low_points > 0
    # The same three seeds in pairs differ by nothing at all; against two of them, they do.
    assert difference(first, first, classes=CLASSES).miou.high_points == 0.0
    assert difference(first, first[:2], classes=CLASSES).miou.high_points > 1


def test_few_tiles_give_no_interval() -> None:
    found = difference([side(4, error=0.1, seed=1)], [side(4, error=0.3, seed=2)], classes=CLASSES)
    assert found.miou.points > 0
    assert (found.miou.low_points, found.miou.share_above, found.draws) == (None, None, None)


def test_only_shared_tiles_count() -> None:
    first, second = side(9, error=0.1, seed=1), side(7, error=0.2, seed=2)
    found = difference([first], [second], classes=CLASSES)
    assert (len(found.tiles), found.left_out) == (7, 2)
    shared = {name: first[name] for name in second}
    assert found.first_miou == pytest.approx((whole(shared).miou,))
    with pytest.raises(DatasetError, match="scored on 8 tiles, but none of these is common to all"):
        difference([side(7, error=0.1, seed=1)], [{"other": first["t0"]}], classes=CLASSES)


def test_changed_labels_are_refused() -> None:
    first, second = side(6, error=0.1, seed=1), side(6, error=0.1, seed=1)
    second["t3"] = second["t3"] + np.eye(3, 4, dtype=np.int64)
    with pytest.raises(
        DatasetError, match=r"Tile t3 had \[\d+, \d+, 0\] labelled pixels .* labels were changed"
    ):
        difference([first], [second], classes=CLASSES)


def test_json_holds_everything_but_the_draws() -> None:
    found = difference([side(9, error=0.1, seed=1)], [side(9, error=0.2, seed=2)], classes=CLASSES)
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert content["iou"]["c"] == dict.fromkeys(("points", "low_points", "high_points", "share_above"))
    influences = [tile["influence_points"] for tile in content["per_tile"]]
    assert influences == sorted(influences, reverse=True)
    assert content["best"][0] == content["per_tile"][0]["tile"]
    assert "draws" not in content


def test_a_class_that_a_draw_lacks_says_nothing_in_that_draw() -> None:
    rare = np.zeros((3, 4), np.int64)
    rare[2, 2] = 5
    sides = [[*side(5, error=0.2, seed=seed).values(), rare] for seed in (1, 2)]
    draws = difference_draws([sides[0]], [sides[1]])
    missing = np.isnan(draws.iou[:, 2])
    assert 0.25 < missing.mean() < 0.42  # (5/6)^6 of the draws lack the one tile that has it
    assert (draws.iou[~missing, 2] == 0).all()
    assert not np.isnan(draws.miou).any()
    with pytest.raises(ValueError, match="at least one seed, and the same tiles in each"):
        difference_draws([sides[0]], [])
