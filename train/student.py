#!/usr/bin/env python
"""Distil the SAR student: python train/student.py RECIPE.toml --data DIR --teacher RUN --out RUN.

The same as `hfd-edge train student`, as a script to copy and change. Without a teacher:
--set distill.method=none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.report.console import bars
from hfd_edge.report.curves import plot_run_curves
from hfd_edge.training.fit import train_student
from hfd_edge.training.qat import train_qat


def main() -> None:
    """Read the arguments, train, print the score."""
    parser = argparse.ArgumentParser(description="Train the SAR student.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="run folder of the teacher")
    parser.add_argument("--unlabelled", type=Path, action="append", default=[], help="pairs that distil, too")
    parser.add_argument("--qat", type=Path, help="fine-tune this finished student for INT8")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    recipe = read_toml(arguments.recipe, Recipe, overrides=tuple(arguments.overrides))
    folder = PairFolder.open(arguments.data, scheme=recipe.split)
    if arguments.qat is not None and arguments.unlabelled:
        parser.error("--qat trains on the pairs of --data alone: leave out --unlabelled")
    own = {"unlabelled": arguments.unlabelled} if arguments.qat is None else {"start": arguments.qat}
    with bars() as progress:
        run = (train_student if arguments.qat is None else train_qat)(
            folder,
            recipe,
            arguments.out,
            teacher=arguments.teacher,
            resume=arguments.resume,
            progress=progress,
            on_epoch=plot_run_curves,
            **own,
        )
    metrics = run.metrics()
    print(f"{run.path}: validation mIoU {metrics['miou']:.4f} at epoch {metrics['best_epoch']}")


if __name__ == "__main__":
    main()
