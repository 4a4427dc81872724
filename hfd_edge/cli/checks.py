"""What this machine has, for `hfd-edge doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What it is needed for.
        ok: Whether that works here.
        found: Version or state seen.
        fix: Command or advice when it does not; when it does, what would make it better, or "".
    """

    name: str
    ok: bool
    found: str
    fix: str = ""


_EXTRAS = {
    "runtime on a CPU": ("hfd-edge", ("numpy", "opencv-python-headless", "onnxruntime", "rasterio")),
    "OpenVINO on a CPU": ("hfd-edge[openvino]", ("openvino",)),
    "training": ("hfd-edge[train]", ("torch", "timm", "lightning-fabric", "safetensors", "matplotlib")),
    "export and INT8": ("hfd-edge[export]", ("torch", "onnx", "onnxscript", "nvidia-modelopt", "requests")),
    "archives on a cluster": ("hfd-edge[cluster]", ("ray",)),
}


def machine_checks() -> list[Check]:
    """Look at Python, the extras, the compilers, the CUDA toolkit and the device.

    Imports torch only where torch-tensorrt is installed.
    """
    from hfd_edge.cli.device_checks import device_checks

    checks = [_python()]
    checks += [_extra(name, install, packages) for name, (install, packages) in _EXTRAS.items()]
    checks += [_tensorrt("TensorRT-RTX engines", "tensorrt_rtx"), _tensorrt("TensorRT engines", "tensorrt")]
    checks += [_torch_tensorrt(), _toolkit(), _gpu_runtime(), _kernels(), *device_checks()]
    return checks


def _python() -> Check:
    from hfd_edge.environment import allowed_cores

    cores = len(allowed_cores())
    found = f"Python {platform.python_version()}, {platform.machine()}, {cores} cores"
    return Check("Python", sys.version_info >= (3, 10), found, "")


def _extra(name: str, install: str, packages: tuple[str, ...]) -> Check:
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    fix = f"pip install '{install}'  (brings {', '.join(missing)})" if missing else ""
    return Check(name, not missing, found, fix)


def _tensorrt(name: str, flavour: str) -> Check:
    """Load a TensorRT and look for its builder: the import alone also takes a folder of that name."""
    from hfd_edge.errors import HfdEdgeError
    from hfd_edge.tensorrt_api import load_tensorrt, tensorrt_version

    try:
        version = tensorrt_version(load_tensorrt(flavour, purpose="building engines"))
    except HfdEdgeError as error:
        return Check(name, False, "", str(error))
    return Check(name, True, f"{flavour} {version}")


def _torch_tensorrt() -> Check:
    """Ask torch-tensorrt, which cannot be imported without a GPU, only where it is installed."""
    name = "torch-tensorrt programs"
    spec = importlib.util.find_spec("torch_tensorrt")
    if spec is None or spec.origin is None:  # without one it is a folder of that name
        return Check(
            name, False, "", "pip install 'hfd-edge[torch-tensorrt]', on a desktop with an NVIDIA GPU"
        )
    from hfd_edge.deploy import torch_tensorrt

    found = _version("torch-tensorrt") or _version("torch-tensorrt-rtx") or "unknown release"
    reason = torch_tensorrt.why_not_here()
    return Check(name, reason is None, f"torch_tensorrt {found}", reason or "")


def _toolkit() -> Check:
    """The nvcc that kernels are compiled with, which need not be on PATH."""
    from hfd_edge.errors import BackendError
    from hfd_edge.runtime.compilers import Nvcc

    try:
        nvcc = Nvcc.find()
    except BackendError as error:
        return Check("CUDA toolkit", False, str(error), "only needed to compile CUDA kernels")
    return Check("CUDA toolkit", True, f"{nvcc.path}, {nvcc.version}")


def _gpu_runtime() -> Check:
    """PyCUDA, which the GPU runtime needs, and cuda-bindings, which CUDA graphs and NVRTC need."""
    check = _extra("GPU runtime", "hfd-edge[cuda]", ("pycuda", "cuda-bindings"))
    if not check.ok:
        return check
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what the error says anyway
            importlib.import_module("pycuda.driver")
    except ImportError as error:  # no driver, or PyCUDA was compiled for another CUDA
        fix = "install the NVIDIA driver; if it is there: pip install --no-cache-dir --force-reinstall pycuda"
        return Check(check.name, False, f"{check.found}, but PyCUDA does not load: {error}", fix)
    return check


def _kernels() -> Check:
    """How the GPU that is here gets its kernels, by loading them; without one, what could compile them."""
    from hfd_edge.errors import HfdEdgeError
    from hfd_edge.gpu import find_gpu
    from hfd_edge.runtime.device import Device
    from hfd_edge.runtime.kernels import Kernels, compilers_here, packaged_kernels

    name = "CUDA kernels"
    if find_gpu() is None:
        ways = [way for way in (packaged_kernels(), *compilers_here()) if way is not None]
        fix = "" if ways else "install the CUDA toolkit, or: pip install 'hfd-edge[cuda]' nvidia-cuda-nvrtc"
        return Check(name, bool(ways), f"no GPU to load them; {', '.join(ways) or 'no compiler'}", fix)
    try:
        with Device.open() as device:
            found = Kernels(device).load_all()
            return Check(name, True, f"sm_{device.limits.compute_capability}: {found}")
    except HfdEdgeError as error:
        return Check(name, False, "", str(error))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
