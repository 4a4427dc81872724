"""Bounds of a difference: narrow where tiles agree, wide where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from hfd_edge.comparison.bootstrap import _miou, drop_interval
from hfd_edge.metrics import Confusion

CLASSES = ("a", "b", "c")


def tiles(count: int, *, error: float, seed: int, sizes: float = 0.0) -> list[np.ndarray]:
    """Confusion counts of tiles on which a share of the pixels is wrong; class c never occurs."""
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(count):
        confusion = Confusion(CLASSES)
        truth = rng.integers(0, 2, 2000).astype(np.uint8)
        wrong = rng.random(2000) < error + sizes * rng.normal()
        confusion.add(truth, np.where(wrong, 1 - truth, truth).astype(np.uint8))
        counts.append(confusion.counts)
    return counts


def test_miou_of_a_draw_is_that_of_the_split() -> None:
    counts = tiles(6, error=0.2, seed=1)
    whole = Confusion(CLASSES)
    whole.counts = counts[0] * 2 + counts[3]
    draw = np.array([[2, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 6]])
    assert _miou(draw, counts)[0] == pytest.approx(whole.miou, abs=1e-12)


def test_no_difference_has_no_width() -> None:
    counts = tiles(8, error=0.2, seed=1)
    assert drop_interval(counts, counts) == (0.0, 0.0)


def test_a_real_loss_is_bounded_away_from_zero() -> None:
    low, high = drop_interval(tiles(30, error=0.1, seed=1), tiles(30, error=0.15, seed=2)) or (0.0, 0.0)
    expected = 100 * (0.9 / 1.1 - 0.85 / 1.15)
    assert 0 < low < expected < high < 2 * expected


def test_noise_is_not_a_loss() -> None:
    first, second = (tiles(30, error=0.3, seed=seed, sizes=0.05) for seed in (1, 2))
    low, high = drop_interval(first, second) or (0.0, 0.0)
    assert low < 0 < high


def test_the_same_tiles_are_drawn_for_both() -> None:
    """Hard tiles are hard for both: the difference is known far better than either score."""
    hard = tiles(30, error=0.3, seed=1, sizes=0.1)
    worse = []
    for counts in hard:
        shifted = counts.copy()
        shifted[0, 0] -= 20  # twenty right pixels of each tile become wrong
        shifted[0, 1] += 20
        worse.append(shifted)
    low, high = drop_interval(hard, worse) or (0.0, 9.0)
    assert 0 < low < high < 3 * low


def test_too_few_tiles_say_nothing() -> None:
    counts = tiles(4, error=0.2, seed=1)
    assert drop_interval(counts, counts) is None
    with pytest.raises(ValueError, match="4 tiles of the reference, but 3 of the variant"):
        drop_interval(counts, counts[:3])
