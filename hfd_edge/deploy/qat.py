"""Ranges that quantisation-aware training fixed: from modules of the network to tensors of its ONNX graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hfd_edge.deploy.graph import load
from hfd_edge.errors import ExportError

QAT_RANGES = "calibration/qat.json"
"""In a bundle: {"amax": {tensor of model.fp32.onnx: largest magnitude that is not clipped}}."""


def tensor_ranges(model: Path, ranges: Mapping[str, float]) -> dict[str, float]:
    """Find the tensors that the quantised convolutions read.

    Exported nodes carry the names of their modules (`graph.tidy`). Modules that read one tensor share one
    pair of Q/DQ nodes; training gave them the same range.

    Args:
        model: FP32 ONNX file of the trained network.
        ranges: Convolution to the range of its input, from the run's quantizers.json.
    Returns:
        Tensor to range, in the order of the graph.
    Raises:
        ExportError: the graph has no such convolution, or two that read one tensor differ in its range.
    """
    convolutions = {node.name: node.input[0] for node in load(model).graph.node if node.op_type == "Conv"}
    if lost := sorted(ranges.keys() - convolutions.keys()):
        raise ExportError(
            f"The run has a range for {lost[0]}, but the exported graph has no convolution of that name "
            f"(it has {len(convolutions)} others). Export with the hfd-edge that trained the run."
        )
    found: dict[str, float] = {}
    for name, tensor in convolutions.items():
        if name not in ranges:
            continue
        if found.setdefault(tensor, ranges[name]) != ranges[name]:
            raise ExportError(
                f"The run has the ranges {found[tensor]} and {ranges[name]} for {tensor}, which {name} and "
                "another convolution read. Its quantizers.json was changed; copy the run folder again."
            )
    return found


def write_ranges(model: Path, ranges: Mapping[str, float]) -> bytes:
    """The content of `QAT_RANGES`. Raises ExportError."""
    content = {"amax": tensor_ranges(model, ranges)}
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
