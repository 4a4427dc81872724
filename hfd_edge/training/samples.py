"""Training batches as a pure function of the step, which is what makes a resumed training bit-exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfd_edge.config import TeacherInputs
from hfd_edge.datasets.augment import Flip, Sample, augment
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]
Prepared = TypeVar("Prepared")

_LABELLED, _UNLABELLED = (0, 1), (2, 3)
"""Streams of random numbers, for the order of pairs and for their augmentation: a seed, one of these, and a
counter name each generator."""


class Batch(NamedTuple):
    """Tensors of one training step; images are channels-last in memory.

    Attributes:
        sar: float32 (batch, bands, rows, cols), standardised, 0 at no-data; no bands for a teacher.
        eo: float32 (batch, bands, rows, cols), standardised, 0 for pairs that have none; None without a
            teacher. Two dates lie behind one another, the later one first.
        label: int64 (batch, rows, cols).
        valid: bool (batch, rows, cols), where SAR has data and the pair has EO, if EO is asked for; None for
            everywhere.
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
        inputs: Which EO images a tile takes; SAR is for `preprocessing` to say.
    """

    folder: PairFolder
    pairs: Sequence[Pair]
    preprocessing: Preprocessing | None
    eo: EoStatistics | None
    cache: TileCache
    inputs: TeacherInputs = "eo"

    @property
    def eo_dates(self) -> int:
        """EO images a tile."""
        return 2 if "before" in self.inputs else 1

    @property
    def eo_bands(self) -> int:
        """EO bands a tile, of all dates."""
        return 0 if self.eo is None else self.eo_dates * len(self.eo.mean)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """A tile; a pair without label is all unknown, one without the EO images has none of them.

        Raises:
            DatasetError: a file is faulty.
            RadiometryError: SAR pixels do not fit the speckle filter.
        """
        pair = self.pairs[index]
        key = (pair, self.preprocessing is not None, self.eo_bands)
        return self.cache.get(key, lambda: self._prepare(pair))

    def _prepare(self, pair: Pair) -> Sample:
        eo = self._eo(pair)
        label = None if pair.label is None else self.folder.load_label(pair)
        if self.preprocessing is not None:
            sar, _ = self.preprocessing(self.folder.load_sar(pair))
        else:
            assert eo is not None  # who leaves SAR out leaves out pairs without EO
            sar = np.empty((0, *eo.shape[1:]), np.float32)
        if label is None:
            label = np.full(sar.shape[1:], self.folder.config.ignore_index, np.uint8)
        return Sample(sar=sar, eo=eo, label=label, eo_dates=self.eo_dates)

    def _eo(self, pair: Pair) -> Array | None:
        """Both dates have one standardisation, so that their difference stays a difference."""
        if self.eo is None or not pair.shows(self.inputs):
            return None
        after = self.eo.standardise(self.folder.load_eo(pair))
        if self.eo_dates == 1:
            return after
        return np.concatenate([after, self.eo.standardise(self.folder.load_eo_before(pair))])


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a tile; see `hfd_edge.datasets.augment.augment`."""

    crop_px: int
    flip: Flip
    eo_jitter: float
    sar_gain: tuple[float, ...]
    ignore_index: int


