"""How the benchmarks take their figures: alternating runs, and processes of their own."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hfd_edge.environment import allowed_cores
from hfd_edge.files import sha256
from hfd_edge.progress import Progress, silent

Name = TypeVar("Name")
ROOT = Path(__file__).resolve().parent.parent
BUNDLE = Path("runs/demo/demo.hfd")
STUDENT = Path("runs/demo/runs/student")
PEERS = Path(".venv/peers/bin/python")


def arguments(text: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that all of them have.

    Args:
        text: The script's docstring.
        repeats: How often everything is run, unless told otherwise.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = f"times that everything is run; figures are medians (default {repeats})"
    parser.add_argument("--repeats", type=int, default=repeats, help=text)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: only to see that it works")
    parser.add_argument("--root", type=Path, default=ROOT, help="results go below benchmarks/results there")
    return parser


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(
    works: Mapping[Name, Callable[[], float]], *, repeats: int, progress: Progress = silent, text: str = "run"
) -> dict[Name, float]:
    """Run all of them in turns, A B, B A, ..., so that what drifts hits all alike.

    Args:
        works: By name; each gives its figure.
        repeats: Turns.
        progress: Counts runs.
        text: Names the work.
    Returns:
        The median of each.
    """
    found: dict[Name, list[float]] = {name: [] for name in works}
    done, total = 0, repeats * len(works)
    for turn in range(repeats):
        for name in reversed(works) if turn % 2 else works:
            progress(done, total, f"{text} ({name})")
            found[name].append(works[name]())
            done += 1
    progress(total, total, text)
    return {name: statistics.median(values) for name, values in found.items()}


def conditions(bundle: Path, *, repeats: int) -> dict[str, Any]:
    """Keys of a row that say what else its figures depend on: bundle, cores, and how many runs."""
    cores = len(allowed_cores())
    return {"repeats": repeats, "cores": cores, "bundle_sha256": sha256(bundle / "manifest.json")}


def peak_mb() -> float:
    """Peak memory of this process, MB (1e6 bytes); its own, where ru_maxrss would start at the parent's."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 / 1e6


def child(
    command: Sequence[object], *, env: Mapping[str, str] | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Run a command and read the JSON object in the last line of its output.

    Raises:
        RuntimeError: it failed; says how.
    """
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, cwd=folder
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:3]))} ... failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def comparison(
    what: str,
    against: str,
    *,
    unit: str,
    ours: float,
    theirs: float,
    wanted: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A row that compares; `ratio` above 1 means that ours is better.

    Args:
        what: Was measured.
        against: The peer.
        unit: Of both: "mpx_s" and "img_s" are better when larger, anything else ("s", "mb") when smaller.
        ours: Our figure.
        theirs: The peer's.
        wanted: Least ratio that is good enough.
        more: Further keys of the row.
    """
    rate = unit in ("mpx_s", "img_s")
    row = {
        "what": what,
        "against": against,
        f"ours_{unit}": ours,
        f"theirs_{unit}": theirs,
        "ratio": ours / theirs if rate else theirs / ours,
        "ratio_is": "ours over theirs" if rate else "theirs over ours",
    }
    return row | ({} if wanted is None else {"wanted": wanted}) | more


def limit(what: str, *, unit: str, ours: float, at_most: float | None = None, **more: Any) -> dict[str, Any]:
    """A row of a figure that stands alone, with the largest value that is good enough."""
    return {"what": what, f"ours_{unit}": ours, **({} if at_most is None else {"at_most": at_most}), **more}
