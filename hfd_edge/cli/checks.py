"""What this machine has, for `hfd-edge doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What it is needed for.
        ok: Whether that works here.
        found: Version or state seen.
        fix: Command or advice when it does not; "" when it does.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""


_EXTRAS = {
    "runtime on a CPU": ("hfd-edge", ("numpy", "opencv-python-headless", "onnxruntime", "rasterio")),
    "training": ("hfd-edge[train]", ("torch", "timm", "lightning-fabric", "safetensors", "matplotlib")),
    "export and INT8": ("hfd-edge[export]", ("torch", "onnx", "onnxscript", "nvidia-modelopt", "requests")),
    "TensorRT-RTX engines": ("hfd-edge[rtx]", ("tensorrt-rtx",)),
}


def machine_checks() -> list[Check]:
    """Look at Python, the extras, the GPU driver and the CUDA toolkit. Imports nothing heavy."""
    checks = [_python()]
    checks += [_extra(name, install, packages) for name, (install, packages) in _EXTRAS.items()]
    checks += [_driver(), _toolkit()]
    return checks


def _python() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"Python {platform.python_version()}, {platform.machine()}, {cores} cores"
    return Check("Python", sys.version_info >= (3, 10), found, "")


def _extra(name: str, install: str, packages: tuple[str, ...]) -> Check:
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    fix = f"pip install '{install}'  (brings {', '.join(missing)})" if missing else ""
    if missing and install == "hfd-edge[rtx]" and platform.machine() != "x86_64":
        fix = "TensorRT-RTX has wheels for x86-64 only; build engines there"
    return Check(name, not missing, found, fix)


def _driver() -> Check:
    name = "NVIDIA GPU"
    if shutil.which("nvidia-smi") is None:
        return Check(
            name, False, "no nvidia-smi on PATH", "install the NVIDIA driver; engines can be built without"
        )
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Check(name, False, f"nvidia-smi failed: {error}", "reinstall the NVIDIA driver, or reboot")
    return Check(name, True, done.stdout.strip().replace("\n", "; "))


def _toolkit() -> Check:
    nvcc = shutil.which("nvcc")
    found = nvcc or "no nvcc on PATH"
    return Check(
        "CUDA toolkit", nvcc is not None, found, "" if nvcc else "only needed to compile CUDA kernels"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
