"""Faults planted one at a time into a copy of the package: the GPU suites must fail on every one.

A suite that passes on wrong code proves nothing. Each fault is one that GPU code really has, and each runs
the part of the suites that should see it, on the emulated driver, in a process of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .test_suite import clean_environment, missing

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """One wrong line.

    Attributes:
        name: What is wrong.
        file: Below hfd_edge/.
        old: Text that stands there once.
        new: Text instead.
        tests: Suites that must fail.
        seen: Pattern of what their errors must say: they fail because of the fault, not beside it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    seen: str


SPECKLE, PIPELINE, ENGINE = (
    "tests/gpu/test_speckle.py",
    "tests/gpu/test_pipeline.py",
    "tests/gpu/test_tensorrt.py",
)
FAULTS = (
    Fault(
        "removed barrier",
        "sar/kernels/speckle.cu",
        "return !__syncthreads_or(!complete);",
        "return complete;",
        (SPECKLE,),
        "shared-race",
    ),
    Fault(
        "barrier missing between steps",
        "sar/kernels/labels.cu",
        "__syncthreads();  // the next step overwrites the row above",
        "",
        ("tests/gpu/test_labels.py",),
        "shared-race",
    ),
    Fault(
        "halo one column short",
        "sar/kernels/speckle.cu",
        "first = t.col - t.radius, stop",
        "first = t.col - t.radius + 1, stop",
        (SPECKLE,),
        r"AssertionError: \d+\.\d+|shared-uninitialised",
    ),
    Fault(
        "border reflected instead of repeated",
        "sar/kernels/speckle.cu",
        "row[max(0, min(col + i, a.cols - 1))]",
        "row[min(col + i < 0 ? -(col + i) : col + i, a.cols - 1)]",
        (SPECKLE,),
        r"AssertionError: \d+\.\d+",
    ),
    Fault(
        "unsigned overflow above the first row",
        "sar/kernels/speckle.cu",
        "const int y = max(0, min(t.row - t.radius + row, a.rows - 1));",
        "const unsigned wrapped = t.row - t.radius + row, last = a.rows - 1;\n"
        "const int y = min(wrapped, last);",
        (SPECKLE,),
        r"AssertionError: \d+\.\d+",
    ),
    Fault(
        "no synchronise before reading back",
        "runtime/staging.py",
        "            self._stream.synchronize()\n",
        "",
        (ENGINE,),
        r"-2\.8735\d+e-16 \(ACTUAL\)",  # 0xa5a5a5a5, what the driver fills the target with
    ),
    Fault(
        "no wait between streams",
        "runtime/cuda_frames.py",
        "        parts.infer.wait(self._prepared)\n",
        "",
        (PIPELINE,),
        "stream-race",
    ),
    Fault(
        "swapped dimension",
        "runtime/cuda_frames.py",
        "shape=(parts.tiler.preprocessing.bands, rows, cols)",
        "shape=(parts.tiler.preprocessing.bands, cols, rows)",
        (PIPELINE,),
        "out-of-bounds|uninitialised",
    ),
    Fault(
        "stale tensor address",
        "runtime/backends/tensorrt.py",
        "        self._call(context.set_tensor_address, _INPUT, batch.input_address)\n",
        "        if id(context) not in (told := self.__dict__.setdefault('told', set())):\n"
        "            told.add(id(context))\n"
        "            self._call(context.set_tensor_address, _INPUT, batch.input_address)\n",
        (ENGINE,),
        "Mismatched elements",
    ),
    Fault(
        "freed buffer in use",
        "runtime/staging.py",
        "            enqueue(self._input.address, self._output.address, count, self._stream)\n",
        "            enqueue(self._input.address, self._output.address, count, self._stream)\n"
        "            self._input.free()\n",
        (ENGINE,),
        "use-after-free",
    ),
)


def run_suites(package_parent: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run GPU suites on the emulated driver with the hfd_edge that lies in `package_parent`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider"]
    command += [
        "-c",
        str(ROOT / "pyproject.toml"),
        f"--rootdir={ROOT}",
        *(str(ROOT / test) for test in tests),
    ]
    # The current folder comes first on Python's path, before the installed package.
    env = clean_environment(package_parent / "cache", PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run(command, cwd=package_parent, env=env, capture_output=True, text=True, timeout=300)


def plant(fault: Fault, parent: Path) -> None:
    """Copy the package and make one line of it wrong."""
    shutil.copytree(ROOT / "hfd_edge", parent / "hfd_edge", ignore=shutil.ignore_patterns("__pycache__"))
    # Recipes and targets are looked up beside the package of a checkout.
    for folder in ("train", "export"):
        (parent / folder).symlink_to(ROOT / folder)
    path = parent / "hfd_edge" / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1, f"{fault.file} no longer has exactly one {fault.old!r}"
    path.write_text(text.replace(fault.old, fault.new))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_suites_see(fault: Fault, tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    plant(fault, tmp_path)
    done = run_suites(tmp_path, fault.tests)
    assert done.returncode == 1, f"nobody saw it:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    # Not the whole output: it quotes the tests, which name what they look for.
    errors = "\n".join(re.findall(r"^(?:E|    \|) .*", done.stdout, re.MULTILINE))
    assert re.search(fault.seen, errors), done.stdout[-6000:]
