"""Emulated kernels without the emulated driver: compile a .cu file for the CPU and launch it on NumPy arrays.

Shared memory, barriers, overflow and the counters work as under the driver. Global memory is checked only
where an `arena` is given, and there only for bounds and for races within a launch.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .control import CHECK_GLOBAL, CHECK_SHARED, Counters

HERE = Path(__file__).resolve().parent
NVCC = HERE / "bin" / "nvcc"
ABI = 1
OK, UNMAPPED = 0, 2

_CHECK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_WHERE = ctypes.CFUNCTYPE(ctypes.c_char_p)
_REPORT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)


class _Runtime(ctypes.Structure):
    """SoftcudaRuntime of runtime.h."""

    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("checks", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("arena_base", ctypes.c_size_t),
        ("arena_size", ctypes.c_size_t),
        ("state", ctypes.c_void_p),
        ("writers", ctypes.c_void_p),
        ("readers", ctypes.c_void_p),
        ("operation", ctypes.c_uint32),
        ("counters", ctypes.POINTER(Counters)),
        ("where", _WHERE),
        ("check", _CHECK),
        ("report", _REPORT),
    ]


class Kernel(ctypes.Structure):
    """SoftcudaKernel of runtime.h."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("parameter_bytes", "shared_bytes", "max_threads")]


def compile_kernel(source: Path, *options: str) -> bytes:
    """Compile a .cu file with the stand-in for nvcc; RuntimeError with its messages when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "module.so"
        command = [str(NVCC), "-arch=sm_86", "-cubin", *options, "-o", str(out), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return out.read_bytes()


class KernelModule:
    """A compiled .cu file.

    Attributes:
        faults: (kind, text) of every fault that the launches so far reported.
        counters: Sums over the launches so far.
    """

    def __init__(self, source: Path, *options: str) -> None:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(compile_kernel(source, *options))
            file.flush()
            self._library = ctypes.CDLL(file.name)
        self.faults: list[tuple[str, str]] = []
        self.counters = Counters()
        self._arena: list[np.ndarray] = []
        self._runtime = _Runtime()
        self._report = _REPORT(self._found)

    def describe(self, name: str) -> Kernel | None:
        """Return what the module says about a kernel; None when it has none of that name."""
        kernel = Kernel()
        return kernel if self._library.softcuda_describe(name.encode(), ctypes.byref(kernel)) else None

    def _found(self, _runtime: int, kind: bytes, text: bytes) -> None:
        self.faults.append((kind.decode(), f"{text.decode()} at {self._runtime.where().decode()}"))

    def use_arena(self, arena: np.ndarray) -> None:
        """Let kernels touch no global memory but this array of bytes; all of it counts as initialised."""
        shadow = [np.full(arena.size, 3, np.uint8), *np.zeros((2, arena.size), np.uint32)]
        self._arena = [arena, *shadow]

    def _check(self, _runtime: int, address: int, size: int, _access: int) -> int:
        arena, _, writers, readers = self._arena
        offset = address - arena.ctypes.data
        if not 0 <= offset <= arena.size - size:
            self.faults.append(("global-bounds", f"offset {offset}, {size} bytes"))
            return UNMAPPED
        writers[offset : offset + size] = readers[offset : offset + size] = 1
        return OK

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: np.void,
        *,
        shared_bytes: int = 0,
        seed: int = 0,
    ) -> int:
        """Run a kernel on one structured scalar of arguments; returns the CUresult.

        Args:
            args: E.g. `np.array((x.ctypes.data, n), np.dtype([("x", "u8"), ("n", "i4")], align=True))[()]`.
            seed: Of the order of threads; 0 is ascending.
        """
        self._runtime = runtime = _Runtime(
            ABI, CHECK_SHARED, seed, counters=ctypes.pointer(self.counters), report=self._report
        )
        if self._arena:
            runtime.checks |= CHECK_GLOBAL
            runtime.arena_size, runtime.operation = self._arena[0].size, 1
            runtime.arena_base, runtime.state, runtime.writers, runtime.readers = (
                part.ctypes.data for part in self._arena
            )
            runtime.check = check = _CHECK(self._check)  # noqa: F841 (keeps it alive)
        dims = [(ctypes.c_uint * 3)(*([*size, 1, 1][:3])) for size in (grid, block)]
        result: int = self._library.softcuda_launch(
            name.encode(), dims[0], dims[1], shared_bytes, args.tobytes(), ctypes.byref(runtime)
        )
        return result
