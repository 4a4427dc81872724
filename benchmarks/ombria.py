"""The whole road on OMBRIA, real Sentinel-1/2 flood pairs: what distillation and each export step give.

    hfd-edge data convert ombria SRC data/ombria
    python benchmarks/ombria.py --data data/ombria --runs runs/ombria --seeds 0 1 2

For each seed it trains and scores a teacher and the students of `--methods`, resuming what an earlier call
left. It then exports, quantises and builds engines for the first seed's distilled student, scores every
variant on the test split, and writes benchmarks/results/<machine>/ombria.json. With `--train-only` it stops
after training: training and measuring may happen on different machines.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from _results import write

from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.evaluation import measure
from hfd_edge.files import write_json
from hfd_edge.report.console import bars
from hfd_edge.report.curves import plot_run_curves
from hfd_edge.training.fit import train_student, train_teacher

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "teacher": (),
    "sar_only": ("distill.method=none",),
    **{name: (f"distill.method={name}",) for name in ("logits", "fitnet", "cwd", "hfdm", "hfdm+logits")},
    "sar_only, hfam off": ("distill.method=none", "network.hfam=false"),
}


def train(args: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Train one network unless it is there; give its scores on the test split."""
    keys = (f"split={args.scheme}", *METHODS[method], f"training.seed={seed}", *args.set)
    recipe = read_toml(ROOT / "train" / "recipes" / "ombria.toml", Recipe, overrides=keys)
    folder = PairFolder.open(args.data, scheme=args.scheme)
    out = args.runs / f"{method.replace(', ', '-').replace(' ', '-')}-{args.scheme}-{seed}"
    scores = out / "test.json"
    if not scores.is_file():
        options: dict[str, Any] = {"on_epoch": plot_run_curves}
        if method != "teacher":
            options["teacher"] = args.runs / f"teacher-{args.scheme}-{seed}"
        with bars() as progress:
            fit = train_teacher if method == "teacher" else train_student
            fit(folder, recipe, out, resume=out.exists(), progress=progress, **options)
            write_json(scores, measure(out, args.data, progress=progress))
    trained = json.loads((out / "metrics.json").read_text())
    facts = {name: trained[name] for name in ("best_epoch", "steps", "seconds", "device", "precision")}
    row = {"scheme": args.scheme, "method": method, "seed": seed, "training": facts}
    return {**row, **json.loads(scores.read_text())}


def deploy(args: argparse.Namespace, run: Path) -> list[dict[str, Any]]:
    """Make the bundle unless it is there; give the scores of every variant on the test split."""
    from hfd_edge.deploy.build import build
    from hfd_edge.deploy.export import export_run
    from hfd_edge.deploy.quantize import quantize
    from hfd_edge.deploy.targets import load_target

    folder, path = PairFolder.open(args.data, scheme=args.scheme), args.runs / "ombria.hfd"
    with bars() as progress:
        if not path.exists():
            bundle = quantize(
                export_run(run, path, folder=folder, progress=progress), folder, progress=progress
            )
            build(bundle, load_target("desktop-rtx"), precisions=("fp16", "int8"), progress=progress)
        variants = [
            measure(path, args.data, precision=precision, progress=progress)
            for precision in ("fp32", "fp16", "int8")
        ]
    return [
        {"scheme": args.scheme, "method": "hfdm", "seed": args.seeds[0], "bundle": True, **scores}
        for scores in variants
    ]


def main() -> None:
    """Train, deploy, measure, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["teacher", "sar_only", "hfdm"])
    parser.add_argument("--scheme", default="spatial")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="recipe override, e.g. training.epochs=5")
    args = parser.parse_args()
    rows = [train(args, method, seed) for seed in args.seeds for method in args.methods]
    if not args.train_only:
        rows += deploy(args, args.runs / f"hfdm-{args.scheme}-{args.seeds[0]}")
        print(write("ombria", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
