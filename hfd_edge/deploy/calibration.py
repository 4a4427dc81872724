"""Ranges of the activations: histograms over real tiles, and the clipping point that suits INT8.

nvidia-modelopt places the Q/DQ nodes; the ranges are computed here. Its own entropy calibrator (0.47)
takes 128 bins over the range of the first tile and never clips below that, so the result depends on the
order of the tiles, and speckle in the first one sets the scale for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.graph import INPUT, load, onnx_package, session
from hfd_edge.errors import ExportError
from hfd_edge.progress import Progress, silent

LEVELS = 127
"""Largest INT8 code in symmetric quantisation: scale = amax / 127."""
_BINS = 2048
_KEPT_BINS = 128
_ENTROPY_STEP = 8  # of 2048 bins: finer steps change amax by less than half a percent
_MSE_CANDIDATES = 100


@dataclass
class Histogram:
    """Absolute values of one tensor, in 2048 equal bins from 0 to `limit`.

    Exact zeros are not counted: every scale keeps them, and after a ReLU they would drown the rest.
    """

    counts: NDArray[np.int64]
    limit: float
    largest: float

    @classmethod
    def empty(cls) -> Histogram:
        """No values yet."""
        return cls(np.zeros(_BINS, np.int64), 0.0, 0.0)

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape.

        Raises:
            ExportError: a value is NaN or infinite.
        """
        magnitude = np.abs(values, dtype=np.float32).ravel()
        largest = float(magnitude.max(initial=0.0))
        if not np.isfinite(largest):
            raise ExportError(
                "A calibration tile makes the FP32 model overflow. Check the weights with evaluate."
            )
        if largest == 0:
            return
        self.largest = max(self.largest, largest)
        self._reach(largest)
        codes = np.minimum((magnitude * np.float32(_BINS / self.limit)).astype(np.int32), _BINS - 1)
        self.counts += np.bincount(codes[magnitude > 0], minlength=_BINS)

    def _reach(self, largest: float) -> None:
        """Widen the range in powers of two by merging bins, so earlier counts stay exact."""
        if self.limit == 0:
            self.limit = largest
        while self.limit < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate((merged, np.zeros(_BINS // 2, np.int64)))
            self.limit *= 2


def collect(
    model: Path, tensors: Iterable[str], tiles: NDArray[np.float32], *, progress: Progress = silent
) -> dict[str, Histogram]:
    """Run tiles one by one and count the values of inner tensors; memory is that of one tile.

    Args:
        model: FP32 ONNX file.
        tensors: Names of tensors in it; its input is allowed.
        tiles: Standardised tiles (count, bands, tile_px, tile_px).
        progress: Told of every tile.
    Raises:
        ExportError: a tensor is unknown, or the tiles do not fit the model.
    """
    onnx = onnx_package()
    opened = load(model)
    names = list(dict.fromkeys(tensors))
    known = {name for node in opened.graph.node for name in node.output}
    missing = [name for name in names if name != INPUT and name not in known]
    if missing:
        raise ExportError(f"{model} has no tensor {missing[0]}. Export the run again.")
    inner = [name for name in names if name != INPUT]
    declared = {item.name for item in opened.graph.output}
    opened.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in inner if name not in declared
    )
    runner = session(opened)
    found = {name: Histogram.empty() for name in names}
    for index, tile in enumerate(tiles):
        try:
            values = runner.run(inner, {INPUT: tile[None]})
        except Exception as error:  # onnxruntime's classes have no common base
            raise ExportError(
                f"Calibration tile {index} of shape {tile.shape} does not run: {error}"
            ) from error
        for name, value in zip(inner, values, strict=True):
            found[name].add(value)
        if INPUT in found:
            found[INPUT].add(tile)
        progress(index + 1, len(tiles), "calibrating")
    return found


def amax_max(histogram: Histogram) -> float:
    """The largest magnitude seen."""
    return histogram.largest


def amax_entropy(histogram: Histogram) -> float:
    """The clipping point at which 128 levels lose the least information.

    For every candidate the values beyond it move into its last bin (what clipping does), and the result
    is compared with its own 128-level version by the Kullback-Leibler divergence.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    counts = histogram.counts.astype(np.float64)
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= _KEPT_BINS:
        return histogram.largest
    # Counted from the top, so that clipping nothing is always among the candidates.
    candidates = range(used, _KEPT_BINS - 1, -_ENTROPY_STEP)
    losses = [_divergence(counts[:used], bins) for bins in candidates]
    best = candidates[int(np.argmin(losses))]
    return min(best * histogram.limit / _BINS, histogram.largest)


def amax_mse(histogram: Histogram) -> float:
    """The clipping point with the smallest mean squared error of the quantised values."""
    if not histogram.largest:
        return 0.0
    centres = (np.arange(_BINS) + 0.5) * (histogram.limit / _BINS)
    candidates = histogram.largest * np.linspace(0.3, 1.0, _MSE_CANDIDATES)
    errors = []
    for amax in candidates:
        scale = amax / LEVELS
        quantised = np.minimum(np.rint(centres / scale), LEVELS) * scale
        errors.append(float((histogram.counts * (centres - quantised) ** 2).sum()))
    return float(candidates[int(np.argmin(errors))])


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "entropy": amax_entropy,
    "max": amax_max,
    "mse": amax_mse,
}


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """KL divergence between the clipped histogram and its 128-level version."""
    reference = counts[:bins].copy()
    occupied = counts[:bins] > 0
    reference[-1] += counts[bins:].sum()
    # A level spreads its count evenly over those of its bins that hold values.
    level = np.minimum(np.arange(bins) * _KEPT_BINS // bins, _KEPT_BINS - 1)
    total = np.bincount(level, counts[:bins], _KEPT_BINS)
    width = np.bincount(level, occupied, _KEPT_BINS)
    coarse = np.where(occupied, total[level] / np.maximum(width[level], 1), 0.0)
    if not coarse.any():
        return np.inf
    p, q = reference / reference.sum(), coarse / coarse.sum()
    # A bin that holds clipped values only has no counterpart: give it a small one instead of infinity.
    q = np.where((p > 0) & (q == 0), 1e-9, q)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
