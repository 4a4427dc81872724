"""A scene that is larger than its memory bound by far: 20000 x 20000 pixels in two float32 bands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.raster.scene import SceneReader, SceneWriter

SIDE = 20_000

# The kernel keeps the largest resident set per process. getrusage would report that of the test process
# if it is larger, because a child inherits it; VmHWM starts again with the program.
SCRIPT = """
import dataclasses, json, re, sys
from pathlib import Path
from hfd_edge import Bundle, Segmenter
with Segmenter(Bundle.open(sys.argv[1])) as segment:
    report = dataclasses.asdict(segment.scene(sys.argv[2], sys.argv[3]))
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
print(json.dumps({**report, "peak_mb": peak_kib * 1024 / 1e6}))
"""


def write_large_scene(path: Path) -> None:
    """Write 3.2 GB of pixels that deflate well, without ever holding them; two parts have no data."""
    rng = np.random.default_rng(0)
    # Sixteen levels in blocks: enough structure to segment, little to compress.
    level = rng.choice(np.linspace(0.01, 0.4, 16), (2, 32, SIDE // 50)).astype(np.float32)
    strip = level.repeat(8, axis=1).repeat(50, axis=2)
    with SceneWriter(path, bands=2, rows=SIDE, cols=SIDE, dtype="float32", nodata=0.0) as writer:
        for row in range(0, SIDE, strip.shape[1]):
            values = np.roll(strip, row // 4, axis=2)[:, : SIDE - row]
            values[:, :, -3000:] = 0
            if 8000 <= row < 11000:
                values[:] = 0
            writer.write_rows(row, values)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_scene_of_400_megapixels_in_bounded_memory(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle(tile_px=512)
    write_large_scene(tmp_path / "s.tif")
    command = [sys.executable, "-c", SCRIPT, bundle.path, tmp_path / "s.tif", tmp_path / "m.tif"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    print(report)
    assert report["megapixels"] == SIDE * SIDE / 1e6
    assert report["skipped_tiles"] > 0
    assert report["peak_mb"] <= 600  # an ordinary network takes about 100 more
    with SceneReader(tmp_path / "m.tif") as mask:
        assert (mask.read(8192, 8200) == 255).all()
        rows = mask.read(3000, 3100)[0]
    assert (rows[:, -3000:] == 255).all()
    assert set(np.unique(rows[:, :-3000])) <= {0, 1, 2, 3}
