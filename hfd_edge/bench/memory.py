"""Peak memory of a stretch of work, of this process and on the GPU."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hfd_edge.bench.result import Memory
from hfd_edge.gpu import Gpu, find_gpu


class PeakMemory:
    """Notes what the work in a `with` block needs at most.

    The kernel keeps the host's peak; where it cannot be told to start again, it is that of the whole life of
    the process. The GPU keeps none: `look` at it while its memory is in use. Its context, which whoever asks
    needs as well, is not counted.
    """

    def __init__(self, *, root: Path = Path("/"), gpu: Callable[[], Gpu | None] = find_gpu) -> None:
        self._process = root / "proc" / "self"
        self._gpu = gpu
        self._before: int | None = None
        self._device_bytes = 0

    def __enter__(self) -> PeakMemory:
        # What earlier work left to the allocator is not this one's.
        gc.collect()
        with suppress(OSError, AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            (self._process / "clear_refs").write_text("5")
        self._before = self._free()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()

    def look(self) -> None:
        """See how much of the GPU's memory is in use now."""
        if self._before is None:
            return
        free = self._free()
        if free is not None:
            self._device_bytes = max(self._device_bytes, self._before - free)

    def read(self) -> Memory:
        """The peaks so far."""
        return Memory(
            host_peak_mb=self._host_mb(),
            device_peak_mb=None if self._before is None else self._device_bytes / 1e6,
        )

    def _host_mb(self) -> float:
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", (self._process / "status").read_text())
            if found:
                return int(found[1]) * 1024 / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

    def _free(self) -> int | None:
        found = self._gpu()
        return None if found is None else found.free_bytes
