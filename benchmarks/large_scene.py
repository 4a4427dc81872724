"""Peak memory and time of `hfd-edge predict` on scenes of any size.

    python benchmarks/large_scene.py --bundle runs/demo/demo.hfd

Simulates scenes of 1 x 1, 511 x 517, 4096 x 4096 and 20000 x 20000 pixels (two bands, float32), segments
each in a process of its own and reads that process's peak memory from the kernel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _results import write

from hfd_edge.datasets.simulated import write_scene
from hfd_edge.raster.scene import SceneReader

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((1, 1), (511, 517), (4096, 4096), (20000, 20000))
# VmHWM is the peak of this process alone; ru_maxrss would start at the parent's.
PREDICT = (
    "import re, sys\nfrom hfd_edge.cli import app\n"
    "try:\n    app()\nfinally:\n"
    "    peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]\n"
    "    print('peak_kb', peak, file=sys.stderr)\n"
)


def measure(bundle: Path, rows: int, cols: int, work: Path) -> dict[str, Any]:
    """Segment one simulated scene."""
    scene, mask = work / "scene.tif", work / "mask.tif"
    write_scene(scene, rows=rows, cols=cols, seed=11)
    arguments = ["predict", bundle, scene, "--out", mask, "--overwrite", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    report = said["scenes"][0]
    with SceneReader(scene) as source, SceneReader(mask) as made:
        same = source.georeference == made.georeference and (made.rows, made.cols) == (rows, cols)
    peak_mb = int(done.stderr.rsplit("peak_kb", 1)[1]) * 1024 / 1e6
    # What "auto" chose decides the memory.
    figures = {key: said[key] for key in ("backend", "precision")}
    figures |= {key: report[key] for key in ("megapixels", "seconds", "tiles", "skipped_tiles")}
    return {"rows": rows, "cols": cols, **figures, "peak_mb": peak_mb, "georeference_kept": same}


def main() -> None:
    """Measure all sizes, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as work:
            rows.append(measure(args.bundle, *size, Path(work)))
        print(rows[-1])
    print(write("large-scene", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
