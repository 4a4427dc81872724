#!/usr/bin/env python
"""Train SAR-only baselines: python train/baselines.py RECIPE.toml --data DIR --runs DIR --seeds 0 1 2.

Each architecture and seed is a run folder under --runs; beside them stand baselines.json, .md and .png, with
the SAR-only student in them to compare with. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfd_edge.comparison.ablation import result_rows, summarise
from hfd_edge.config import parse
from hfd_edge.errors import HfdEdgeError
from hfd_edge.files import write_json
from hfd_edge.hfdnet.baselines import ARCHITECTURES
from hfd_edge.report.ablation import write_table
from hfd_edge.report.console import bars
from hfd_edge.training.ablation import Table
from hfd_edge.training.ablation_plan import AblationPlan, jobs_of


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

    wanted = {
        "name": "baselines",
        "recipe": arguments.recipe.name,
        "seeds": arguments.seeds,
        "overrides": arguments.overrides,
        "rows": [{"method": "sar_only"}, {"method": "baseline", "arch": arguments.arch}],
    }
    plan = parse(wanted, AblationPlan, source="the arguments")
    table = Table(jobs_of(plan, base=arguments.recipe.parent), arguments.data, arguments.runs)
    with bars() as progress:
        table.run(parallel=arguments.parallel, progress=progress)
    finished, path = table.results(), arguments.runs / "baselines.json"
    lines = summarise([(result.row, result.counts) for result in finished])
    write_json(path, {"rows": result_rows([result.row for result in finished], lines)})
    print(write_table(lines, path, title="SAR-only baselines"))


if __name__ == "__main__":
    try:
        main()
    except HfdEdgeError as error:
        sys.exit(f"error: {error}")
