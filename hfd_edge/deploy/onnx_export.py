"""From trained weights to ONNX, and the proof that both compute the same."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfd_edge.deploy.graph import (
    INPUT,
    OUTPUT,
    drop_unused_constants,
    load,
    logits_of,
    onnx_package,
    replace_initializers,
    session,
    tidy,
)
from hfd_edge.errors import ExportError, require
from hfd_edge.files import atomic_path

Head = Literal["quarter", "full"]
OPSET = 18
"""Newest opset that TensorRT 10 of JetPack 6 reads completely; GridSample needs 16."""
TOLERANCE = 1e-4
"""Largest difference to the weights' logits, relative to the range of the logits."""


def export_network(network: Any, path: Path, *, bands: int, tile_px: int, head: Head) -> None:
    """Write a network as ONNX: input "sar", output "logits", any batch, one tile size.

    Args:
        network: `HfdNet` with its final weights; it is not changed.
        path: ONNX file to write, whole or not at all.
        bands: SAR bands of the input (batch, bands, tile_px, tile_px), standardised float32.
        tile_px: Side of the tile; fixed, so that compilers can fold the sampling grids.
        head: "quarter" stops at stride 4; "full" enlarges the logits to the tile's size.
    Raises:
        ExportError: the exporter does not know an operator of the network.
        MissingExtraError: the export extra is not installed.
    """
    require("torch", extra="export", purpose="exporting a model")
    model = _export(_as_exported(network, head), bands=bands, tile_px=tile_px)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def check_parity(
    network: Any,
    path: Path,
    *,
    bands: int,
    tile_px: int,
    head: Head,
    pixels: NDArray[np.float32] | None = None,
) -> float:
    """Compare an ONNX file on ONNX Runtime with the weights in PyTorch.

    Twice: as they are, and with random weights in the flow heads of both, because a flow of zero hides
    every fault of the warp.

    Args:
        network: The network that `path` was exported from.
        path: ONNX file.
        bands: SAR bands.
        tile_px: Side of the tile.
        head: As exported.
        pixels: Standardised tiles (batch, bands, tile_px, tile_px); None takes seeded noise.
    Returns:
        The larger of both differences: max |difference| / (max - min of the logits).
    Raises:
        ExportError: it exceeds TOLERANCE, or the logits are not finite or all equal.
    """
    from hfd_edge.hfdnet.network import perturb_flow

    if pixels is None:
        rng = np.random.default_rng(0)
        pixels = rng.standard_normal((2, bands, tile_px, tile_px)).astype(np.float32)
    model = load(path)
    module = _as_exported(network, head)
    worst = _difference(module, model, pixels, label="as trained")
    perturb_flow(module, seed=0)
    flow = {name: value.numpy() for name, value in module.state_dict().items() if "flow_head." in name}
    if not flow:
        return worst
    if flow.keys() <= {item.name for item in model.graph.initializer}:
        replace_initializers(model, flow)
    else:
        # The exporter merges equal constants, such as the zeros of flow heads that were never trained.
        model = _export(module, bands=bands, tile_px=tile_px)
    return max(worst, _difference(module, model, pixels, label="with a random flow"))


def _as_exported(network: Any, head: Head) -> Any:
    """A copy on the CPU in inference mode, with the head that the graph gets."""
    from hfd_edge.hfdnet.network import FullHead

    module = copy.deepcopy(network).cpu().float().eval()
    return FullHead(module).eval() if head == "full" else module


def _export(module: Any, *, bands: int, tile_px: int) -> Any:
    """Export a module that is ready for inference; the model, tidied."""
    import torch

    require("onnxscript", extra="export", purpose="exporting a model")
    # Two samples: with one, the exporter may take the batch for a constant.
    example = torch.zeros(2, bands, tile_px, tile_px)
    batch = torch.export.Dim("batch", min=1, max=1024)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except Exception as error:  # the exporter's classes are private
            raise ExportError(f"The network cannot be exported to ONNX: {error}") from error
    model = program.model_proto
    fold_constants(model)
    tidy(model)
    onnx_package().checker.check_model(model, full_check=True)
    return model


def fold_constants(model: Any) -> None:
    """Compute nodes that read constants alone, in place.

    The exporter leaves the large ones: the sampling grids, whose float64 values and casts every compiler
    would otherwise have to take (TensorRT 8 rounds them with a warning).
    """
    onnx = onnx_package()
    reference = require("onnx.reference", extra="export", purpose="exporting a model")
    constants = {item.name: item for item in model.graph.initializer}
    outputs = {item.name for item in model.graph.output}
    same: dict[bytes, str] = {}  # the grids of one resolution are equal: one copy is enough
    renamed: dict[str, str] = {}
    for node in list(model.graph.node):
        node.input[:] = [renamed.get(name, name) for name in node.input]
        names = [name for name in node.input if name]
        if not names or not constants.keys() >= set(names) or outputs & set(node.output):
            continue
        inputs = {name: onnx.numpy_helper.to_array(constants[name]) for name in names}
        # Moves and casts only (Unsqueeze, Concat, ...): the reference computes them exactly.
        values = reference.ReferenceEvaluator(node, opsets={"": OPSET}).run(None, inputs)
        for name, value in zip(node.output, values, strict=True):
            constant = onnx.numpy_helper.from_array(np.ascontiguousarray(value))
            renamed[name] = same.setdefault(constant.SerializeToString(deterministic=True), name)
            if renamed[name] == name:
                constant.name = name
                constants[name] = constant
                model.graph.initializer.append(constant)
        model.graph.node.remove(node)
    drop_unused_constants(model)


def _difference(module: Any, model: Any, pixels: NDArray[np.float32], *, label: str) -> float:
    import torch

    with torch.no_grad():
        expected = module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
    spread = float(np.ptp(expected))
    if not np.isfinite(expected).all() or spread == 0:
        raise ExportError(
            f"The network {label} gives logits that are not finite or all equal (range {spread}). "
            "Its weights are damaged or were never trained; train it again."
        )
    found = logits_of(session(model), pixels)
    if found.shape != expected.shape:
        raise ExportError(f"The ONNX model {label} gives {found.shape}, the weights give {expected.shape}.")
    difference = float(np.abs(found - expected).max()) / spread
    if not difference <= TOLERANCE:
        raise ExportError(
            f"The ONNX model {label} differs from the weights by {difference:.2e} of the range of the "
            f"logits, allowed are {TOLERANCE:.0e}. Try export --warp grid_sample, or another "
            "version of torch or onnxscript."
        )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's prints and warnings off stdout, which belongs to --json."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
