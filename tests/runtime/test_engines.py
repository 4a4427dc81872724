"""Loading engines: what does not fit is refused before TensorRT sees it. Stand-ins of every generation."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BundleError, EngineError, MissingExtraError
from hfd_edge.gpu import Gpu
from hfd_edge.runtime import engines as room
from hfd_edge.runtime.engines import open_engine

from ..deploy.generations import World, stand_in
from .conftest import make_manifest, make_onnx
from .engine_files import put_engine

ORIN = Gpu(compute_capability=87, free_bytes=1 << 30, total_bytes=8 << 30)
ALL = ("8.6.2", "10.3.0", "11.4.1", "1.7.1.116")
NAME = "orin-fp32"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    model = make_onnx(bands=2, classes=4)
    return Bundle.create(tmp_path / "small.hfd", make_manifest(), {"model.fp32.onnx": model})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def install(version: str, *, gpu: Gpu | None = ORIN) -> World:
        module, world = stand_in(version)
        world.gpu = gpu is not None
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(room, "find_gpu", lambda: gpu)
        return world

    return install


@pytest.mark.parametrize("version", ALL)
def test_an_engine_is_loaded(use: Callable[..., World], bundle: Bundle, version: str) -> None:
    use(version)
    opened = open_engine(put_engine(bundle, version), NAME)
    assert opened.record.version == version
    assert opened.gpu == ORIN
    assert opened.loaded.engine is not None


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "9.9.9"}, r"was built by tensorrt\w* 9\.9\.9, but this machine has "),
        ({"compute_capabilities": (89, 120)}, "was built for sm_89, sm_120, but this GPU is sm_87"),
        ({"onnx_sha256": "cd" * 32}, r"was built from another fp32 model \(cdcdcdcdcdcd\.\.\.\)"),
    ],
)
def test_what_does_not_fit_never_reaches_tensorrt(
    use: Callable[..., World], bundle: Bundle, version: str, changes: dict[str, Any], reason: str
) -> None:
    world = use(version)
    filled = put_engine(bundle, version, **changes)
    with pytest.raises(EngineError, match=reason) as caught:
        open_engine(filled, NAME)
    assert f"hfd-edge build {bundle.path} --target orin --precision fp32" in str(caught.value)
    assert "deserialized" not in world.seen


@pytest.mark.parametrize("version", ALL)
def test_a_requantised_bundle_refuses_its_old_engine(
    use: Callable[..., World], bundle: Bundle, version: str
) -> None:
    use(version)
    filled = put_engine(bundle, version)
    newer = filled.add({"model.fp32.onnx": make_onnx(bands=2, classes=4, stride=1)})
    with pytest.raises(EngineError, match="was built from another fp32 model"):
        open_engine(newer, NAME)


def test_without_a_gpu(use: Callable[..., World], bundle: Bundle) -> None:
    """RTX would say that every engine is invalid; it is not asked."""
    world = use("1.7.1.116", gpu=None)
    world.validity = "INVALID"
    with pytest.raises(EngineError, match="needs an NVIDIA GPU with a driver, and there is none here"):
        open_engine(put_engine(bundle, "1.7.1.116"), NAME)


def test_what_rtx_says(use: Callable[..., World], bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    world = use("1.7.1.116")
    filled = put_engine(bundle, "1.7.1.116")
    world.validity, world.diagnostics = "INVALID", 5
    with pytest.raises(EngineError, match="is invalid here: old cuda driver, version mismatch"):
        open_engine(filled, NAME)
    assert "deserialized" not in world.seen
    world.validity = "SUBOPTIMAL"
    open_engine(filled, NAME)
    assert "runs here, but not at full speed; build it again with: hfd-edge build" in caplog.text


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "11.4.1"])
def test_a_driver_that_is_too_old(use: Callable[..., World], bundle: Bundle, version: str) -> None:
    """There is a GPU, but TensorRT's runtime does not start on it."""
    use(version).gpu = False
    with pytest.raises(EngineError, match="could not load engine orin-fp32: CUDA initialization failure"):
        open_engine(put_engine(bundle, version), NAME)


@pytest.mark.parametrize("version", ALL)
def test_what_tensorrt_refuses(use: Callable[..., World], bundle: Bundle, version: str) -> None:
    use(version)
    filled = put_engine(bundle, version, content=b"no plan")
    with pytest.raises(EngineError, match="could not load engine orin-fp32: Serialization assertion"):
        open_engine(filled, NAME)


def test_a_sidecar_of_another_engine(use: Callable[..., World], bundle: Bundle) -> None:
    use("10.3.0")
    filled = put_engine(bundle, "10.3.0")
    other = filled.add({f"engines/{NAME}.engine": b"another"})
    with pytest.raises(EngineError, match="is not the engine that its sidecar describes"):
        open_engine(other, NAME)
    (bundle.path / "engines" / f"{NAME}.engine").write_bytes(b"changed")
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        open_engine(other, NAME)
    with pytest.raises(BundleError, match="has no engine orin-int8; it has: orin-fp32"):
        open_engine(other, "orin-int8")


def test_a_torch_tensorrt_program(use: Callable[..., World], bundle: Bundle) -> None:
    use("10.3.0")
    with pytest.raises(EngineError, match="was made by torch_tensorrt, but this loads plans of"):
        open_engine(put_engine(bundle, "10.3.0", flavour="torch_tensorrt"), NAME)


def test_tensorrt_is_not_installed(
    use: Callable[..., World], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"loading engine orin-fp32 needs .*hfd-edge\[tensorrt\]"):
        open_engine(put_engine(bundle, "10.3.0"), NAME)


def test_the_record_is_frozen(use: Callable[..., World], bundle: Bundle) -> None:
    use("10.3.0")
    opened = open_engine(put_engine(bundle, "10.3.0"), NAME)
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.record.version = "11"
