"""The emulated CUDA driver from Python: load it, choose its GPU, inject errors, ask what it saw."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SWITCH = "HFD_EDGE_SOFTCUDA"  # environment variable: 1 runs the GPU tests on the emulated driver
SEED = "HFD_EDGE_SOFTCUDA_SEED"  # another number: another order of what nothing orders
READ, WRITE = 0, 1
CHECK_GLOBAL, CHECK_SHARED = 1, 2
OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 700, 719
_COUNTERS = (
    "launches blocks threads barriers loads load_bytes stores store_bytes atomics load_sectors store_sectors "
    "shared_loads shared_stores"
).split()


class Counters(ctypes.Structure):
    """What a kernel did since the last reset; the fields of SoftcudaCounters in runtime.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in _COUNTERS]
    launches: int
    blocks: int
    threads: int
    barriers: int
    loads: int
    load_bytes: int
    stores: int
    store_bytes: int
    atomics: int
    load_sectors: int
    store_sectors: int
    shared_loads: int
    shared_stores: int


@dataclass(frozen=True)
class Live:
    """What exists in the driver now; the same before and after a test that leaks nothing."""

    device_bytes: int
    pinned_bytes: int
    allocations: int
    streams: int
    events: int
    modules: int
    graphs: int
    operations: int


@cache
def _builder() -> Any:
    """build_driver.py, which is a script, too."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("softcuda_build_driver", HERE / "build_driver.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str | None:
    """What the suites need to run on the emulated driver and is not here; None if all is."""
    reason: str | None = _builder().missing()
    return reason


@cache
def load() -> ctypes.CDLL:
    """Build the driver if need be and make it the process's libcuda; nvcc becomes the emulation's, too.

    Must come before anything that opens the driver: PyCUDA, cuda-bindings, hfd_edge.gpu.

    Raises:
        RuntimeError: Something opened a real driver before.
    """
    library = ctypes.CDLL(str(_builder().build()), mode=ctypes.RTLD_GLOBAL)
    if not hasattr(ctypes.CDLL("libcuda.so.1"), "softcuda_set"):
        raise RuntimeError(
            "A real CUDA driver was opened before the emulated one. Run only tests/gpu and tests/softcuda "
            f"with {SWITCH}=1."
        )
    library.softcuda_faults.restype = ctypes.c_char_p
    library.softcuda_calls.restype = ctypes.c_uint64
    library.softcuda_set.argtypes = [ctypes.c_char_p, ctypes.c_double]
    library.softcuda_inject.argtypes = [
        ctypes.c_char_p,
        ctypes.c_long,
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_int,
    ]
    library.softcuda_touch.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    os.environ["PATH"] = f"{HERE / 'bin'}{os.pathsep}{os.environ['PATH']}"
    os.environ["SOFTCUDA_PYTHON"] = sys.executable  # the stand-in for nvcc needs a Python as new
    return library


def wanted() -> bool:
    """Whether this test run asks for the emulated driver."""
    return os.environ.get(SWITCH) == "1"


def faults(*, clear: bool = False) -> list[str]:
    """What the driver found wrong, "kind: what and where"; kinds are listed in docs/softcuda.md."""
    return list(load().softcuda_faults(int(clear)).decode().splitlines())


@contextmanager
def expect_faults(kind: str) -> Iterator[list[str]]:
    """Faults of this kind, and no others, must come up in the block; the list holds them afterwards."""
    assert faults() == []
    found: list[str] = []
    yield found
    found += faults(clear=True)
    assert found and all(text.startswith(f"{kind}: ") for text in found), f"expected {kind}, found {found}"


def configure(**settings: float) -> None:
    """Change settings of driver/core.h: what the GPU is, the order of things, what is checked.

    Args:
        settings: capability, multiprocessors, integrated, maps_host, shared_bytes, shared_optin, total_bytes;
            seed and eager (the chance that something runs before anybody waits for it); checks.
    """
    for name, value in settings.items():
        load().softcuda_set(name.encode(), float(value))


def become(name: str) -> None:
    """Be "desktop" (sm_86, 8 GiB of its own) or "orin" (sm_87, integrated)."""
    if name == "orin":
        load().softcuda_name(b"Emulated Orin (sm_87)")
        configure(capability=87, integrated=1, multiprocessors=16, shared_optin=163 * 1024)
    elif name == "desktop":
        load().softcuda_name(b"Emulated GPU (sm_86)")
        configure(capability=86, integrated=0, multiprocessors=16, shared_optin=99 * 1024)
    else:
        raise ValueError(f'No emulated GPU "{name}"; there are "desktop" and "orin".')


def inject(call: str, error: int, *, after: int = 0, times: int = 1, sticky: bool = False) -> None:
    """Let a call fail: "cuMemAlloc" (without _v2), "kernel" or "kernel NAME" when it runs.

    Args:
        call: Name of the driver call.
        error: CUresult it returns.
        after: So many calls succeed first.
        times: So many fail then; PyCUDA asks twice for memory, with a garbage collection between.
        sticky: Every later call returns it, too, as after a kernel's fault. An error of a kernel always is.
    """
    load().softcuda_inject(call.encode(), after, times, error, int(sticky))


def pending_injections() -> int:
    """Injections that no call has met yet."""
    return int(load().softcuda_injections())


def live() -> Live:
    """What is allocated and alive."""
    values = (ctypes.c_uint64 * 8)()
    load().softcuda_live(values)
    return Live(*values)


def counters(kernel: str) -> Counters:
    """Work of a kernel since the last reset; zeros if it never ran."""
    found = Counters()
    load().softcuda_counters(kernel.encode(), ctypes.byref(found))
    return found


def calls(name: str) -> int:
    """How often a driver call was made since the last reset."""
    return int(load().softcuda_calls(name.encode()))


def reset() -> None:
    """Run what is queued; forget faults, counts, injections, settings and errors. What is live stays."""
    load().softcuda_reset()


def touch(address: int, nbytes: int, *, write: bool) -> bool:
    """Account for an access of a host function in a stream; False when it is a fault."""
    return int(load().softcuda_touch(address, nbytes, WRITE if write else READ)) == 0


def memory(address: int, nbytes: int) -> Any:
    """The bytes of device memory, as an array of the host, without waiting for anything."""
    import numpy as np

    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def drain() -> None:
    """Run all that is queued, so that its faults come up."""
    load().softcuda_drain()
