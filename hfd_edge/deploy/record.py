"""The calibration record: one measurement from which every INT8 form is made.

`calibration/int8.json` in a bundle. Explicit Q/DQ models, calibration caches for TensorRT's implicit INT8
and the device kits all take their ranges from here, so they cannot differ.
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, ValidationError

from hfd_edge.bundle import Bundle
from hfd_edge.config import Strict
from hfd_edge.errors import ExportError

RECORD = "calibration/int8.json"
LEVELS = 127
"""Largest INT8 code in symmetric quantisation: scale = amax / 127."""


class CalibrationTile(Strict):
    """Where a calibration tile comes from, and the hash of its float32 pixels."""

    name: str = Field(description="Name of the pair.")
    row: int
    col: int
    sha256: str


class KeptNode(Strict):
    """A node that INT8 could take and that stays in high precision on purpose."""

    node: str
    reason: str


class CalibrationRecord(Strict):
    """What was measured on which tiles, and what was decided."""

    method: str = Field(description="entropy, max, mse, percentile, or qat (ranges learnt in training).")
    onnx_sha256: str = Field(description="The FP32 model that was calibrated.")
    data_sha256: str = Field(description="The data folder that the tiles come from.")
    split: str
    input_shape: tuple[int, int, int] = Field(description="Bands, rows and columns of the model's input.")
    selection: str = Field(description="How the tiles were chosen: even, k-centre or random.")
    requested_tiles: int = Field(gt=0)
    tiles: tuple[CalibrationTile, ...] = Field(min_length=1)
    amax: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="Largest magnitude that is not clipped, by activation tensor of the model."
    )
    quantized_tensors: tuple[str, ...] = Field(description="Activations with Q/DQ nodes in model.int8.onnx.")
    quantized_nodes: tuple[str, ...] = Field(description="Nodes that compute in INT8.")
    kept: tuple[KeptNode, ...] = Field(description="Nodes kept in high precision, with the reason.")
    versions: dict[str, str] = Field(description="Package name to version.")


def read_record(bundle: Bundle) -> CalibrationRecord:
    """Read a bundle's calibration record and check that it belongs to the bundle's FP32 model.

    Raises:
        ExportError: the bundle was not quantised, or its record is damaged or of another FP32 model.
        BundleError: the file was changed.
    """
    fix = f"Make it with: hfd-edge quantize {bundle.path} --data DIR"
    if RECORD not in bundle.manifest.files:
        raise ExportError(f"{bundle.path} has no calibration record. {fix}")
    try:
        record = CalibrationRecord.model_validate(json.loads(bundle.file(RECORD).read_text("utf-8")))
    except (ValueError, ValidationError) as error:
        raise ExportError(
            f"{bundle.path / RECORD} is damaged or from another version: {str(error).splitlines()[0]}. {fix}"
        ) from error
    expected = bundle.manifest.files[bundle.manifest.precisions["fp32"]]
    if record.onnx_sha256 != expected:
        raise ExportError(
            f"{bundle.path / RECORD} calibrates another FP32 model ({record.onnx_sha256[:12]}...) than the "
            f"bundle's ({expected[:12]}...). {fix}"
        )
    return record


def write_record(record: CalibrationRecord) -> bytes:
    """The record as the content of `RECORD`."""
    return (record.model_dump_json(indent=2) + "\n").encode()
