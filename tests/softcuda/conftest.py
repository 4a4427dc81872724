"""The emulator's own tests use the same fixtures as the suites that run on it."""

from __future__ import annotations

from ..gpu.conftest import _no_driver_faults, pytest_collection_modifyitems, softcuda
from .driver_tools import gpu, image

__all__ = ["_no_driver_faults", "gpu", "image", "pytest_collection_modifyitems", "softcuda"]
