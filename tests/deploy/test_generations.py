"""One builder for TensorRT 8.6, 10.3, 11 and RTX, against stand-ins with exactly each one's names."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import engine as room
from hfd_edge.deploy.build import build
from hfd_edge.deploy.compiler import Arithmetic
from hfd_edge.deploy.engine import build_engine, can_build_here
from hfd_edge.deploy.plan import device_model, layer_types, make_plan, record_of
from hfd_edge.deploy.quantize import quantize
from hfd_edge.deploy.shapes import infer
from hfd_edge.deploy.targets import Target, load_target
from hfd_edge.errors import EngineError, MissingExtraError
from hfd_edge.gpu import Gpu

from .conftest import make_manifest
from .generations import World, engine_of, stand_in

TENSORRT = ("8.6.2", "10.3.0", "11.4.1")
ALL = (*TENSORRT, "1.7.1.116")
GPU = Gpu(compute_capability=87, free_bytes=1 << 30, total_bytes=8 << 30)


def target_for(version: str, **changes: object) -> Target:
    """An Orin with some TensorRT, or an RTX card."""
    if version.startswith("1."):
        return load_target("rtx-ada")
    values: dict[str, object] = {
        "name": "orin",
        "flavour": "tensorrt",
        "tensorrt": version,
        "compute_capabilities": (87,),
        "opset_max": 17 if version.startswith("8") else 20,
        "precisions": ("fp32", "fp16", "int8", "int8_fp16"),
        "default_precision": "fp16",
        "batch": {"min": 1, "opt": 2, "max": 4},
        "jetpack": "6.0",
        "memory_mb": 8192,
        "workspace_mb": 2048,
    }
    return Target.model_validate({**values, **changes})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Give a function that installs a stand-in and a GPU for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(version: str, *, gpu: Gpu | None = GPU) -> World:
        module, world = stand_in(version)
        world.gpu = gpu is not None
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(room, "find_gpu", lambda: gpu)
        return world

    return install


@pytest.mark.parametrize("version", ALL)
def test_every_generation_builds_fp32(use: Any, mini_onnx: Path, version: str) -> None:
    world = use(version)
    seen: list[tuple[float, str]] = []
    engine = build_engine(
        mini_onnx,
        target=target_for(version),
        progress=lambda done, total, text: seen.append((done, text)),
        label="orin",
    )
    assert engine.version == version
    assert engine_of(engine.content)["version"] == version
    assert (engine.weights_bytes, engine.activation_bytes) == (1024, 4096)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert seen[-1] == (1.0, "orin: done")
    assert world.seen["flags"] == set()
    if version == "8.6.2":
        assert seen[0] == (0.0, "orin: compiling, without news until it is done")
        assert onnx.load_model_from_string(world.seen["content"]).opset_import[0].version == 17
    else:
        assert len(seen) > 5
    if version.startswith("1."):
        assert engine.compute_capabilities == (89,)
        assert world.seen["capabilities"] == {0: "SM89"}
    else:
        assert engine.compute_capabilities == (87,)
        assert world.seen["profiles"] == [("sar", (1, 2, 64, 64), (2, 2, 64, 64), (4, 2, 64, 64))]
        # Three quarters of what is free, which is less than the target allows.
        assert world.seen["WORKSPACE"] == 3 << 28


@pytest.mark.parametrize("version", TENSORRT)
def test_the_workspace_is_at_most_what_the_target_allows(use: Any, mini_onnx: Path, version: str) -> None:
    world = use(version)
    build_engine(mini_onnx, target=target_for(version, workspace_mb=100))
    assert world.seen["WORKSPACE"] == 100 << 20


def test_typing(use: Any, mini_onnx: Path) -> None:
    """Precision is in the ONNX from 10 on; 8.6 has explicit batch and flags."""
    half = Arithmetic("fp16", kept=("classifier",))
    old = use("8.6.2")
    build_engine(mini_onnx, target=target_for("8.6.2"), arithmetic=half)
    assert old.seen["network"] == 1  # 1 << EXPLICIT_BATCH
    assert old.seen["flags"] == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    forced = [layer.name for layer in old.seen["layers"] if not callable(layer.precision)]
    assert forced == ["classifier"]
    for version, bits in (("10.3.0", 2), ("11.4.1", 2), ("1.7.1.116", 1)):
        world = use(version)
        build_engine(mini_onnx, target=target_for(version), arithmetic=half)
        strongly = sys.modules["tensorrt_rtx" if version[0:2] == "1." else "tensorrt"]
        assert world.seen["network"] == 1 << int(strongly.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert world.seen["network"] == bits
        assert world.seen["flags"] == set()


@pytest.fixture(scope="module")
def quantised(mini_onnx: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("quantised") / "mini.hfd"
    made = Bundle.create(path, make_manifest(), {"model.fp32.onnx": mini_onnx})
    return quantize(made, PairFolder.open(data), tiles=4)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.path, folder / "mini.hfd")
    return Bundle.open(folder / "mini.hfd")


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_fp16"])
def test_every_variant_of_a_bundle(
    use: Any, quantised: Bundle, tmp_path: Path, version: str, precision: str
) -> None:
    world = use(version)
    bundle = copied(quantised, tmp_path)
    target = target_for(version)
    (record,) = build(bundle, target, precisions=(precision,))
    assert record.version == version
    expected = {"fp16": {"FP16"}, "int8": {"INT8"}, "int8_fp16": {"INT8", "FP16"}}[precision]
    if version == "8.6.2":
        assert world.seen["flags"] == expected | {"OBEY_PRECISION_CONSTRAINTS"}
        assert record.options["strongly_typed"] is False
    else:
        assert world.seen["flags"] == set()
        assert record.options["strongly_typed"] is True
    assert record.layers is not None
    assert (record.layers.by_precision, record.layers.reformats) == ({"int8": 1}, 1)
    opened = Bundle.open(bundle.path)
    opened.verify()
    assert "Layers" in opened.file(f"engines/{target.name}-{precision}.layers.json").read_text()


@pytest.mark.parametrize("int8", ["qdq", "cache"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_fp16"])
def test_an_old_tensorrt_compiles_here_what_a_kit_compiles(
    use: Any, quantised: Bundle, tmp_path: Path, precision: str, int8: str
) -> None:
    world, target = use("8.6.2"), target_for("8.6.2", int8=int8)
    bundle = copied(quantised, tmp_path)
    plan = make_plan(target, precision)
    (record,) = build(bundle, target, precisions=(precision,))
    built = onnx.load_model_from_string(world.seen["content"])
    model = device_model(bundle, target, plan)
    assert list(map(str, built.graph.node)) == list(map(str, model.graph.node))
    kept = layer_types(model, infer(model), plan, record_of(bundle))
    assert set(record.options["kept"]) == set(kept)
    assert {"align/GridSample", "classifier"} <= set(kept)


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0"])
@pytest.mark.parametrize("precision", ["int8", "int8_fp16"])
def test_implicit_int8_from_the_record(
    use: Any, quantised: Bundle, tmp_path: Path, version: str, precision: str
) -> None:
    world = use(version)
    bundle = copied(quantised, tmp_path)
    (record,) = build(bundle, target_for(version, int8="cache"), precisions=(precision,))
    assert world.seen["cache"].startswith({"8.6.2": "TRT-8602-", "10.3.0": "TRT-100300-"}[version])
    assert "\nsar: 3" in world.seen["cache"]
    assert {"INT8"} <= world.seen["flags"]
    assert ("FP16" in world.seen["flags"]) == (precision == "int8_fp16")
    assert world.seen["calibration_profile"] == world.seen["profiles"][0]
    operators = {node.op_type for node in onnx.load_model_from_string(world.seen["content"]).graph.node}
    assert "QuantizeLinear" not in operators
    # Kept nodes do not compute in INT8, whatever ranges their tensors have.
    forced = {layer.name for layer in world.seen["layers"] if not callable(layer.precision)}
    assert "classifier" in forced
    assert any(name.startswith("align") for name in forced)
    assert "merge.0" not in forced
    assert record.options["strongly_typed"] is False
    assert len(record.options["cache_sha256"]) == 64


def test_a_cache_where_there_are_none(use: Any, mini_onnx: Path) -> None:
    use("11.4.1")
    with pytest.raises(EngineError, match=r"TensorRT 11\.4\.1 has no INT8 flag: .*Set int8 = \"qdq\""):
        build_engine(mini_onnx, target=target_for("11.4.1"), arithmetic=Arithmetic("int8", b"TRT-"))


def test_a_cache_of_another_version_fails(use: Any, mini_onnx: Path) -> None:
    use("10.3.0")
    foreign = Arithmetic("int8", b"TRT-8602-EntropyCalibration2\nsar: 3c010a14\n")
    with pytest.raises(EngineError, match="no scaling factors.*The calibration cache was not taken"):
        build_engine(mini_onnx, target=target_for("10.3.0"), arithmetic=foreign)


@pytest.mark.parametrize("version", [version for version in ALL if version != "8.6.2"])
def test_cancelling(use: Any, mini_onnx: Path, version: str) -> None:
    world = use(version)

    def stop(done: float, total: float, text: str) -> None:
        if done > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(mini_onnx, target=target_for(version), progress=stop)
    assert world.seen["cancelled_at"] == "Tactics"  # at the next step, not at the end


def test_cancelling_what_cannot_be_stopped(use: Any, mini_onnx: Path) -> None:
    world = use("8.6.2")

    def stop(done: float, total: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(mini_onnx, target=target_for("8.6.2"), progress=stop)
    assert "flags" not in world.seen  # it was told before the build began, so none began


@pytest.mark.parametrize("version", ALL)
def test_a_refused_operator_is_named(use: Any, mini_onnx: Path, version: str) -> None:
    world = use(version)
    world.refused = ("GridSample",)
    message = r"cannot use model\.fp32\.onnx: node align\S* \(GridSample\) is not supported"
    with pytest.raises(EngineError, match=message):
        build_engine(mini_onnx, target=target_for(version))


@pytest.mark.parametrize("version", ALL)
def test_a_refused_operator_keeps_the_parsers_reason(use: Any, mini_onnx: Path, version: str) -> None:
    """UNSUPPORTED_NODE is also the code of a known operator with an attribute that TensorRT lacks."""
    world = use(version)
    world.refused, world.refusal = ("GridSample",), "Only padding_mode zeros is supported."
    message = r"\(GridSample\) is not supported: Only padding_mode zeros is supported\. Export"
    with pytest.raises(EngineError, match=message):
        build_engine(mini_onnx, target=target_for(version))


@pytest.mark.parametrize("version", ALL)
def test_a_damaged_model(use: Any, tmp_path: Path, version: str) -> None:
    use(version)
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x07 not a model")
    with pytest.raises(EngineError, match=r"cannot use cut\.onnx: Failed to parse.*The file is damaged"):
        build_engine(tmp_path / "cut.onnx", target=target_for(version))


@pytest.mark.parametrize("version", ALL)
def test_a_failure_gives_the_reason(use: Any, mini_onnx: Path, version: str) -> None:
    use(version).fault = "Could not find any implementation for node merge.0"
    with pytest.raises(EngineError, match=r"could not compile .*any implementation for node merge\.0"):
        build_engine(mini_onnx, target=target_for(version))


@pytest.mark.parametrize("version", TENSORRT)
def test_no_gpu(use: Any, bundle: Bundle, mini_onnx: Path, version: str) -> None:
    use(version, gpu=None)
    target = target_for(version)
    reason = can_build_here(target)
    assert reason == "TensorRT compiles on the GPU that shall run the engine, and there is none here"
    with pytest.raises(EngineError, match="that shall run the engine, and there is none here.*--kit"):
        build_engine(mini_onnx, target=target)
    with pytest.raises(EngineError, match="No engine for orin can be built here: .*--target orin --kit"):
        build(bundle, target, precisions=("fp32",))


def test_without_a_gpu_nobody_is_told_to_install_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfd_edge.deploy.engine.find_gpu", lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "there is none here" in str(can_build_here(load_target("orin-nx-jp62")))


def test_a_driver_that_fails(use: Any, mini_onnx: Path) -> None:
    use("10.3.0").gpu = False
    with pytest.raises(EngineError, match="does not start: CUDA initialization failure.*Check the driver"):
        build_engine(mini_onnx, target=target_for("10.3.0"))


def test_what_can_be_built_here(use: Any) -> None:
    use("10.3.0")
    assert can_build_here(target_for("10.3.0")) is None
    assert can_build_here(target_for("10.3.0", compute_capabilities=(110,))) == (
        "TensorRT compiles for the GPU that is here, sm_87, not for sm_110"
    )
    assert can_build_here(target_for("8.6.2")) == (
        "the target has TensorRT 8.6.2 and this machine 10.3.0; an engine fits one version"
    )
    # Off the Jetsons the version that builds is the version that runs.
    assert can_build_here(target_for("10.13.2", jetpack=None)) is None
    assert can_build_here(load_target("desktop-torch-tensorrt")) == (
        "torch-tensorrt compiles a run, not a bundle: hfd-edge build RUN --target desktop-torch-tensorrt"
    )
    use("1.7.1.116", gpu=None)
    assert can_build_here(load_target("rtx-ada")) is None


def test_a_folder_named_tensorrt_is_no_tensorrt(
    mini_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Type stubs in site-packages, or a checkout beside the script, import as a namespace package."""
    monkeypatch.setattr("hfd_edge.deploy.engine.find_gpu", lambda: GPU)
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    message = (
        r"finds only a folder of that name, without Builder.*hfd-edge\[tensorrt\]'; a Jetson has it from"
    )
    with pytest.raises(MissingExtraError, match=message):
        build_engine(mini_onnx, target=target_for("10.3.0"))
    assert "only a folder of that name" in str(can_build_here(target_for("10.3.0")))
    monkeypatch.delitem(sys.modules, "tensorrt")


