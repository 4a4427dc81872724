"""Preflight: every profile for the network as it is, and every fault named with its node and remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import checks
from hfd_edge.deploy.graph import load
from hfd_edge.deploy.plan import device_model, layer_types, make_plan, record_of
from hfd_edge.deploy.preflight import Finding, Preflight, preflight
from hfd_edge.deploy.record import RECORD, write_record
from hfd_edge.deploy.shapes import infer
from hfd_edge.deploy.targets import Target, list_targets, load_target
from hfd_edge.errors import EngineError

from .conftest import make_tiles
from .device_bundle import make_device_bundle
from .graphs import make_graph, node

T4, NANO, ORIN = load_target("tensorrt-t4"), load_target("nano-jp46"), load_target("orin-agx-jp62")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, mini_onnx: Path, folder: PairFolder) -> Bundle:
    return make_device_bundle(tmp_path_factory.mktemp("ready"), mini_onnx, folder)


@pytest.fixture(scope="module")
def gathering(tmp_path_factory: pytest.TempPathFactory, gather_onnx: Path, folder: PairFolder) -> Bundle:
    return make_device_bundle(tmp_path_factory.mktemp("gathering"), gather_onnx, folder)


def spoilt(ready: Bundle, to: Path, precision: str, spoil: Callable[[Any], None]) -> Bundle:
    """A copy of the bundle whose model was changed by `spoil`, with a manifest that agrees."""
    bundle = Bundle.open(shutil.copytree(ready.path, to))
    model = onnx.load(str(bundle.model(precision)))
    spoil(model)
    return bundle.add({f"model.{precision}.onnx": model.SerializeToString()})


def errors(report: Preflight, check: str) -> list[Finding]:
    assert not report.ok
    assert {finding.check for finding in report.of("error")} == {check}
    return list(report.of("error"))


@pytest.mark.parametrize("name", list_targets())
def test_every_profile_is_ready_or_says_precisely_why_not(
    name: str, ready: Bundle, gathering: Bundle
) -> None:
    target = load_target(name)
    report = preflight(ready, target)
    if target.grid_sample:
        assert report.ok, report.of("error")
    else:
        (finding,) = errors(report, "operators")
        assert finding.where == "align/GridSample"
        assert finding.what == f"TensorRT {target.tensorrt} has no GridSample; it came with 8.5"
        assert "--warp gather" in finding.fix
    assert preflight(gathering, target).ok
    seen = {finding.check for finding in report.findings}
    assert seen >= {"precision", "operators", "shapes", "batch", "dtypes", "memory"}
    assert (report.dla is not None) == (target.dla_cores > 0)


def test_the_opset_is_lowered_or_the_operator_named(ready: Bundle, gathering: Bundle) -> None:
    def opset(bundle: Bundle, target: Target, precision: str | None = None) -> Finding:
        findings = preflight(bundle, target, precision=precision).findings
        return next(item for item in findings if item.check == "opset")

    assert opset(gathering, NANO).what == ("opset 18 is written as 13 for the device, with the same numbers")
    assert opset(ready, T4).what == "opset 19, the device reads up to 20"
    old = T4.model_copy(update={"opset_max": 13})
    found = opset(ready, old, "fp32")
    assert found.level == "error"
    assert "GridSample exists from opset 16 on, but opset 13 is asked for: align/GridSample" in found.what


def test_zero_points(ready: Bundle, tmp_path: Path) -> None:
    def shift(model: Any) -> None:
        quantizer = next(item for item in model.graph.node if item.op_type == "QuantizeLinear")
        zero = next(item for item in model.graph.initializer if item.name == quantizer.input[2])
        zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + np.int8(3), zero.name))

    bundle = spoilt(ready, tmp_path / "shifted.hfd", "int8_fp16", shift)
    found = errors(preflight(bundle, T4), "zero points")
    assert all(finding.what == "zero point is 3, expected 0" for finding in found)
    first = next(
        item.name for item in load(bundle.model("int8_fp16")).graph.node if item.op_type == "QuantizeLinear"
    )
    assert first in {finding.where for finding in found}
    assert "symmetric INT8" in found[0].why


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        (np.float32(0.1), None, "no zero point, so its codes are unsigned"),
        (np.float32(0.1), np.uint8(0), "codes are UINT8, expected INT8"),
        (np.float32(0), np.int8(0), "scale is 0.0, expected positive and finite"),
        (np.float32([0.1] * 4), np.int8([0] * 4), "an activation has 4 scales, expected one"),
    ],
)
def test_quantisers_that_tensorrt_refuses(scale: Any, zero: Any, message: str) -> None:
    inputs = ["s"] if zero is None else ["s", "z"]
    nodes = [
        node("QuantizeLinear", ["sar", *inputs], "q"),
        node("DequantizeLinear", ["q", *inputs], "logits"),
    ]
    constants = {"s": scale} if zero is None else {"s": scale, "z": zero}
    found = checks.zero_points(make_graph(nodes, constants, [1, 4, 8, 8]))
    assert {finding.level for finding in found} == {"error"}
    assert found[0].where == "q/QuantizeLinear"
    assert message in found[0].what


def test_element_types() -> None:
    def check(model: Any, target: Target = T4) -> list[Finding]:
        return checks.dtypes(model, infer(model), target)

    nodes = [node("Cast", ["sar"], "a", to=onnx.TensorProto.DOUBLE), node("Cast", ["a"], "logits", to=1)]
    (double,) = check(make_graph(nodes, {}, [1, 4, 8, 8]))
    assert (double.where, double.level) == ("a", "error")
    assert double.what == "element type is DOUBLE, which TensorRT on sm_75 does not compute in"
    constant = [node("Cast", ["d"], "c", to=1), node("Add", ["sar", "c"], "logits")]
    (fine,) = check(make_graph(constant, {"d": np.ones(8)}, [1, 4, 8, 8]))
    assert fine == Finding("ok", "dtypes", "", "computes in FLOAT")
    nodes[0] = node("Cast", ["sar"], "a", to=onnx.TensorProto.BFLOAT16)
    brain = make_graph(nodes, {}, [1, 4, 8, 8])
    assert "BFLOAT16, which TensorRT on sm_75" in check(brain)[0].what
    assert check(brain, load_target("tensorrt-a100"))[0].level == "ok"
    wide = [node("Gather", ["sar", "i"], "logits", axis=1)]
    (large,) = check(make_graph(wide, {"i": np.array([2**40])}, [1, 4, 8, 8]))
    assert (large.where, large.what) == ("i", "64-bit constants do not fit into 32 bits")
    ends = [node("Slice", ["sar", "i", "e"], "logits")]
    to_the_end = {"i": np.array([0, 0, 0, 0]), "e": np.array([np.iinfo(np.int64).max] * 4)}
    assert check(make_graph(ends, to_the_end, [1, 4, 8, 8]))[0].level == "ok"


def test_unknown_operators_are_a_warning() -> None:
    found = checks.operators(make_graph([node("Mish", ["sar"], "logits")], {}, [1, 4, 8, 8], opset=18), T4)
    assert (found[0].level, found[0].where) == ("warning", "logits/Mish")
    assert found[0].what == "Mish is not among the operators known to work"
    assert found[-1].what == "0 of 1 operators known to TensorRT 10.13.3"


def test_the_shape_must_be_the_manifests(ready: Bundle, tmp_path: Path) -> None:
    manifest = ready.manifest.model_copy(update={"tile_px": 128})
    found = errors(preflight(Bundle(ready.path, manifest), T4, precision="fp32"), "shapes")
    assert found[0].what == "shape is (2, 64, 64), the manifest says (2, 128, 128)"
    assert [finding.where for finding in found] == ["sar", "logits"]


def test_a_fixed_batch(ready: Bundle, tmp_path: Path) -> None:
    def fix(model: Any) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    bundle = spoilt(ready, tmp_path / "two.hfd", "fp16", fix)
    (found,) = errors(preflight(bundle, T4, precision="fp16"), "batch")
    assert found.what == "the model takes 2 tiles a call, target tensorrt-t4 asks for 1 to 8 tiles"
    assert "[batch] to 2" in found.fix


def test_memory(ready: Bundle) -> None:
    many = T4.batch.model_copy(update={"max": 64})
    small = T4.model_copy(update={"memory_mb": 1, "workspace_mb": 1, "batch": many})
    (found,) = errors(preflight(ready, small), "memory")
    assert "lower batch.max" in found.fix
    assert found.what.endswith("for a batch of 64; room for 1 MB")
    shared = small.model_copy(update={"memory_mb": 128, "shared_memory": True})
    warned = preflight(ready, shared)
    assert warned.ok
    (finding,) = warned.of("warning")
    assert "room for 64 MB, and a compiler may take" in finding.what
    assert finding.why == "128 MB, of which the system takes half"
    assert preflight(ready, T4).memory is not None


def test_precision_and_calibration(ready: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    (wrong,) = errors(preflight(ready, NANO, precision="int8"), "precision")
    assert "Target nano-jp46 has no precision 'int8'; it takes: fp32, fp16" in wrong.what
    (missing,) = errors(preflight(bundle, T4), "precision")
    assert missing.what == "the bundle has no int8_fp16 model; it has fp32"
    assert missing.fix == f"hfd-edge quantize {bundle.path} --data DIR"
    copy = Bundle.open(shutil.copytree(ready.path, tmp_path / "stale.hfd"))
    record = (copy.path / "calibration/int8.json").read_text()
    digest = copy.manifest.files["model.fp32.onnx"]
    stale = copy.add({"calibration/int8.json": record.replace(digest, "0" * 64).encode()})
    (found,) = errors(preflight(stale, ORIN), "calibration")
    assert "calibrates another FP32 model (000000000000...)" in found.what
    rtx = preflight(ready, load_target("desktop-rtx"), precision="int8")
    assert rtx.ok
    assert "no INT8 convolutions as accelerated" in rtx.of("warning")[0].what


def test_the_dla(ready: Bundle) -> None:
    half = preflight(ready, ORIN, precision="fp16", dla_core=0)
    assert half.ok
    assert half.dla is not None
    (line,) = [finding for finding in half.of("ok") if finding.check == "dla"]
    assert f"{half.dla.fallback_share:.1%} of the multiply-accumulates fall back to the GPU" in line.what
    assert "kept in FP32; the DLA computes in FP16 and INT8" in line.why
    (wide,) = errors(preflight(ready, ORIN, precision="fp32", dla_core=0), "dla")
    assert wide.what == "a DLA computes in FP16 and INT8 only; an FP32 engine runs on the GPU"
    assert preflight(ready, ORIN, precision="fp32").ok  # nobody asked for the DLA
    int8 = preflight(ready, ORIN)
    assert int8.dla is not None
    assert "INT8 ranges of its tensors differ" in int8.dla.reasons


def test_what_int8_keeps_in_fp32_does_not_run_on_the_dla(ready: Bundle, tmp_path: Path) -> None:
    record = record_of(ready)
    assert record is not None
    gated = record.kept[0].model_copy(update={"node": "merge.0"})
    content = record.model_copy(update={"kept": (*record.kept, gated)})
    bundle = Bundle.open(shutil.copytree(ready.path, tmp_path / "gated.hfd"))
    bundle = bundle.add({RECORD: write_record(content)})
    devices = {}
    for precision in ("int8", "int8_fp16"):
        placed = preflight(bundle, ORIN, precision=precision, dla_core=0).dla
        assert placed is not None
        devices[precision] = next(layer.device for layer in placed.layers if layer.node == "merge.0")
    assert devices == {"int8": "GPU", "int8_fp16": "DLA"}


def test_many_pieces_are_a_warning_only_where_the_dla_is_asked_for(
    ready: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfd_edge.deploy.preflight.LOADABLES", 0)
    assert not preflight(ready, ORIN).of("warning")
    (found,) = preflight(ready, ORIN, dla_core=1).of("warning")
    assert "pieces for the DLA, a core holds 0" in found.what


def test_what_is_compiled_for_a_precision() -> None:
    def plan(target: str, precision: str, **options: Any) -> tuple[str, bool, bool]:
        made = make_plan(load_target(target), precision, **options)
        return made.source, made.typed, made.cache

    assert plan("tensorrt-t4", "int8_fp16") == ("int8_fp16", True, False)
    assert plan("desktop-rtx", "fp16") == ("fp16", True, False)
    assert plan("orin-agx-jp62", "int8_fp16") == ("fp32", False, True)
    assert plan("orin-agx-jp62", "fp16") == ("fp16", True, False)
    assert plan("orin-agx-jp62", "fp16", dla_core=0) == ("fp32", False, False)  # a DLA is not strongly typed
    assert plan("orin-agx-jp72-trt11", "int8_fp16", dla_core=0) == ("int8_fp16", True, False)
    assert plan("orin-agx-jp51", "fp16") == ("fp32", False, False)
    with pytest.raises(EngineError, match="has no precision 'int4'; it takes: fp32, fp16, int8, int8_fp16"):
        make_plan(T4, "int4")


@pytest.mark.parametrize(("target", "precision"), [(NANO, "fp16"), (ORIN, "int8_fp16"), (T4, "int8_fp16")])
def test_the_device_model_gives_the_same_numbers(
    target: Target, precision: str, ready: Bundle, gathering: Bundle
) -> None:
    import onnxruntime

    bundle = ready if target.grid_sample else gathering
    plan = make_plan(target, precision)
    model = device_model(bundle, target, plan)
    assert model.opset_import[0].version <= target.opset_max
    tiles = make_tiles(1)
    found, expected = (
        onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"sar": tiles})[0]
        for source in (model.SerializeToString(), str(bundle.model(plan.source)))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_layers_that_flags_alone_would_spoil(ready: Bundle) -> None:
    def types(target: Target, precision: str, *, record: Any = None) -> dict[str, str]:
        plan = make_plan(target, precision)
        model = device_model(ready, target, plan)
        return layer_types(model, infer(model), plan, record or record_of(ready))

    old = load_target("orin-agx-jp51")
    half = types(old, "fp16")
    assert {"align.flow_head", "align/GridSample", "classifier"} <= set(half)
    assert set(half.values()) == {"fp32"}
    assert not any("Unsqueeze" in name or "Transpose" in name or "Concat" in name for name in half)
    record = record_of(ready)
    assert record is not None
    gated = record.model_copy(
        update={"kept": (*record.kept, record.kept[0].model_copy(update={"node": "merge.0"}))}
    )
    assert types(old, "int8_fp16", record=gated)["merge.0"] == "fp16"
    assert types(old, "int8", record=gated)["merge.0"] == "fp32"
    assert types(old, "fp32") == types(T4, "int8_fp16") == {}
