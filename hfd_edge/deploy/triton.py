"""A bundle as a model of NVIDIA Triton Inference Server.

The server runs the network alone: standardised pixels in, logits out. What stands before and behind it stays
with the client, and travels in the model's configuration (`parameters`), so a client needs nothing but the
server's address. The configuration is text of the protobuf message `inference.ModelConfig`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.graph import INPUT, OUTPUT, session
from hfd_edge.deploy.tiles import pad_to_tile
from hfd_edge.engine_record import EngineRecord, read_engine_record
from hfd_edge.errors import EngineError, ExportError, StorageError
from hfd_edge.files import atomic_folder, write_bytes, write_text
from hfd_edge.tensorrt_api import PRODUCTS

WARMUP = "warmup"  # the folder in which Triton looks for files of samples
_SAMPLE = "tile.raw"
_MOST_TILES = 8
_DELAY_US = 1000
"""How long a request may wait for company: small beside the milliseconds of a tile."""
_TYPES = {"tensor(float)": ("TYPE_FP32", np.float32), "tensor(float16)": ("TYPE_FP16", np.float16)}


@dataclass(frozen=True)
class TritonModel:
    """A model in a Triton repository.

    Attributes:
        path: Its folder in the repository.
        name: By which clients call it.
        backend: Triton's backend: "onnxruntime" or "tensorrt".
        precision: Variant.
        max_batch_size: Tiles that the server runs together; 0 where the model takes exactly `batch` of them.
        batch: Tiles of the model where their number is fixed.
    """

    path: Path
    name: str
    backend: str
    precision: str
    max_batch_size: int
    batch: int | None


class Word(str):
    """A name of an enumeration in protobuf text, which takes no quotes."""


@dataclass(frozen=True)
class _Source:
    """What the server will run.

    Attributes:
        path: Its file.
        backend: Triton's name of what runs it.
        file: Its name in the repository.
        precision: Variant.
        batch: Least and most tiles; equal where the number is fixed, None for no bound.
        dtypes: Types of input and output, by Triton's names.
    """

    path: Path
    backend: str
    file: str
    precision: str
    batch: tuple[int, int | None]
    dtypes: tuple[str, str] = ("TYPE_FP32", "TYPE_FP32")


def export_triton(
    bundle: Bundle,
    repository: Path | str,
    *,
    precision: str | None = None,
    engine: str | None = None,
    name: str | None = None,
) -> TritonModel:
    """Write a bundle's model into a Triton model repository.

    Args:
        bundle: The bundle; its first golden tile becomes the warm-up sample.
        repository: Folder of models; may hold others already.
        precision: Variant whose ONNX model is served by ONNX Runtime; None for FP32.
        engine: `<target>-<precision>` of a TensorRT engine to serve instead.
        name: By which clients call the model; None for the bundle's.
    Raises:
        ExportError: the name is none for a folder, precision and engine are both given, or ONNX Runtime in
            Triton would compute another result.
        EngineError: the engine is not a plan of TensorRT, or not the one that its sidecar describes.
        BundleError: the bundle has no such model or engine, or a file was changed.
        StorageError: the repository has a model of this name, or cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", bundle.manifest.name) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ExportError(
            f"{name!r} is no name for a model: it becomes a folder and a part of URLs. Use letters, digits, "
            "- _ and . alone, beginning with a letter or a digit."
        )
    if precision is not None and engine is not None:
        raise ExportError(
            f"Precision {precision} and engine {engine} were both asked for, but a model is either. Give one."
        )
    source = _onnx(bundle, precision or "fp32") if engine is None else _plan(bundle, engine)
    path = Path(repository) / name
    if path.exists():
        raise StorageError(f"{path} already exists. Remove it, or give the model another --name.")
    batch, dynamic = _batch(source)
    with atomic_folder(path) as staged:
        write_bytes(staged / "1" / source.file, source.path.read_bytes())
        sample = _sample(bundle, source, batch)
        if sample is not None:
            write_bytes(staged / WARMUP / _SAMPLE, sample)
        config = _config(bundle, source, name, batch=batch, dynamic=dynamic, sampled=sample is not None)
        write_text(staged / "config.pbtxt", protobuf_text(config))
        write_text(staged / "labels.txt", "".join(f"{label}\n" for label in bundle.manifest.classes))
        write_text(staged / "README.md", _readme(bundle, source, name))
    return TritonModel(
        path=path,
        name=name,
        backend=source.backend,
        precision=source.precision,
        max_batch_size=batch if dynamic else 0,
        batch=None if dynamic else batch,
    )


