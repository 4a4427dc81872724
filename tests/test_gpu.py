"""What the driver is asked, with a stand-in for libcuda."""

from __future__ import annotations

from typing import Any

import pytest

from hfd_edge import gpu
from hfd_edge.gpu import Gpu, find_gpu


class Driver:
    """Answers like libcuda; pointers arrive as ctypes.byref."""

    def __init__(self, *, failing: str = "") -> None:
        self.failing, self.calls = failing, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.failing:
                return 100  # CUDA_ERROR_NO_DEVICE
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 3 << 30, 8 << 30
            return 0

        return call


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(gpu, "_driver", lambda: driver)
    assert find_gpu() == Gpu(compute_capability=87, free_bytes=3 << 30, total_bytes=8 << 30)
    assert driver.calls[-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


@pytest.mark.parametrize(
    "failing",
    [
        *("cuInit", "cuDeviceGet", "cuDeviceGetAttribute"),
        *("cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"),
    ],
)
def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    driver = Driver(failing=failing)
    monkeypatch.setattr(gpu, "_driver", lambda: driver)
    assert find_gpu() is None
    retained = "cuDevicePrimaryCtxRetain" in driver.calls and failing != "cuDevicePrimaryCtxRetain"
    assert ("cuDevicePrimaryCtxRelease_v2" in driver.calls) == retained


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    assert find_gpu() is None
