"""What INT8 costs on OMBRIA's test split: calibration methods, mixed precision, the gate, QAT.

    hfd-edge data convert ombria SRC data/ombria
    python benchmarks/ombria.py --data data/ombria --runs runs/ombria --train-only
    python benchmarks/int8.py --data data/ombria --run runs/ombria/hfdm-spatial-0 \\
        --teacher runs/ombria/teacher-spatial-0 --work runs/int8

Everything is calibrated, gated and fine-tuned on training and validation tiles; the test split is only
scored, on ONNX Runtime. Flipped pixels and drops of every row, QAT too, are against the FP32 model of
`--run`. Each row is kept in `--work` as it is finished, so a stopped call goes on with the next one. The
result is benchmarks/results/<machine>/int8-ombria.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _results import write

from hfd_edge.bundle import Bundle
from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.calibration import METHODS
from hfd_edge.deploy.export import export_run
from hfd_edge.deploy.quantize import quantize
from hfd_edge.deploy.record import read_record
from hfd_edge.deploy.scoring import Bench, Drop
from hfd_edge.files import write_json
from hfd_edge.hfdnet.run import RECIPE_NAME
from hfd_edge.progress import Progress
from hfd_edge.report.console import bars
from hfd_edge.training.qat import train_qat

ROOT = Path(__file__).resolve().parent.parent
GATE_POINTS = 0.5
CASES: dict[str, tuple[str, str | None]] = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    **{f"int8-{method}": ("int8", method) for method in METHODS},
    "int8_fp16": ("int8_fp16", "entropy"),
    "gate": ("int8", f"entropy, max_drop {GATE_POINTS}"),
    "qat": ("int8", "qat"),
    "qat-int8_fp16": ("int8_fp16", "qat"),
}
"""Row -> precision and method."""


class Lab:
    """The student's FP32 bundle, and the bundles that the rows need, each made once."""

    def __init__(self, args: argparse.Namespace, progress: Progress) -> None:
        self.args, self.progress = args, progress
        self.recipe = read_toml(args.run / RECIPE_NAME, Recipe, overrides=tuple(args.set))
        self.folder = PairFolder.open(args.data, scheme=self.recipe.split)
        self.base = self._bundle("base", lambda path: export_run(args.run, path, progress=progress))

    def bundle(self, case: str) -> Bundle:
        """The bundle that holds a row's model."""
        if case == "fp32":
            return self.base
        if case.startswith("qat"):
            return self._bundle("qat", self._fine_tuned)
        if case == "gate":
            return self._bundle("gate", lambda path: self._quantised(path, max_drop=GATE_POINTS))
        method = case.partition("-")[2] or "entropy"
        return self._bundle(method, lambda path: self._quantised(path, method=method))

    def _bundle(self, name: str, make: Callable[[Path], Bundle]) -> Bundle:
        path = self.args.work / f"{name}.hfd"
        if not path.exists():
            unfinished = self.args.work / f"{name}.unfinished.hfd"
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(path)
        return Bundle.open(path)

    def _quantised(self, path: Path, **options: Any) -> Bundle:
        shutil.copytree(self.base.path, path)
        return quantize(Bundle.open(path), self.folder, progress=self.progress, **options)

    def _fine_tuned(self, path: Path) -> Bundle:
        run = self.args.work / "qat"
        options = {"start": self.args.run, "teacher": self.args.teacher, "resume": run.exists()}
        train_qat(self.folder, self.recipe, run, progress=self.progress, **options)
        return quantize(export_run(run, path, progress=self.progress), self.folder, progress=self.progress)


def measure(lab: Lab, bench: Callable[[], Bench], case: str) -> dict[str, Any]:
    """One row, from `--work` if it is there."""
    stored = _row(lab.args.work, case)
    if not stored.is_file():
        precision, method = CASES[case]
        bundle = lab.bundle(case)
        score = bench().score(bundle.model(precision), progress=lab.progress)
        drop = Drop.between(bench().reference, score)
        row = {"case": case, "precision": precision, "method": method, "backend": "onnxruntime"}
        row |= {"split": "test", **asdict(score)}
        row |= {"drop_points": drop.miou_points, "worst_class_drop_points": drop.worst_class_points}
        row |= {"boundary_drop_points": drop.boundary_points}
        row |= {"size_bytes": bundle.model(precision).stat().st_size}
        if "int8" in precision:
            row["quantized_nodes"] = len(read_record(bundle).quantized_nodes)
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_json(stored, row)
    return dict(json.loads(stored.read_text()))


def _row(work: Path, case: str) -> Path:
    return work / "rows" / f"{case}.json"


def main() -> None:
    """Make, score, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="run folder of the trained student")
    parser.add_argument("--teacher", type=Path, help="its teacher's run folder, for QAT")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and finished rows")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--set", action="append", default=[], help="recipe override, e.g. qat.epochs=3")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    benches: list[Bench] = []
    with bars() as progress:
        lab = Lab(args, progress)

        def bench() -> Bench:
            if not benches:
                benches.append(Bench(lab.base, lab.folder, split="test", progress=progress))
            return benches[0]

        for case in args.only:
            measure(lab, bench, case)
        # Also what earlier calls left.
        rows = [measure(lab, bench, case) for case in CASES if _row(args.work, case).is_file()]
    print(write("int8-ombria", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
