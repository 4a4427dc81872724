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
    "resources",
    "external",
    "mapped",
    "ports",
    "transfer",
    "staging",
    "graphs",
    "launch*",
    "cuda_*",
    "backends/tensorrt",
    "backends/rtx_cache",
)
LEAST = 0.95
MINUTES = 15


def missing() -> str | None:
    """What the emulated suites need and is not here."""
    if reason := control.missing():
        return reason
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-bindings are not installed"
    return "no gcov" if shutil.which("gcov") is None else None


def clean_environment(cache: Path, **settings: str) -> dict[str, str]:
    """The environment of a test run of its own: this run's options are not for it, and it keeps nothing."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))
    }
    return {
        **inherited,
        "XDG_CACHE_HOME": str(cache),
        "OMP_NUM_THREADS": "1",
        control.SWITCH: "1",
        **settings,
    }


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=60 * MINUTES, check=False
    )


def _host_coverage(root: Path, report: Path) -> dict[str, float]:
    files = json.loads(report.read_text())["files"]
    reached = {}
    for pattern in HOST:
        chosen = sorted((root / "hfd_edge" / "runtime").glob(f"{pattern}.py"))
        assert chosen, f"no module {pattern} any more"
        for name in (str(path.relative_to(root)) for path in chosen):
            reached[name] = files[name]["summary"]["percent_covered"] / 100 if name in files else 0.0
    return reached


def kernel_lines(counted: Path) -> dict[Path, dict[int, int]]:
    """How often each line of each kernel source ran, over all modules that were compiled from it."""
    lines: dict[Path, dict[int, int]] = {}
    for counts in counted.rglob("*.gcda"):
        # gcov wants its notes beside the counts; they are where the module was compiled.
        notes = counts.with_suffix(".gcno")
        notes.symlink_to(Path("/") / notes.relative_to(counted))
        command = ["gcov", "--json-format", "--stdout", str(counts)]
        answer = subprocess.run(command, cwd=counts.parent, text=True, capture_output=True, check=True)
        for file in json.loads(answer.stdout)["files"]:
            known = lines.setdefault(Path(file["file"]), {})
            for line in file["lines"]:
                known[line["line_number"]] = known.get(line["line_number"], 0) + line["count"]
    return lines


def _kernel_coverage(kernels: Path, counted: Path) -> dict[str, float]:
    lines = kernel_lines(counted)
    found = {}
    for path in sorted(kernels.glob("*.cu*")):
        known = lines.get(path, {})
        found[path.name] = sum(count > 0 for count in known.values()) / len(known) if known else 0.0
    assert found
    return found


@pytest.mark.timeout(60 * MINUTES + 60)
def test_the_gpu_suites_pass_on_the_emulated_driver_and_reach_every_line(root: Path, tmp_path: Path) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    kernels, counted = root / "hfd_edge" / "sar" / "kernels", tmp_path / "counted"
    environment = clean_environment(
        tmp_path / "cache",
        SOFTCUDA_GCOV=str(kernels),
        GCOV_PREFIX=str(counted),  # compiled kernels are kept for the next run, their counts are this run's
        COVERAGE_FILE=str(tmp_path / ".coverage"),
    )
    coverage = [sys.executable, "-m", "coverage"]
    suites = ["-m", "pytest", "-q", "-m", "gpu and not slow and not hardware", "tests/gpu", "tests/softcuda"]
    ran = _run([*coverage, "run", "--include=hfd_edge/runtime/*", *suites], root, environment)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout, ran.stdout[-2000:]
    report = tmp_path / "lines.json"
    written = _run([*coverage, "json", "-o", str(report)], root, environment)
    assert written.returncode == 0, written.stdout + written.stderr
    reached = {**_host_coverage(root, report), **_kernel_coverage(kernels, counted)}
    short = {name: f"{part:.1%}" for name, part in reached.items() if part < LEAST}
    assert not short, f"less than {LEAST:.0%} of their lines run on the emulated driver: {short}"
