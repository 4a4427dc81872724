"""Calibration caches: the ranges of the record in the form that TensorRT before 11 reads.

Implicit INT8 takes a model without Q/DQ nodes and a text file with one scale per tensor. It is the only
INT8 of the DLA up to TensorRT 10, and what `trtexec --calib` wants on JetPack 4 to 6.

    TRT-100300-EntropyCalibration2
    sar: 3c010a14

The number is the version of the TensorRT that shall read it; another one ignores the file without a word
and then fails or calibrates on noise. A value is the scale, amax / 127, as big-endian float32 bits in hex
without leading zeros.

Tensors are named as in the ONNX model, which is what TensorRT's parser does. A tensor without a scale keeps
every layer that reads or writes it out of INT8 (TensorRT's warning "Missing scale and zero-point"). So:

* Every activation of the record is written, also those without Q/DQ nodes in the explicit model: there a
  convolution and the ReLU or sum behind it are quantised as one, here each tensor between them needs a scale.
* The outputs of nodes that the record keeps in high precision are left out, and the logits with them,
  unless the explicit model quantises that very tensor again for a layer behind it.
* Inputs of kept nodes stay: the layers that produce them shall run in INT8. TensorRT may therefore hand a
  kept node a dequantised map, where the explicit model hands it the precise one.

Leaving out is a rule of TensorRT's graph as it is after fusion; `trtexec --layerPrecisions` for the nodes
in `CacheInfo.kept` says the same thing by name.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from hfd_edge.bundle import Bundle
from hfd_edge.config import Strict
from hfd_edge.deploy.graph import OUTPUT, load
from hfd_edge.deploy.record import LEVELS, RECORD, CalibrationRecord, read_record
from hfd_edge.errors import ExportError

ALGORITHMS = ("EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration")
"""Names of TensorRT's calibrators in the header."""
ALGORITHM = ALGORITHMS[0]
"""What is written whatever the method was: `trtexec` reads caches through this calibrator, and the DLA
requires it (TensorRT C++ API, IInt8EntropyCalibrator2). It says how a file is read; the scales are ours."""
_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")  # greedy: names may hold ": " themselves
_PARSER_MADE = ("(Unnamed Layer* ", "ONNXTRT_")
"""Tensors of layers that TensorRT's ONNX parser adds; ONNX has no name for them."""
_SHOWN = 3


@dataclass(frozen=True)
class Cache:
    """A calibration cache.

    Attributes:
        version: TensorRT that reads it, "10.3.0".
        algorithm: Calibrator that reads it.
        amax: Tensor to the largest magnitude that is not clipped, 127 times the stored float32 scale; 0
            for a tensor that was zero on every tile.
    """

    version: str
    algorithm: str
    amax: dict[str, float]


class CacheInfo(Strict):
    """The sidecar of a cache in a bundle: which model, shape and calibration it belongs to."""

    tensorrt: str
    algorithm: str
    method: str = Field(description="How the record's ranges were found.")
    onnx_sha256: str = Field(description="The FP32 model whose tensors it names.")
    input_shape: tuple[int, int, int] = Field(description="Bands, rows and columns of the model's input.")
    record_sha256: str = Field(description="The calibration record that it was written from.")
    cache_sha256: str
    tensors: int = Field(description="Tensors with a scale.")
    left_out: tuple[str, ...] = Field(description="Activations without a scale, on purpose.")
    kept: tuple[str, ...] = Field(description="Nodes that must not run in INT8.")


def cache_name(tensorrt: str) -> str:
    """Path of a cache inside a bundle; its sidecar has the suffix .json."""
    return f"calibration/tensorrt-{tensorrt}.cache"


def version_number(tensorrt: str) -> int:
    """TensorRT's number for a version: 8.2.5 is 8205, 10.3.0 is 100300.

    Raises:
        ExportError: not a version, or one without calibration caches.
    """
    if _VERSION.fullmatch(tensorrt) is None:
        raise ExportError(f"TensorRT version is {tensorrt!r}, expected three numbers such as 10.3.0.")
    if not _has_caches(tensorrt):
        raise ExportError(
            f"TensorRT {tensorrt} reads no calibration caches of this form, only 7 to 10 do. "
            "Use the int8 or int8_fp16 model with Q/DQ nodes instead."
        )
    major, minor, patch = (int(part) for part in tensorrt.split("."))
    return major * (1000 if major < 10 else 10000) + minor * 100 + patch


def version_text(number: int) -> str:
    """The version of a header's number: 8205 is 8.2.5, 100300 is 10.3.0."""
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def left_out(record: CalibrationRecord) -> tuple[str, ...]:
    """Activations of the record that get no scale, so that kept nodes stay out of INT8; see the module.

    Tensors are found by name: `graph.tidy` calls the outputs of a node NODE:out, NODE:out1, ...
    """
    kept = {item.node for item in record.kept}
    again = set(record.quantized_tensors)
    outputs = (name for name in record.amax if name == OUTPUT or _producer(name) in kept)
    return tuple(name for name in outputs if name not in again)


