"""Label maps that wait on disk."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.comparison.result import TileFlips
from hfd_edge.comparison.scoring import Shelf, Tally
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import StorageError

rng = np.random.default_rng(0)


def test_comes_back_as_it_was() -> None:
    maps = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((1, 1), (7, 3), (40, 50))]
    maps.append(maps[-1][::2, ::3])  # not contiguous
    with closing(Shelf()) as shelf:
        for labels in maps:
            shelf.put(labels)
        assert len(shelf) == 4
        for index in (2, 0, 3, 1):
            np.testing.assert_array_equal(shelf.get(index), maps[index])
        shelf.put(maps[0])  # after reading
        for index, labels in enumerate([*maps, maps[0]]):
            np.testing.assert_array_equal(shelf.get(index), labels)


def test_pixels_without_truth_or_data(threshold_data: Path) -> None:
    """A backend that finds no data where FP32 did flips pixels; where truth is unknown, nobody is right."""
    tally = Tally(PairFolder.open(threshold_data), nodata_label=255)
    truth = np.array([[0, 1, 255, 255, 255]], np.uint8)
    labels = np.array([[255, 0, 255, 1, 255]], np.uint8)
    reference = np.array([[0, 1, 0, 255, 255]], np.uint8)
    tally.add("a", truth=truth, labels=labels, reference=reference)
    assert (tally.flipped, tally.with_data) == (4, 4)
    assert (tally.broken, tally.corrected) == (2, 0)
    assert tally.most_flipped == [TileFlips("a", 1.0)]


def test_memory_does_not_grow_with_the_split() -> None:
    labels = np.arange(512 * 512, dtype=np.uint32).reshape(512, 512) // 997 % 7
    labels = labels.astype(np.uint8)
    with closing(Shelf()) as shelf:
        shelf.put(labels)
        tracemalloc.start()
        for _ in range(200):  # 52 MB of labels
            shelf.put(labels)
        shelf.get(100)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2_000_000


def test_full_disk(full_disk: Callable[[int], AbstractContextManager[None]]) -> None:
    labels = rng.integers(0, 256, (300, 300)).astype(np.uint8)
    with closing(Shelf()) as shelf, full_disk(1000):
        with pytest.raises(StorageError, match="Could not write .*nothing was half written"):
            shelf.put(labels)
            shelf.get(0)
