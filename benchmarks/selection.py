"""Does it matter which tiles calibrate? k-centre against random and evenly spread tiles, on OMBRIA.

    python benchmarks/selection.py --bundle runs/ombria/ombria.hfd --data data/ombria

For every number of tiles, method and seed: INT8 calibrated on the chosen training tiles, scored on the test
split against FP32. Writes benchmarks/results/<machine>/selection.json after every row; a second call does
what is missing. Even spread has no seed. About a minute a row on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _results import machine_slug, write

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.calibration import collect
from hfd_edge.deploy.precision import first_tile, place, ranges
from hfd_edge.deploy.qdq import int8_model, quantized_tensors, share
from hfd_edge.deploy.scoring import Bench
from hfd_edge.deploy.selection import select, selected_tiles
from hfd_edge.report.console import bars

ROOT = Path(__file__).resolve().parent.parent
NAME = "selection"


class Trial:
    """INT8 models of one bundle from different tiles, on one bench."""

    def __init__(self, bundle: Bundle, folder: PairFolder, *, split: str, limit: int | None) -> None:
        self.bundle, self.folder = bundle, folder
        self.bench = Bench(bundle, folder, split=split, limit=limit)
        self.source = bundle.model("fp32")
        self.model_sha256 = bundle.manifest.files[bundle.manifest.precisions["fp32"]]
        self.placed = place(
            self.source, first_tile(selected_tiles(folder, bundle, self.choose("even", 1, 0)))
        )

    def choose(self, method: str, count: int, seed: int) -> Any:
        """Tiles of the training split."""
        manifest = self.bundle.manifest
        options = {"tile_px": manifest.tile_px, "count": count, "method": method, "seed": seed}
        return select(self.folder, manifest.preprocessing, **options)

    def row(self, method: str, count: int, seed: int, calibration: str) -> dict[str, Any]:
        """What INT8 loses when it is calibrated on tiles chosen one way."""
        selection = self.choose(method, count, seed)
        tiles = selected_tiles(self.folder, self.bundle, selection)
        with bars() as progress:
            found = collect(self.source, quantized_tensors(self.placed), tiles, progress=progress)
        amax = share(ranges(found, calibration), self.placed)
        drop = self.bench.drop(int8_model(self.placed, amax))
        covered = selection.coverage
        return {
            "selection": method,
            "tiles": count,
            "seed": seed,
            "calibration": calibration,
            "onnx_sha256": self.model_sha256,
            **asdict(drop),
            "scored_tiles": len(self.bench),
            "radius": covered.radius,
            "backscatter_distance": max(spread.distance for spread in covered.backscatter.values()),
        }


def plan(args: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """Method, tiles, seed and calibration of every row."""
    return [
        (method, count, seed, args.calibration)
        for count in args.tiles
        for method in args.methods
        for seed in (args.seeds if method != "even" else args.seeds[:1])
    ]


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Mean and spread over the seeds, one line for each method and number of tiles."""
    lines = []
    for key in sorted({(row["tiles"], row["selection"]) for row in rows}):
        same = [row for row in rows if (row["tiles"], row["selection"]) == key]
        line = f"{key[0]:4} tiles, {key[1]:9}"
        for name in ("miou_points", "worst_class_points", "boundary_points", "flipped"):
            values = [row[name] for row in same]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            line += f"  {name} {statistics.mean(values):+.4f} ± {deviation:.4f} (worst {max(values):+.4f})"
        lines.append(line)
    return lines


def main() -> None:
    """Measure what is missing, record after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="score on this many tiles only")
    parser.add_argument("--tiles", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=["k-centre", "random", "even"])
    parser.add_argument("--calibration", default="entropy")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    folder = PairFolder.open(args.data, scheme=bundle.manifest.provenance.recipe.get("split"))
    trial = Trial(bundle, folder, split=args.split, limit=args.limit)
    path = ROOT / "benchmarks" / "results" / machine_slug() / f"{NAME}.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    # A row of another model, or of fewer test tiles, is another measurement.
    same = (trial.model_sha256, len(trial.bench))
    rows = [row for row in rows if (row["onnx_sha256"], row["scored_tiles"]) == same]
    done = {(row["selection"], row["tiles"], row["seed"], row["calibration"]) for row in rows}
    for wanted in plan(args):
        if wanted not in done:
            rows.append(trial.row(*wanted))
            print(rows[-1], flush=True)
            write(NAME, rows, command=" ".join(["python", *sys.argv]), root=ROOT)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