def write_cache(record: CalibrationRecord, *, tensorrt: str, algorithm: str = ALGORITHM) -> str:
    """The cache of a calibration, for one version of TensorRT.

    Args:
        record: The calibration.
        tensorrt: Version that will read it, "8.5.2"; any other ignores it.
        algorithm: One of `ALGORITHMS`; see `ALGORITHM`.
    Returns:
        The text, in the record's order, which is the model's.
    Raises:
        ExportError: no such version or algorithm, or a range has no float32 scale.
    """
    if algorithm not in ALGORITHMS:
        raise ExportError(f"Algorithm is {algorithm!r}, expected one of: {', '.join(ALGORITHMS)}.")
    omitted = set(left_out(record))
    scales = {name: amax for name, amax in record.amax.items() if name not in omitted}
    return format_cache(Cache(tensorrt, algorithm, scales))


def format_cache(cache: Cache) -> str:
    """The text of a cache; `read_cache` gives the same cache back, to the last bit.

    Raises:
        ExportError: no such version, a name that does not fit on a line, or a range without a scale.
    """
    lines = [f"TRT-{version_number(cache.version)}-{cache.algorithm}"]
    lines += [f"{_checked_name(name)}: {_scale_bits(name, amax):x}" for name, amax in cache.amax.items()]
    return "\n".join(lines) + "\n"


def read_cache(text: str, *, source: str = "The cache") -> Cache:
    """Read the text of a calibration cache.

    Args:
        text: Content of the file.
        source: What to call it in messages.
    Raises:
        ExportError: a line is not what TensorRT writes; the message holds its number.
    """
    lines = text.splitlines()
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        seen = lines[0][:60] if lines else ""
        raise ExportError(
            f"{source}, line 1, is {seen!r}, expected a header such as TRT-100300-{ALGORITHM}. "
            "Give a calibration cache of TensorRT."
        )
    algorithm = header[2]
    if algorithm not in ALGORITHMS:
        raise ExportError(
            f"{source}, line 1, names the calibrator {algorithm!r}, expected one of: {', '.join(ALGORITHMS)}."
        )
    version = version_text(int(header[1]))
    if not _has_caches(version):
        raise ExportError(
            f"{source}, line 1, is for TensorRT number {header[1]}, expected one of TensorRT 7 to 10 such as "
            "8502 or 100300. Give a calibration cache of TensorRT."
        )
    amax: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        name, scale = _read_line(line, f"{source}, line {number},")
        if name in amax:
            raise ExportError(f"{source}, line {number}, names {name} again. Write the cache anew.")
        amax[name] = scale * LEVELS
    if not amax:
        raise ExportError(f"{source} has a header but no tensors. It was cut off; write it anew.")
    return Cache(version, algorithm, amax)


