#!/usr/bin/env python
"""Train the EO teacher: python train/teacher.py train/recipes/ombria.toml --data DIR --out RUN.

The same as `hfd-edge train teacher`, as a script to copy and change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.report.console import bars
from hfd_edge.report.curves import plot_run_curves
from hfd_edge.training.fit import train_teacher


def main() -> None:
    """Read the arguments, train, print the score."""
    parser = argparse.ArgumentParser(description="Train the EO teacher.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    recipe = read_toml(arguments.recipe, Recipe, overrides=tuple(arguments.overrides))
    folder = PairFolder.open(arguments.data, scheme=recipe.split)
    with bars() as progress:
        run = train_teacher(
            folder,
            recipe,
            arguments.out,
            resume=arguments.resume,
            progress=progress,
            on_epoch=plot_run_curves,
        )
    metrics = run.metrics()
    print(f"{run.path}: validation mIoU {metrics['miou']:.4f} at epoch {metrics['best_epoch']}")


if __name__ == "__main__":
    main()
