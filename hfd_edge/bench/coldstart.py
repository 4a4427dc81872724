"""From the start of a process to its first mask, and the memory that it needs, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from hfd_edge.bench.result import ColdStart
from hfd_edge.bench.scenarios import Scene
from hfd_edge.bench.variants import Variant
from hfd_edge.bundle import Bundle
from hfd_edge.errors import BenchError

_LONGEST_S = 300.0
# Only what a user's own program would do: it opens a bundle and segments an array. The monotonic clock is the
# system's, so its last mark can be compared with the parent's time of starting the process.
_PROGRAM = """
import sys, time
marks = [time.monotonic()]
sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]
from hfd_edge import Bundle, Segmenter
import numpy
marks.append(time.monotonic())
_, bundle, tile, backend, precision, threads, overlap, stream, scene, mask = sys.argv
segment = Segmenter(Bundle.open(bundle), backend=backend, precision=precision,
                    threads=int(threads) or None, overlap_px=int(overlap))
marks.append(time.monotonic())
tile = numpy.load(tile)
segment(tile)
marks.append(time.monotonic())

def peak_mb():
    try:
        lines = open("/proc/self/status").read().splitlines()
        return [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")][0]
    except (OSError, IndexError):
        return None

segment(tile), segment(tile)  # engines get memory for the second run that the first did without
peaks = {"peak_mb": peak_mb()}
if stream:
    list(segment.stream([tile] * 8))
    peaks["stream_peak_mb"] = peak_mb()
if scene:
    segment.scene(scene, mask)
    peaks["scene_peak_mb"] = peak_mb()
import json
print(json.dumps({"marks": marks, "peaks": peaks}))
segment.close()
"""


@dataclass(frozen=True)
class Start:
    """One process; see `ColdStart`. Peaks of a stream and a scene are None where it did not do them."""

    total_s: float
    import_s: float
    load_s: float
    first_mask_s: float
    peak_mb: float | None
    stream_peak_mb: float | None = None
    scene_peak_mb: float | None = None


def start_once(
    bundle: Bundle,
    tile: Path,
    *,
    variant: Variant,
    threads: int | None,
    stream: bool = False,
    scene: Scene | None = None,
) -> Start:
    """Start Python, open the bundle and segment a tile; files are in the system's cache as they are.

    Args:
        bundle: The bundle.
        tile: .npy file of stored pixels (bands, rows, cols).
        variant: What runs.
        threads: CPU threads; None for one per core.
        stream: Whether a stream of tiles is segmented afterwards, for its memory.
        scene: A scene to segment after that, for its memory.
    Raises:
        BenchError: the process fails, or takes more than five minutes without a scene.
    """
    chosen = [variant.backend, variant.precision, threads or 0, variant.overlap_px]
    files = ["", ""] if scene is None else [scene.source, scene.destination]
    # Where this very code lies: Python puts the current folder there, which may hold another version.
    here = Path(__file__).resolve().parents[2]
    arguments = [here, bundle.path, tile, *chosen, "stream" if stream else "", *files]
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    longest_s = _LONGEST_S if scene is None else None
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(_failure(variant, f"it did not end in {_LONGEST_S:.0f} s")) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchError(_failure(variant, reason))
    answer = json.loads(done.stdout.splitlines()[-1])
    marks: list[float] = answer["marks"]
    import_s, load_s, first_mask_s = (after - before for before, after in pairwise(marks))
    return Start(marks[-1] - started, import_s, load_s, first_mask_s, **answer["peaks"])


def summarise(starts: Sequence[Start]) -> ColdStart:
    """Take the median of each figure over processes, at least one."""
    peaks = [start.peak_mb for start in starts if start.peak_mb is not None]
    return ColdStart(
        total_s=median(start.total_s for start in starts),
        import_s=median(start.import_s for start in starts),
        load_s=median(start.load_s for start in starts),
        first_mask_s=median(start.first_mask_s for start in starts),
        peak_mb=median(peaks) if peaks else None,
        runs=len(starts),
        samples_s=tuple(start.total_s for start in starts),
    )


def _failure(variant: Variant, reason: str) -> str:
    return (
        f"A new process could not give a mask with {variant.name}: {reason}. The same works in "
        "this process: check that nothing limits memory or time of its children, or pass --no-cold-start."
    )
