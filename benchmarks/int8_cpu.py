"""Is INT8 worth it on this CPU? Latency of every engine and precision of a bundle, and what each costs.

    python benchmarks/int8_cpu.py --bundle flood.hfd --data data/ombria

Variants are visited in turns. `ratio` is FP32's median over this row's on the same engine, so more than 1 is
faster than FP32; in the row "best" it is the fastest FP32 of all engines over the fastest INT8 whose golden
labels agree. With `--data`, mIoU of the test split, against FP32 on ONNX Runtime and, for `engine_points`,
against the same precision on ONNX Runtime. The result is benchmarks/results/<machine>/int8-cpu.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _results import write

from hfd_edge.bundle import Bundle
from hfd_edge.comparison import compare
from hfd_edge.evaluation import open_folder
from hfd_edge.report.console import bars
from hfd_edge.runtime.backends.tuning import Trial, Tuning, measure

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "onnxruntime"


def latency_rows(tuning: Tuning) -> list[dict[str, Any]]:
    """One row a variant that ran."""
    ran = [trial for trial in tuning.trials if trial.median_ms is not None]
    fp32 = {trial.backend: trial.median_ms for trial in ran if trial.precision == "fp32"}
    threads = tuning.conditions.threads
    return [
        {
            "case": "engine",
            "backend": trial.backend,
            "precision": trial.precision,
            "threads": threads,
            "cores": tuning.conditions.cores,
            "latency_ms": trial.median_ms,
            "golden_agreement": trial.agreement,
            "ratio": fp32[trial.backend] / trial.median_ms if trial.backend in fp32 else None,
        }
        for trial in ran
    ]


def best_row(tuning: Tuning) -> dict[str, Any]:
    """The fastest FP32 against the fastest INT8 whose labels agree."""
    fp32, int8 = _fastest(tuning, "fp32"), _fastest(tuning, "int8", "int8_fp16")
    if fp32 is None:
        raise SystemExit("No engine gives the bundle's own FP32 labels. Look at: hfd-edge selftest BUNDLE")
    row: dict[str, Any] = {"case": "best", "fp32_backend": fp32.backend, "fp32_ms": fp32.median_ms}
    if int8 is None:
        return {**row, "ratio": None, "why": "no INT8 variant gives enough of the golden labels"}
    row |= {"backend": int8.backend, "precision": int8.precision, "latency_ms": int8.median_ms}
    return {**row, "ratio": fp32.median_ms / int8.median_ms}


def _fastest(tuning: Tuning, *precisions: str) -> Trial | None:
    """Not `Tuning.best`, which prefers better labels to a few percent."""
    sound = (trial for trial in tuning.trials if trial.precision in precisions and not trial.reason)
    return min(sound, key=lambda trial: trial.median_ms, default=None)


def add_accuracy(rows: list[dict[str, Any]], args: argparse.Namespace, progress: Any) -> None:
    """Add mIoU of the test split to the rows of the engines."""
    bundle, folder = Bundle.open(args.bundle), open_folder(args.bundle, args.data, scheme=args.scheme)
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    options = {"tiles": args.tiles, "threads": args.threads, "progress": progress}
    scored = {
        (row.backend, row.precision): row
        for row in compare(bundle, folder, backends=backends, **options).rows
    }
    for row in rows:
        found, same = (scored[(backend, row["precision"])] for backend in (row["backend"], REFERENCE))
        row |= {"miou": found.miou, "drop_points": found.drop_points, "flipped": found.flipped}
        row["engine_points"] = 100 * (same.miou - found.miou)


def main() -> None:
    """Measure, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="with golden tiles, FP32 and INT8")
    parser.add_argument("--data", type=Path, help="data folder with labels, for accuracy")
    parser.add_argument("--scheme", help="split scheme under DATA/splits; default: the recipe's")
    parser.add_argument("--tiles", type=int, help="score only so many tiles; default: the whole split")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--rounds", type=int, default=3, help="visits of each variant, there and back")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    with bars() as progress:
        tuning = measure(bundle, threads=args.threads, rounds=args.rounds, progress=progress)
        rows = latency_rows(tuning)
        if args.data is not None:
            add_accuracy(rows, args, progress)
    shape = {"bundle": bundle.manifest.name, "tile_px": bundle.manifest.tile_px}
    rows = [{**row, **shape} for row in [*rows, best_row(tuning)]]
    versions = tuning.conditions.versions
    command = " ".join(["python", *sys.argv])
    print(write("int8-cpu", rows, command=command, root=ROOT, versions=versions))


if __name__ == "__main__":
    main()