def test_tensorrt_is_not_installed(mini_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Jetson pip is the wrong advice."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        MissingExtraError, match=r"cannot be imported.*hfd-edge\[tensorrt\]'; a Jetson has it"
    ):
        build_engine(mini_onnx, target=target_for("10.3.0"))


@pytest.mark.parametrize("version", ALL)
def test_a_fixed_batch(use: Any, mini_onnx: Path, tmp_path: Path, version: str) -> None:
    world = use(version)
    model = onnx.load(mini_onnx)
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    two = {"min": 2, "opt": 2, "max": 2}
    fixed = Target.model_validate({**target_for(version).model_dump(), "batch": two})
    build_engine(tmp_path / "fixed.onnx", target=fixed)
    assert world.seen["profiles"] == []
    with pytest.raises(EngineError, match=r"takes batches of 2 alone, but target \S+ asks for 1 to \d"):
        build_engine(tmp_path / "fixed.onnx", target=target_for(version))


def test_the_timing_cache(
    use: Any, mini_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use("10.3.0")
    path = tmp_path / "cache" / "hfd-edge" / "timing" / "tensorrt-10.3.0-sm87.cache"
    target = target_for("10.3.0")
    build_engine(mini_onnx, target=target)
    assert path.read_bytes() == b"timing 10.3.0"
    path.write_bytes(b"garbage")
    build_engine(mini_onnx, target=target)
    assert "is damaged or of another TensorRT" in caplog.text
    assert path.read_bytes() == b"timing 10.3.0"
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("not a folder")
    build_engine(mini_onnx, target=target)
    assert "the timing cache is not kept" in caplog.text


def test_rtx_keeps_no_timing_cache(use: Any, mini_onnx: Path, tmp_path: Path) -> None:
    use("1.7.1.116")
    build_engine(mini_onnx, target=load_target("rtx-ada"))
    assert not (tmp_path / "cache").exists()
