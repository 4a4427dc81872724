"""A stand-in for trtexec: the flags of each TensorRT as its help says, and ONNX Runtime for the numbers.

Run as a program, with FAKE_TENSORRT ("8.5.2") and FAKE_FAULT in the environment. An engine is the ONNX file
behind a first line of JSON. Flags are from `trtexec --help` of 8.2, 8.5, 8.6 and 10.5 and from the migration
guides to 10 and 11, written down apart from the code under test.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_ALWAYS = (
    "onnx saveEngine loadEngine loadInputs exportOutput shapes minShapes optShapes maxShapes iterations "
    "warmUp duration timingCacheFile useDLACore allowGPUFallback"
).split()
_FLAGS = {
    (8, 2): "workspace buildOnly fp16 int8 calib precisionConstraints",
    (8, 5): "workspace memPoolSize buildOnly fp16 int8 calib precisionConstraints layerPrecisions",
    (8, 6): "memPoolSize skipInference fp16 int8 calib precisionConstraints layerPrecisions",
    (10, 0): "memPoolSize skipInference fp16 int8 calib precisionConstraints layerPrecisions stronglyTyped",
    (11, 0): "memPoolSize skipInference",
}
_SWITCHES = ("allowGPUFallback", "buildOnly", "skipInference", "fp16", "int8", "stronglyTyped")
_OPSETS = {(8, 2): 13, (8, 5): 17, (8, 6): 17, (10, 0): 20, (11, 0): 25}


class Refused(Exception):
    """What trtexec would print before it exits with 1."""


def parse(version: tuple[int, int, int], arguments: list[str]) -> dict[str, str]:
    """Flags by name; Refused for one that this version does not know."""
    generation = max(key for key in _FLAGS if key <= version[:2])
    known = {*_ALWAYS, *_FLAGS[generation].split()}
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in known or bool(equals) == (name in _SWITCHES):
            raise Refused(f"Unknown option: {argument}")
        if name in found:
            raise Refused(f"Given twice: {argument}")
        found[name] = value
    return found


def check_build(version: tuple[int, int, int], flags: dict[str, str], folder: Path) -> None:
    """What the builder refuses: unknown operators, mixed ways of precision, foreign caches."""
    import onnx

    model = onnx.load(str(folder / flags["onnx"]))
    generation = max(key for key in _OPSETS if key <= version[:2])
    opset = model.opset_import[0].version
    operators = {node.op_type for node in model.graph.node}
    quantised = "QuantizeLinear" in operators
    static = bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    rules = {
        f"opset {opset} is too new": opset > _OPSETS[generation],
        "No importer registered for op: GridSample": "GridSample" in operators and version < (8, 5, 0),
        "Strongly typed, and precision flags": "stronglyTyped" in flags
        and {"fp16", "int8", "calib"} & set(flags),
        "Q/DQ with a calibration cache": quantised and "calib" in flags,
        "Q/DQ without INT8": quantised and version < (10, 0, 0) and "int8" not in flags,
        "Q/DQ on the DLA": quantised and "useDLACore" in flags and version < (11, 0, 0),
        "Static model does not take explicit shapes": static and "optShapes" in flags,
        "Dynamic dimensions required": not static and "optShapes" not in flags,
        "layerPrecisions without precisionConstraints": "layerPrecisions" in flags
        and flags.get("precisionConstraints") not in ("obey", "prefer"),
        "DLA without FP16 or INT8": "useDLACore" in flags
        and version < (11, 0, 0)
        and not {"fp16", "int8"} & set(flags),
        "double": any(item.data_type == onnx.TensorProto.DOUBLE for item in model.graph.initializer),
    }
    for reason, broken in rules.items():
        if broken:
            raise Refused(reason)
    names = {node.name for node in model.graph.node}
    for item in filter(None, flags.get("layerPrecisions", "").split(",")):
        name, _, kind = item.partition(":")
        if name not in names or kind not in ("fp32", "fp16", "int8"):
            raise Refused(f"layerPrecisions: {item}")
    if "calib" in flags:
        _check_cache(version, folder / flags["calib"], model)


def _check_cache(version: tuple[int, int, int], path: Path, model: Any) -> None:
    header, *lines = path.read_text().splitlines()
    if header != f"TRT-{number(version)}-EntropyCalibration2":
        raise Refused(f"cache of another version: {header}")
    known = {name for node in model.graph.node for name in (*node.input, *node.output)}
    strange = [line for line in lines if line.rsplit(": ", 1)[0] not in known]
    if strange or "sar" not in {line.rsplit(": ", 1)[0] for line in lines}:
        raise Refused(f"cache of another model: {strange[:3]}")


def number(version: tuple[int, int, int]) -> int:
    """TensorRT's version number."""
    major, minor, patch = version
    return major * (1000 if major < 10 else 10000) + minor * 100 + patch