def protobuf_text(message: Mapping[str, Any], *, depth: int = 0) -> str:
    """Write a protobuf message as text.

    Args:
        message: Field to value: text, `Word`, number, bool, message, or a sequence for a repeated field.
        depth: Levels of indentation.
    """
    lines = []
    for name, value in message.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for item in values:
            if isinstance(item, Mapping):
                inner = protobuf_text(item, depth=depth + 1)
                lines.append(f"{'  ' * depth}{name} {{\n{inner}{'  ' * depth}}}\n")
            else:
                lines.append(f"{'  ' * depth}{name}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's escapes are also protobuf's; other characters stay what they are, in UTF-8.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _onnx(bundle: Bundle, precision: str) -> _Source:
    if precision == "int8_fp16":
        raise ExportError(
            "int8_fp16 is not served as ONNX: ONNX Runtime's pass WeightBiasQuantization puts its biases out "
            "of FP16's range and changes labels, and Triton cannot turn it off. Choose int8 or fp16, or "
            "serve a TensorRT engine of it with --engine."
        )
    path = bundle.model(precision)
    opened = session(path, threads=1)
    (taken,), (given,) = opened.get_inputs(), opened.get_outputs()
    batch = taken.shape[0]
    return _Source(
        path=path,
        backend="onnxruntime",
        file="model.onnx",
        precision=precision,
        batch=(batch, batch) if isinstance(batch, int) else (1, None),
        dtypes=(_TYPES[taken.type][0], _TYPES[given.type][0]),
    )


def _plan(bundle: Bundle, engine: str) -> _Source:
    path = bundle.engine(engine)
    record = read_engine_record(path)
    if record.flavour != "tensorrt":
        kind = PRODUCTS.get(record.flavour, record.flavour)
        raise EngineError(
            f"Engine {engine} was made by {kind}, which Triton's TensorRT backend cannot load: it takes "
            "plans of TensorRT itself. Build one with: hfd-edge build BUNDLE --target NAME for a target of "
            f"flavour 'tensorrt', or serve the ONNX model with --precision {record.precision}."
        )
    model = bundle.manifest.precisions.get(record.precision)
    if model is not None and record.onnx_sha256 != bundle.manifest.files[model]:
        raise EngineError(
            f"Engine {engine} was built from another {record.precision} model than the bundle's. Build it "
            f"again with: {record.rebuild(bundle.path)}"
        )
    return _Source(
        path=path,
        backend="tensorrt",
        file="model.plan",
        precision=record.precision,
        batch=_engine_batch(engine, record),
    )


def _engine_batch(engine: str, record: EngineRecord) -> tuple[int, int]:
    """Least and most tiles of a plan."""
    found = record.options.get("batch")
    if not isinstance(found, list) or len(found) != 3:
        raise EngineError(
            f"The sidecar of engine {engine} has batch {found!r}, expected [least, best, most] tiles. "
            f"Build it again with: {record.rebuild()}"
        )
    return int(found[0]), int(found[2])


def _batch(source: _Source) -> tuple[int, bool]:
    """Tiles at a time: the most of them, and whether less will do."""
    least, most = source.batch
    if least == most:
        return least, False
    return _MOST_TILES if most is None else most, True


def _sample(bundle: Bundle, source: _Source, batch: int) -> bytes | None:
    """The first golden tile as the network takes it, for one request; None if the bundle has none."""
    golden = bundle.golden()
    if not golden:
        return None
    manifest = bundle.manifest
    pixels, _ = manifest.preprocessing(golden[0].image[:, : manifest.tile_px, : manifest.tile_px])
    tile: NDArray[np.float32] = pad_to_tile(pixels, tile_px=manifest.tile_px)
    dtype = dict(_TYPES.values())[source.dtypes[0]]
    # Triton sends one request per tile of a batch, all with this content; where the number of tiles is fixed,
    # a request holds them all.
    tiles = 1 if source.batch[0] != source.batch[1] else batch
    return np.repeat(tile[np.newaxis], tiles, axis=0).astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def _config(
    bundle: Bundle, source: _Source, name: str, *, batch: int, dynamic: bool, sampled: bool
) -> dict[str, Any]:
    """`inference.ModelConfig` as values."""
    manifest = bundle.manifest
    side = manifest.tile_px // manifest.stride
    fixed = () if dynamic else (batch,)
    taken = [*fixed, len(manifest.sar.bands), manifest.tile_px, manifest.tile_px]
    given = [*fixed, len(manifest.classes), side, side]
    into, out = (Word(dtype) for dtype in source.dtypes)
    sample = {"input_data_file": _SAMPLE} if sampled else {"zero_data": True}  # zero is the mean
    warm = {"data_type": into, "dims": taken, **sample}
    config: dict[str, Any] = {
        "name": name,
        "backend": source.backend,
        "default_model_filename": source.file,
        "max_batch_size": batch if dynamic else 0,
        "input": {"name": INPUT, "data_type": into, "dims": taken},
        "output": {"name": OUTPUT, "data_type": out, "dims": given, "label_filename": "labels.txt"},
        "version_policy": {"latest": {"num_versions": 1}},
        # A GPU where the server has one: a plan runs nowhere else, ONNX Runtime also on the CPU.
        "instance_group": {
            "count": 1,
            "kind": Word("KIND_GPU" if source.backend == "tensorrt" else "KIND_AUTO"),
        },
    }
    if dynamic:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _DELAY_US}
    config["model_warmup"] = [
        {"name": f"batch of {size}", "batch_size": size, "inputs": {"key": INPUT, "value": warm}}
        for size in (sorted({source.batch[0], batch}) if dynamic else [1])
    ]
    config["parameters"] = [
        {"key": key, "value": {"string_value": value}} for key, value in _parameters(bundle, source).items()
    ]
    return config


