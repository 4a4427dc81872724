"""How well the kernels use a GPU's multiprocessors, from what the compiler says; no GPU is needed.

Occupancy is the share of a multiprocessor's thread slots that blocks of one kernel can fill at the same time.
The rules are those of the CUDA toolkit's cuda_occupancy.h (13.0) for compute capability 7.5 and later; sizes
are from the CUDA programming guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfd_edge.errors import BackendError
from hfd_edge.runtime.compilers import Nvcc, Source
from hfd_edge.runtime.device import DeviceLimits
from hfd_edge.runtime.launch import Plane, Speckle
from hfd_edge.runtime.launch_logits import Blend, CutTiles, Labels
from hfd_edge.runtime.launch_stats import Stats
from hfd_edge.sar.preprocessing import Preprocessing

_WARP = 32
_REGISTERS = 65536  # of a multiprocessor, and of a block
_PARTITIONS = 4  # of a multiprocessor; each has its share of the registers
_REGISTER_UNIT = 256  # registers are given to warps in these units
_KIB = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor of one compute capability holds.

    Attributes:
        threads: Resident threads.
        blocks: Resident blocks.
        shared_bytes: Shared memory for all of them.
        reserved_bytes: Shared memory that the system takes from each block.
        shared_unit: Shared memory is given to blocks in these units, bytes.
    """

    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int = _KIB
    shared_unit: int = 128


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 * _KIB, reserved_bytes=0, shared_unit=256),
    80: Multiprocessor(2048, 32, 164 * _KIB),
    86: Multiprocessor(1536, 16, 100 * _KIB),
    87: Multiprocessor(1536, 16, 164 * _KIB),
    89: Multiprocessor(1536, 24, 100 * _KIB),
    90: Multiprocessor(2048, 32, 228 * _KIB),
    100: Multiprocessor(2048, 32, 228 * _KIB),
    110: Multiprocessor(1536, 24, 228 * _KIB),
    120: Multiprocessor(1536, 24, 100 * _KIB),
    121: Multiprocessor(1536, 24, 100 * _KIB),
}
"""By compute capability; 87 is sm_87."""


@dataclass(frozen=True)
class Resources:
    """What one kernel takes, as the assembler says.

    Attributes:
        registers: Of each thread.
        shared_bytes: Static shared memory of each block.
        stack_bytes: Local memory of each thread.
        spill_bytes: Of these, stores and loads of registers that did not fit.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        threads: Of a block.
        shared_bytes: Dynamic shared memory of a block.
    """

    threads: int
    shared_bytes: int


