"""PyCUDA is built where it can be, once, and the set-up says why where it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """build_pycuda.py, on a machine that has no PyCUDA yet."""
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location("softcuda_build_pycuda", HERE / "build_pycuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    return module


def test_without_headers_it_says_so(
    setup: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "cuda_headers", lambda: None)
    monkeypatch.setattr(setup, "wheel", lambda folder: pytest.fail("nothing to build with"))
    setup.main()
    assert capsys.readouterr().out == (
        "PyCUDA is not built (no cuda.h: neither a CUDA toolkit nor NVIDIA's wheels are installed); "
        "the tests on the emulated GPU are skipped.\n"
    )


def test_a_failed_build_shows_its_end_and_goes_on(
    setup: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> Path:
        raise subprocess.CalledProcessError(1, ["pip"], output="noise\n" * 50 + "error: no such thing\n")

    monkeypatch.setattr(setup, "why_not", lambda: None)
    monkeypatch.setattr(setup, "wheel", fail)
    setup.main()
    out = capsys.readouterr().out
    assert out.endswith(
        "error: no such thing\nPyCUDA does not build here; the tests on the emulated GPU are skipped.\n"
    )
    assert out.count("noise") == 19


def test_an_installed_pycuda_is_left_alone(setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(setup, "why_not", lambda: pytest.fail("not asked"))
    setup.main()
