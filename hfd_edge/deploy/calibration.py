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

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.graph import (
    INPUT,
    consumers,
    high_precision_nodes,
    load,
    onnx_package,
    producers,
    session,
)
from hfd_edge.deploy.record import LEVELS
from hfd_edge.deploy.tiles import TileSet
from hfd_edge.errors import ExportError
from hfd_edge.progress import Progress, silent

_BINS = 2048
_KEPT_BINS = 128
_ENTROPY_STEP = 8  # of 2048 bins: finer steps change amax by less than half a percent
_MSE_CANDIDATES = 128
_PERCENTILE = 99.99
_SMALLEST_LIMIT = 1e-30  # below it, bins per unit exceed float32
_BLOCK = 1 << 18
"""Values binned at a time: their copies stay in the cache, and a count in float32, as OpenCV gives it, is
exact up to 2^24."""


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
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        largest = max(float(flat.max(initial=0.0)), -float(flat.min(initial=0.0)))
        if not np.isfinite(largest):
            raise ExportError(
                "A calibration tile makes the FP32 model overflow. Check the weights with evaluate."
            )
        if largest == 0:
            return
        self.largest = max(self.largest, largest)
        self._reach(largest)
        for start in range(0, flat.size, _BLOCK):
            self.counts += _bin(flat[start : start + _BLOCK], np.float32(_BINS / self.limit))

    def _reach(self, largest: float) -> None:
        """Widen the range in powers of two by merging bins, so earlier counts stay exact."""
        if self.limit == 0:
            self.limit = max(largest, _SMALLEST_LIMIT)
        while self.limit < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate((merged, np.zeros(_BINS // 2, np.int64)))
            self.limit *= 2


def float_tensors(model: Any | Path) -> tuple[str, ...]:
    """Name every float activation of a model: the input, then what its nodes compute, in their order.

    These are the tensors for which an implicit INT8 build may want a range. What does not depend on the
    pixels (constants, and arithmetic on shapes) is left out: it needs none, and has the same values on
    every tile.

    Args:
        model: FP32 ONNX model, or the file of one.
    Raises:
        ExportError: the file is damaged, or the type of a tensor cannot be inferred.
    """
    onnx = onnx_package()
    opened = load(model) if isinstance(model, Path) else model
    try:
        inferred = onnx.shape_inference.infer_shapes(opened, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises classes of its own
        raise ExportError(f"The types of the model's tensors cannot be inferred: {error}") from error
    described = (*inferred.graph.value_info, *inferred.graph.output)
    types = {item.name: item.type.tensor_type.elem_type for item in described}
    found, reached = [INPUT], {INPUT}
    for node in opened.graph.node:
        if node.op_type in ("Shape", "Size") or reached.isdisjoint(node.input):
            continue
        for name in filter(None, node.output):
            reached.add(name)
            if name not in types:
                raise ExportError(
                    f"The type of {name}, which node {node.name} ({node.op_type}) computes, cannot be "
                    "inferred. Export the run again."
                )
            if types[name] == onnx.TensorProto.FLOAT:
                found.append(name)
    return tuple(found)


def ranged_tensors(model: Any) -> tuple[str, ...]:
    """The float tensors whose ranges calibration measures: all but those between nodes that stay precise.

    A warp has dozens of those, some as large as its map, and no compiler asks for their ranges.
    """
    kept, made, readers = set(high_precision_nodes(model)), producers(model), consumers(model)

    def inside(name: str) -> bool:
        below = readers.get(name, [])
        return name in made and bool(below) and all(node.name in kept for node in (made[name], *below))

    return tuple(name for name in float_tensors(model) if not inside(name))


def collect(
    model: Path, tensors: Iterable[str], tiles: TileSet, *, progress: Progress = silent
) -> dict[str, Histogram]:
    """Run tiles one by one and count the values of inner tensors; memory is that of one tile.

    Args:
        model: FP32 ONNX file.
        tensors: Names of tensors in it; its input is allowed.
        tiles: Standardised tiles, each (bands, tile_px, tile_px); an array (count, bands, tile_px,
            tile_px) will do. They are read once, in order.
        progress: Told of every tile.
    Returns:
        One histogram for each tensor, in the order of `tensors`.
    Raises:
        ExportError: a tensor is unknown, or the tiles do not fit the model.
        DatasetError: a tile cannot be read, or is not what it was.
    """
    names = list(dict.fromkeys(tensors))
    inner = [name for name in names if name != INPUT]
    runner = _opened_up(model, inner)
    found = {name: Histogram.empty() for name in names}
    for index, tile in enumerate(tiles):
        try:
            values = runner.run(inner, {INPUT: tile[None]}) if inner else []
        except Exception as error:  # onnxruntime's classes have no common base
            raise ExportError(
                f"Calibration tile {index} of shape {tile.shape} does not run: {error}"
            ) from error
        for name in reversed(inner):  # each tensor's memory is given back as soon as it is counted
            found[name].add(values.pop())
        if INPUT in found:
            found[INPUT].add(tile)
        progress(index + 1, len(tiles), "calibrating")
    return found


def amax_max(histogram: Histogram) -> float:
    """The largest magnitude seen."""
    return histogram.largest


def amax_percentile(histogram: Histogram) -> float:
    """The magnitude that 99.99 % of the values other than zero stay within.

    Source: Wu et al., "Integer Quantization for Deep Learning Inference", 2020 ("percentile"). There zeros
    count too; here they do not, see `Histogram`.
    """
    running = np.cumsum(histogram.counts)
    if not running[-1]:
        return 0.0
    rank = running[-1] * (_PERCENTILE / 100)
    at = int(np.searchsorted(running, rank))
    within = (rank - (running[at] - histogram.counts[at])) / histogram.counts[at]
    return float(min((at + within) * histogram.limit / _BINS, histogram.largest))


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
    # Below 128 bins a level would be narrower than a bin, and what rounding costs cannot be seen.
    lowest = min(_KEPT_BINS * histogram.limit / _BINS, histogram.largest)
    candidates = np.geomspace(lowest, histogram.largest, _MSE_CANDIDATES)
    errors = []
    for amax in candidates:
        scale = amax / LEVELS
        quantised = np.minimum(np.rint(centres / scale), LEVELS) * scale
        errors.append(float((histogram.counts * (centres - quantised) ** 2).sum()))
    # The largest of equals: clip no more than it helps.
    return float(candidates[_MSE_CANDIDATES - 1 - int(np.argmin(errors[::-1]))])


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "entropy": amax_entropy,
    "max": amax_max,
    "mse": amax_mse,
    "percentile": amax_percentile,
}
"""How a histogram becomes the largest magnitude that is not clipped; 0 when only zeros were seen."""


def _opened_up(model: Path, inner: list[str]) -> Any:
    """A session that also gives inner tensors."""
    onnx = onnx_package()
    opened = load(model)
    known = {name for node in opened.graph.node for name in node.output}
    missing = [name for name in inner if name not in known]
    if missing:
        raise ExportError(f"{model} has no tensor {missing[0]}. Export the run again.")
    declared = {item.name for item in opened.graph.output}
    opened.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in inner if name not in declared
    )
    return session(opened)


def _bin(values: NDArray[np.float32], bins_per_unit: np.float32) -> NDArray[np.int64]:
    """Counts of at most `_BLOCK` magnitudes by bin, without exact zeros.

    OpenCV counts 16-bit codes about four times faster than NumPy counts integers.
    """
    scaled = np.abs(values)
    scaled *= bins_per_unit
    codes = scaled.astype(np.uint16)
    found = cv2.calcHist([codes[None]], [0], None, [_BINS], [0, _BINS]).ravel().astype(np.int64)
    found[-1] += values.size - found.sum()  # the largest value has code 2048, beyond the last bin
    found[0] -= values.size - cv2.countNonZero(values[None])
    return found


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
