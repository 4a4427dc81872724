"""SAR pixels to network input: the one value that training, calibration and runtime share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import Units
from hfd_edge.errors import RadiometryError
from hfd_edge.sar import fast, radiometry, speckle

Array = NDArray[Any]

_Block = tuple[slice, slice]

_BLOCK_PX = (256, 512)
"""Rows and columns that a worker takes at a time: near enough to the processor, and large enough that two
threads seldom wait for each other at the interpreter lock (half the rows took 1.5 times as long on two). With
its halo it is still one block of `fast`. The result does not depend on it."""
_LEAST_BLOCKS = 2
"""Blocks for each thread: starting threads costs more than a tile of 512 takes in one (1.4 times)."""


@dataclass(frozen=True)
class _Chain:
    """Stored pixels to the domain of `clip`, from checked options."""

    units: Units
    looks: float
    nodata: float | None
    speckle: str
    window_px: int

    @property
    def halo_px(self) -> int:
        return 0 if self.speckle == "none" else self.window_px // 2

    def values(self, image: Array) -> NDArray[np.float32]:
        result = np.empty(image.shape, np.float32)

        def work(block: _Block) -> None:
            result[:, block[0], block[1]] = self.block(image, block)[0]

        _for_blocks((slice(0, image.shape[1]), slice(0, image.shape[2])), work)
        return result

    def block(self, image: Array, block: _Block) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values of a block, computed from it and its halo, and which of its pixels are valid."""
        firsts = [max(span.start - self.halo_px, 0) for span in block]
        around = [slice(first, span.stop + self.halo_px) for first, span in zip(firsts, block, strict=True)]
        inside = tuple(
            slice(span.start - first, span.stop - first) for first, span in zip(firsts, block, strict=True)
        )
        values, valid = self._signal(image[:, around[0], around[1]])
        return values[:, inside[0], inside[1]], valid[inside]

    def _signal(self, image: Array) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if self.units == "stretched" or (self.units == "sigma0_db" and self.speckle == "none"):
            values = image.astype(np.float32)
            valid = radiometry.valid_mask(image, units=self.units, nodata=self.nodata)
        else:
            values = self._despeckled_db(image)
            # Double-precision power beyond float32 is no measurement either.
            valid = np.isfinite(values[0])
            for band in values[1:]:
                valid &= np.isfinite(band)
        if not valid.all():
            np.copyto(values, np.float32(np.nan), where=~valid)
        return values, valid

    def _despeckled_db(self, image: Array) -> NDArray[np.float32]:
        intensity = radiometry.to_intensity(image, units=self.units, nodata=self.nodata)
        if self.speckle != "none":
            intensity = fast.despeckle(
                intensity, filter=self.speckle, window_px=self.window_px, looks=self.looks
            )
        return radiometry.intensity_to_db(intensity).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Preprocessing:
    """How stored SAR pixels become network input; travels with the model.

    The chain is stored pixels -> linear intensity -> speckle filter -> dB -> clip -> standardise, per
    band. "stretched" products have no radiometry left, so they are only clipped and standardised.

    Every output pixel depends only on the stored pixels within `halo_px` of it, bit for bit: a strip read
    with that halo gives the same values as the whole scene.

    Attributes:
        units: What the stored pixels are.
        looks: Equivalent number of looks, for the speckle filter.
        nodata: Stored value that marks no-data. NaN always does, so NaN here becomes None.
        speckle: "none" or a name in `hfd_edge.sar.FILTERS`.
        window_px: Odd side of the speckle window; 7 for "refined_lee".
        clip: Lowest and highest value per band, dB (stored values for "stretched").
        mean: Mean per band after clipping, same units as `clip`.
        std: Standard deviation per band after clipping, same units as `clip`.
    """

    units: Units
    looks: float
    nodata: float | None
    speckle: str
    window_px: int
    clip: tuple[tuple[float, float], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.nodata is not None and not math.isfinite(self.nodata):
            object.__setattr__(self, "nodata", None)
        _check_signal(self.units, self.looks, self.speckle, self.window_px)
        _check_statistics(self.clip, self.mean, self.std)

    @property
    def bands(self) -> int:
        """Number of SAR bands."""
        return len(self.mean)

    @property
    def halo_px(self) -> int:
        """Pixels around an area that its result depends on; 0 without a speckle filter."""
        return self._chain.halo_px

    @property
    def logarithmic(self) -> bool:
        """Whether clip, mean and std are in dB (a gain is then an offset)."""
        return self.units != "stretched"

    def values(self, image: Array) -> NDArray[np.float32]:
        """Bring stored pixels to the domain of `clip`, before clipping.

        Args:
            image: Stored pixels (bands, rows, cols) in `units`.
        Returns:
            Despeckled dB (stored values for "stretched"), float32 (bands, rows, cols). NaN in all bands
            where any band is invalid.
        Raises:
            RadiometryError: the pixels are not in `units`, or the band count differs.
        """
        radiometry.check_units(image, units=self.units, bands=self.bands, nodata=self.nodata)
        return self._chain.values(image)

    def __call__(self, image: Array) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Bring stored pixels to network input.

        Args:
            image: Stored pixels (bands, rows, cols) in `units`. An image without one valid pixel is legal.
        Returns:
            Clipped and standardised pixels, float32 (bands, rows, cols), 0 (the mean) at invalid pixels;
            and which pixels are valid, bool (rows, cols).
        Raises:
            RadiometryError: the pixels are not in `units`, or the band count differs.
        """
        pixels = np.empty(image.shape, np.float32)
        valid = np.empty(image.shape[1:], bool)
        self.into(pixels, valid, image)
        return pixels, valid

    def into(
        self, pixels: NDArray[np.float32], valid: NDArray[np.bool_], image: Array, *, above: int = 0
    ) -> None:
        """Bring stored pixels to network input in given memory.

        Args:
            pixels: Gets the pixels (bands, rows, cols) as a call gives them.
            valid: Gets which of them are valid, (rows, cols).
            image: Stored pixels (bands, above + rows + any, cols) in `units`.
            above: First rows of `image` that serve as halo only; those below `rows` do likewise.
        Raises:
            RadiometryError: the pixels are not in `units`, or the band count differs.
        """
        radiometry.check_units(image, units=self.units, bands=self.bands, nodata=self.nodata)
        chain = self._chain

        def work(block: _Block) -> None:
            values, known = chain.block(image, block)
            place = (slice(block[0].start - above, block[0].stop - above), block[1])
            for band, value in enumerate(values):
                target = pixels[band][place]
                low, high = self.clip[band]
                np.clip(value, np.float32(low), np.float32(high), out=value)
                value -= np.float32(self.mean[band])
                np.divide(value, np.float32(self.std[band]), out=target)
                if not known.all():
                    np.copyto(target, np.float32(0), where=~known)
            valid[place] = known

        _for_blocks((slice(above, above + valid.shape[0]), slice(0, valid.shape[1])), work)

    @property
    def _chain(self) -> _Chain:
        return _Chain(self.units, self.looks, self.nodata, self.speckle, self.window_px)


def signal_values(
    image: Array,
    *,
    units: Units,
    looks: float,
    nodata: float | None,
    speckle: str,
    window_px: int,
) -> NDArray[np.float32]:
    """Bring stored pixels to the domain in which statistics are taken, before any are known.

    Args:
        image: Stored pixels (bands, rows, cols) in `units`.
        units: What the stored pixels are.
        looks: Equivalent number of looks.
        nodata: Stored value that marks no-data, if there is one.
        speckle: "none" or a name in `hfd_edge.sar.FILTERS`.
        window_px: Odd side of the speckle window.
    Returns:
        As `Preprocessing.values`.
    Raises:
        RadiometryError: the pixels are not in `units`, or an option is out of range.
    """
    _check_signal(units, looks, speckle, window_px)
    bands = image.shape[0] if image.ndim == 3 else 1
    radiometry.check_units(image, units=units, bands=bands, nodata=nodata)
    return _Chain(units, looks, nodata, speckle, window_px).values(image)


def _for_blocks(area: _Block, work: Callable[[_Block], None]) -> None:
    """Run work(block) over the blocks of an area, on as many threads as OpenCV may use.

    NumPy and OpenCV release the interpreter lock, so threads do run side by side;
    `cv2.setNumThreads(1)` makes it sequential.
    """
    spans = [
        [slice(first, min(first + size, span.stop)) for first in range(span.start, span.stop, size)]
        for span, size in zip(area, _BLOCK_PX, strict=True)
    ]
    blocks = list(itertools.product(spans[0], spans[1]))
    threads = min(max(cv2.getNumThreads(), 1), len(blocks) // _LEAST_BLOCKS)
    if threads <= 1:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, blocks))


def _check_signal(units: Units, looks: float, name: str, window_px: int) -> None:
    radiometry.check_looks(looks)
    if name == "none":
        return
    speckle.check_options(name, window_px=window_px, looks=looks)
    if units == "stretched":
        raise RadiometryError(
            f'speckle is "{name}", but a "stretched" product has no speckle statistics left to filter by. '
            'Set speckle = "none", or declare the units that the pixels really have.'
        )


def _check_statistics(
    clip: tuple[tuple[float, float], ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    if not len(clip) == len(mean) == len(std) >= 1:
        raise RadiometryError(
            f"clip, mean and std are for {len(clip)}, {len(mean)} and {len(std)} bands, "
            "but must have one entry per band each."
        )
    for band, (low, high) in enumerate(clip):
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise RadiometryError(
                f"clip of band {band} is ({low}, {high}), but must be finite with low below high."
            )
    for band, (centre, spread) in enumerate(zip(mean, std, strict=True)):
        if not math.isfinite(centre):
            raise RadiometryError(f"mean of band {band} is {centre}, but must be finite.")
        if not (spread > 0 and math.isfinite(spread)):
            raise RadiometryError(
                f"std of band {band} is {spread}, but must be positive and finite. "
                "A constant band carries nothing to learn from: check the training tiles."
            )