def open_cache(path: Path) -> Cache:
    """Read a calibration cache from a file, for looking at it. Raises ExportError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path} cannot be read as a calibration cache: {error}. Check the path."
        ) from error
    return read_cache(text, source=str(path))


def import_cache(path: Path, model: Path) -> Cache:
    """Read a cache that somebody else wrote, after checking that it names this model's tensors.

    Args:
        path: Cache without a sidecar.
        model: FP32 ONNX file that it is for.
    Raises:
        ExportError: the cache is unreadable, or names tensors that the model does not have, or not the
            model's input.
    """
    cache = open_cache(path)
    opened = load(model)
    known = {name for node in opened.graph.node for name in (*node.input, *node.output) if name}
    # Constants become layers of their own in TensorRT, whose outputs are named after them.
    layers = {item.name for item in opened.graph.initializer} | {node.name for node in opened.graph.node}
    strange = [
        name
        for name in cache.amax
        if name not in known
        and not name.startswith(_PARSER_MADE)
        and name.removesuffix("_output") not in layers
    ]
    if strange:
        raise ExportError(
            f"{path} is for another model: {len(strange)} of its {len(cache.amax)} tensors are not in "
            f"{model.name}, first {', '.join(strange[:_SHOWN])}. Write one with: hfd-edge calibrate cache"
        )
    missing = [item.name for item in opened.graph.input if item.name not in cache.amax]
    if missing:
        raise ExportError(
            f"{path} has no scale for the model's input {missing[0]}, so it is for another model or cut off. "
            "Write one with: hfd-edge calibrate cache"
        )
    return cache


def add_cache(bundle: Bundle, *, tensorrt: str) -> Bundle:
    """Write the cache for a version of TensorRT into a bundle, with its sidecar.

    Raises:
        ExportError: the bundle was not quantised, or the version has no caches.
        BundleError: a file was changed.
        StorageError: the disk is full; the bundle is as it was.
    """
    record = read_record(bundle)
    text = write_cache(record, tensorrt=tensorrt).encode()
    omitted = left_out(record)
    info = CacheInfo(
        tensorrt=tensorrt,
        algorithm=ALGORITHM,
        method=record.method,
        onnx_sha256=record.onnx_sha256,
        input_shape=record.input_shape,
        record_sha256=bundle.manifest.files[RECORD],
        cache_sha256=hashlib.sha256(text).hexdigest(),
        tensors=len(record.amax) - len(omitted),
        left_out=omitted,
        kept=tuple(item.node for item in record.kept),
    )
    name = cache_name(tensorrt)
    return bundle.add({name: text, _sidecar(name): (info.model_dump_json(indent=2) + "\n").encode()})


def stored_cache(bundle: Bundle, *, tensorrt: str) -> tuple[Path, CacheInfo]:
    """The checked cache of a bundle for a version of TensorRT.

    Returns:
        Its path and its sidecar.
    Raises:
        ExportError: there is none, or it is of another model, input shape, version or calibration.
        BundleError: a file was changed.
    """
    name = cache_name(tensorrt)
    fix = f"Write it with: hfd-edge calibrate cache {bundle.path} --tensorrt {tensorrt}"
    for needed in (name, _sidecar(name)):
        if needed not in bundle.manifest.files:
            raise ExportError(f"{bundle.path} has no {needed}. {fix}")
    sidecar = bundle.file(_sidecar(name))
    try:
        info = CacheInfo.model_validate(json.loads(sidecar.read_text("utf-8")))
    except (ValueError, ValidationError) as error:
        raise ExportError(f"{sidecar} is damaged: {str(error).splitlines()[0]}. {fix}") from error
    path = bundle.file(name)
    _check_fit(bundle, info, path, tensorrt=tensorrt, fix=fix)
    return path, info


def _check_fit(bundle: Bundle, info: CacheInfo, path: Path, *, tensorrt: str, fix: str) -> None:
    manifest = bundle.manifest
    shape = (len(manifest.sar.bands), manifest.tile_px, manifest.tile_px)
    text = path.read_bytes()
    pairs = {
        "FP32 model": (info.onnx_sha256, manifest.files[manifest.precisions["fp32"]]),
        "input shape": (info.input_shape, shape),
        "calibration record": (info.record_sha256, manifest.files.get(RECORD)),
        "cache": (info.cache_sha256, hashlib.sha256(text).hexdigest()),
        "TensorRT": (info.tensorrt, tensorrt),
    }
    for what, (found, expected) in pairs.items():
        if found != expected:
            raise ExportError(f"{path} is of another {what}: {found}, the bundle has {expected}. {fix}")
    version = read_cache(text.decode("utf-8", "replace"), source=str(path)).version
    if version != tensorrt:
        raise ExportError(f"{path} is of another TensorRT: {version}, expected {tensorrt}. {fix}")


def summary(cache: Cache) -> dict[str, Any]:
    """A cache in a few plain values, for people and --json."""
    values = [amax for amax in cache.amax.values() if amax > 0]
    return {
        "tensorrt": cache.version,
        "algorithm": cache.algorithm,
        "tensors": len(cache.amax),
        "zero_ranges": len(cache.amax) - len(values),
        "smallest_amax": min(values, default=0.0),
        "largest_amax": max(values, default=0.0),
    }


def _has_caches(tensorrt: str) -> bool:
    major, minor, patch = (int(part) for part in tensorrt.split("."))
    return 7 <= major <= 10 and patch <= 99 and minor <= (9 if major < 10 else 99)


def _sidecar(name: str) -> str:
    return name.removesuffix(".cache") + ".json"


def _producer(tensor: str) -> str:
    """Node that a tensor comes from, by `graph.tidy`'s naming; "" for others."""
    match = re.fullmatch(r"(.+):out\d*", tensor)
    return match[1] if match else ""


def _checked_name(name: str) -> str:
    if not name or len(name.splitlines()) != 1 or name != name.strip():
        raise ExportError(f"Tensor name {name!r} does not fit on a line of a cache. Export the model again.")
    return name


def _scale_bits(name: str, amax: float) -> int:
    """Bits of the float32 scale."""
    with np.errstate(over="ignore", under="ignore"):
        scale = np.float32(amax / LEVELS)
    if not np.isfinite(scale) or amax < 0 or (amax > 0 and scale == 0):
        raise ExportError(
            f"The range of {name} is {amax}, which has no positive float32 scale. Calibrate again."
        )
    return int(np.abs(scale).view(np.uint32))  # abs: a negative zero is a zero


def _read_line(line: str, where: str) -> tuple[str, float]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ExportError(
            f"{where} is {line[:80]!r}, expected 'TENSOR: HEX' with up to 8 digits. "
            "The cache is damaged; write it anew."
        )
    (scale,) = struct.unpack(">f", bytes.fromhex(match[2].zfill(8)))
    if not np.isfinite(scale) or scale < 0 or match[2] == "80000000":
        raise ExportError(
            f"{where} gives {match[1]} the scale {scale}, expected a finite one that is not negative. "
            "The calibration failed; calibrate again."
        )
    return match[1], scale
