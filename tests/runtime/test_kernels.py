"""Compiling kernels with the real nvcc and the real NVRTC; no GPU is needed for that."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.errors import BackendError, StorageError
from hfd_edge.runtime import compilers, kernels
from hfd_edge.runtime.compilers import Nvcc, Nvrtc, Source, write_fatbins
from hfd_edge.runtime.kernels import Kernels, kernel_image, packaged_kernels

TOY = """
#include "toy.cuh"
struct Args { const float* in; float* out; int n; };
extern "C" __global__ void __launch_bounds__(256) scale(const Args a)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.out[i] = FACTOR * a.in[i];
}
"""
ELF = b"\x7fELF"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one small source, an empty cache, and no packaged fatbins."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "toy.cu").write_text(TOY)
    (folder / "toy.cuh").write_text("#define FACTOR 2.0f\n")
    monkeypatch.setattr(kernels, "SOURCES", folder)
    monkeypatch.setattr(kernels, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def nvcc() -> Nvcc:
    return _or_skip(Nvcc)


@pytest.fixture
def nvrtc() -> Nvrtc:
    return _or_skip(Nvrtc)


def _or_skip(compiler: Any) -> Any:
    try:
        return compiler.find()
    except BackendError as error:
        pytest.skip(f"needs a compiler for CUDA: {error}")


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(compilers, "_USUAL_NVCC", os.devnull)


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)


def fake_nvcc(folder: Path, body: str, version: str = "V10.2.300") -> Path:
    """An nvcc of its own; `body` is Python with `options` and `out`."""
    folder.mkdir(exist_ok=True)
    path = folder / "nvcc"
    path.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        f"if '--version' in sys.argv: print('Cuda tools, release 1.0, {version}'); sys.exit()\n"
        "options = sys.argv[1:]\nout = pathlib.Path(options[options.index('-o') + 1])\n" + body
    )
    path.chmod(0o755)
    return path


def test_nvcc_compiles_and_the_next_start_takes_it_from_the_cache(sources: Path, nvcc: Nvcc) -> None:
    first = kernel_image("toy", 87)
    assert first.content.startswith(ELF) and first.way == nvcc.version and first.compute_capability == 87
    second = kernel_image("toy", 87)
    assert second.content == first.content and second.way == f"cached {nvcc.version}"
    assert kernel_image("toy", 75).way == nvcc.version, "each GPU has code of its own"


def test_nvrtc_compiles_where_there_is_no_nvcc(
    sources: Path, nvrtc: Nvrtc, no_nvcc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = kernel_image("toy", 87)
    assert image.content.startswith(ELF) and image.way == nvrtc.version and b"scale" in image.content
    assert kernel_image("toy", 87).way == f"cached {nvrtc.version}"


@pytest.mark.parametrize("file", ["toy.cu", "toy.cuh"])
def test_a_changed_source_or_header_is_compiled_again(sources: Path, nvcc: Nvcc, file: str) -> None:
    first = kernel_image("toy", 87)
    text = (sources / file).read_text()
    (sources / file).write_text(text.replace("2.0f", "3.0f").replace("scale", "scaled"))
    second = kernel_image("toy", 87)
    assert second.way == nvcc.version and second.content != first.content


def test_a_damaged_cache_is_compiled_again(
    sources: Path, nvcc: Nvcc, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first = kernel_image("toy", 87)
    (path,) = (tmp_path / "cache/hfd-edge/kernels").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], whole[:32]):
        path.write_bytes(damaged)
        caplog.clear()
        again = kernel_image("toy", 87)
        assert again == first and path.read_bytes() == whole
        assert "is damaged; compiling the kernels again" in caplog.text


def test_a_cache_that_cannot_be_written_is_only_reported(
    sources: Path, nvcc: Nvcc, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder belongs")
    assert kernel_image("toy", 87).way == nvcc.version
    assert "the compiled kernels are not kept, so each start compiles them again: Could not" in caplog.text


def test_a_user_without_a_home(
    sources: Path, nvcc: Nvcc, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container's user that no passwd file knows, started without HOME."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    monkeypatch.setattr(
        kernels, "write_bytes", lambda path, _: (_ for _ in ()).throw(StorageError(str(path)))
    )
    assert kernel_image("toy", 87).way == nvcc.version
    assert "the compiled kernels are not kept" in caplog.text


def test_an_old_gpu_is_compiled_for_by_its_own_toolkit(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sm_53 is unknown to CUDA 13; the device's own nvcc 10.2 is the first on its PATH."""
    fake_nvcc(tmp_path / "bin", "out.write_text(' '.join(options[:-3]))")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    image = kernel_image("toy", 53)
    assert image.way == "nvcc 10.2.300"
    assert image.content.decode().split() == [*compilers.LANGUAGE, "-arch=sm_53", "-cubin"]
    fake_nvcc(tmp_path / "newer", "out.write_text('newer')", version="V10.2.301")
    monkeypatch.setenv("PATH", f"{tmp_path / 'newer'}{os.pathsep}{os.environ['PATH']}")
    assert kernel_image("toy", 53).content == b"newer", "another compiler has a cache of its own"


