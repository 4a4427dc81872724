"""The default test run executes the GPU code: all suites in tests/gpu, on the emulated driver.

They run in a process of their own, because the emulated driver must be there before anything opens a real
one. Python's and the kernels' lines are counted; what no test reaches is named.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from . import control

pytestmark = pytest.mark.skipif(control.wanted(), reason="starts the emulated suites, which run already")

# What runs only with a driver, and so only here.
HOST = (
    "device",
    "external",
    "mapped",
    "transfer",
    "staging",
    "graphs",
    "launch*",
    "cuda_*",
    "backends/tensorrt*",
)
LEAST = 0.95
MINUTES = 15


def missing() -> str | None:
    """What the emulated suites need and is not here."""
    if find_spec("pycuda") is None:
        return "PyCUDA is not installed; make test builds it where CUDA's headers are"
    return next((f"no {tool}" for tool in ("g++", "gcov") if shutil.which(tool) is None), None)


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=60 * MINUTES, check=False
    )


def _host_coverage(root: Path, report: Path) -> dict[str, float]:
    files = json.loads(report.read_text())["files"]
    chosen = [path for name in HOST for path in (root / "hfd_edge" / "runtime").glob(f"{name}.py")]
    assert chosen
    seen = {str(path.relative_to(root)): files.get(str(path.relative_to(root))) for path in chosen}
    return {name: entry["summary"]["percent_covered"] / 100 if entry else 0.0 for name, entry in seen.items()}


def _kernel_lines(cache: Path) -> dict[str, dict[int, int]]:
    """How often each line of each kernel source ran, over all modules that were compiled from it."""
    lines: dict[str, dict[int, int]] = {}
    for counts in cache.rglob("*.gcda"):
        answer = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(counts)],
            cwd=counts.parent,
            text=True,
            capture_output=True,
        )
        for file in json.loads(answer.stdout)["files"] if answer.stdout.strip() else []:
            known = lines.setdefault(Path(file["file"]).name, {})
            for line in file["lines"]:
                known[line["line_number"]] = known.get(line["line_number"], 0) + line["count"]
    return lines


def _kernel_coverage(root: Path, cache: Path) -> dict[str, float]:
    lines = _kernel_lines(cache)
    found = {}
    for path in sorted((root / "hfd_edge" / "sar" / "kernels").glob("*.cu*")):
        known = lines.get(path.name, {})
        found[path.name] = sum(count > 0 for count in known.values()) / len(known) if known else 0.0
    assert found
    return found


@pytest.mark.timeout(60 * MINUTES + 60)
def test_the_gpu_suites_pass_on_the_emulated_driver_and_reach_every_line(root: Path, tmp_path: Path) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    # Compiled kernels are kept for the next run; the counts of this one begin at zero.
    cache = Path(sys.prefix) / "softcuda" / "counted"
    for counts in cache.rglob("*.gcda"):
        counts.unlink()
    environment = {
        **os.environ,
        control.SWITCH: "1",
        "SOFTCUDA_GCOV": "1",
        "SOFTCUDA_CACHE": str(cache),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "COVERAGE_FILE": str(tmp_path / ".coverage"),
        "OMP_NUM_THREADS": "1",
    }
    coverage = [sys.executable, "-m", "coverage"]
    suites = ["-m", "pytest", "-q", "-m", "gpu and not slow and not hardware", "tests/gpu", "tests/softcuda"]
    ran = _run([*coverage, "run", "--include=hfd_edge/runtime/*", *suites], root, environment)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout, ran.stdout[-2000:]
    report = tmp_path / "lines.json"
    written = _run([*coverage, "json", "-o", str(report)], root, environment)
    assert written.returncode == 0, written.stdout + written.stderr
    reached = {**_host_coverage(root, report), **_kernel_coverage(root, cache)}
    short = {name: f"{part:.1%}" for name, part in reached.items() if part < LEAST}
    assert not short, f"less than {LEAST:.0%} of their lines run on the emulated driver: {short}"
