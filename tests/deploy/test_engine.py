"""Real TensorRT-RTX builds, without a GPU: variants, progress, cancelling, refusals, the key."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.config import NetworkRecipe
from hfd_edge.deploy.calibration import float_tensors
from hfd_edge.deploy.engine import build_engine, can_build_here, compiler_version
from hfd_edge.deploy.onnx_export import export_network
from hfd_edge.deploy.precision import place, to_fp16, to_int8
from hfd_edge.deploy.qdq import int8_model
from hfd_edge.deploy.targets import Target, load_target
from hfd_edge.errors import EngineError, MissingExtraError
from hfd_edge.gpu import find_gpu
from hfd_edge.hfdnet.network import from_recipe
from hfd_edge.tensorrt_api import load_tensorrt, tensorrt_logger

from .conftest import BANDS, TILE, make_tiles

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only")

ADA = load_target("rtx-ada")


@pytest.fixture(scope="module")
def variants(mini_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The mini network in every precision."""
    folder = tmp_path_factory.mktemp("variants")
    paths = {name: folder / f"model.{name}.onnx" for name in ("fp16", "int8", "int8_fp16")}
    to_fp16(mini_onnx, paths["fp16"])
    to_int8(mini_onnx, paths["int8"], tiles=make_tiles(2))
    _quantised(mini_onnx, folder, int8_fp16="fp16")
    return {"fp32": mini_onnx, **paths}


def _quantised(model: Path, out: Path, **rests: str) -> None:
    """Write INT8 variants with the given types in what INT8 leaves out; the ranges do not matter here."""
    placed, amax = place(model, make_tiles(1)[0]), dict.fromkeys(float_tensors(model), 4.0)
    for name, rest in rests.items():
        onnx.save(int8_model(placed, amax, rest=rest), out / f"model.{name}.onnx")


def changed(target: Target, **changes: object) -> Target:
    return Target.model_validate({**target.model_dump(), **changes})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8_fp16"])
def test_every_variant_builds_for_every_generation(variants: dict[str, Path], precision: str) -> None:
    seen: list[tuple[float, str]] = []
    engine = build_engine(
        variants[precision],
        target=load_target("desktop-rtx"),
        progress=lambda done, total, text: seen.append((done / total, text)),
        label="desktop",
    )
    assert len(engine.content) > 10_000
    assert engine.version == compiler_version()
    assert engine.compute_capabilities == (75, 80, 86, 89, 120, 121)
    assert engine.seconds > 0
    assert engine.weights_bytes
    assert engine.activation_bytes
    shares = [share for share, _ in seen]
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert seen[-1] == (1.0, "desktop: done")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8_fp16"])
@pytest.mark.parametrize("batch", [(1, 1, 1), (2, 4, 6)])
def test_batches(variants: dict[str, Path], precision: str, batch: tuple[int, int, int]) -> None:
    low, best, high = batch
    target = changed(ADA, batch={"min": low, "opt": best, "max": high})
    assert len(build_engine(variants[precision], target=target).content) > 10_000


def test_the_largest_batch_needs_the_memory(mini_onnx: Path) -> None:
    one = build_engine(mini_onnx, target=changed(ADA, batch={"min": 1, "opt": 1, "max": 1}))
    eight = build_engine(mini_onnx, target=changed(ADA, batch={"min": 1, "opt": 1, "max": 8}))
    assert one.activation_bytes is not None and eight.activation_bytes is not None
    assert eight.activation_bytes > one.activation_bytes
    assert eight.weights_bytes == one.weights_bytes


