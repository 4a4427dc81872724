"""Training batches as a pure function of the step, which is what makes a resumed training bit-exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfd_edge.datasets.augment import Flip, Sample, augment
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]

_PERMUTATION, _SAMPLE = 0, 1
"""Streams of random numbers: a seed, one of these, and a counter name each generator."""


class Batch(NamedTuple):
    """Tensors of one training step; images are channels-last in memory.

    Attributes:
        sar: float32 (batch, bands, rows, cols), standardised, 0 at no-data; no bands for a teacher.
        eo: float32 (batch, bands, rows, cols), standardised; None without a teacher.
        label: int64 (batch, rows, cols).
        valid: bool (batch, rows, cols), where SAR has data; None where it has everywhere.
    """

    sar: Tensor
    eo: Tensor | None
    label: Tensor
    valid: Tensor | None


@dataclass(frozen=True)
class EoStatistics:
    """Mean and standard deviation per EO band, for values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def standardise(self, image: Array) -> NDArray[np.float32]:
        """(image - mean) / std per band, float32 (bands, rows, cols)."""
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        return np.asarray((image - mean) / std, np.float32)


class TileCache:
    """Prepared tiles up to a limit of memory; beyond it, tiles are prepared anew each time."""

    def __init__(self, limit_mb: int) -> None:
        self._free = limit_mb * 1_000_000
        self._tiles: dict[object, Sample] = {}

    def get(self, key: object, prepare: Callable[[], Sample]) -> Sample:
        """The tile of that key, prepared when it is not held."""
        held = self._tiles.get(key)
        if held is not None:
            return held
        tile = prepare()
        size = tile.sar.nbytes + tile.label.nbytes + (tile.eo.nbytes if tile.eo is not None else 0)
        if size <= self._free:
            self._free -= size
            self._tiles[key] = tile
        return tile


@dataclass(frozen=True)
class TileStore:
    """Whole, standardised tiles of a list of pairs.

    Attributes:
        folder: Where the pairs are.
        pairs: Which of them.
        preprocessing: SAR input; None leaves SAR out (zero bands), for a teacher.
        eo: EO standardisation; None leaves EO out. One of the two must be there.
        cache: May be shared by several stores.
    """

    folder: PairFolder
    pairs: Sequence[Pair]
    preprocessing: Preprocessing | None
    eo: EoStatistics | None
    cache: TileCache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """A tile; a pair without label is all unknown. Raises DatasetError or RadiometryError."""
        pair = self.pairs[index]
        key = (pair.sar, self.preprocessing is not None, self.eo is not None)
        return self.cache.get(key, lambda: self._prepare(pair))

    def _prepare(self, pair: Pair) -> Sample:
        eo = None if self.eo is None else self.eo.standardise(self.folder.load_eo(pair))
        label = None if pair.label is None else self.folder.load_label(pair)
        if self.preprocessing is not None:
            sar, _ = self.preprocessing(self.folder.load_sar(pair))
        else:
            assert eo is not None
            sar = np.empty((0, *eo.shape[1:]), np.float32)
        if label is None:
            label = np.full(sar.shape[1:], self.folder.config.ignore_index, np.uint8)
        return Sample(sar=sar, eo=eo, label=label)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a tile; see `hfd_edge.datasets.augment.augment`."""

    crop_px: int
    flip: Flip
    eo_jitter: float
    sar_gain: tuple[float, ...]
    ignore_index: int


@dataclass(frozen=True)
class Batches:
    """Augmented batches of a store.

    Every pair is seen once in each pass over the data, in an order of the pass's own; a batch may span
    two passes, so all batches have the same size.

    Attributes:
        store: Tiles, at least one.
        batch: Samples a batch.
        augmentation: Random changes.
        seed: Names the whole sequence of batches.
    """

    store: TileStore
    batch: int
    augmentation: Augmentation
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the pairs, rounded up."""
        return -(-len(self.store) // self.batch)

    def __call__(self, step: int) -> Batch:
        """The batch of a step (from 0); equal calls give equal bits."""
        first = step * self.batch
        return collate([self._sample(position) for position in range(first, first + self.batch)])

    def _sample(self, position: int) -> Sample:
        epoch, index = divmod(position, len(self.store))
        order = np.random.default_rng((self.seed, _PERMUTATION, epoch)).permutation(len(self.store))
        return augment(
            self.store[int(order[index])],
            rng=np.random.default_rng((self.seed, _SAMPLE, position)),
            crop_px=self.augmentation.crop_px,
            flip=self.augmentation.flip,
            eo_jitter=self.augmentation.eo_jitter,
            sar_gain=self.augmentation.sar_gain,
            ignore_index=self.augmentation.ignore_index,
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack tiles of one size into tensors."""
    sar = np.stack([sample.sar for sample in samples])
    eo = [sample.eo for sample in samples if sample.eo is not None]
    valid = (sar != 0).any(axis=1) if sar.shape[1] else None
    return Batch(
        sar=images(sar),
        eo=images(np.stack(eo)) if len(eo) == len(samples) else None,
        label=torch.from_numpy(np.stack([sample.label for sample in samples])).long(),
        valid=None if valid is None or valid.all() else torch.from_numpy(valid),
    )


def images(pixels: Array) -> Tensor:
    """NumPy (batch, bands, rows, cols) to a channels-last tensor: convolutions run faster on it."""
    return torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)


def prefetched(batches: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch), preparing the next batch in a thread while the caller computes."""
    ahead = iter(steps)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = [(step, pool.submit(batches, step)) for step in _first(ahead)]
        while pending:
            step, future = pending.pop()
            batch = future.result()
            pending = [(next_step, pool.submit(batches, next_step)) for next_step in _first(ahead)]
            yield step, batch


def _first(steps: Iterator[int]) -> list[int]:
    """The next step, or nothing."""
    for step in steps:
        return [step]
    return []
