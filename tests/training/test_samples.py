"""Batches are a pure function of seed and step; tiles are the same cached or not."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from hfd_edge.datasets.augment import Sample
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.statistics import eo_statistics, fit_preprocessing
from hfd_edge.training.samples import (
    Augmentation,
    Batches,
    EoStatistics,
    TileCache,
    TileStore,
    collate,
    prefetched,
)

AUGMENTATION = Augmentation(crop_px=64, flip="both", eo_jitter=0.2, sar_gain=(0.2, 0.2), ignore_index=255)


@pytest.fixture
def store(folder: PairFolder) -> TileStore:
    preprocessing = fit_preprocessing(folder)
    return TileStore(
        folder, folder.pairs("train"), preprocessing, EoStatistics(*eo_statistics(folder)), TileCache(100)
    )


def same(first, second) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_depends_on_seed_and_step_alone(store: TileStore) -> None:
    batches = Batches(store, 4, AUGMENTATION, seed=3)
    forwards = [batches(step) for step in range(5)]
    fresh = Batches(replace(store, cache=TileCache(0)), 4, AUGMENTATION, seed=3)
    backwards = [fresh(step) for step in reversed(range(5))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not same(forwards[0], forwards[1])
    assert not same(forwards[0], Batches(store, 4, AUGMENTATION, seed=4)(0))


def test_every_pair_is_seen_once_in_each_pass(store: TileStore) -> None:
    seen: Counter[int] = Counter()

    class Counting(TileStore):
        def __getitem__(self, index: int) -> Sample:
            seen[index] += 1
            return super().__getitem__(index)

    counting = Counting(store.folder, store.pairs, store.preprocessing, store.eo, store.cache)
    batches = Batches(counting, 4, AUGMENTATION, seed=0)
    assert batches.steps_per_epoch == 2
    for step in range(3):  # 12 samples of 6 pairs
        batches(step)
    assert seen == dict.fromkeys(range(6), 2)


def test_fewer_pairs_than_a_batch_fill_it(store: TileStore) -> None:
    batches = Batches(replace(store, pairs=store.pairs[:1]), 4, AUGMENTATION, seed=0)
    assert batches.steps_per_epoch == 1
    assert batches(0).sar.shape == (4, 2, 64, 64)


def test_shapes_types_and_layout(store: TileStore) -> None:
    batch = Batches(store, 2, AUGMENTATION, seed=0)(0)
    assert batch.sar.shape == (2, 2, 64, 64)
    assert batch.eo is not None and batch.eo.shape == (2, 3, 64, 64)
    assert batch.label.dtype == torch.int64
    assert batch.sar.dtype == batch.eo.dtype == torch.float32
    assert batch.sar.is_contiguous(memory_format=torch.channels_last)


def test_a_store_without_sar_has_no_bands(store: TileStore) -> None:
    teacher = replace(store, preprocessing=None)
    batch = Batches(teacher, 2, replace(AUGMENTATION, sar_gain=()), seed=0)(0)
    assert batch.sar.shape == (2, 0, 64, 64)
    assert batch.valid is None
    assert batch.eo is not None and torch.isfinite(batch.eo).all()


def test_eo_is_standardised_over_the_split(store: TileStore) -> None:
    tiles = np.stack([store[index].eo for index in range(len(store))])
    np.testing.assert_allclose(tiles.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(tiles.std((0, 2, 3)), 1, atol=1e-3)


def test_a_pair_without_label_is_all_unknown(store: TileStore) -> None:
    unlabelled = replace(store, pairs=[replace(store.pairs[0], label=None)])
    assert (unlabelled[0].label == 255).all()


def test_nodata_is_marked_and_only_there() -> None:
    sar = np.ones((2, 4, 4), np.float32)
    whole = Sample(sar=sar, eo=None, label=np.zeros((4, 4), np.uint8))
    assert collate([whole]).valid is None
    holed = replace(whole, sar=sar * (np.arange(4) > 0))
    valid = collate([whole, holed]).valid
    assert valid is not None
    assert valid.sum().item() == 16 + 12
    assert not valid[1, :, 0].any()


def test_cache_keeps_to_its_limit_and_changes_nothing(store: TileStore) -> None:
    tile = store[0]
    size = tile.sar.nbytes + tile.label.nbytes + tile.eo.nbytes
    assert store[0] is tile
    cramped = replace(store, cache=TileCache(0))
    assert cramped[0] is not cramped[0]
    np.testing.assert_array_equal(cramped[0].sar, tile.sar)
    cache = TileCache(1)
    made = [cache.get(i, lambda i=i: replace(tile, label=tile.label + 0 * i)) for i in range(20)]
    held = sum(cache.get(i, lambda: tile) is made[i] for i in range(20))
    assert held == 1_000_000 // size < 20


def test_prefetching_keeps_order_and_passes_errors_on() -> None:
    def fail_at_three(step: int) -> int:
        if step == 3:
            raise ValueError("tile 3 is broken")
        return step * 10

    assert list(prefetched(fail_at_three, range(3))) == [(0, 0), (1, 10), (2, 20)]
    assert list(prefetched(fail_at_three, range(0))) == []
    seen = []
    with pytest.raises(ValueError, match="tile 3 is broken"):
        for step, _ in prefetched(fail_at_three, range(9)):
            seen.append(step)
    assert seen == [0, 1, 2]


def test_prefetching_leaves_no_thread_behind() -> None:
    steps = prefetched(lambda step: step, range(100))
    next(steps)
    steps.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
