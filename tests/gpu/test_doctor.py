"""What `hfd-edge doctor` says where there is a GPU."""

from __future__ import annotations

from types import ModuleType

import pytest

from hfd_edge.cli.checks import Check, _gpu_runtime, _kernels
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.kernels import Kernels

pytestmark = pytest.mark.gpu


def test_the_kernels_are_loaded(device: Device) -> None:
    ways = Kernels(device).load_all()
    check = _kernels()
    assert check.ok and check.found.startswith(f"sm_{device.limits.compute_capability}: ")
    assert "speckle" in ways and "speckle" in check.found


def test_the_runtime_is_there(device: Device) -> None:
    check = _gpu_runtime()
    assert check.ok and check.found.startswith("pycuda 20")


def test_a_driver_that_takes_no_kernels(device: Device, softcuda: ModuleType) -> None:
    softcuda.inject("cuModuleLoadData", 200)
    check = _kernels()
    assert check == Check("CUDA kernels", False, "", check.fix)
    assert "The driver refuses the kernels of" in check.fix and "or a newer driver" in check.fix