def _build(version: tuple[int, int, int], flags: dict[str, str], fault: str) -> None:
    if fault == "build":
        Path(flags["saveEngine"]).write_bytes(b"half an engine")
        raise Refused("Engine could not be created from network")
    check_build(version, flags, Path.cwd())
    meta = {"version": version, "dla": flags.get("useDLACore"), "static": "optShapes" not in flags}
    engine = json.dumps(meta).encode() + b"\n" + Path(flags["onnx"]).read_bytes()
    Path(flags["saveEngine"]).write_bytes(engine)
    Path(flags["timingCacheFile"]).write_bytes(b"timings")


def _run(version: tuple[int, int, int], flags: dict[str, str], fault: str) -> None:
    import numpy as np
    import onnxruntime

    first, _, model = Path(flags["loadEngine"]).read_bytes().partition(b"\n")
    meta = json.loads(first)
    if tuple(meta["version"]) != version or meta["dla"] != flags.get("useDLACore"):
        raise Refused("The engine plan file is not compatible with this version or device")
    if meta["static"] == ("shapes" in flags):
        raise Refused("Static engines take no shapes, dynamic ones need them")
    # The pass spoils INT8 with FP16: see hfd_edge.runtime.backends.onnxruntime.
    session = onnxruntime.InferenceSession(
        model, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    entry = session.get_inputs()[0]
    name, _, file = flags["loadInputs"].partition(":")
    shape = list(entry.shape)
    if "shapes" in flags:
        shape = [int(size) for size in flags["shapes"].partition(":")[2].split("x")]
    values = np.fromfile(file, "<f4")
    if name != entry.name or values.size != np.prod(shape):
        raise Refused(f"{file} holds {values.size} values for {name} {shape}")
    (logits,) = session.run(None, {name: values.reshape(shape)})
    if fault == "labels":
        logits = logits[..., ::-1]  # a mirrored map, as a wrong layout would give
    if fault == "nan":
        logits[0, 0, 0, 0] = np.nan
    text = ", ".join(f"{value:.6g}" for value in logits.ravel())
    dimensions = "x".join(map(str, logits.shape))
    Path(flags["exportOutput"]).write_text(
        f'[\n  {{ "name" : "logits"\n  , "dimensions" : "{dimensions}"\n  , "values" : [ {text} ]\n  }}\n]\n'
    )


def main() -> int:
    """Do what trtexec does, as its version."""
    major, minor, patch = (int(part) for part in os.environ["FAKE_TENSORRT"].split("."))
    version, fault = (major, minor, patch), os.environ.get("FAKE_FAULT", "")
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number(version)}] # {' '.join(sys.argv)}")
    if "--help" in sys.argv:
        return 0
    try:
        flags = parse(version, sys.argv[1:])
        (_run if "loadEngine" in flags else _build)(version, flags, fault)
    except Refused as error:
        print(f"[E] {error}\n&&&& FAILED TensorRT.trtexec [TensorRT v{number(version)}]")
        return 1
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{number(version)}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
