"""Real TensorRT-RTX builds, without a GPU: variants, progress, cancelling, refusals, the key."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hfd_edge.deploy import engine as room
from hfd_edge.deploy.engine import build_engine, build_options, compiler_version, engine_key
from hfd_edge.deploy.precision import to_fp16, to_int8
from hfd_edge.deploy.targets import Target, load_target
from hfd_edge.errors import EngineError, MissingExtraError

from .conftest import make_tiles

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only")

ADA = load_target("rtx-ada")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_variant_builds_for_every_generation(mini_onnx: Path, tmp_path: Path, precision: str) -> None:
    path = mini_onnx
    if precision != "fp32":
        path = tmp_path / f"model.{precision}.onnx"
        to_fp16(mini_onnx, path) if precision == "fp16" else to_int8(mini_onnx, path, tiles=make_tiles(2))
    seen: list[tuple[float, str]] = []
    engine = build_engine(
        path,
        target=load_target("desktop-rtx"),
        progress=lambda done, total, text: seen.append((done / total, text)),
        label="desktop",
    )
    assert len(engine.content) > 10_000
    assert engine.version == compiler_version()
    assert engine.seconds > 0
    shares = [share for share, _ in seen]
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert seen[-1] == (1.0, "desktop: done")


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
    logger = type(room._logger())
    usual = signal.getsignal(signal.SIGINT)

    def interrupted(self: Any, severity: Any, message: str) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(logger, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(mini_onnx, target=ADA)
    assert signal.getsignal(signal.SIGINT) is usual
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
    message = r"cannot use model\.onnx: node align/Unique \(Unique\) is not supported.*warp = 'gather'"
    with pytest.raises(EngineError, match=message):
        build_engine(path, target=ADA)


@pytest.mark.parametrize("kept", [10, 2000, 40_000])
def test_a_truncated_model(mini_onnx: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(mini_onnx.read_bytes()[:kept])
    with pytest.raises(EngineError, match=r"cannot use cut\.onnx: .*the file is damaged"):
        build_engine(path, target=ADA)


def test_a_capability_that_the_compiler_does_not_know(mini_onnx: Path) -> None:
    orin = Target.model_validate({**ADA.model_dump(), "compute_capabilities": (87,)})
    message = "cannot build for sm_87, which target rtx-ada asks for. It knows: sm_75, sm_80, .*sm_121"
    with pytest.raises(EngineError, match=message):
        build_engine(mini_onnx, target=orin)


def test_a_model_that_needs_more_memory_than_the_target_allows(mini_onnx: Path) -> None:
    batch = {"min": 1, "opt": 1, "max": 512}
    small = Target.model_validate({**ADA.model_dump(), "workspace_mb": 1, "batch": batch})
    with pytest.raises(
        EngineError, match="workspace limit.*allows 1 MB for batches of up to 512: raise workspace_mb"
    ):
        build_engine(mini_onnx, target=small)


def test_a_missing_extra(mini_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"'tensorrt_rtx'.*pip install 'hfd-edge\[rtx\]'"):
        build_engine(mini_onnx, target=ADA)


KEY: dict[str, Any] = {
    "flavour": "tensorrt_rtx",
    "version": "1.7.1",
    "compute_capabilities": (75, 89),
    "options": build_options(ADA),
}


def test_the_key_is_stable() -> None:
    key = engine_key("ab" * 32, **KEY)
    assert len(key) == 64
    assert engine_key("ab" * 32, **{**KEY, "compute_capabilities": (89, 75)}) == key


@pytest.mark.parametrize(
    "change",
    [
        {"flavour": "tensorrt"},
        {"version": "1.7.2"},
        {"compute_capabilities": (75,)},
        {"options": {**build_options(ADA), "workspace_mb": 1}},
    ],
)
def test_the_key_depends_on_everything(change: dict[str, Any]) -> None:
    assert engine_key("ab" * 32, **{**KEY, **change}) != engine_key("ab" * 32, **KEY)
    assert engine_key("ac" * 32, **KEY) != engine_key("ab" * 32, **KEY)
