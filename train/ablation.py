#!/usr/bin/env python
"""Train and compare all runs of a plan: python train/ablation.py PLAN.toml --data DIR --runs DIR.

Stopped, it goes on where it was. Ends with benchmarks/results/<machine>/ablation-<name>.{json,md,png}.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfd_edge.comparison.ablation import result_rows, summarise
from hfd_edge.config import read_toml
from hfd_edge.errors import HfdEdgeError
from hfd_edge.report.ablation import write_table
from hfd_edge.report.console import bars, table
from hfd_edge.training.ablation import Table
from hfd_edge.training.ablation_plan import AblationPlan, jobs_of, select

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # where result files are written
from _results import write  # noqa: E402


def main() -> None:
    """Read the plan, run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="see train/recipes/ablation-ombria.toml")
    parser.add_argument("--data", type=Path, help="data folder, instead of the plan's")
    parser.add_argument("--runs", type=Path, required=True, help="folder that takes the run folders")
    parser.add_argument("--only", metavar="PATTERN", help="runs whose name matches, and their teachers")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="processes at a time")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their steps")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that takes benchmarks/results")
    arguments = parser.parse_args()

    plan = read_toml(arguments.plan, AblationPlan)
    jobs = jobs_of(plan, base=arguments.plan.parent)
    everything = Table(jobs, arguments.data or Path(plan.data), arguments.runs)
    chosen = Table(select(everything.jobs, arguments.only), everything.data, everything.runs)
    if arguments.dry_run:
        rows = [[name, count, chosen.state(name)] for name, count in chosen.check().items()]
        table(f"{plan.name}: {len(rows)} runs", ["run", "steps", "state"], rows)
        return
    with bars() as progress:
        chosen.run(parallel=arguments.parallel, progress=progress)
    finished = everything.results()
    lines = summarise([(result.row, result.counts) for result in finished])
    path = write(f"ablation-{plan.name}", result_rows([result.row for result in finished], lines),
                 command=" ".join(["python", *sys.argv]), root=arguments.root)  # fmt: skip
    write_table(lines, path, title=f"Ablation {plan.name}", missing=len(jobs) - len(finished))
    print(path)


if __name__ == "__main__":
    try:
        main()
    except HfdEdgeError as error:
        sys.exit(f"error: {error}")
