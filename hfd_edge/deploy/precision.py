"""FP16 and INT8 variants of an FP32 ONNX model.

Precision lives in the ONNX file, never in the build step: every TensorRT from 8.5 to 11 and TensorRT-RTX
then builds the same arithmetic. All variants keep FP32 input and output, so one runtime serves all.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.calibration import METHODS, Histogram, collect
from hfd_edge.deploy.graph import (
    INPUT,
    high_precision_nodes,
    load,
    logits_of,
    onnx_package,
    session,
    unfused_sums,
)
from hfd_edge.deploy.half import to_half
from hfd_edge.deploy.qdq import int8_model, layers, quantized_tensors, share
from hfd_edge.deploy.tiles import TileSet
from hfd_edge.errors import ExportError, MissingExtraError, require
from hfd_edge.files import atomic_path, storage_errors
from hfd_edge.progress import Progress, silent

_PURPOSE = "quantizing a model"
_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True)
class Calibration:
    """What `to_int8` measured and decided.

    Attributes:
        method: How activations were clipped; see `calibration.METHODS`.
        amax: Quantised tensor to its clipping point; its scale is amax / 127.
        quantized_nodes: Nodes that compute in INT8.
        high_precision_nodes: Nodes kept in FP32 on purpose.
    """

    method: str
    amax: dict[str, float]
    quantized_nodes: tuple[str, ...]
    high_precision_nodes: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """How far a variant is from FP32 on the same tiles.

    Attributes:
        labels: Share of logits positions with the same largest class, 0 to 1.
        logits: Largest difference relative to the range of the FP32 logits.
    """

    labels: float
    logits: float


def to_fp16(model: Path, out: Path) -> None:
    """Write an FP16 variant; flow heads, warps and classifier stay in FP32.

    Raises:
        ExportError: `model` is damaged.
        MissingExtraError: the export extra is not installed.
    """
    opened = load(model)
    to_half(opened, high_precision_nodes(opened))
    save(opened, out)


def to_int8(
    model: Path, out: Path, *, tiles: TileSet, method: str = "entropy", progress: Progress = silent
) -> Calibration:
    """Write an INT8 variant with explicit, symmetric Q/DQ nodes and FP32 elsewhere, calibrated on tiles.

    Weights have one scale per output channel (largest magnitude), activations one per tensor, from the
    tiles. `quantize.quantize` does the same for a bundle, and more.

    Args:
        model: FP32 ONNX file.
        out: File to write, whole or not at all.
        tiles: Standardised tiles of the training split, each (bands, tile_px, tile_px).
        method: How activations are clipped; see `calibration.METHODS`.
        progress: Told of every tile.
    Raises:
        ExportError: unknown method, no tiles, a damaged model, or a model without convolutions.
        MissingExtraError: the export extra is not installed.
    """
    if method not in METHODS:
        raise ExportError(f"Calibration method is {method!r}, expected one of: {', '.join(METHODS)}.")
    kept = high_precision_nodes(load(model))
    placed = place(model, first_tile(tiles))
    histograms = collect(model, quantized_tensors(placed), tiles, progress=progress)
    amax = share(ranges(histograms, method), placed)
    save(int8_model(placed, amax), out)
    return Calibration(method=method, amax=amax, quantized_nodes=layers(placed), high_precision_nodes=kept)


def ranges(histograms: Mapping[str, Histogram], method: str) -> dict[str, float]:
    """Clipping point of every tensor. One that is zero on every tile still needs a scale; any will do."""
    choose = METHODS[method]
    return {name: choose(histogram) or 1.0 for name, histogram in histograms.items()}


def first_tile(tiles: TileSet) -> NDArray[np.float32]:
    """The tile that `place` is shown. Raises ExportError when there is none, or it has another shape."""
    tile = next(iter(tiles), None)
    if tile is None or tile.ndim != 3:
        shape = (0,) if tile is None else (len(tiles), *tile.shape)
        raise ExportError(
            f"Calibration tiles have shape {shape}, expected (count, bands, tile_px, tile_px), at least one."
        )
    return tile


def agreement(
    reference: Path, variants: Mapping[_Name, Path], tiles: TileSet | Sequence[NDArray[np.float32]]
) -> dict[_Name, Agreement]:
    """Run models on the same tiles, one at a time, and compare each with the reference.

    Raises:
        ExportError: a model is damaged, or a variant gives NaN or infinity.
    """
    first = session(reference)
    runners = {name: session(path) for name, path in variants.items()}
    same, difference = dict.fromkeys(variants, 0), dict.fromkeys(variants, 0.0)
    total, low, high = 0, np.inf, -np.inf
    for tile in tiles:
        expected = logits_of(first, tile[None])
        total += expected[:, 0].size
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
        for name, runner in runners.items():
            found = logits_of(runner, tile[None])
            if not np.isfinite(found).all():
                raise ExportError(
                    f"{variants[name].name} gives logits that are not finite: some activations exceed its "
                    "range. Use a higher precision for this model."
                )
            same[name] += int((expected.argmax(1) == found.argmax(1)).sum())
            difference[name] = max(difference[name], float(np.abs(expected - found).max()))
    span = max(high - low, np.finfo(np.float32).tiny)
    return {name: Agreement(same[name] / total, difference[name] / span) for name in variants}


def place(model: Path, tile: NDArray[np.float32]) -> Any:
    """Put Q/DQ nodes wherever INT8 can compute, with weight scales; activation scales are provisional.

    nvidia-modelopt chooses the places; flow heads, warps, classifier and unfused sums are left out. Cut it
    down and set the scales with `qdq.int8_model`.

    Args:
        model: FP32 ONNX file.
        tile: Any standardised tile (bands, tile_px, tile_px).
    Returns:
        ModelProto whose quantised weights are still FP32, behind a QuantizeLinear each.
    Raises:
        ExportError: the model is damaged, or INT8 can speed up nothing in it.
        MissingExtraError: the export extra is not installed.
    """
    opened = load(model)
    left_out = (*high_precision_nodes(opened), *unfused_sums(opened))
    placed = _modelopt(model, tile[None], left_out)
    if not layers(placed):
        raise ExportError(f"{model} has no node that INT8 can speed up. Use the fp16 variant.")
    return placed


def _modelopt(model: Path, tiles: NDArray[np.float32], left_out: tuple[str, ...]) -> Any:
    onnx = onnx_package()
    with _quiet(), _scratch_copy(model) as scratch, _without_tensorrt():
        quantization = require("modelopt.onnx.quantization", extra="export", purpose=_PURPOSE)
        out = scratch.with_name("placed.onnx")
        try:
            quantization.quantize(
                str(scratch),
                quantize_mode="int8",
                calibration_data={INPUT: tiles},
                calibration_method="max",
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                nodes_to_exclude=_exactly(left_out),
                # Its pass shares scales at concatenations; ours are set afterwards (qdq.share).
                passes=[],
                output_path=str(out),
                log_level="CRITICAL",
            )
            return onnx.load(str(out))
        except ImportError as error:
            raise _incomplete(error) from error
        except Exception as error:  # modelopt raises whatever its many parts raise
            raise ExportError(f"{model} cannot be quantised: {error}") from error


@contextlib.contextmanager
def _scratch_copy(model: Path) -> Iterator[Path]:
    """Give a copy for modelopt to work on: it writes some of its clean-ups back to the file it was given."""
    with tempfile.TemporaryDirectory(prefix="hfd-edge-") as folder:
        copy = Path(folder) / model.name
        with storage_errors(copy):
            shutil.copyfile(model, copy)
        yield copy


@contextlib.contextmanager
def _without_tensorrt() -> Iterator[None]:
    """Keep modelopt (0.47) from starting TensorRT, with which it looks for plugins that our models never use.

    It fails where a package of that name cannot work: on machines without a GPU.
    """
    utils = require("modelopt.onnx.trt_utils", extra="export", purpose=_PURPOSE)
    found = getattr(utils, "TRT_PYTHON_AVAILABLE", False)
    utils.TRT_PYTHON_AVAILABLE = False  # type: ignore[attr-defined]  # a plain module attribute
    try:
        yield
    finally:
        utils.TRT_PYTHON_AVAILABLE = found  # type: ignore[attr-defined]


def _incomplete(error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"{_PURPOSE} needs a package that cannot be imported ({error}). "
        "Install it with: pip install 'hfd-edge[export]'"
    )


def _exactly(names: tuple[str, ...]) -> list[str]:
    """Regular expressions that match these names and no others."""
    return [f"^{re.escape(name)}$" for name in names]


def save(model: Any, out: Path) -> None:
    """Check a model and write it, the same bytes for the same model."""
    onnx_package().checker.check_model(model, full_check=True)
    with atomic_path(out) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep modelopt's prints, bars and logs off the console, where --json and our own bars are."""
    logger = logging.getLogger("modelopt")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
