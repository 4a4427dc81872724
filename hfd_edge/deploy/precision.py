"""FP16 and INT8 variants of an FP32 ONNX model.

Precision lives in the ONNX file, never in the build step: every TensorRT from 8.5 to 11 and TensorRT-RTX
then builds the same arithmetic. Both variants keep FP32 input and output, so one runtime serves all.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.calibration import LEVELS, METHODS, collect
from hfd_edge.deploy.graph import (
    INPUT,
    OUTPUT,
    high_precision_nodes,
    load,
    onnx_package,
    quantizers,
    replace_initializers,
    session,
)
from hfd_edge.errors import ExportError, MissingExtraError, require
from hfd_edge.files import atomic_path, storage_errors
from hfd_edge.progress import Progress, silent

HIGH_PRECISION = "fp32"
"""Type of what INT8 leaves out. With FP16 the same graph ran 2.3 times slower on ONNX Runtime's CPU
kernels (preset s, 256 x 256), and the INT8 variant must run, and be evaluated, without a GPU."""
_PLACEMENT_TILES = 1
_PURPOSE = "quantizing a model"


@dataclass(frozen=True)
class Calibration:
    """What `to_int8` measured and decided.

    Attributes:
        method: "entropy", "max" or "mse".
        amax: Activation tensor to its clipping point; its scale is amax / 127.
        quantized_nodes: Nodes whose inputs are quantised.
        high_precision_nodes: Nodes kept in FP32 on purpose.
        weights: Tensors with per-channel weight scales.
    """

    method: str
    amax: dict[str, float]
    quantized_nodes: tuple[str, ...]
    high_precision_nodes: tuple[str, ...]
    weights: tuple[str, ...]


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
        ExportError: `model` is damaged, or the converter fails on it.
        MissingExtraError: the export extra is not installed.
    """
    opened = load(model)
    kept = high_precision_nodes(opened)
    with _quiet(), _scratch_copy(model) as scratch:
        autocast = require("modelopt.onnx.autocast", extra="export", purpose=_PURPOSE)
        try:
            converted = autocast.convert_to_mixed_precision(
                str(scratch),
                low_precision_type="fp16",
                nodes_to_exclude=_exactly(kept),
                keep_io_types=True,
            )
        except ImportError as error:
            raise _incomplete(error) from error
        except Exception as error:  # modelopt raises whatever its many parts raise
            raise ExportError(f"{model} cannot be converted to FP16: {error}") from error
    _save(converted, out)


def to_int8(
    model: Path,
    out: Path,
    *,
    tiles: NDArray[np.float32],
    method: str = "entropy",
    progress: Progress = silent,
) -> Calibration:
    """Write an INT8 variant with explicit, symmetric Q/DQ nodes.

    Weights have one scale per output channel (largest magnitude), activations one per tensor, from the
    tiles. Flow heads, the warps' arithmetic and the classifier stay in FP32; the maps that warps sample are
    quantised, because convolutions read them too.

    Args:
        model: FP32 ONNX file.
        out: File to write, whole or not at all.
        tiles: Standardised tiles of the training split (count, bands, tile_px, tile_px).
        method: How activations are clipped: "entropy", "max" or "mse".
        progress: Told of every tile.
    Raises:
        ExportError: unknown method, no tiles, a damaged model, or a model without convolutions.
        MissingExtraError: the export extra is not installed.
    """
    if method not in METHODS:
        raise ExportError(f"Calibration method is {method!r}, expected one of: {', '.join(METHODS)}.")
    if tiles.ndim != 4 or not len(tiles):
        raise ExportError(
            f"Calibration tiles have shape {tiles.shape}, expected (count, bands, tile_px, tile_px)."
        )
    kept = high_precision_nodes(load(model))
    quantised = _place(model, tiles[:_PLACEMENT_TILES], kept)
    activations, weights = quantizers(quantised)
    if not activations:
        raise ExportError(f"{model} has no node that INT8 can speed up. Use the fp16 variant.")
    histograms = collect(model, activations, tiles, progress=progress)
    choose = METHODS[method]
    # A tensor that is zero on every tile still needs a scale; any will do.
    amax = {name: choose(histograms[name]) or 1.0 for name in activations}
    scales = {scale: np.asarray(amax[name] / LEVELS, np.float32) for name, scale in activations.items()}
    replace_initializers(quantised, scales)
    fold_weights(quantised)
    _check_symmetric(quantised)
    _save(quantised, out)
    return Calibration(
        method=method,
        amax=amax,
        quantized_nodes=_quantized_nodes(quantised),
        high_precision_nodes=kept,
        weights=tuple(sorted(weights)),
    )


