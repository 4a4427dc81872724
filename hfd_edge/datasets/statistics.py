"""Statistics of a training split, in one pass and in memory that does not grow with the split."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import Preprocessing, signal_values

Array = NDArray[Any]


def fit_preprocessing(
    folder: PairFolder,
    *,
    speckle: str = "none",
    window_px: int = 7,
    clip_percentile: float = 0.1,
    split: str = "train",
    progress: Progress = silent,
) -> Preprocessing:
    """Measure clip limits, mean and standard deviation of the SAR bands of a split.

    Args:
        folder: Data folder; its dataset.toml gives units, looks and no-data.
        speckle: Filter that the network input goes through, or "none".
        window_px: Odd side of the filter's window.
        clip_percentile: Values beyond this percentile at either end are clipped, per band.
        split: Split to measure; the training split, or the test split leaks into the model.
        progress: Counts pairs.
    Returns:
        The preprocessing for training, calibration and device. Mean and standard deviation are those of
        the valid pixels after clipping.
    Raises:
        DatasetError: a file is faulty, or a band holds a single value over the whole split.
        RadiometryError: the filter does not exist, or does not fit the units.
    """
    sar = folder.config.sar
    pairs = folder.pairs(split)
    histograms = [Histogram() for _ in sar.bands]
    for done, pair in enumerate(pairs):
        progress(done, len(pairs), f"SAR statistics {pair.name}")
        image = folder.load_sar(pair)
        values = signal_values(
            image,
            units=sar.units,
            looks=sar.looks,
            nodata=sar.nodata,
            speckle=speckle,
            window_px=window_px,
        )
        for histogram, band in zip(histograms, values, strict=True):
            histogram.add(band)
    progress(len(pairs), len(pairs), "SAR statistics")
    fits = [
        _fit(histogram, clip_percentile, where=f"SAR band '{name}' of split '{split}' in {folder.root}")
        for histogram, name in zip(histograms, sar.bands, strict=True)
    ]
    return Preprocessing(
        units=sar.units,
        looks=sar.looks,
        nodata=sar.nodata,
        speckle=speckle,
        window_px=window_px,
        clip=tuple((low, high) for low, high, _, _ in fits),
        mean=tuple(mean for _, _, mean, _ in fits),
        std=tuple(std for _, _, _, std in fits),
    )


def eo_statistics(
    folder: PairFolder, *, split: str = "train", progress: Progress = silent
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation per EO band of a split, for values from 0 to 1.

    Pairs without EO are left out.

    Raises:
        DatasetError: no pair has EO, a file is faulty, or a band is constant over the split.
    """
    pairs = [pair for pair in folder.pairs(split) if pair.eo is not None]
    if folder.config.eo is None or not pairs:
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no EO image, which a teacher needs. "
            f"Add eo/ files of the same names as the sar/ files."
        )
    bands = folder.config.eo.bands
    count = 0
    total = np.zeros(len(bands))
    squares = np.zeros(len(bands))
    for done, pair in enumerate(pairs):
        progress(done, len(pairs), f"EO statistics {pair.name}")
        # float64 and values within 0..1: the plain sum of squares loses nothing that matters here
        image = folder.load_eo(pair).astype(np.float64)
        count += image[0].size
        total += image.sum(axis=(1, 2))
        squares += np.square(image).sum(axis=(1, 2))
    progress(len(pairs), len(pairs), "EO statistics")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    for name, value in zip(bands, std, strict=True):
        if value < 1e-6:
            raise DatasetError(
                f"EO band '{name}' of split '{split}' in {folder.root} holds a single value, so it cannot be "
                f"standardised. Check that eo/ holds images, and eo.scale."
            )
    return tuple(mean.tolist()), tuple(std.tolist())


class Histogram:
    """Counts and sums over equal bins; the bins double in width whenever a value falls outside.

    A power of two as width and an integer number of widths per bin keep merged bins exact: small integers
    (8-bit products) each have a bin of their own, so their percentiles are exact, and decibels are
    resolved to about 0.004 dB.
    """

    BINS = 1 << 16
    FINEST_WIDTH = 2.0**-8

    def __init__(self) -> None:
        self.width = self.FINEST_WIDTH
        self.counts = np.zeros(self.BINS, np.int64)
        self.sums = np.zeros(self.BINS, np.float64)

    def add(self, values: Array) -> None:
        """Count the finite values of an array of any shape."""
        flat = values[np.isfinite(values)].astype(np.float64)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        while low < -self._half or high >= self._half:
            self._double()
        index = np.floor(flat / self.width).astype(np.int64) + self.BINS // 2
        self.counts += np.bincount(index, minlength=self.BINS)
        self.sums += np.bincount(index, weights=flat, minlength=self.BINS)

    @property
    def count(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def percentile(self, share: float) -> float:
        """Mean of the bin in which the given percentile (0 to 100) falls; needs at least one value."""
        running = np.cumsum(self.counts)
        rank = min(max(share / 100 * running[-1], 1), running[-1])
        at = int(np.searchsorted(running, rank))
        return float(self.sums[at] / self.counts[at])

    def clipped_moments(self, low: float, high: float) -> tuple[float, float]:
        """Mean and standard deviation of the values after clipping to low..high."""
        used = self.counts > 0
        weights = self.counts[used]
        centres = np.clip(self.sums[used] / weights, low, high)
        mean = float(np.average(centres, weights=weights))
        variance = float(np.average(np.square(centres - mean), weights=weights))
        return mean, variance**0.5

    @property
    def _half(self) -> float:
        return self.width * (self.BINS // 2)

    def _double(self) -> None:
        """Merge bins in pairs; zero stays a bin edge, so the merged half fills the middle."""
        quarter = self.BINS // 4
        for name in ("counts", "sums"):
            old = getattr(self, name)
            new = np.zeros_like(old)
            new[quarter : 3 * quarter] = old.reshape(-1, 2).sum(axis=1)
            setattr(self, name, new)
        self.width *= 2


def _fit(histogram: Histogram, clip_percentile: float, *, where: str) -> tuple[float, float, float, float]:
    """Clip limits, mean and standard deviation of one band."""
    if histogram.count:
        low = histogram.percentile(clip_percentile)
        high = histogram.percentile(100 - clip_percentile)
        mean, std = histogram.clipped_moments(low, high)
        if high > low and std > 0:
            return low, high, mean, std
    seen = f"{histogram.count} valid pixels"
    raise DatasetError(
        f"{where} cannot be standardised: its {seen} hold a single value after clipping. "
        f"Check the files, sar.units and sar.nodata, or lower preprocessing.clip_percentile."
    )
