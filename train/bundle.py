#!/usr/bin/env python
"""From a recipe to a bundle: python train/bundle.py RECIPE.toml --data DIR --runs DIR --out BUNDLE.hfd.

Trains the teacher that the recipe names (none where it does not distil) and the student, scores the student
on the test split, exports it, and writes the model card RUNS/CARD.md. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.export import export_run
from hfd_edge.errors import HfdEdgeError
from hfd_edge.evaluation import measure
from hfd_edge.files import write_text
from hfd_edge.hfdnet.card import model_card
from hfd_edge.report.console import bars
from hfd_edge.report.curves import plot_run_curves
from hfd_edge.training.fit import train_student, train_teacher


def main() -> None:
    """Read the arguments, train what is missing, export, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, action="append", default=[], help="pairs that distil, too")
    parser.add_argument("--runs", type=Path, required=True, help="folder that takes the run folders")
    parser.add_argument("--out", type=Path, required=True, help="bundle to make; must not exist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} already exists. Choose another --out, or remove it first.")
    recipe = read_toml(arguments.recipe, Recipe, overrides=tuple(arguments.overrides))
    folder = PairFolder.open(arguments.data, scheme=recipe.split)
    folder.pairs("test")  # what is missing is said now, not after hours
    student, teacher = arguments.runs / "student", None
    if recipe.distill.method != "none" or recipe.network.init == "teacher":
        teacher = arguments.runs / "teacher"
    with bars() as progress:
        if teacher is not None:
            train_teacher(folder, recipe, teacher, resume=teacher.exists(),
                          progress=progress, on_epoch=plot_run_curves)  # fmt: skip
        run = train_student(folder, recipe, student, teacher=teacher, unlabelled=arguments.unlabelled,
                            resume=student.exists(), progress=progress, on_epoch=plot_run_curves)  # fmt: skip
        scores = measure(student, arguments.data, progress=progress)
        write_text(arguments.runs / "CARD.md", model_card(run, scores=[scores]))
        export_run(student, arguments.out, folder=folder, progress=progress)
    print(f"{arguments.out}: test mIoU {scores['miou']:.4f}; card: {arguments.runs / 'CARD.md'}")


if __name__ == "__main__":
    try:
        main()
    except HfdEdgeError as error:
        sys.exit(f"error: {error}")