def agreement(reference: Path, variant: Path, tiles: NDArray[np.float32]) -> Agreement:
    """Run both models on the same tiles, one at a time.

    Raises:
        ExportError: a model is damaged, or the variant gives NaN or infinity.
    """
    first, second = session(reference), session(variant)
    same = total = 0
    difference, low, high = 0.0, np.inf, -np.inf
    for tile in tiles:
        expected = first.run([OUTPUT], {INPUT: tile[None]})[0]
        found = second.run([OUTPUT], {INPUT: tile[None]})[0]
        if not np.isfinite(found).all():
            raise ExportError(
                f"{variant.name} gives logits that are not finite: some activations exceed its range. "
                "Use a higher precision for this model."
            )
        same += int((expected.argmax(1) == found.argmax(1)).sum())
        total += expected[:, 0].size
        difference = max(difference, float(np.abs(expected - found).max()))
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
    return Agreement(labels=same / total, logits=difference / max(high - low, np.finfo(np.float32).tiny))


def _place(model: Path, tiles: NDArray[np.float32], kept: tuple[str, ...]) -> Any:
    """Let modelopt choose where Q/DQ nodes go, with weight scales; activation scales are provisional."""
    onnx = onnx_package()
    with _quiet(), _scratch_copy(model) as scratch:
        quantization = require("modelopt.onnx.quantization", extra="export", purpose=_PURPOSE)
        out = scratch.with_name("placed.onnx")
        try:
            quantization.quantize(
                str(scratch),
                quantize_mode="int8",
                calibration_data={INPUT: tiles},
                calibration_method="max",
                calibration_eps=["cpu"],
                high_precision_dtype=HIGH_PRECISION,
                nodes_to_exclude=_exactly(kept),
                # Shared scales for the inputs of a concatenation: ours are set per tensor afterwards.
                passes=[],
                output_path=str(out),
                log_level="CRITICAL",
            )
            return onnx.load(str(out))
        except ImportError as error:
            raise _incomplete(error) from error
        except Exception as error:  # modelopt raises whatever its many parts raise
            raise ExportError(f"{model} cannot be quantised: {error}") from error


def fold_weights(model: Any) -> None:
    """Store quantised weights as INT8 constants, in place: same numbers, a quarter of the file.

    modelopt leaves FP32 weights behind a QuantizeLinear, which every reader would fold again.
    """
    onnx = onnx_package()
    constants = {item.name: item for item in model.graph.initializer}
    folded = [
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in constants
    ]
    for node in folded:
        weight = onnx.numpy_helper.to_array(constants[node.input[0]])
        scale = onnx.numpy_helper.to_array(constants[node.input[1]])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        if scale.ndim:
            scale = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
        codes = np.clip(np.rint(weight / scale), -LEVELS, LEVELS).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(codes, node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    for item in [item for item in model.graph.initializer if item.name not in used]:
        model.graph.initializer.remove(item)


@contextlib.contextmanager
def _scratch_copy(model: Path) -> Iterator[Path]:
    """Give a copy for modelopt to work on: it writes some of its clean-ups back to the file it was given."""
    with tempfile.TemporaryDirectory(prefix="hfd-edge-") as folder:
        copy = Path(folder) / model.name
        with storage_errors(copy):
            shutil.copyfile(model, copy)
        yield copy


def _incomplete(error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"{_PURPOSE} needs a package that cannot be imported ({error}). "
        "Install it with: pip install 'hfd-edge[export]'"
    )


def _exactly(names: tuple[str, ...]) -> list[str]:
    """Regular expressions that match these names and no others."""
    return [f"^{re.escape(name)}$" for name in names]


def _check_symmetric(model: Any) -> None:
    """TensorRT takes signed 8-bit codes with zero point 0 and nothing else."""
    onnx = onnx_package()
    constants = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = onnx.numpy_helper.to_array(constants[node.input[2]])
            if zero.dtype != np.int8 or zero.any():
                raise ExportError(
                    f"{node.name} has zero point {zero.ravel()[:1]} ({zero.dtype}), expected int8 zeros."
                )


def _quantized_nodes(model: Any) -> tuple[str, ...]:
    """Convolutions that read dequantised activations and weights."""
    dequantised = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and set(node.input[:2]) <= dequantised
    )


def _save(model: Any, out: Path) -> None:
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
