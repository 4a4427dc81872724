"""The kernels that describe a frame as Python calls; `sar.statistics.frame_statistics` on the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.runtime.launch import MAX_BANDS, PIXEL_TYPES, UNITS, Plane, grid_of
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.statistics import BINS, BLOCK_PX, LOG_ENL_LIMITS, FrameStatistics

if TYPE_CHECKING:
    from hfd_edge.runtime.device import DeviceLimits, Stream
    from hfd_edge.runtime.kernels import Kernels

LOOKS_BINS = 1024
"""Bins of log10 of the looks between its limits; their median is known to half a bin, 0.5 %."""
STEPS = 1 << 18
"""Steps between the clip limits of a band in which pixels are summed, exactly and in any order."""

_GROUP = 4
_THREADS = 256
# Blocks of threads for each multiprocessor that count pixels; each adds its own histogram once.
_WAVES = 4

STATS_ARGS = np.dtype(
    [
        ("raw", "<u8"),
        ("pixels", "<u8"),
        ("valid", "<u8"),
        ("sums", "<u8"),
        ("histogram", "<u8"),
        ("looks", "<u8"),
        ("raw_row", "<i8"),
        ("raw_band", "<i8"),
        ("pixels_row", "<i8"),
        ("pixels_band", "<i8"),
        ("valid_row", "<i8"),
        ("bands", "<i4"),
        ("rows", "<i4"),
        ("cols", "<i4"),
        ("dtype", "<i4"),
        ("units", "<i4"),
        ("half", "<i4"),
        ("aligned", "<i4"),
        ("looks_low", "<f4"),
        ("looks_high", "<f4"),
        ("low", "<f4", (MAX_BANDS,)),
        ("scale", "<f4", (MAX_BANDS,)),
    ],
    align=True,
)
"""`StatsArgs` of stats.cu."""


class Stats:
    """Describe a frame, from its stored pixels and from what `Speckle` made of them.

    Args:
        kernels: Kernels of the device.
        limits: Of the same device.
        preprocessing: The bundle's.
        half: Whether the network's input is float16.
    Raises:
        BackendError: there are more bands than the kernel takes, or it cannot be had.

    Attributes:
        nbytes: Size of the counters on the device.
    """

    def __init__(
        self, kernels: Kernels, limits: DeviceLimits, preprocessing: Preprocessing, *, half: bool
    ) -> None:
        bands = preprocessing.bands
        if bands > MAX_BANDS:
            raise BackendError(f"There are {bands} bands, but the GPU kernels take {MAX_BANDS} at most.")
        self._limits, self._preprocessing, self._half = limits, preprocessing, half
        self._pixels = kernels.function("stats", "stats_pixels")
        self._looks = kernels.function("stats", "stats_looks")
        self._layout = np.dtype(
            [
                ("sums", "<u8", (bands, 2)),
                ("histogram", "<u4", (bands, BINS)),
                ("looks", "<u4", (bands, LOOKS_BINS)),
            ]
        )
        self.nbytes: int = self._layout.itemsize

    def reset(self, stream: Stream, counters: int) -> None:
        """Enqueue setting the counters at this address to zero, before the first part of a frame."""
        stream.fill(counters, 0, self.nbytes)

    def __call__(
        self,
        stream: Stream,
        raw: Plane,
        *,
        dtype: np.dtype,
        shape: tuple[int, int, int],
        pixels: Plane,
        valid: Plane,
        counters: int,
    ) -> None:
        """Enqueue counting a frame, or a part of it from a row that is a multiple of 8 on.

        Args:
            stream: Where to enqueue.
            raw: Stored pixels.
            dtype: Of `raw`: uint8, uint16, float32 or complex64.
            shape: Bands, rows, columns of `raw` and `pixels`.
            pixels: Network input, float32 or float16.
            valid: uint8 (rows, cols), 0 at invalid pixels.
            counters: Address of `nbytes` bytes, a multiple of 8; counts are added.
        Raises:
            BackendError: the shape or the type does not fit.
        """
        chain = self._preprocessing
        if dtype.name not in PIXEL_TYPES or (dtype.name == "complex64") != (chain.units == "complex"):
            raise BackendError(
                f'The statistics kernel was given {dtype} pixels for units "{chain.units}", but takes '
                "complex64 for complex ones and uint8, uint16 or float32 for all others."
            )
        if shape[0] != chain.bands or min(shape) < 1:
            raise BackendError(f"The frame is {shape}, expected {chain.bands} bands and at least one pixel.")
        args = self._arguments(raw, pixels, valid, counters)
        args["dtype"], args["units"] = PIXEL_TYPES.index(dtype.name), UNITS[chain.units]
        args["bands"], args["rows"], args["cols"] = bands, rows, cols = shape
        groups = -(-cols // _GROUP) * rows
        blocks = min(-(-groups // _THREADS), _WAVES * self._limits.multiprocessors)
        grid = grid_of(self._limits, blocks, bands)
        self._pixels(stream, grid=grid, block=(_THREADS,), args=args)
        if rows >= BLOCK_PX and cols >= BLOCK_PX:
            grid = grid_of(self._limits, -(-cols // _THREADS), rows // BLOCK_PX)
            self._looks(stream, grid=grid, block=(_THREADS,), args=args)

    def read(self, content: NDArray[np.uint8]) -> FrameStatistics:
        """Turn the counters, copied to the host, into numbers; see `FrameStatistics`."""
        found = content.view(self._layout)[0]
        histogram = found["histogram"].astype(np.int64)
        mean, variance = [], []
        for counts, sums, (low, high) in zip(histogram, found["sums"], self._preprocessing.clip, strict=True):
            count, total, squares = int(counts.sum()), int(sums[0]), int(sums[1])
            step = (high - low) / STEPS
            mean.append(low + step * (total / count + 0.5) if count else math.nan)
            # Python's integers do not overflow, and nothing cancels in them.
            spread = (count * squares - total * total) / (count * (count - 1)) if count > 1 else math.nan
            variance.append(step * step * spread)
        log_enl = tuple(_median(counts) for counts in found["looks"])
        return FrameStatistics(histogram, tuple(mean), tuple(variance), log_enl)

    def _arguments(self, raw: Plane, pixels: Plane, valid: Plane, counters: int) -> np.void:
        args: np.void = np.zeros(1, STATS_ARGS)[0]
        args["raw"], args["raw_row"], args["raw_band"] = raw.address, raw.row_stride, raw.band_stride
        args["pixels"], args["pixels_row"] = pixels.address, pixels.row_stride
        args["pixels_band"], args["half"] = pixels.band_stride, self._half
        args["valid"], args["valid_row"] = valid.address, valid.row_stride
        args["aligned"] = pixels.aligned(2 if self._half else 4) and valid.aligned(1)
        args["looks_low"], args["looks_high"] = LOG_ENL_LIMITS
        for name in ("sums", "histogram", "looks"):
            args[name] = counters + self._layout.fields[name][1]  # type: ignore[index]
        chain = self._preprocessing
        low, high = np.transpose(chain.clip)
        std = np.asarray(chain.std)
        args["low"][: chain.bands] = (low - np.asarray(chain.mean)) / std
        args["scale"][: chain.bands] = STEPS * std / (high - low)
        return args


def _median(counts: NDArray[np.uint32]) -> float:
    """Median of values that were counted in bins between `LOG_ENL_LIMITS`; NaN of none."""
    running = np.cumsum(counts, dtype=np.int64)
    if not running[-1]:
        return math.nan
    ranks = np.array([(running[-1] - 1) // 2, running[-1] // 2])
    bins = np.searchsorted(running, ranks, side="right")
    low, high = LOG_ENL_LIMITS
    return float(low + (high - low) * (bins.mean() + 0.5) / len(counts))
