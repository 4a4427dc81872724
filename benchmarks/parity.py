"""How little tiling and the fused head change: labels compared pixel by pixel on one scene.

    python benchmarks/parity.py --run runs/demo/runs/student --scene runs/demo/data/scene.tif

Cuts a 1024 x 1024 window out of the scene and segments it with one bundle whose tile is the whole window,
then with tiles of 256 and 512 pixels at several overlaps, and once with the full head. Every row says on
which share of pixels the labels equal those of the single whole-image prediction with the fused head.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from _results import write

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.export import export_run
from hfd_edge.metrics import flipped_share
from hfd_edge.raster.scene import SceneReader
from hfd_edge.runtime.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent
WINDOW_PX = 1024


def compare(run: Path, image: Any, work: Path) -> list[dict[str, Any]]:
    """Segment the window in every way."""
    whole = export_run(run, work / "whole.hfd", tile_px=WINDOW_PX)
    with Segmenter(whole) as segment:
        expected = segment(image)

    def row(bundle: Bundle, overlap_px: int | None, comparison: str) -> dict[str, Any]:
        with Segmenter(bundle, overlap_px=overlap_px) as segment:
            equal = 1 - flipped_share(segment(image), expected)
        shape = {"head": bundle.manifest.head, "tile_px": bundle.manifest.tile_px, "overlap_px": overlap_px}
        return {"comparison": comparison, **shape, "equal_share": equal}

    full = export_run(run, work / "full.hfd", tile_px=WINDOW_PX, head="full")
    rows = [row(full, 0, "full head against fused head")]
    for tile_px, overlaps in ((256, (0, 32, 64, 96, 128)), (512, (0, 32, 64, 128, 192, 256))):
        bundle = export_run(run, work / f"tile{tile_px}.hfd", tile_px=tile_px)
        rows += [row(bundle, overlap_px, "tiles against whole image") for overlap_px in overlaps]
    return rows


def main() -> None:
    """Read the window, compare, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of a trained student")
    parser.add_argument("--scene", type=Path, required=True, help="scene of at least 1024 x 1024 pixels")
    args = parser.parse_args()
    with SceneReader(args.scene) as scene:
        image = scene.read(0, WINDOW_PX, 0, WINDOW_PX)
    with tempfile.TemporaryDirectory() as work:
        rows = compare(args.run, image, Path(work))
    for row in rows:
        print(row)
    print(write("parity", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
