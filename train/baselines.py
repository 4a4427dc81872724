#!/usr/bin/env python
"""Train SAR-only baselines: python train/baselines.py RECIPE.toml --data DIR --runs DIR --seeds 0 1 2.

Each architecture and seed is a run folder under --runs; beside them stands baselines.md, with the SAR-only
student in it to compare with. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfd_edge.comparison.ablation import markdown, summarise
from hfd_edge.files import write_text
from hfd_edge.hfdnet.baselines import ARCHITECTURES
from hfd_edge.report.console import bars
from hfd_edge.training.ablation import Table
from hfd_edge.training.ablation_plan import AblationPlan, PlanRow, jobs_of


def main() -> None:
    """Read the arguments, train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder that takes the run folders")
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, help=", ".join(ARCHITECTURES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="processes at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()

    plan = AblationPlan(
        name="baselines",
        recipe=arguments.recipe.name,
        seeds=tuple(arguments.seeds),
        overrides=tuple(arguments.overrides),
        rows=(PlanRow(method="sar_only"), PlanRow(method="baseline", arch=tuple(arguments.arch))),
    )
    table = Table(jobs_of(plan, base=arguments.recipe.parent), arguments.data, arguments.runs)
    with bars() as progress:
        table.run(parallel=arguments.parallel, progress=progress)
    lines = summarise([(result.row, result.counts) for result in table.results()])
    text = markdown(lines, title="SAR-only baselines")
    write_text(arguments.runs / "baselines.md", text)
    print(text)


if __name__ == "__main__":
    main()