def blocks_per_multiprocessor(compute_capability: int, resources: Resources, launch: Launch) -> int:
    """Blocks of a kernel that a multiprocessor can hold at once; 0 where it cannot hold one.

    Raises:
        BackendError: the compute capability is not in `MULTIPROCESSORS`.
    """
    if compute_capability not in MULTIPROCESSORS:
        known = ", ".join(f"sm_{gpu}" for gpu in MULTIPROCESSORS)
        raise BackendError(f"The limits of sm_{compute_capability} are not known; known are {known}.")
    limits = MULTIPROCESSORS[compute_capability]
    warps = -(-launch.threads // _WARP)
    by_threads = limits.threads // _WARP // warps
    registers = _up(resources.registers * _WARP, _REGISTER_UNIT)
    # The check at launch counts warps as if they came in fours, one a partition.
    if registers * _up(warps, _PARTITIONS) > _REGISTERS:
        return 0
    by_registers = _REGISTERS // _PARTITIONS // registers * _PARTITIONS // warps
    shared = resources.shared_bytes + launch.shared_bytes + limits.reserved_bytes
    by_shared = limits.shared_bytes // _up(shared, limits.shared_unit) if shared else limits.blocks
    return min(limits.blocks, by_threads, by_registers, by_shared)


def occupancy(compute_capability: int, resources: Resources, launch: Launch) -> float:
    """Share of a multiprocessor's thread slots that a kernel can fill, 0 to 1. Raises BackendError."""
    warps = -(-launch.threads // _WARP)
    blocks = blocks_per_multiprocessor(compute_capability, resources, launch)
    return blocks * warps * _WARP / MULTIPROCESSORS[compute_capability].threads


def read_report(report: str) -> dict[str, Resources]:
    """Read what `nvcc -Xptxas -v` prints: the resources of each kernel."""
    found: dict[str, Resources] = {}
    for part in report.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        found[name] = Resources(
            registers=_number(r"Used (\d+) registers", part),
            shared_bytes=_number(r"(\d+) bytes smem", part),
            stack_bytes=_number(r"(\d+) bytes stack frame", part),
            spill_bytes=_number(r"(\d+) bytes spill stores", part)
            + _number(r"(\d+) bytes spill loads", part),
        )
    return found


def kernel_resources(
    sources: Path, *, compute_capabilities: Iterable[int], names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Compile the kernels and measure them in the launches that a bundle of two bands makes.

    Args:
        sources: Folder of the .cu files.
        compute_capabilities: GPUs.
        names: Sources without their suffix; None for all.
    Returns:
        One row a kernel and GPU.
    Raises:
        BackendError: there is no nvcc, a source does not compile, or a kernel is never launched.
    """
    nvcc = Nvcc.find()
    chosen = sorted(path.stem for path in sources.glob("*.cu")) if names is None else names
    tasks = [(gpu, Source.read(sources, name)) for gpu in compute_capabilities for name in chosen]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda task: read_report(nvcc.report(task[1], task[0])), tasks))
    return [
        _row(gpu, source.path.stem, kernel, found[kernel], launches_on(gpu))
        for (gpu, source), found in zip(tasks, reports, strict=True)
        for kernel in sorted(found)
    ]


def regressions(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """What got worse, in words: registers, spills, shared memory or occupancy of a kernel on a GPU.

    Args:
        before: Rows of `kernel_resources`, kept from earlier.
        now: New rows; kernels or GPUs may be missing, but none may be new.
    """
    kept = {(row["kernel"], row["compute_capability"]): row for row in before}
    faults = []
    for row in now:
        where = f"{row['kernel']} on sm_{row['compute_capability']}"
        old = kept.get((row["kernel"], row["compute_capability"]))
        if old is None:
            faults.append(f"{where}: is new")
            continue
        for key in ("registers", "spill_bytes", "stack_bytes", "shared_bytes"):
            if row[key] > old[key]:
                faults.append(f"{where}: {key} rose from {old[key]} to {row[key]}")
        if row["occupancy"] < old["occupancy"]:
            faults.append(f"{where}: occupancy fell from {old['occupancy']} to {row['occupancy']}")
    return faults


@functools.cache
def launches_on(compute_capability: int) -> dict[str, Launch]:
    """The block sizes that the wrappers of `launch` choose on a GPU for two bands and four classes."""
    recorder, limits = _Recorder(), _limits(compute_capability)
    kernels: Any = recorder
    plane = Plane(address=1 << 20, row_stride=1024, band_stride=1 << 20)
    common: Any = {"dtype": np.dtype(np.float32), "shape": (2, 512, 512)}
    filters = [
        ("none", 7),
        ("frost", 7),
        ("refined_lee", 7),
        *(("lee", window) for window in (3, 5, 7, 9, 11)),
    ]
    for name, window_px in filters:
        speckle = Speckle(kernels, limits, _preprocessing(name, window_px), half=False)
        speckle(recorder.stream, plane, rows=(0, 512), out=plane, valid=plane, faults=1 << 20, **common)
    CutTiles(kernels, limits)(
        recorder.stream, plane, half=False, shape=(2, 512, 512), first_row=0, origins=(0,), tile_px=512,
        out_address=1 << 20,
    )  # fmt: skip
    Blend(kernels, limits)(
        recorder.stream, None, 0, 1 << 20, half=False, classes=4, size=128, origins=(0,), columns=(0,),
        row_weights_address=1 << 20, col_weights_address=1 << 20, band_address=1 << 20, band_cols=128,
    )  # fmt: skip
    labels = Labels(kernels, limits)
    for stride in (1, 4):
        for confidence in (None, plane):
            labels(
                recorder.stream, plane, half=False, classes=4, height=128, width=128, stride=stride, first=0,
                start=0, stop=128 * stride, cols=128 * stride, valid=plane, nodata_label=255, out=plane,
                confidence=confidence,
            )  # fmt: skip
    stats = Stats(kernels, limits, _preprocessing("lee", 7), half=False)
    stats(recorder.stream, plane, pixels=plane, valid=plane, counters=1 << 20, **common)
    return recorder.launches


class _Recorder:
    """Stands where `Kernels` stands, and notes how each kernel is launched."""

    def __init__(self) -> None:
        self.launches: dict[str, Launch] = {}
        self.stream: Any = None

    def function(self, source: str, name: str) -> Any:
        def launch(_: Any, *, block: tuple[int, ...], shared_bytes: int = 0, **__: Any) -> None:
            self.launches[name] = Launch(int(np.prod(block)), shared_bytes)

        return launch


def _limits(compute_capability: int) -> DeviceLimits:
    sizes = MULTIPROCESSORS[compute_capability]
    return DeviceLimits(
        name=f"sm_{compute_capability}",
        compute_capability=compute_capability,
        multiprocessors=16,
        shared_bytes=48 * _KIB,
        shared_bytes_optin=sizes.shared_bytes - sizes.reserved_bytes,
        max_threads=1024,
        max_grid=(2**31 - 1, 65535, 65535),
        integrated=False,
        maps_host_memory=True,
        total_bytes=8 * _KIB**3,
    )


def _preprocessing(speckle: str, window_px: int) -> Preprocessing:
    return Preprocessing(
        units="intensity", looks=4.0, nodata=None, speckle=speckle, window_px=window_px,
        clip=((-30.0, 5.0),) * 2, mean=(-12.0, -18.0), std=(5.0, 5.0),
    )  # fmt: skip


def _row(
    gpu: int, source: str, kernel: str, resources: Resources, launches: Mapping[str, Launch]
) -> dict[str, Any]:
    if kernel not in launches:
        raise BackendError(
            f"Kernel {kernel} of {source}.cu is launched by none of the wrappers that occupancy.launches_on "
            "calls. Call the one that launches it there."
        )
    launch = launches[kernel]
    return {
        "kernel": kernel,
        "source": source,
        "compute_capability": gpu,
        "registers": resources.registers,
        "spill_bytes": resources.spill_bytes,
        "stack_bytes": resources.stack_bytes,
        "shared_bytes": resources.shared_bytes + launch.shared_bytes,
        "threads_per_block": launch.threads,
        "blocks_per_multiprocessor": blocks_per_multiprocessor(gpu, resources, launch),
        "occupancy": round(occupancy(gpu, resources, launch), 4),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