class Tiles(Protocol):
    """A store, or several."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class JoinedStores:
    """Stores of several folders, one behind the other."""

    stores: Sequence[Tiles]

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    def __getitem__(self, index: int) -> Sample:
        """A tile, as of its store. Raises IndexError beyond the last."""
        for store in self.stores:
            if index < len(store):
                return store[index]
            index -= len(store)
        raise IndexError(index)


@dataclass(frozen=True)
class Unlabelled:
    """Pairs that join each batch for the distillation alone; their labels are not looked at.

    Attributes:
        store: Tiles, at least one.
        batch: Samples that join each batch.
    """

    store: Tiles
    batch: int


@dataclass(frozen=True)
class Batches:
    """Augmented batches of a store.

    Every pair is seen once in each pass over the data, in an order of the pass's own; a batch may span
    two passes, so all batches have the same size.

    Attributes:
        store: Tiles, at least one.
        batch: Samples of the store a batch.
        augmentation: Random changes.
        seed: Names the whole sequence of batches.
        unlabelled: Further samples of each batch. They come on top, so steps and labelled samples are the
            same with and without them.
        epoch: Pairs that an epoch counts; those of the store by default.
    """

    store: TileStore
    batch: int
    augmentation: Augmentation
    seed: int
    unlabelled: Unlabelled | None = None
    epoch: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, rounded up."""
        return -(-(len(self.store) if self.epoch is None else self.epoch) // self.batch)

    def __call__(self, step: int) -> Batch:
        """The batch of a step (from 0); equal calls give equal bits."""
        return self.piece(step, 0, 1)

    def piece(self, step: int, index: int, count: int) -> Batch:
        """One of the `count` pieces of a step's batch, which differ by one sample at most."""

        def places(batch: int) -> range:
            begin, end = (part * batch // count for part in (index, index + 1))
            return range(step * batch + begin, step * batch + end)

        samples = self._samples(self.store, places(self.batch), _LABELLED)
        if self.unlabelled is not None:
            joining = self._samples(self.unlabelled.store, places(self.unlabelled.batch), _UNLABELLED)
            samples += [
                replace(sample, label=np.full_like(sample.label, self.augmentation.ignore_index))
                for sample in joining
            ]
        return collate(samples, eo_bands=self.store.eo_bands)

    def _samples(self, tiles: Tiles, places: range, streams: tuple[int, int]) -> list[Sample]:
        return [self._sample(tiles, position, streams) for position in places]

    def _sample(self, tiles: Tiles, position: int, streams: tuple[int, int]) -> Sample:
        epoch, index = divmod(position, len(tiles))
        return augment(
            tiles[int(_order(self.seed, streams[0], epoch, len(tiles))[index])],
            rng=np.random.default_rng((self.seed, streams[1], position)),
            crop_px=self.augmentation.crop_px,
            flip=self.augmentation.flip,
            eo_jitter=self.augmentation.eo_jitter,
            sar_gain=self.augmentation.sar_gain,
            ignore_index=self.augmentation.ignore_index,
        )


@lru_cache(maxsize=4)
def _order(seed: int, stream: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of the pairs in a pass over the data."""
    return np.random.default_rng((seed, stream, epoch)).permutation(count)


def collate(samples: Sequence[Sample], *, eo_bands: int = 0) -> Batch:
    """Stack tiles of one size into tensors; with `eo_bands`, EO is there even where no sample has any."""
    sar = np.stack([sample.sar for sample in samples])
    valid = (sar != 0).any(axis=1) if sar.shape[1] else None
    eo = None
    if eo_bands:
        none = np.zeros((eo_bands, *sar.shape[2:]), np.float32)
        eo = images(np.stack([none if sample.eo is None else sample.eo for sample in samples]))
        if valid is not None:
            valid &= np.array([sample.eo is not None for sample in samples])[:, None, None]
    return Batch(
        sar=images(sar),
        eo=eo,
        label=torch.from_numpy(np.stack([sample.label for sample in samples])).long(),
        valid=None if valid is None or valid.all() else torch.from_numpy(valid),
    )


def teacher_pixels(batch: Batch, *, bands: int) -> Tensor:
    """What a teacher of that many input bands sees: EO, and SAR behind it where it takes more than EO."""
    assert batch.eo is not None
    if batch.eo.shape[1] == bands:
        return batch.eo
    return torch.cat((batch.eo, batch.sar), 1).contiguous(memory_format=torch.channels_last)


def images(pixels: Array) -> Tensor:
    """NumPy (batch, bands, rows, cols) to a channels-last tensor: convolutions run faster on it."""
    return torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)


def prefetched(batches: Callable[[int], Prepared], steps: Iterable[int]) -> Iterator[tuple[int, Prepared]]:
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
