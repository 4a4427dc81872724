"""What a benchmark's figures belong to beside machine and commit: versions of packages."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = (
    *("hfd-edge", "numpy", "opencv-python-headless", "rasterio", "onnxruntime", "openvino"),
    *("pycuda", "tensorrt", "tensorrt-rtx", "torch-tensorrt"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
