"""bench diff: the gate that a change has to pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli.bench import bench_app
from hfd_edge.cli.common import Json


def _share(text: str) -> float:
    """ "5%" or "0.05" as 0.05."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{text!r} is not a share. Write for example 5% or 0.05; at most 100%.")
    return share


@bench_app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="bench.json to compare against, or its folder.", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="bench.json to judge, or its folder.", metavar="NEW")],
    fail_over: Annotated[
        str, typer.Option(metavar="SHARE", help="How much worse a figure may become: 5% or 0.05.")
    ] = "5%",
    across: Annotated[
        bool, typer.Option("--across", help="Compare although machine, power mode, clocks or threads differ.")
    ] = False,
    allow_invalid: Annotated[
        bool, typer.Option("--allow-invalid", help="Compare although a run says that it cannot be trusted.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare two benchmarks and exit with 1 if anything became slower or larger.

    Latency (median and 99th percentile), throughput, frames that a stream kept, peak memory and cold start of
    every variant that both have. A regression is a figure whose 95 % bounds lie wholly above the limit; where
    the runs are too few or too noisy for that, "cannot tell" is said, which does not fail: measure with more
    runs.

    Example: `hfd-edge bench diff main/bench.json branch/bench.json --fail-over 5%`
    """
    from dataclasses import asdict

    from hfd_edge.bench.diff import compare_benches
    from hfd_edge.bench.result import read_bench
    from hfd_edge.report.bench import print_diff
    from hfd_edge.report.console import print_json

    tolerance = _share(fail_over)
    sides = [read_bench(path / "bench.json" if path.is_dir() else path) for path in (old, new)]
    result = compare_benches(*sides, tolerance=tolerance, across=across, allow_invalid=allow_invalid)
    failed = bool(result.having("regression"))
    if json:
        print_json({"failed": failed, **asdict(result)})
    else:
        print_diff(result)
    if failed:
        raise typer.Exit(1)