def test_a_model_with_a_fixed_batch(mini_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(mini_onnx)
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    single = changed(ADA, batch={"min": 1, "opt": 1, "max": 1})
    assert build_engine(tmp_path / "fixed.onnx", target=single).content
    with pytest.raises(EngineError, match="takes batches of 1 alone, but target rtx-ada asks for 1 to 8"):
        build_engine(tmp_path / "fixed.onnx", target=ADA)


def test_int8_weights_take_a_third_of_the_memory(tmp_path: Path) -> None:
    """Preset s with any weights: the compiler keeps INT8 codes, not floats that it quantises later."""
    torch.manual_seed(0)
    network = from_recipe(NetworkRecipe(preset="s"), bands=BANDS, classes=3).eval()
    fp32 = tmp_path / "model.fp32.onnx"
    export_network(network, fp32, bands=BANDS, tile_px=TILE, head="quarter")
    _quantised(fp32, tmp_path, int8="fp32", int8_fp16="fp16")
    paths = {name: tmp_path / f"model.{name}.onnx" for name in ("fp32", "int8", "int8_fp16")}
    # One size alone: scalar scales made INT8 weights 3.4 times those of FP32 there, and for Turing the
    # compiler unrolled all precisions by it.
    fixed = {"min": 1, "opt": 1, "max": 1}
    for target in (ADA, changed(ADA, batch=fixed), changed(load_target("desktop-rtx"), batch=fixed)):
        memory = {name: build_engine(path, target=target).weights_bytes for name, path in paths.items()}
        assert memory["fp32"] is not None and 10_000_000 < memory["fp32"] < 20_000_000
        for name in ("int8", "int8_fp16"):
            found = memory[name]
            assert found is not None and found <= 0.35 * memory["fp32"], memory


def test_without_a_gpu_the_engine_says_why_it_was_not_inspected(mini_onnx: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("this machine has a GPU; tests/gpu covers it")
    engine = build_engine(mini_onnx, target=ADA)
    assert engine.inspection == ""
    assert engine.note.startswith("An engine can be inspected only where it can be loaded")
    assert "TensorRT says: " in engine.note


def test_rtx_builds_anywhere() -> None:
    assert can_build_here(ADA) is None


def test_the_gather_form_builds(gather_onnx: Path) -> None:
    assert len(build_engine(gather_onnx, target=ADA).content) > 10_000


def test_cancelling(mini_onnx: Path) -> None:
    def stop(done: float, total: float, text: str) -> None:
        if done / total > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(mini_onnx, target=ADA, progress=stop)
    # The compiler is in order afterwards.
    assert build_engine(mini_onnx, target=ADA).content


def test_an_exception_of_the_progress_passes_through(mini_onnx: Path) -> None:
    def fail(done: float, total: float, text: str) -> None:
        raise ZeroDivisionError("the bar broke")

    with pytest.raises(ZeroDivisionError, match="the bar broke"):
        build_engine(mini_onnx, target=ADA, progress=fail)


def test_an_interrupt_in_a_callback_cancels(mini_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C mostly arrives while TensorRT calls its logger, through which no exception can pass."""
    logger = type(tensorrt_logger(load_tensorrt("tensorrt_rtx", purpose="a test")))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of a shell

    def interrupted(self: Any, severity: Any, message: str) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(logger, "log", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(mini_onnx, target=ADA)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert build_engine(mini_onnx, target=ADA).content


def test_building_in_a_thread(mini_onnx: Path) -> None:
    with ThreadPoolExecutor(1) as pool:  # only the main thread may handle signals
        assert pool.submit(build_engine, mini_onnx, target=ADA).result().content


def test_an_operator_that_tensorrt_refuses_is_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["sar"], ["a"], name="fine.0/Relu"),
            helper.make_node("Unique", ["a"], ["logits"], name="align/Unique"),
        ],
        "g",
        [helper.make_tensor_value_info("sar", TensorProto.FLOAT, ["batch", 2, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    message = r"cannot use model\.onnx: node align/Unique \(Unique\) is not supported\. .*--warp grid_sample"
    with pytest.raises(EngineError, match=message):
        build_engine(path, target=ADA)


def test_a_refused_attribute_is_named(tmp_path: Path) -> None:
    pool = helper.make_node(
        "MaxPool", ["sar"], ["logits"], name="fine.0/MaxPool", kernel_shape=[2, 2], dilations=[2, 2]
    )
    shapes = {"sar": ["batch", 2, 32, 32], "logits": ["batch", 2, 30, 30]}
    sar, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in shapes)
    graph = helper.make_graph([pool], "g", [sar], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "model.onnx")
    with pytest.raises(
        EngineError, match=r"\(MaxPool\) is not supported: .*dilations other than 1"
    ) as caught:
        build_engine(tmp_path / "model.onnx", target=ADA)
    assert str(caught.value).count("dilations other than 1") == 1  # the parser says it twice


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DequantizeLinear"])
def test_a_zero_point_that_tensorrt_refuses_is_named(
    variants: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model = onnx.load(variants["int8"])
    model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.int8), "shifted"))
    outputs = {item.output[0]: item for item in model.graph.node if item.op_type == "QuantizeLinear"}
    reader = next(item for item in model.graph.node if item.input and item.input[0] in outputs)
    node = outputs[reader.input[0]] if kind == "QuantizeLinear" else reader
    assert node.op_type == kind
    node.input[2] = "shifted"
    onnx.save(model, tmp_path / "shifted.onnx")
    with pytest.raises(EngineError) as caught:
        build_engine(tmp_path / "shifted.onnx", target=ADA)
    assert f"cannot use shifted.onnx: node {node.name} ({kind}): " in str(caught.value)
    assert "Non-zero zero point" in str(caught.value)
    assert "zero points 0: quantize again" in str(caught.value)


@pytest.mark.parametrize("kept", [10, 2000, 40_000])
def test_a_truncated_model(mini_onnx: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(mini_onnx.read_bytes()[:kept])
    with pytest.raises(EngineError, match=r"cannot use cut\.onnx: .*The file is damaged"):
        build_engine(path, target=ADA)


def test_a_capability_that_the_compiler_does_not_know(mini_onnx: Path) -> None:
    orin = changed(ADA, compute_capabilities=(87,))
    message = "cannot build for sm_87, which target rtx-ada asks for. It knows: sm_75, sm_80, .*sm_121"
    with pytest.raises(EngineError, match=message):
        build_engine(mini_onnx, target=orin)


def test_a_model_that_needs_more_memory_than_the_target_allows(mini_onnx: Path) -> None:
    small = changed(ADA, workspace_mb=1, batch={"min": 1, "opt": 1, "max": 512})
    with pytest.raises(
        EngineError, match="workspace limit.*allows 1 MB for batches of up to 512: raise workspace_mb"
    ):
        build_engine(mini_onnx, target=small)


def test_a_missing_extra(mini_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"'tensorrt_rtx'.*pip install 'hfd-edge\[rtx\]'"):
        build_engine(mini_onnx, target=ADA)
