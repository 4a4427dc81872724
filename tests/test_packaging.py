"""What a wheel holds, from a copy of the tree that has one small kernel instead of the real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hfd_edge.errors import BackendError
from hfd_edge.runtime.compilers import Nvcc

pytest.importorskip("hatchling", reason="the package is built by hatchling")
KERNEL = 'extern "C" __global__ void one(float* out) { *out = 1.0f; }\n'


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """What a wheel is built from, in a folder without an nvcc of its own."""
    folder = tmp_path / "tree"
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, folder / name)
    for name in ("hfd_edge", "export/targets", "export/kit", "train/recipes"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    kernels = folder / "hfd_edge/sar/kernels"
    shutil.rmtree(kernels, ignore_errors=True)
    kernels.mkdir()
    (kernels / "one.cu").write_text(KERNEL)
    (kernels / "common.cuh").write_text("")
    return folder


def build(tree: Path, **environment: str) -> tuple[zipfile.ZipFile, str]:
    """The wheel, which must be for every machine, and what hatchling printed."""
    out = tree.parent / "dist"
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path), done.stdout + done.stderr


def test_a_wheel_with_compiled_kernels(tree: Path) -> None:
    try:
        Nvcc.find()
    except BackendError as error:
        pytest.skip(f"needs nvcc: {error}")
    wheel, _ = build(tree)
    names = set(wheel.namelist())
    assert {"hfd_edge/sar/kernels/one.cu", "hfd_edge/sar/kernels/common.cuh"} <= names
    index = json.loads(wheel.read("hfd_edge/data/kernels/kernels.json"))
    assert list(index["files"]) == ["one"] and 87 in index["cubins"]
    assert len(wheel.read("hfd_edge/data/kernels/one.fatbin")) > 1000
    (metadata,) = (name for name in names if name.endswith("/WHEEL"))
    assert b"Root-Is-Purelib: true" in wheel.read(metadata)
    program = (
        "from hfd_edge.runtime.kernels import kernel_image, packaged_kernels\n"
        "print(kernel_image('one', 87).way, '|', packaged_kernels())"
    )
    wheel.extractall(tree.parent / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tree.parent / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree.parent, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("packaged fatbin | 1 fatbins by nvcc"), done.stderr


def test_a_wheel_without_compiled_kernels(tree: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'libfoo.so: cannot open' >&2; exit 1\n")
    nvcc.chmod(0o755)
    wheel, printed = build(tree, PATH=str(tmp_path))
    names = set(wheel.namelist())
    assert {"hfd_edge/sar/kernels/one.cu", "hfd_edge/data/targets/desktop-rtx.toml"} <= names
    assert not [name for name in names if name.startswith("hfd_edge/data/kernels")]
    assert "The wheel gets no compiled CUDA kernels" in printed and "libfoo.so: cannot open" in printed


def test_a_wheel_without_the_hook(tree: Path) -> None:
    wheel, printed = build(tree, HATCH_BUILD_NO_HOOKS="true")
    assert "hfd_edge/data/kernels/kernels.json" not in wheel.namelist() and "CUDA" not in printed
