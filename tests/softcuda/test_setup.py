"""PyCUDA is built where it can be, once, and the set-up says why where it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from . import control
from .test_suite import clean_environment

HERE = Path(__file__).resolve().parent


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """build_pycuda.py, on a machine that has no PyCUDA yet."""
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location("softcuda_build_pycuda", HERE / "build_pycuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "FAILED", tmp_path / "failed")
    return module


def test_without_headers_it_says_so(
    setup: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.build_driver, "cuda_headers", lambda: None)
    monkeypatch.setattr(setup, "wheel", lambda folder: pytest.fail("nothing to build with"))
    setup.main()
    assert capsys.readouterr().out == (
        "PyCUDA is not built (no cuda.h of CUDA 12 or newer: neither a CUDA toolkit nor NVIDIA's wheels are "
        "installed); the tests on the emulated GPU are skipped.\n"
    )


@pytest.mark.parametrize("output", ["noise\n" * 50 + "error: no such thing\n", None])  # None: it was shown
def test_a_failed_build_shows_its_end_and_goes_on(
    setup: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str | None
) -> None:
    def fail(folder: Path) -> Path:
        raise subprocess.CalledProcessError(1, ["pip"], output=output)

    monkeypatch.setattr(setup.build_driver, "why_not", lambda: None)
    monkeypatch.setattr(setup, "wheel", fail)
    setup.main()
    out = capsys.readouterr().out
    assert out.endswith("PyCUDA does not build here; the tests on the emulated GPU are skipped.\n")
    assert out.count("error: no such thing") == (output is not None)
    assert out.count("noise") == (19 if output else 0)
    setup.main()  # at the next make test
    out = capsys.readouterr().out
    assert "it failed before; delete" in out and str(setup.FAILED) in out


def test_an_installed_pycuda_is_left_alone(setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(setup, "why_not", lambda: pytest.fail("not asked"))
    setup.main()


@pytest.mark.parametrize(("version", "found"), [(11080, False), (12000, True), (13000, True)])
def test_headers_that_are_too_old_count_as_none(
    setup: Any, tmp_path: Path, version: int, found: bool
) -> None:
    (tmp_path / "cudaTypedefs.h").touch()
    (tmp_path / "cuda.h").write_text(f"#define CUDA_VERSION {version}\n")
    assert setup.build_driver._usable(tmp_path) == found


def test_the_emulated_suites_skip_where_there_is_no_compiler(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/gpu/test_device.py",
    ]
    environment = {**clean_environment(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no emulated driver: " in done.stdout and "passed" not in done.stdout


def test_a_real_driver_that_was_opened_first_is_refused(tmp_path: Path) -> None:
    """Else half of the process would talk to the GPU, the other half to the emulation."""
    if reason := control.missing():
        pytest.skip(reason)
    (tmp_path / "real.c").write_text("int cuInit(unsigned flags) { return 100; }\n")
    real = tmp_path / "libcuda.so.1"
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
        "-o",
        str(real),
        str(tmp_path / "real.c"),
    ]
    subprocess.run(command, check=True)
    program = f"import ctypes, control; ctypes.CDLL({str(real)!r}); control.load()"
    done = subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True)
    assert (
        "RuntimeError: A real CUDA driver was opened before the emulated one. Run only tests" in done.stderr
    )
