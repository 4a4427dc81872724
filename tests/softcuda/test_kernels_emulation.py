"""The CPU stand-in for a GPU's threads: right kernels give right results, wrong ones are caught."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .kernel_module import NVCC, KernelModule, compile_kernel
from .test_suite import kernel_lines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator compiles kernels with g++"),
]
CASES = Path(__file__).with_name("emulation_cases.cu")
ARGS = np.dtype([("in", "u8"), ("out", "u8"), ("count", "u8"), ("n", "i4"), ("which", "i4")], align=True)
LAUNCH_FAILED, ILLEGAL_ADDRESS, MISALIGNED = 719, 700, 716


@pytest.fixture(scope="module")
def compiled() -> KernelModule:
    return KernelModule(CASES)


@pytest.fixture
def cases(compiled: KernelModule) -> KernelModule:
    """The module with nothing found or counted yet."""
    compiled.faults.clear()
    compiled.counters = type(compiled.counters)()
    compiled._arena = []
    return compiled


class Frame:
    """Arrays that a kernel of emulation_cases.cu works on, in one block of memory."""

    def __init__(self, n: int = 64, which: int = 0) -> None:
        self.memory = np.zeros(3 * 4096, np.uint8)
        source, out, count = self.memory.reshape(3, 4096)
        self.source, self.out, self.count = source.view("f4"), out.view("f4"), count.view("u4")
        self.source[:] = np.arange(1024)
        self.args = np.array((source.ctypes.data, out.ctypes.data, count.ctypes.data, n, which), ARGS)[()]


def the_fault(module: KernelModule, kind: str) -> str:
    """The text of the only fault found."""
    assert [found for found, _ in module.faults] == [kind], module.faults
    return module.faults[0][1]


# ---- right kernels ----


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_barriers_and_shared_memory_of_all_kinds(cases: KernelModule, seed: int) -> None:
    frame = Frame(n=1000)
    assert cases.launch("reverse", (16,), (64,), frame.args, shared_bytes=256, seed=seed) == 0
    assert cases.faults == []
    padded = np.where(np.arange(1024) < 1000, frame.source, 0).reshape(16, 64)[:, ::-1].ravel()
    np.testing.assert_array_equal(frame.out[:1000], 2 * padded[:1000])


def test_positions_in_three_dimensions(cases: KernelModule) -> None:
    out = np.zeros(2 * 3 * 2 * 8 * 4 * 2, np.uint32)
    args = np.array((out.ctypes.data,), [("out", "u8")])[()]
    assert cases.launch("positions", (2, 3, 2), (8, 4, 2), args) == 0
    z, y, x = np.mgrid[0:2, 0:4, 0:8]
    expected = np.arange(12)[:, None] * 10000 + (z * 1000 + y * 100 + x).ravel()
    np.testing.assert_array_equal(out.reshape(12, 64), expected)


@pytest.mark.parametrize(("n", "expected"), [(0, [1, 0, 0]), (40, [1, 0, 40]), (64, [0, 1, 64])])
def test_barriers_that_vote(cases: KernelModule, n: int, expected: list[int]) -> None:
    out = np.zeros(3, np.uint32)
    args = np.array((out.ctypes.data, n), np.dtype([("out", "u8"), ("n", "i4")], align=True))[()]
    assert cases.launch("votes", (1,), (64,), args) == 0
    assert out.tolist() == expected


def test_atomics(cases: KernelModule) -> None:
    frame = Frame()
    cases.use_arena(frame.memory)
    assert cases.launch("atomics", (3,), (64,), frame.args, seed=7) == 0
    assert cases.faults == []
    assert frame.count[:3].tolist() == [3 * 128, 2**32 - 1, 63]
    assert frame.out[0] == 96
    assert cases.counters.atomics == 3 * (3 * 64 + 1)


def test_parameters_are_unpacked_at_their_alignment(cases: KernelModule) -> None:
    out = np.zeros(3)
    layout = np.dtype([("a", "u1"), ("out", "u8"), ("c", "u2"), ("d", "f8")], align=True)
    assert cases.launch("parameters", (1,), (32,), np.array((7, out.ctypes.data, 300, 2.5), layout)[()]) == 0
    assert out.tolist() == [7, 300, 2.5]
    assert cases.describe("parameters").parameter_bytes == layout.itemsize
    assert cases.describe("reverse").parameter_bytes == ARGS.itemsize


def test_describe_knows_launch_bounds_and_names(cases: KernelModule) -> None:
    assert cases.describe("reverse").max_threads == 64
    assert cases.describe("atomics").max_threads == 1024
    assert cases.describe("revers") is None
    assert cases.launch("revers", (1,), (32,), Frame().args) == 500
    assert cases.launch("reverse", (1,), (128,), Frame().args) == 701
    assert cases.launch("atomics", (1,), (2048,), Frame().args) == 1
    assert cases.launch("atomics", (0,), (32,), Frame().args) == 1


def test_global_traffic_is_counted_exactly(cases: KernelModule) -> None:
    frame = Frame()
    assert cases.launch("vectors", (1,), (64,), frame.args) == 0
    np.testing.assert_array_equal(frame.out[:256], frame.source[:256].reshape(64, 4)[:, ::-1].ravel())
    counters = cases.counters
    assert (counters.load_bytes, counters.stores, counters.store_bytes) == (1024, 64, 1024)
    assert 32 <= counters.load_sectors <= 33 and 32 <= counters.store_sectors <= 33
    assert (counters.blocks, counters.threads, counters.barriers) == (1, 64, 0)


def test_declarations_of_shared_memory_of_every_form(cases: KernelModule) -> None:
    frame = Frame()
    assert cases.launch("declarations", (1,), (64,), frame.args) == 0
    assert cases.faults == []
    i = np.arange(64)
    expected = 5 + i % 4 + (63 - i) * 2 + np.array([1, 2, 4])[i % 32 % 3]
    np.testing.assert_array_equal(frame.out[:64], expected)


def test_order_of_threads_follows_the_seed(cases: KernelModule) -> None:
    last = []
    for seed in range(6):
        frame = Frame()
        assert cases.launch("last_to_come", (1,), (64,), frame.args, seed=seed) == 0
        last.append(int(frame.count[0]))
    assert last[0] == 63 and len(set(last)) > 3


# ---- wrong kernels ----


@pytest.mark.parametrize("seed", [0, 3])
def test_removed_barrier_is_a_race(seed: int) -> None:
    frame = Frame()
    right = KernelModule(CASES)
    assert right.launch("neighbours", (1,), (64,), frame.args, seed=seed) == 0
    assert right.faults == []
    np.testing.assert_array_equal(frame.out[:64], np.roll(frame.source[:64], -1))
    wrong = KernelModule(CASES, "-DNO_BARRIER")
    assert wrong.launch("neighbours", (1,), (64,), frame.args, seed=seed) == 0
    assert {kind for kind, _ in wrong.faults} <= {"shared-race", "shared-uninitialised"}
    assert any(kind == "shared-race" for kind, _ in wrong.faults)
    text = next(text for kind, text in wrong.faults if kind == "shared-race")
    assert re.search(
        r"of tile \+\d+ of 256 bytes, which thread \(\d+,0,0\) (read|wrote) since the last barrier "
        r"at kernel neighbours, block \(0,0,0\), thread \(\d+,0,0\), emulation_cases.cu:\d+$",
        text,
    ), text


def test_read_and_write_of_one_address_in_one_expression_is_seen_as_both(cases: KernelModule) -> None:
    cases.launch("shared_read_then_written", (1,), (64,), Frame().args)
    assert cases.faults[0][1].startswith("write of tile +4 of 256 bytes, which several threads read since")


def test_atomic_operation_and_plain_read_need_a_barrier(cases: KernelModule) -> None:
    cases.launch("shared_atomic_then_read", (1,), (64,), Frame(which=1).args)
    assert cases.faults == []
    cases.launch("shared_atomic_then_read", (1,), (64,), Frame(which=0).args)
    assert "read of total +0 of 4 bytes, which an atomic operation wrote" in cases.faults[0][1]


def test_scalar_in_shared_memory_written_by_all_is_a_race(cases: KernelModule) -> None:
    cases.launch("shared_scalar_race", (1,), (64,), Frame().args)
    assert "write of flag +0 of 4 bytes, which thread (0,0,0) wrote" in the_fault(cases, "shared-race")


def test_bytes_of_one_word_are_apart(cases: KernelModule) -> None:
    cases.launch("shared_bytes_race", (1,), (64,), Frame().args)
    assert cases.faults == []
    cases.launch("shared_bytes_race", (1,), (64,), Frame(which=1).args)
    assert "write of bytes +0 of 64 bytes, which thread (0,0,0) wrote" in the_fault(cases, "shared-race")


def test_uninitialised_shared_memory(cases: KernelModule) -> None:
    frame = Frame()
    cases.launch("shared_uninitialised", (1,), (64,), frame.args)
    assert "no thread of the block wrote: tile +20 of 256 bytes" in the_fault(cases, "shared-uninitialised")
    assert np.isnan(frame.out[5])


def test_shared_memory_does_not_outlive_its_block(cases: KernelModule) -> None:
    cases.launch("shared_of_another_block", (2,), (64,), Frame().args)
    assert "block (1,0,0)" in the_fault(cases, "shared-uninitialised")


@pytest.mark.parametrize(("which", "place"), [(1, "before +256 of 256"), (-1, "before -4 of 256")])
def test_shared_memory_out_of_bounds(cases: KernelModule, which: int, place: str) -> None:
    assert cases.launch("shared_bounds", (1,), (64,), Frame(which=which).args) == ILLEGAL_ADDRESS
    assert f"write outside: {place} bytes" in cases.faults[-1][1]
    assert cases.faults[-1][0] == "shared-bounds"


def test_dynamic_shared_memory_is_as_large_as_launched(cases: KernelModule) -> None:
    for size, result in ((256, 0), (252, ILLEGAL_ADDRESS), (256, 0)):
        cases.faults.clear()
        assert cases.launch("reverse", (1,), (64,), Frame().args, shared_bytes=size) == result
    assert cases.faults == []
    assert cases.launch("reverse", (1,), (64,), Frame().args, shared_bytes=0) == ILLEGAL_ADDRESS
    assert "dynamic shared memory +0 of 0 bytes" in the_fault(cases, "shared-bounds")


def test_index_beyond_an_array_dimension(cases: KernelModule) -> None:
    assert cases.launch("index_bounds", (1,), (64,), Frame().args) == 0
    assert cases.launch("index_bounds", (1,), (64,), Frame(which=1).args) == ILLEGAL_ADDRESS
    assert "index beyond the array's dimension at emulation_cases.cu:" in the_fault(cases, "bounds")


def test_threads_at_different_barriers(cases: KernelModule) -> None:
    assert cases.launch("other_barrier", (1,), (64,), Frame().args) == LAUNCH_FAILED
    text = the_fault(cases, "barrier")
    assert re.search(r"this thread waits at the barrier in line \d+, others at the one in line \d+", text)
    assert "thread (32,0,0)" in text


def test_thread_that_returns_before_a_barrier(cases: KernelModule) -> None:
    cases.launch("left_before_barrier", (1,), (64,), Frame(n=64).args)
    assert cases.faults == []
    cases.launch("left_before_barrier", (1,), (64,), Frame(n=40).args)
    assert "40 of 64 threads wait at the barrier in line" in the_fault(cases, "barrier")


@pytest.mark.parametrize(
    ("name", "which", "text"),
    [
        ("signed_overflow", 40000, "signed multiplication overflows"),
        ("shift", 32, "shift by a wrong number of bits"),
    ],
)
def test_overflow(cases: KernelModule, name: str, which: int, text: str) -> None:
    frame = Frame(which=which)
    cases.use_arena(frame.memory)
    cases.launch(name, (1,), (1,), frame.args)
    assert cases.faults[0][0] == "overflow"
    assert text in cases.faults[0][1]


@pytest.mark.parametrize(
    ("name", "which", "element"), [("unsigned_wrap", 0, 2**32 - 1), ("wrapped", -(2**31), -(2**33))]
)
def test_offset_that_wraps_lands_out_of_bounds(
    cases: KernelModule, name: str, which: int, element: int
) -> None:
    frame = Frame(which=which)
    cases.use_arena(frame.memory)
    assert cases.launch(name, (1,), (1,), frame.args) == ILLEGAL_ADDRESS
    assert the_fault(cases, "global-bounds") == f"offset {4096 + 4 * element}, 4 bytes"


@pytest.mark.parametrize("value", [np.nan, 1e10])
def test_number_that_an_integer_cannot_hold(cases: KernelModule, value: float) -> None:
    frame = Frame()
    frame.source[0] = value
    cases.launch("to_integer", (1,), (1,), frame.args)
    assert "cannot hold the floating-point value" in the_fault(cases, "overflow")


def test_misaligned_vector(cases: KernelModule) -> None:
    assert cases.launch("vectors", (1,), (32,), Frame(which=1).args) == MISALIGNED
    assert "address not aligned for its type" in the_fault(cases, "misaligned")


def test_variable_without_a_value_is_not_zero_by_luck(cases: KernelModule) -> None:
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    if int(version.split(".")[0]) < 12:
        pytest.skip("g++ fills such variables from version 12 on")
    frame = Frame(n=2)
    assert cases.launch("local_without_value", (1,), (1,), frame.args) == 0
    assert abs(frame.out[0]) > 1e30


def test_too_much_local_memory(cases: KernelModule) -> None:
    assert cases.launch("stack", (1,), (1,), Frame().args) == LAUNCH_FAILED
    assert "a thread used more than 65536 bytes of local memory" in the_fault(cases, "stack")


def test_two_threads_write_one_place_in_global_memory(cases: KernelModule) -> None:
    frame = Frame()
    cases.use_arena(frame.memory)
    cases.launch("all_write_one", (2,), (64,), frame.args)
    assert cases.faults == []
    frame = Frame(which=1)
    cases.use_arena(frame.memory)
    cases.launch("all_write_one", (2,), (64,), frame.args)
    assert "write of global memory that thread (0,0,0) of the same launch wrote" in the_fault(
        cases, "global-race"
    )


@pytest.mark.parametrize(("which", "who"), [(0, None), (1, r"thread \(\d+,0,0\)"), (2, "another block")])
def test_global_memory_between_threads_needs_a_barrier(
    cases: KernelModule, which: int, who: str | None
) -> None:
    frame = Frame(which=which)
    cases.use_arena(frame.memory)
    cases.launch("pass_on", (4,), (64,), frame.args)
    if who is None:
        assert cases.faults == []
    else:
        assert re.search(
            f"read of global memory that {who} of the same launch wrote", the_fault(cases, "global-race")
        )


def test_the_next_launch_is_unharmed(cases: KernelModule) -> None:
    cases.launch("other_barrier", (1,), (64,), Frame().args)
    cases.faults.clear()
    frame = Frame(n=64)
    assert cases.launch("reverse", (1,), (64,), frame.args, shared_bytes=256) == 0
    assert cases.faults == []
    np.testing.assert_array_equal(frame.out[:64], 2 * frame.source[:64][::-1])


# ---- the compiler ----


def nvcc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(NVCC), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_version_names_the_release_and_changes_with_the_settings() -> None:
    plain, gcov = (nvcc("--version", SOFTCUDA_GCOV=value).stdout for value in ("", "kernels"))
    assert "release 13.0, V13.0.88" in plain
    assert plain != gcov


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-arch=sm_86", "-std=c++14", "-fmad=false", "-o", "OUT", "-bogus", "CU"],
            "Unknown option '-bogus'",
        ),
        (["-arch=sm_53", "-o", "OUT", "CU"], "Unsupported gpu architecture 'sm_53'"),
        (["-arch=sm_86", "-o", "OUT", "nothing.cu"], "No input files specified (nothing.cu)"),
        (["-arch=sm_86", "CU", "-o"], "option -o needs a value"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    places = {"OUT": str(tmp_path / "x.cubin"), "CU": str(CASES)}
    done = nvcc(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode != 0
    assert f"nvcc fatal   : {message}" in done.stderr
    assert not (tmp_path / "x.cubin").exists()


def test_errors_name_the_line_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text('extern "C" __global__ void wrong(int n) {\n  undeclared(n);\n}\n')
    with pytest.raises(RuntimeError, match=r"wrong\.cu:2:3: error: .*undeclared.* was not declared"):
        compile_kernel(source)


def test_second_compilation_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCUDA_CACHE", str(tmp_path))
    source = tmp_path / "k.cu"
    source.write_text('#include "h.cuh"\nextern "C" __global__ void k(int* out) { *out = VALUE; }\n')
    for value, modules in ((1, 1), (1, 1), (2, 2)):
        (tmp_path / "h.cuh").write_text(f"constexpr int VALUE = {value};\n")
        out = np.zeros(1, np.int32)
        assert (
            KernelModule(source).launch("k", (1,), (1,), np.array((out.ctypes.data,), [("o", "u8")])[()]) == 0
        )
        assert out[0] == value
        assert len(list(tmp_path.glob("*/module.so"))) == modules


def test_lines_are_counted_for_gcov(tmp_path: Path) -> None:
    program = (
        "import sys\nimport numpy as np\nfrom pathlib import Path\n"
        "from tests.softcuda.kernel_module import KernelModule\n"
        "out = np.zeros(64, np.uint32)\n"
        "args = np.array((out.ctypes.data,), [('o', 'u8')])[()]\n"
        "KernelModule(Path(sys.argv[1])).launch('k', (1,), (32,), args)\n"
    )
    source = tmp_path / "k.cu"
    source.write_text(
        'extern "C" __global__ void k(int* out) {\n'
        "  if (threadIdx.x > 99)\n"
        "    out[0] = 1;\n"
        "  out[threadIdx.x] = 2;\n"
        "}\n"
    )
    environment: dict[str, Any] = {
        **os.environ,
        "SOFTCUDA_GCOV": str(tmp_path),
        "SOFTCUDA_CACHE": str(tmp_path / "cache"),
        "GCOV_PREFIX": str(tmp_path / "counts"),
    }
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(source)], check=True, env=environment, cwd=root)
    lines = kernel_lines(tmp_path / "counts")[source]
    assert (lines[3], lines[4]) == (0, 32)


def test_copies_of_a_source_are_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that plant faults copy all kernels into new folders again and again."""
    monkeypatch.setenv("SOFTCUDA_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "h.cuh").write_text("constexpr int VALUE = 3;\n")
        source = tmp_path / name / "k.cu"
        source.write_text('#include "h.cuh"\nextern "C" __global__ void k(int* out) { *out = VALUE; }\n')
        compile_kernel(source)
    assert len(list((tmp_path / "cache").glob("*/module.so"))) == 1


def test_without_checks_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCUDA_CHECKS", "0")
    module = KernelModule(CASES)
    frame = Frame(n=64)
    assert module.launch("reverse", (1,), (64,), frame.args, shared_bytes=256) == 0
    np.testing.assert_array_equal(frame.out[:64], 2 * frame.source[:64][::-1])
    assert module.counters.loads == 0 and module.counters.barriers > 0