def test_nvcc_outside_of_path(
    sources: Path, no_nvcc: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "toolkit"
    home.mkdir()
    path = fake_nvcc(home / "bin", "out.write_text('code')")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert Nvcc.find().path == path
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(compilers, "_USUAL_NVCC", str(path))
    assert Nvcc.find().path == path and Nvcc.find().version == "nvcc 10.2.300"
    from hfd_edge.cli import checks

    assert checks._toolkit() == checks.Check("CUDA toolkit", True, f"{path}, nvcc 10.2.300")


def test_every_way_is_named_when_none_works(
    sources: Path, no_nvcc: None, no_nvrtc: None, tmp_path: Path
) -> None:
    with pytest.raises(BackendError) as caught:
        kernel_image("toy", 87)
    message = str(caught.value)
    assert message.startswith("The CUDA kernels in toy.cu cannot be had for this GPU (sm_87). packaged ")
    assert "this installation has none; no nvcc on PATH, in $CUDA_HOME or in /usr/local/cuda; no N" in message
    assert "needs the package 'cuda.bindings.nvrtc'" in message and "apt install nvidia-jetpack" in message


def test_nvrtc_without_its_library(sources: Path, no_nvcc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bindings:
        def nvrtcVersion(self) -> None:
            raise RuntimeError("Failure finding libnvrtc.so\nmore")

    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", Bindings())  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"NVRTC cannot be loaded: Failure finding libnvrtc.so\. Install"):
        kernel_image("toy", 87)


@pytest.mark.parametrize("compiler", [Nvcc, Nvrtc])
def test_a_source_with_a_fault_gives_the_compilers_words(sources: Path, compiler: Any) -> None:
    found = _or_skip(compiler)
    (sources / "toy.cu").write_text(TOY.replace("FACTOR", "FAKTOR"))
    with pytest.raises(BackendError, match=r"could not compile toy.cu .*sm_87.*FAKTOR.* is undefined"):
        found.cubin(Source.read(sources, "toy"), 87)


def test_a_gpu_that_the_compiler_does_not_know(sources: Path, nvcc: Nvcc, nvrtc: Nvrtc) -> None:
    with pytest.raises(BackendError, match=r"Unsupported gpu architecture 'sm_53'.*invalid value for --g"):
        kernel_image("toy", 53)


def test_a_compiler_that_does_not_work(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_nvrtc: None
) -> None:
    path = fake_nvcc(tmp_path / "bin", "sys.exit()")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(BackendError, match=r"compile toy.cu with -arch=sm_87 -cubin: no reason given"):
        kernel_image("toy", 87)
    path.write_text(f"#!{sys.executable}\nimport sys; sys.exit('libfoo.so: cannot open')")
    os.utime(path, (1, 1))
    with pytest.raises(BackendError, match=r"nvcc --version failed: libfoo.so: cannot open"):
        kernel_image("toy", 87)
    with monkeypatch.context() as impatient:
        impatient.setattr(compilers, "_TIMEOUT_S", 0.2)
        fake_nvcc(tmp_path / "slow", "import time; time.sleep(5)")
        with pytest.raises(BackendError, match=r"nvcc did not finish toy.cu within 0.2 seconds"):
            Nvcc(tmp_path / "slow" / "nvcc", "").cubin(Source.read(sources, "toy"), 87)
    path.write_text("no program")
    with pytest.raises(BackendError, match="could not be run"):
        Nvcc(path, "").cubin(Source.read(sources, "toy"), 87)
    with pytest.raises(BackendError, match="could not be run"):
        compilers._nvcc_says(path, "--version")


def test_compilers_are_named(sources: Path, nvcc: Nvcc, nvrtc: Nvrtc) -> None:
    assert kernels.compilers_here() == [nvcc.version, nvrtc.version]


def test_an_unknown_source(sources: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing.cu cannot be read: No such file.*Sources there: toy\."):
        kernel_image("nothing", 87)


@pytest.fixture
def packaged(sources: Path, nvcc: Nvcc, tmp_path: Path) -> Path:
    """Fatbins as the wheel has them."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    write_fatbins(sources, folder)
    return folder


def test_packaged_fatbins_come_first(sources: Path, packaged: Path, no_nvcc: None, no_nvrtc: None) -> None:
    image = kernel_image("toy", 87)
    assert image.way == "packaged fatbin" and image.content == (packaged / "toy.fatbin").read_bytes()
    index = json.loads((packaged / "kernels.json").read_text())
    assert index["cubins"] == list(compilers.FATBIN_CUBINS) and index["ptx"] == list(compilers.FATBIN_PTX)
    assert str(packaged_kernels()).startswith("1 fatbins by nvcc 1")
    assert str(packaged_kernels()).endswith("sm_121 and later")
    with pytest.raises(BackendError, match="packaged fatbin: is for sm_75 and later; no nvcc"):
        kernel_image("toy", 72)


def test_fatbins_that_do_not_fit_are_not_taken(
    sources: Path, packaged: Path, no_nvcc: None, no_nvrtc: None, caplog: pytest.LogCaptureFixture
) -> None:
    fatbin = packaged / "toy.fatbin"
    whole = fatbin.read_bytes()
    fatbin.write_bytes(whole[:-1] + b"x")
    with pytest.raises(BackendError, match="packaged fatbin: is damaged"):
        kernel_image("toy", 87)
    assert "toy.fatbin is damaged and not used; install hfd-edge again" in caplog.text
    fatbin.unlink()
    with pytest.raises(BackendError, match="packaged fatbin: No such file"):
        kernel_image("toy", 87)
    (sources / "toy.cuh").write_text("#define FACTOR 3.0f\n")
    with pytest.raises(BackendError, match="made from other sources than those beside it"):
        kernel_image("toy", 87)
    (packaged / "kernels.json").write_text("{")
    assert packaged_kernels() is None


def test_an_older_nvcc_packs_what_it_knows(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "out.write_text(' '.join(options))"
    path = fake_nvcc(tmp_path / "bin", body, version="V12.6.68")
    listing = "if '--list-gpu-code' in sys.argv: print('sm_50 sm_75 sm_87 sm_90a'); sys.exit()\n"
    path.write_text(path.read_text().replace("options = ", listing + "options = ", 1))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "packaged"
    folder.mkdir()
    assert [file.name for file in write_fatbins(sources, folder)] == ["toy.fatbin", "kernels.json"]
    options = (folder / "toy.fatbin").read_text()
    assert "arch=compute_75,code=sm_75" in options and "arch=compute_87,code=sm_87" in options
    assert "arch=compute_75,code=compute_75" in options
    assert "_120" not in options and "sm_90" not in options


class FakeDevice:
    """Stands for `Device`: takes what `refuses` does not name."""

    def __init__(self, capability: int = 87) -> None:
        self.limits = type("Limits", (), {"compute_capability": capability})()
        self.images: list[bytes] = []
        self.refuses: list[bytes] = []

    def module(self, image: bytes) -> Any:
        if image in self.refuses:
            raise BackendError("cuModuleLoadDataEx failed: device kernel image is invalid.")
        self.images.append(image)
        return FakeModule(self)


class FakeModule:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def function(self, name: str) -> str:
        return f"function {name}"

    def close(self) -> None:
        self._device.images.clear()


def test_kernels_loads_each_source_once(sources: Path, nvcc: Nvcc) -> None:
    device: Any = FakeDevice()
    loaded = Kernels(device)
    threads = [threading.Thread(target=loaded.function, args=("toy", "scale")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded.function("toy", "scale") == "function scale"  # type: ignore[comparison-overlap]
    assert len(device.images) == 1 and loaded.ways == {"toy": nvcc.version}
    loaded.close()
    loaded.close()
    assert device.images == []
    loaded.function("toy", "scale")
    assert loaded.ways == {"toy": f"cached {nvcc.version}"}


def test_all_sources_are_loaded_and_told(sources: Path, nvcc: Nvcc) -> None:
    for name in ("other", "third"):
        (sources / f"{name}.cu").write_text(TOY)
    kernel_image("toy", 87)
    device: Any = FakeDevice()
    assert Kernels(device).load_all() == f"other, third: {nvcc.version}; toy: cached {nvcc.version}"


def test_a_driver_that_is_older_than_the_fatbins(
    sources: Path, packaged: Path, nvcc: Nvcc, caplog: pytest.LogCaptureFixture
) -> None:
    device: Any = FakeDevice()
    fatbin = (packaged / "toy.fatbin").read_bytes()
    device.refuses.append(fatbin)
    loaded = Kernels(device)
    with caplog.at_level(logging.WARNING):
        loaded.function("toy", "scale")
    assert loaded.ways == {"toy": f"{nvcc.version}, for want of a fatbin that loads"}
    assert "the driver refuses the packaged kernels of toy.cu, compiling them here: cuModule" in caplog.text
    device.refuses.append(device.images[0])
    with pytest.raises(BackendError, match=r"refuses the kernels of toy.cu from cached nvcc.*newer driver"):
        Kernels(device).function("toy", "scale")


def test_the_build_hook_needs_the_standard_library_alone(root: Path) -> None:
    """The package is built in an environment without its dependencies."""
    program = f"import sys; sys.path.insert(0, {str(root)!r}); import hfd_edge.runtime.compilers"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
