"""A data folder in numbers: classes, bands, looks, no-data and how well EO and SAR lie on each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig
from hfd_edge.datasets import registration
from hfd_edge.datasets.check import Finding, check_folder
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.datasets.registration import Misregistration, Peak
from hfd_edge.datasets.statistics import Histogram
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import signal_values
from hfd_edge.sar.radiometry import to_intensity
from hfd_edge.sar.statistics import block_log_enl

Array = NDArray[Any]

BINS = 64
"""Bins of the histograms that are shown."""
MOST_COMPARED = 2000
"""Pairs of a split whose EO and SAR are compared, evenly spaced: more say the same of their shift."""
_EDGES_OF_ALL = (0.1, 99.9)  # percentiles between which histograms are shown


@dataclass(frozen=True)
class BandFacts:
    """Values of one band in one split.

    Attributes:
        low: Where the histogram begins: dB or stretched values of SAR, 0 to 1 for EO.
        high: Where it ends; what lies beyond counts in the outer bins.
        shares: Share of the valid pixels by bin of equal width.
        median: Median of the valid pixels.
        looks: Median over the tiles of their number of looks (`sar.statistics.block_log_enl`); None for EO
            and stretched values, and where no tile has an estimate.
    """

    low: float
    high: float
    shares: tuple[float, ...]
    median: float
    looks: float | None = None


@dataclass(frozen=True)
class SplitFacts:
    """One split.

    Attributes:
        pairs: Pairs in the split.
        read: Pairs that were read: all, or evenly spaced ones.
        with_eo: Of these, pairs with an EO image.
        with_label: Of these, pairs with a label.
        nodata: Share of SAR pixels without data.
        classes: Share of each class in the labelled pixels; empty without one.
        ignored: Share of label pixels that hold ignore_index; None without labels.
        sar: By band; a band without valid pixels is left out.
        eo: By band.
        misregistration: Shift of EO against SAR; None without EO.
    """

    pairs: int
    read: int
    with_eo: int
    with_label: int
    nodata: float
    classes: Mapping[str, float]
    ignored: float | None
    sar: Mapping[str, BandFacts]
    eo: Mapping[str, BandFacts]
    misregistration: Misregistration | None


@dataclass(frozen=True)
class Inspection:
    """What a data folder holds.

    Attributes:
        splits: By name; pairs of the list unlabelled.txt, where there is one, as `unlabelled`.
        findings: What `check_folder` finds, leaks between splits among it; None when only some pairs were
            read, or one split.
    """

    splits: Mapping[str, SplitFacts]
    findings: tuple[Finding, ...] | None


@dataclass
class _Sums:
    """What is added up while pairs pass."""

    config: DatasetConfig
    labels: Array = field(default_factory=lambda: np.zeros(256, np.int64))
    pixels: int = 0
    invalid: int = 0
    sar: list[Histogram] = field(default_factory=list)
    eo: list[Histogram] = field(default_factory=list)
    log_enl: list[Array] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    by_chance: list[Peak] = field(default_factory=list)
    other: Array | None = None  # edges of the EO image before, which has nothing to do with this one

    def add(self, folder: PairFolder, pair: Pair, *, compare: bool) -> None:
        sar = self._add_sar(folder.load_sar(pair))
        if pair.label is not None:
            self.labels += np.bincount(folder.load_label(pair).ravel(), minlength=256)
        if pair.eo is None:
            return
        image = folder.load_eo(pair)
        for histogram, band in zip(self.eo, image, strict=True):
            histogram.add(band)
        if not compare:
            return
        first, second = registration.edges(sar), registration.edges(image)
        self.peaks += registration.compare(first, second)
        if self.other is not None and self.other.shape == first.shape:
            self.by_chance += registration.compare(first, self.other)
        self.other = second

    def _add_sar(self, image: Array) -> Array:
        """Count SAR values; returns them in dB, or as they are."""
        own = self.config.sar
        values = signal_values(
            image, units=own.units, looks=own.looks, nodata=own.nodata, speckle="none", window_px=7
        )
        if own.units != "stretched":  # a stretch leaves no looks
            power = to_intensity(image, units=own.units, nodata=own.nodata)
            self.log_enl.append(block_log_enl(power))
        for histogram, band in zip(self.sar, values, strict=True):
            histogram.add(band)
        self.pixels += values[0].size
        self.invalid += int((~np.isfinite(values[0])).sum())
        return values


def inspect_folder(
    folder: PairFolder,
    split: str | None = None,
    *,
    tiles: int | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Read a folder once and say what it holds; one pair is in memory at a time.

    Args:
        folder: What to read; of a pool with several split schemes one must be chosen.
        split: Read this split alone; None reads all.
        tiles: Read at most so many evenly spaced pairs of each split; None reads all and also runs
            `check_folder`, which reads them a second time.
        progress: Counts pairs.
    Raises:
        DatasetError: no scheme is chosen, there is no such split, or a file is faulty.
    """
    if folder.schemes and folder.scheme is None:
        raise DatasetError(
            f"{folder.root} has several split schemes ({', '.join(folder.schemes)}). Choose one: --scheme."
        )
    lists = folder.lists if split is None else {split: folder.pairs(split)}
    chosen = {name: _spaced(pairs, tiles) for name, pairs in lists.items()}
    sums = {name: _sums(folder.config) for name in lists}
    done, total = 0, sum(len(pairs) for pairs in chosen.values())
    for name, pairs in chosen.items():
        every = -(-len(pairs) // MOST_COMPARED)
        for index, pair in enumerate(pairs):
            progress(done, total, f"inspecting {pair.name}")
            sums[name].add(folder, pair, compare=index % every == 0)
            done += 1
    progress(total, total, "inspected")
    limits = {
        kind: [_limits([getattr(one, kind)[band] for one in sums.values()]) for band in range(count)]
        for kind, count in (("sar", len(folder.config.sar.bands)), ("eo", _eo_bands(folder.config)))
    }
    facts = {
        name: _facts(folder.config, len(pairs), chosen[name], sums[name], limits)
        for name, pairs in lists.items()
    }
    whole = split is None and tiles is None
    return Inspection(facts, check_folder(folder, progress=progress).findings if whole else None)


def _facts(
    config: DatasetConfig,
    count: int,
    pairs: Sequence[Pair],
    sums: _Sums,
    limits: Mapping[str, list[tuple[float, float]]],
) -> SplitFacts:
    known = sums.labels[: len(config.classes)]
    labelled, every = int(known.sum()), int(sums.labels.sum())
    looks = _looks(sums.log_enl, len(config.sar.bands))
    with_eo = sum(pair.eo is not None for pair in pairs)
    eo_names = () if config.eo is None else config.eo.bands
    return SplitFacts(
        pairs=count,
        read=len(pairs),
        with_eo=with_eo,
        with_label=sum(pair.label is not None for pair in pairs),
        nodata=sums.invalid / max(sums.pixels, 1),
        classes={one: int(count) / labelled for one, count in zip(config.classes, known, strict=True)}
        if labelled
        else {},
        ignored=1 - labelled / every if every else None,
        sar=_bands(config.sar.bands, sums.sar, limits["sar"], looks),
        eo=_bands(eo_names, sums.eo, limits["eo"], [None] * len(eo_names)),
        misregistration=registration.summarise(sums.peaks, sums.by_chance) if with_eo else None,
    )


def _bands(
    names: Sequence[str],
    histograms: Sequence[Histogram],
    limits: Sequence[tuple[float, float]],
    looks: Sequence[float | None],
) -> dict[str, BandFacts]:
    return {
        name: BandFacts(low, high, _shares(one, low, high), one.percentile(50), enl)
        for name, one, (low, high), enl in zip(names, histograms, limits, looks, strict=True)
        if one.count
    }


def _sums(config: DatasetConfig) -> _Sums:
    return _Sums(
        config,
        sar=[Histogram() for _ in config.sar.bands],
        eo=[Histogram() for _ in range(_eo_bands(config))],
    )


def _eo_bands(config: DatasetConfig) -> int:
    return 0 if config.eo is None else len(config.eo.bands)


def _limits(histograms: Sequence[Histogram]) -> tuple[float, float]:
    """One axis for all splits, so that their histograms compare."""
    used = [one for one in histograms if one.count]
    if not used:
        return 0.0, 1.0
    low = min(one.percentile(_EDGES_OF_ALL[0]) for one in used)
    high = max(one.percentile(_EDGES_OF_ALL[1]) for one in used)
    return low, high if high > low else low + 1.0


def _shares(histogram: Histogram, low: float, high: float) -> tuple[float, ...]:
    """Shares by bin, from the cumulative distribution: bins of a few grey levels each would be a comb."""
    filled = histogram.counts > 0
    counts = histogram.counts[filled]
    centres = histogram.sums[filled] / counts
    below = np.interp(np.linspace(low, high, BINS + 1), centres, np.cumsum(counts) - counts / 2)
    below[0], below[-1] = 0, histogram.count
    return tuple((np.diff(below) / histogram.count).tolist())


def _looks(log_enl: Sequence[Array], bands: int) -> list[float | None]:
    values = np.array(log_enl, np.float64).reshape(-1, bands)
    known = [band[np.isfinite(band)] for band in values.T]
    return [float(10 ** np.median(band)) if band.size else None for band in known]


def _spaced(pairs: Sequence[Pair], tiles: int | None) -> list[Pair]:
    if tiles is None or tiles >= len(pairs):
        return list(pairs)
    return [pairs[index] for index in np.linspace(0, len(pairs) - 1, tiles).round().astype(int)]
