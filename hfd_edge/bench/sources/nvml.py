"""An NVIDIA GPU through NVML, the library behind nvidia-smi.

Source: NVML API reference (device queries, clocks event reasons).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

from hfd_edge.bench.sources.base import Source, Unavailable

_REASONS = {
    0x20: "The GPU throttles: the driver holds the clocks down because of its temperature.",
    0x40: "The GPU throttles: the hardware slows down because of its temperature.",
    0x80: "The GPU throttles: the power supply asserts its power brake.",
}
"""Bits of the clocks event reasons that slow a GPU down against its settings.

The software power cap (0x4) and the limits of board and voltage (0x200, 0x400) are none of them: a GPU at
full load always runs into one, and the record names the power limit. Hardware slowdown (0x8) is not named
beside its causes 0x40 and 0x80.
"""
_HW_SLOWDOWN = 0x8
_UNEXPLAINED = "The GPU throttles: the hardware slows down."


class NvmlSource(Source):
    """One GPU; queries that it does not support give None."""

    def __init__(self, nvml: Any, handle: Any, *, name: str) -> None:
        self._nvml, self._handle = nvml, handle
        self.name = "nvml"
        self.gpu = name

    def power_name(self) -> str:
        return f"nvml, {self.gpu}"

    def power_w(self) -> float | None:
        """Power of the whole board; newer GPUs give the mean of the last second."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def temperature_c(self) -> float | None:
        return self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)

    def clock_mhz(self) -> float | None:
        return self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)

    def throttling(self) -> tuple[str, ...]:
        # Renamed in driver 535; the old name leaves in CUDA 14.
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        bits = int(bits or 0)
        sentences = tuple(sentence for bit, sentence in _REASONS.items() if bits & bit)
        return sentences or ((_UNEXPLAINED,) if bits & _HW_SLOWDOWN else ())

    def power_limit_w(self) -> float | None:
        """The limit that is in force."""
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else milliwatts / 1000

    def application_clock_mhz(self) -> float | None:
        """The SM clock that was asked for with `nvidia-smi -ac`; None where the GPU takes none.

        What `nvidia-smi -lgc` locks cannot be asked for.
        """
        return self._ask("nvmlDeviceGetApplicationsClock", self._nvml.NVML_CLOCK_SM)

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _ask(self, query: str, *arguments: Any) -> float | None:
        """A query's number; None where this GPU, driver or NVML does not know it."""
        function = getattr(self._nvml, query, None)
        if function is None:
            return None
        try:
            return float(function(self._handle, *arguments))
        except self._nvml.NVMLError as error:
            unknown = (self._nvml.NVML_ERROR_NOT_SUPPORTED, self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            if getattr(error, "value", None) in unknown:
                return None
            raise OSError(f"{query}: {error}") from error


def start(root: Path) -> NvmlSource | None:
    """The GPU that CUDA calls 0; None where there is no NVIDIA driver, no GPU, or none is visible.

    Of several GPUs it is the one that CUDA_VISIBLE_DEVICES names first, or else the first on the bus, which
    may be another than CUDA's first where the GPUs differ: set CUDA_DEVICE_ORDER=PCI_BUS_ID there.

    Raises:
        Unavailable: there is a driver, but not the package that talks to it.
    """
    chosen = visible()
    if chosen is None:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        if (root / "dev/nvidiactl").exists():
            raise Unavailable(
                "The GPU's power is not read: the package nvidia-ml-py is missing. "
                "Install it with: pip install 'hfd-edge[power]'"
            ) from error
        return None
    try:
        nvml.nvmlInit()
        handle = (
            nvml.nvmlDeviceGetHandleByIndex(int(chosen))
            if chosen.isdigit()
            else nvml.nvmlDeviceGetHandleByUUID(chosen)
        )
        return NvmlSource(nvml, handle, name=_name(nvml, handle))
    except nvml.NVMLError:
        return None


def visible() -> str | None:
    """Index or UUID of the GPU that CUDA calls 0; None where the environment hides every GPU."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if chosen is None else chosen.split(",")[0].strip()
    return first if first.isdigit() or first.startswith(("GPU-", "MIG-")) else None


def _name(nvml: Any, handle: Any) -> str:
    """NVML's older bindings give bytes."""
    name = nvml.nvmlDeviceGetName(handle)
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
