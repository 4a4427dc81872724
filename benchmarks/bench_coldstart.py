"""Start-up, memory and size of the base install; against `ultralytics predict` on its smallest model.

    python benchmarks/bench_coldstart.py --bundle runs/demo/demo.hfd

Installs the project with `pip install --no-compile` into a new virtual environment (base dependencies alone,
no compiled CUDA kernels) and starts processes there: from the start of the process to the first mask of one
tile, read from a .npy file. The size on disk is counted after these runs, with the bytecode that they wrote;
`compiled_mb` is the size once every module has its bytecode, as pip leaves it without that option.

The same start for ultralytics where `make peers` has installed it: YOLO11n-seg built from its YAML, not
trained, because its weights are a download; so only times and memory mean something. Its image has the
tile's size and three channels; it runs as it sets itself up, with a thread less than there are cores. Files
are in the page cache: one process of each goes ahead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measure import BUNDLE, PEERS, ROOT, alternate, arguments, child, comparison, conditions, limit
from _results import write

from hfd_edge.bundle import Bundle
from hfd_edge.report.console import bars
from hfd_edge.sar.simulate import simulate_scene

# Each prints seconds since the first argument (the clock is the system's, not the process's).
IMPORT = """
import json, time
started = time.perf_counter()
import hfd_edge
print(json.dumps({"total_s": time.perf_counter() - started}))
"""
OURS = """
import json, pathlib, re, sys, time
passed = lambda: time.monotonic() - float(sys.argv[1])
import numpy, hfd_edge
bundle = hfd_edge.Bundle.open(sys.argv[2])
opened = passed()
segment = hfd_edge.Segmenter(bundle)
loaded = passed()
segment(numpy.load(sys.argv[3]))
total = passed()
"""
ULTRALYTICS = """
import json, pathlib, re, sys, time
passed = lambda: time.monotonic() - float(sys.argv[1])
import numpy, ultralytics
opened = passed()
model = ultralytics.YOLO("yolo11n-seg.yaml", task="segment")
loaded = passed()
image = numpy.load(sys.argv[3])
model.predict(image, imgsz=image.shape[0], device="cpu", verbose=False, save=False)
total = passed()
"""
REPORT = """
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
print(json.dumps({"total_s": total, "import_s": opened, "load_s": loaded - opened,
                  "first_mask_s": total - loaded, "peak_mb": peak * 1024 / 1e6}))
"""


class Install:
    """A new environment with the base install, without compiled CUDA kernels, which no CPU needs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.python = folder, folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self._empty = {pattern: self._holds(pattern) for pattern in ("*", "*.pyc")}
        quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
        environment = {**os.environ, "HATCH_BUILD_NO_HOOKS": "true"}
        command = [self.python, "-m", "pip", "install", *quiet, ROOT]
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)

    def sizes(self) -> dict[str, float]:
        """Megabytes beyond an empty environment: now, of it bytecode, and with every module compiled."""
        now, bytecode = self._added("*"), self._added("*.pyc")
        # As pip does, which takes no notice of the few files of templates and tests that cannot be compiled.
        subprocess.run([self.python, "-m", "compileall", "-qq", self._folder / "lib"], check=False)
        return {"ours": now, "bytecode_mb": bytecode, "compiled_mb": self._added("*")}

    def _added(self, pattern: str) -> float:
        return (self._holds(pattern) - self._empty[pattern]) / 1e6

    def _holds(self, pattern: str) -> int:
        files = self._folder.rglob(pattern)
        return sum(path.stat().st_size for path in files if not path.is_symlink())


def start(python: Path, code: str, *given: Path, home: Path) -> dict[str, Any]:
    """Run code in a new process that starts now; outside the checkout, so only what is installed counts."""
    own = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # of whoever develops here, not of a user
    inherited = {key: value for key, value in os.environ.items() if key not in own}
    quiet = {"YOLO_CONFIG_DIR": str(home), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    command = [python, "-c", code, time.monotonic(), *(path.resolve() for path in given)]
    return child(command, env={**inherited, **quiet}, folder=home)


def measure(works: dict[str, Any], *, repeats: int, progress: Any) -> dict[str, dict[str, float]]:
    """Start all in turns; medians of everything that they print."""
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in works}

    def run(name: str) -> float:
        kept[name].append(works[name]())
        return float(kept[name][-1]["total_s"])

    for work in works.values():
        work()
    runs = {name: (lambda name=name: run(name)) for name in works}
    alternate(runs, repeats=repeats, progress=progress, text="start")
    return {
        name: {key: float(np.median([run[key] for run in found])) for key in found[0]}
        for name, found in kept.items()
    }


def rows_of(
    found: dict[str, dict[str, float]], *, added: dict[str, float], tile_px: int
) -> list[dict[str, Any]]:
    """What is recorded."""
    ours, tile = found["ours"], f"one tile of {tile_px} x {tile_px}"
    steps = {key: ours[key] for key in ("import_s", "load_s", "first_mask_s", "peak_mb")}
    rows = [
        limit(f"process start to first mask, {tile}", unit="s", ours=ours["total_s"], at_most=1.0, **steps),
        limit("import hfd_edge", unit="s", ours=found["import"]["total_s"], at_most=0.15),
    ]
    if added:
        rows.append(limit("base install on disk, in use", unit="mb", at_most=450.0, **added))
    if "ultralytics" in found:
        theirs, against = found["ultralytics"], "ultralytics YOLO11n-seg, random weights"
        steps |= {f"theirs_{key}": theirs[key] for key in steps}
        for what, unit, key in (("start to first mask", "s", "total_s"), ("peak memory", "mb", "peak_mb")):
            text, more = f"{what}, {tile}", steps if unit == "s" else {}
            rows.append(comparison(text, against, unit=unit, ours=ours[key], theirs=theirs[key], **more))
    return rows


def main() -> None:
    """Install, measure, record."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python that has ultralytics")
    args = parser.parse_args()
    manifest = Bundle.open(args.bundle).manifest
    size, repeats = manifest.tile_px, 1 if args.quick else args.repeats
    image = simulate_scene(rows=size, cols=size, seed=11).sar
    with bars() as progress, tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "tile.npy", image[: len(manifest.sar.bands)])
        np.save(work / "image.npy", np.zeros((size, size, 3), np.uint8))
        progress(0, 1, "install the project without extras")
        base = None if args.quick else Install(work / "base")
        python = Path(sys.executable) if base is None else base.python
        given = {"home": work}
        works = {
            "ours": lambda: start(python, OURS + REPORT, args.bundle, work / "tile.npy", **given),
            "import": lambda: start(python, IMPORT, **given),
        }
        if args.peers.exists():
            peer = args.peers.absolute()  # resolved, the link would name another environment's interpreter
            image_file = work / "image.npy"
            works["ultralytics"] = lambda: start(peer, ULTRALYTICS + REPORT, args.bundle, image_file, **given)
        else:
            print(
                f"{args.peers} is not there: no row about ultralytics. Make it with: make peers",
                file=sys.stderr,
            )
        found = measure(works, repeats=repeats, progress=progress)
        added = {} if base is None else base.sizes()
    shared = conditions(args.bundle, repeats=repeats)
    rows = [row | shared for row in rows_of(found, added=added, tile_px=size)]
    for row in rows:
        print(row)
    print(write("coldstart", rows, command=" ".join(["python", *sys.argv]), root=args.root))


if __name__ == "__main__":
    main()