def _parameters(bundle: Bundle, source: _Source) -> dict[str, str]:
    """What a client has to know, as JSON texts."""
    manifest = bundle.manifest
    return {
        "preprocessing": json.dumps(asdict(manifest.preprocessing)),
        "bands": json.dumps(manifest.sar.bands),
        "classes": json.dumps(manifest.classes),
        "nodata_label": json.dumps(manifest.nodata_label),
        "stride": json.dumps(manifest.stride),
        "precision": json.dumps(source.precision),
        "tiles_per_request": json.dumps(source.batch[0]),
    }


def _readme(bundle: Bundle, source: _Source, name: str) -> str:
    manifest = bundle.manifest
    steps = manifest.preprocessing
    unit = "dB" if steps.logarithmic else "stored values"
    rows = "".join(
        f"| {band} | {low:.6g} to {high:.6g} | {mean:.6g} | {std:.6g} |\n"
        for band, (low, high), mean, std in zip(
            manifest.sar.bands, steps.clip, steps.mean, steps.std, strict=True
        )
    )
    speckle = "none" if steps.speckle == "none" else f"{steps.speckle}, {steps.window_px} x {steps.window_px}"
    side = manifest.tile_px // manifest.stride
    return _README.format(
        name=name,
        backend=source.backend,
        precision=source.precision,
        tile=manifest.tile_px,
        bands=len(manifest.sar.bands),
        band_names=", ".join(manifest.sar.bands),
        units=steps.units,
        speckle=speckle,
        looks=f"{steps.looks:g}",
        nodata="NaN" if steps.nodata is None else f"NaN and {steps.nodata:g}",
        unit=unit,
        rows=rows,
        classes=len(manifest.classes),
        side=side,
        labels=", ".join(f"{index} {label}" for index, label in enumerate(manifest.classes)),
        datatype=source.dtypes[0].removeprefix("TYPE_"),
    )


_README = """# {name}

Segments SAR tiles; made by hfd-edge for Triton's {backend} backend, precision {precision}.

## Input `sar`: {bands} x {tile} x {tile}, {datatype}
Bands {band_names}, preprocessed by the client: stored pixels in {units} -> speckle filter ({speckle}; looks
{looks}) -> {unit} -> clip -> (value - mean) / std. No-data ({nodata}) is 0.

| band | clip, {unit} | mean | std |
|---|---|---|---|
{rows}
The same values are in the configuration's `parameters`, as JSON.

## Output `logits`: {classes} x {side} x {side}
Classes, also in labels.txt: {labels}. Enlarge bilinearly (half-pixel centres) to the tile, then take the
largest.

## Client
`pip install hfd-edge 'tritonclient[http]'`; `image` holds stored pixels (bands, {tile}, {tile}).
```python
import json

import tritonclient.http as triton
from pydantic import TypeAdapter

from hfd_edge.raster.logits import labels_from_logits
from hfd_edge.sar.preprocessing import Preprocessing


def segment(image, server="localhost:8000", name="{name}"):
    client = triton.InferenceServerClient(server)
    given = client.get_model_config(name)["parameters"]
    known = {{key: value["string_value"] for key, value in given.items()}}
    pixels, valid = TypeAdapter(Preprocessing).validate_json(known["preprocessing"])(image)
    tiles = pixels[None].repeat(json.loads(known["tiles_per_request"]), axis=0)
    taken = triton.InferInput("sar", list(tiles.shape), "{datatype}")
    taken.set_data_from_numpy(tiles)
    logits = client.infer(name, [taken]).as_numpy("logits")[0]
    rows, cols = valid.shape
    labels = labels_from_logits(logits, stride=json.loads(known["stride"]), rows=rows, cols=cols)
    labels[~valid] = json.loads(known["nodata_label"])
    return labels
```
"""
