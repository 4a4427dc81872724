"""Resources of the kernels, against cuda_occupancy.h and against the figures that are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.errors import BackendError
from hfd_edge.runtime.compilers import Nvcc, Nvrtc, Source
from hfd_edge.runtime.kernels import SOURCES
from hfd_edge.runtime.occupancy import (
    MULTIPROCESSORS,
    Launch,
    Resources,
    blocks_per_multiprocessor,
    kernel_resources,
    launches_on,
    occupancy,
    read_report,
    regressions,
)

GPUS = (75, 86, 87, 89, 110, 120)
# The Jetsons that are sold; the others differ little from one of these, and compiling takes most of the time.
SOME_GPUS = (87, 110)
SPILLS = """
extern "C" __global__ void __launch_bounds__(512, 3) blend(float* data) {
    float values[96];
    for (int i = 0; i < 96; ++i) values[i] = data[512 * i + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 96; ++i) data[512 * i + threadIdx.x] = values[i] * values[(7 * i) % 96];
}
"""
ORACLE = """
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
    cudaOccDeviceProp gpu;
    gpu.maxThreadsPerBlock = 1024; gpu.warpSize = 32; gpu.numSms = 1;
    gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536; gpu.sharedMemPerBlock = 48 * 1024;
    cudaOccFuncAttributes function; cudaOccDeviceState state; cudaOccResult result;
    function.maxThreadsPerBlock = 1024; function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.numBlockBarriers = 1;
    int capability, threads; size_t dynamic;
    while (std::scanf("%d %d %zu %zu %d %zu %d %zu", &capability, &gpu.maxThreadsPerMultiprocessor,
                      &gpu.sharedMemPerMultiprocessor, &gpu.reservedSharedMemPerBlock, &function.numRegs,
                      &function.sharedSizeBytes, &threads, &dynamic) == 8) {
        gpu.computeMajor = capability / 10; gpu.computeMinor = capability % 10;
        gpu.sharedMemPerBlockOptin = gpu.sharedMemPerMultiprocessor - gpu.reservedSharedMemPerBlock;
        function.maxDynamicSharedSizeBytes = gpu.sharedMemPerBlockOptin - function.sharedSizeBytes;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &function, &state, threads, dynamic))
            return 1;
        std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
    }
}
"""


def oracle(folder: Path) -> Path:
    """A program that asks NVIDIA's own calculator."""
    spec = find_spec("nvidia")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    headers = [path.parent for place in places for path in place.glob("cu*/include/cuda_occupancy.h")]
    if not headers or shutil.which("g++") is None:
        pytest.skip("needs cuda_occupancy.h, which comes with the CUDA runtime's wheel, and g++")
    (folder / "oracle.cpp").write_text(ORACLE)
    program = folder / "oracle"
    command = ["g++", "-w", f"-I{headers[0]}", str(folder / "oracle.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def test_the_rules_are_those_of_cuda_occupancy_h(tmp_path: Path) -> None:
    cases, lines = [], []
    for gpu, sizes in MULTIPROCESSORS.items():
        for registers in (10, 24, 37, 64, 65, 80, 96, 128, 168, 255):
            for threads in (32, 96, 160, 256, 512, 1024):
                for static, dynamic in ((0, 0), (3072, 0), (0, 2112), (4608, 17000), (0, 41472), (0, 50000)):
                    cases.append((gpu, Resources(registers, static, 0, 0), Launch(threads, dynamic)))
                    values = (gpu, sizes.threads, sizes.shared_bytes, sizes.reserved_bytes)
                    lines.append(" ".join(map(str, (*values, registers, static, threads, dynamic))))
    done = subprocess.run(
        [oracle(tmp_path)], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(line) for line in done.stdout.split()]
    found = [blocks_per_multiprocessor(*case) for case in cases]
    assert 0 in expected
    assert [case for case, seen, wanted in zip(cases, found, expected, strict=True) if seen != wanted] == []


def test_an_unknown_gpu() -> None:
    with pytest.raises(BackendError, match=r"limits of sm_72 are not known; known are sm_75, sm_80, sm_86"):
        occupancy(72, Resources(32, 0, 0, 0), Launch(256, 0))


def test_the_assemblers_report_is_read() -> None:
    report = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_75'
ptxas info    : Function properties for one
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 78 registers, used 1 barriers, 3072 bytes smem, 608 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_75'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 376 bytes cmem[0]
"""
    assert read_report(report) == {"one": Resources(78, 3072, 8, 28), "two": Resources(10, 0, 0, 0)}


def test_a_kernel_that_nobody_launches_is_named(tmp_path: Path) -> None:
    _nvcc()
    (tmp_path / "stray.cu").write_text('extern "C" __global__ void stray() {}')
    with pytest.raises(BackendError, match=r"Kernel stray of stray.cu is launched by none of the wrappers"):
        kernel_resources(tmp_path, compute_capabilities=[75])


def test_regressions_are_named() -> None:
    row: dict[str, Any] = {"kernel": "blend", "compute_capability": 87, "occupancy": 1.0}
    row |= {"registers": 32, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0}
    assert regressions([row], [{**row, "registers": 31}]) == []
    assert regressions([row], [{**row, "registers": 33, "spill_bytes": 4, "occupancy": 0.5}]) == [
        "blend on sm_87: registers rose from 32 to 33",
        "blend on sm_87: spill_bytes rose from 0 to 4",
        "blend on sm_87: occupancy fell from 1.0 to 0.5",
    ]
    assert regressions([row], [{**row, "compute_capability": 75}]) == ["blend on sm_75: is new"]


def test_the_wrappers_are_recorded() -> None:
    launches = launches_on(87)
    assert launches["blend"] == Launch(256, 0)
    assert launches["speckle_7"].shared_bytes > launches["speckle_3"].shared_bytes > 0


@pytest.mark.parametrize("gpus", [SOME_GPUS, pytest.param(GPUS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_no_kernel_got_worse(root: Path, gpus: tuple[int, ...]) -> None:
    """Compiles every kernel; no row may be worse than what benchmarks/kernel_resources.py found."""
    nvcc = _nvcc()
    rows = kernel_resources(SOURCES, compute_capabilities=gpus)
    assert {row["source"] for row in rows} == {path.stem for path in SOURCES.glob("*.cu")}
    assert [row for row in rows if row["spill_bytes"] or not row["blocks_per_multiprocessor"]] == []
    (path,) = root.glob("benchmarks/results/*/kernel-resources.json")
    kept = json.loads(path.read_text("utf-8"))
    if kept["versions"]["nvcc"] != nvcc.version:
        pytest.skip(f"the figures are of {kept['versions']['nvcc']}, which {nvcc.version} need not repeat")
    assert {row["compute_capability"] for row in kept["rows"]} == set(GPUS)
    assert not regressions(kept["rows"], rows), "run benchmarks/kernel_resources.py if this is meant"


@pytest.mark.parametrize("source", sorted(path.stem for path in SOURCES.glob("*.cu")))
def test_the_kernels_need_nothing_but_the_compiler(source: str) -> None:
    """NVRTC has no include path: one standard header would break devices that have no toolkit."""
    try:
        nvrtc = Nvrtc.find()
    except BackendError as error:
        pytest.skip(f"needs NVRTC: {error}")
    content = nvrtc.cubin(Source.read(SOURCES, source), 87)
    for kernel in (name for name in launches_on(87) if name.startswith(source)):
        assert kernel.encode() in content


def test_a_spill_is_seen(tmp_path: Path) -> None:
    """96 values that must live at once do not fit into the registers of 1,536 threads."""
    _nvcc()
    (tmp_path / "blend.cu").write_text(SPILLS)
    (row,) = kernel_resources(tmp_path, compute_capabilities=[87])
    assert row["registers"] <= 40 and row["spill_bytes"] >= 2 * 4 * (96 - 40)


def _nvcc() -> Nvcc:
    try:
        return Nvcc.find()
    except BackendError as error:
        pytest.skip(f"needs nvcc: {error}")
