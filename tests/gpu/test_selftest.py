"""The self-test with a GPU: kernels, an engine of a stand-in, and whether it notices faults in them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.config import Units
from hfd_edge.errors import BackendError
from hfd_edge.runtime import kernels as kernel_sources
from hfd_edge.runtime.backends.tensorrt import TensorRTBackend
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.selftest import run_selftest
from hfd_edge.runtime.selftest_kernels import kernel_checks
from hfd_edge.sar.preprocessing import Preprocessing

from ..deploy.generations import plan, stand_in
from ..runtime.conftest import make_manifest, make_onnx
from ..runtime.engine_files import put_engine

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    model = make_onnx(bands=2, classes=4, tile=64)
    return Bundle.create(tmp_path / "small.hfd", make_manifest(tile_px=64), {"model.fp32.onnx": model})


def checked(device: Device, preprocessing: Preprocessing) -> dict[str, str]:
    """Run all kernel checks; what each found."""
    return {name: check() for name, check in kernel_checks(device, Kernels(device), preprocessing)}


@pytest.mark.parametrize("units", ["intensity", "dn", "complex", "sigma0_db", "stretched"])
def test_kernels_are_sound_for_products_of_all_units(device: Device, units: Units) -> None:
    speckle = "none" if units == "stretched" else "lee"
    chain = make_manifest(units="intensity").preprocessing
    clip, mean, std = (((0.0, 255.0),) * 2, (120.0,) * 2, (60.0,) * 2) if units == "stretched" else (
        chain.clip, chain.mean, chain.std
    )  # fmt: skip
    if units in ("dn", "complex"):
        mean = (25.0, 20.0)
    chain = replace(chain, units=units, speckle=speckle, clip=clip, mean=mean, std=std)
    found = checked(device, chain)
    types = {"dn": 3, "stretched": 3}.get(units, 1)
    assert len(found) == 2 * types + (0 if units == "stretched" else 7) + 6
    assert "bit for bit" in found["tiles"]
    assert "decided otherwise" in found["labels at stride 4"]


def test_many_bands_without_a_filter_are_sound(device: Device) -> None:
    """14 bands do not fit refined Lee's shared memory, but this product does without it."""
    bands = 14
    chain = make_manifest().preprocessing
    chain = replace(
        chain, speckle="none", clip=chain.clip[:1] * bands, mean=chain.mean[:1] * bands, std=(5.0,) * bands
    )
    assert len(checked(device, chain)) == 2 + 7 + 6


def test_an_engine_is_checked(bundle: Bundle, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = with_engine(bundle, monkeypatch)
    before = softcuda.live()
    result = run_selftest(filled)
    assert softcuda.live() == before
    wrong = [finding for finding in result.findings if not finding.ok]
    assert not wrong, wrong
    names = [finding.name for finding in result.findings]
    for check in ("labels", "logits", "repeats", "stream", "CUDA graphs"):
        assert f"tensorrt fp32: {check}" in names
    gpu = result.environment["gpu"]
    assert gpu["name"].startswith("Emulated") and gpu["compute_capability"] == 86
    assert set(gpu["kernels"]) == {"speckle", "tiles", "blend", "labels", "stats"}
    assert all("nvcc" in way for way in gpu["kernels"].values())


def test_an_engine_for_another_gpu_is_not_run_unless_it_was_asked_for(
    bundle: Bundle, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = with_engine(bundle, monkeypatch, capability=87)
    (finding,) = [item for item in run_selftest(filled).findings if item.name == "tensorrt fp32"]
    assert finding.ok is None and "was built for sm_87" in finding.found
    named = run_selftest(filled, backend="tensorrt")
    (finding,) = [item for item in named.findings if item.name == "tensorrt fp32"]
    assert finding.ok is False and "was built for sm_87" in finding.found


def test_an_engine_that_fails_is_wrong(
    bundle: Bundle, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sidecar fits this machine, so that it does not run is no reason to leave it out."""

    def fail(self: TensorRTBackend, batch: np.ndarray) -> np.ndarray:
        raise BackendError("cuStreamSynchronize failed: an illegal memory access was encountered")

    filled = with_engine(bundle, monkeypatch)
    monkeypatch.setattr(TensorRTBackend, "run", fail)
    (wrong,) = [finding for finding in run_selftest(filled).findings if finding.ok is False]
    assert wrong.name == "tensorrt fp32" and "illegal memory access" in wrong.found
    assert "Send this report" in wrong.fix


@pytest.mark.parametrize(("share", "wrong"), [(5e-3, []), (5e-2, ["tensorrt fp32: logits"])])
def test_an_engine_that_computes_something_else_is_wrong(
    bundle: Bundle, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch, share: float, wrong: list[str]
) -> None:
    """But it may multiply with 11 bits: TensorRT takes TF32 for FP32 unless it is told not to."""
    filled = with_engine(bundle, monkeypatch)
    run = TensorRTBackend.run

    def rounded(self: TensorRTBackend, batch: np.ndarray) -> np.ndarray:
        logits = run(self, batch)
        return logits + np.float32(share * np.ptp(logits))

    monkeypatch.setattr(TensorRTBackend, "run", rounded)
    findings = run_selftest(filled, backend="tensorrt").findings
    assert [finding.name for finding in findings if not finding.ok] == wrong


def plant(source: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put a fault into a copy of the kernels, and use that."""
    shutil.copytree(kernel_sources.SOURCES, folder)
    (path,) = folder.glob(f"{source}.cu*")
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong))
    monkeypatch.setattr(kernel_sources, "SOURCES", folder)


@pytest.mark.parametrize(
    ("source", "right", "wrong", "check"),
    [
        ("labels", "0.375f + centre * 0.625f", "0.425f + centre * 0.575f", "labels at stride 4"),
        ("tiles", "2 * size - 1 - folded", "2 * size - 2 - folded", "tiles"),
        ("blend", "score.y * (row_weight * weight.y)", "score.y * row_weight", "blending"),
        ("stats", "counts.sum += step", "counts.sum += step / 2", "statistics"),
        (
            "radiometry",
            "return real;",
            "return 1.1f * real;",
            "preprocessing of this bundle, float32 to float32",
        ),
    ],
)
def test_a_wrong_kernel_is_noticed(
    device: Device, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    source: str, right: str, wrong: str, check: str,
) -> None:  # fmt: skip
    plant(source, right, wrong, monkeypatch, tmp_path / "kernels")
    checks = dict(kernel_checks(device, Kernels(device), make_manifest().preprocessing))
    with pytest.raises(BackendError, match="differ|not those of NumPy"):
        checks[check]()


def test_a_wrong_kernel_is_reported(
    bundle: Bundle, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant("tiles", "2 * size - 1 - folded", "2 * size - 2 - folded", monkeypatch, tmp_path / "kernels")
    result = run_selftest(bundle)
    (wrong,) = [finding for finding in result.findings if finding.ok is False]
    assert (wrong.name, wrong.found) == ("kernels: tiles", "they are not those of NumPy")
    assert "Send this report" in wrong.fix and not result.ok
    assert any(finding.name == "onnxruntime fp32: labels" and finding.ok for finding in result.findings)


def with_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, capability: int = 86) -> Bundle:
    """Add an engine of the stand-in for TensorRT 10.3."""
    module, world = stand_in("10.3.0")
    world.capability = 86
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = plan(
        "10.3.0",
        bundle.model("fp32").read_bytes(),
        profile=([1, 2, 64, 64], [2, 2, 64, 64], [4, 2, 64, 64]),
        capability=capability,
    )
    return put_engine(bundle, "10.3.0", content=content, compute_capabilities=(capability,), name="here-fp32")
