"""A benchmark, or two of them compared, as tables in the terminal, as CSV and as one HTML page."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from hfd_edge.bench.diff import Change, Diff, Verdict
from hfd_edge.bench.result import STAGES, BenchFile, Record, Scenario
from hfd_edge.files import write_text
from hfd_edge.report.bench_page import page
from hfd_edge.report.bench_text import bounds, machine_lines, name_of, reasons, worse
from hfd_edge.report.console import table
from hfd_edge.report.page import write_page

_SPREAD = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "jitter_ms")
_POWER = ("mean_w", "peak_w", "idle_w", "energy_j_per_mpx")
_ORDER: tuple[Verdict, ...] = ("regression", "cannot tell", "improvement", "same")
_COLD = ("total_s", "import_s", "load_s", "first_mask_s")


def print_tables(content: BenchFile) -> None:
    """Print a benchmark for people: doubts first, then latency, stages, cold start, memory and power."""
    for text in reasons(content):
        print(f"not valid: {text}")
    timed = [(record, scenario) for record in content.records for scenario in record.scenarios]
    title = "; ".join([content.bundle, *machine_lines(content)])
    if timed:
        columns = ("variant", "of", "p50 ms", "p90", "p99", "max", "jitter", "Mpx/s", "MB", "runs", "valid")
        table(title, columns, [_latency_row(content, *each) for each in timed])
        _print_stages(content, timed)
        _print_power(content, timed)
    else:
        table(title, ("nothing was timed",), [])
    cold = [
        [name_of(record, content), *(_rounded(getattr(record.cold_start, name)) for name in _COLD)]
        for record in content.records
        if record.cold_start is not None
    ]
    if cold:
        print()
        table("Cold start, s", ("variant", "total", "import", "load", "first mask"), cold)


def _latency_row(content: BenchFile, record: Record, scenario: Scenario) -> list[Any]:
    spread = scenario.latency
    times = (spread.p50_ms, spread.p90_ms, spread.p99_ms, spread.max_ms, spread.jitter_ms)
    return [
        name_of(record, content),
        scenario.kind,
        *(_rounded(value) for value in (*times, scenario.throughput_mpx_s, scenario.memory.host_peak_mb)),
        scenario.runs,
        "no" if record.invalid or scenario.invalid else "yes",
    ]


def _print_stages(content: BenchFile, timed: list[tuple[Record, Scenario]]) -> None:
    told = [each for each in timed if each[1].stages]
    names = [name for name in STAGES if any(stage.name == name for _, one in told for stage in one.stages)]
    if not names:
        return
    rows = []
    for record, scenario in told:
        means = {stage.name: stage.mean_ms for stage in scenario.stages}
        rows.append([name_of(record, content), scenario.kind, *(_rounded(means.get(name)) for name in names)])
    print()
    table("Stages, mean ms of a run", ("variant", "of", *(name.replace("_", " ") for name in names)), rows)


def _print_power(content: BenchFile, timed: list[tuple[Record, Scenario]]) -> None:
    print()
    told = [each for each in timed if each[1].power.source is not None]
    if not told:
        print("Power: n/a, no sensor could be read here.")
        return
    rows = [
        [
            *(name_of(record, content), scenario.kind, scenario.power.source),
            *(_rounded(getattr(scenario.power, name)) for name in _POWER),
        ]
        for record, scenario in told
    ]
    table("Power", ("variant", "of", "sensor", "mean W", "peak W", "idle W", "J/Mpx"), rows)


def print_diff(result: Diff) -> None:
    """Print what `compare_benches` found, worst first, and end with the verdict in one sentence."""
    for difference in result.differences:
        print(f"{difference.name}: {difference.old}, now {difference.new}")
    for side, names in (("old", result.only_old), ("new", result.only_new)):
        if names:
            print(f"only in the {side} one: {', '.join(names)}")
    for text in result.not_compared:
        print(f"not compared: {text}")
    changes = sorted(result.changes, key=lambda change: (_ORDER.index(change.verdict), -change.ratio))
    columns = ("variant", "of", "figure", "old", "new", "", "cost", "95 %", "verdict")
    table("", columns, [_change_row(change) for change in changes])
    counts = ", ".join(f"{one} {len(found)}" for one in _ORDER if (found := result.having(one)))
    failed = bool(result.having("regression"))
    print(f"{'FAILED' if failed else 'passed'} at a tolerance of {100 * result.tolerance:g} %: {counts}")
    if result.having("cannot tell"):
        print("Where it cannot tell, the runs are too few or too noisy: measure both sides with more --runs.")


def _change_row(change: Change) -> list[Any]:
    values = [_rounded(change.old), _rounded(change.new), change.unit]
    cost = [worse(change.ratio), bounds(change.bounds)]
    return [change.record, change.scenario, change.figure, *values, *cost, change.verdict]


def write_csv(content: BenchFile, path: Path) -> None:
    """Write one row for each record and scenario, whole or not at all; a record without any has one row.

    Raises:
        StorageError: the file cannot be written.
    """
    rows = [
        _csv_row(content, record, scenario)
        for record in content.records
        for scenario in (record.scenarios or (None,))
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _csv_row(content: BenchFile, record: Record, scenario: Scenario | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "bundle": content.bundle,
        "machine": content.machine.slug,
        "power_mode": content.machine.power_mode,
        "created": content.created,
        "backend": record.backend,
        "precision": record.precision,
        "threads": record.threads,
        "tile_px": record.tile_px,
        "overlap_px": record.overlap_px,
        "bytes": record.bytes,
        "miou": record.miou,
        "golden_agreement": record.golden.agreement,
        **{f"cold_start_{name}": getattr(record.cold_start, name, None) for name in _COLD},
        "valid": not record.invalid and scenario is not None and not scenario.invalid,
        "invalid": " ".join((*record.invalid, *(scenario.invalid if scenario else ()))),
        "scenario": scenario and scenario.kind,
    }
    for name in ("clock", "runs", "warmup_runs", "megapixels", "throughput_mpx_s", "rate_hz", "dropped"):
        row[name] = getattr(scenario, name, None)
    means = {stage.name: stage.mean_ms for stage in scenario.stages} if scenario else {}
    return {
        **row,
        **{f"latency_{name}": getattr(scenario and scenario.latency, name, None) for name in _SPREAD},
        **{f"stage_{name}_mean_ms": means.get(name) for name in STAGES},
        **{
            name: getattr(scenario and scenario.memory, name, None)
            for name in ("host_peak_mb", "device_peak_mb")
        },
        **{name: getattr(scenario and scenario.power, name, None) for name in _POWER},
    }


def render(content: BenchFile, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        MissingExtraError: jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    write_page("bench.html.j2", path, page(content))


def _rounded(value: float | None) -> float | None:
    """Two digits behind the point; none where they would only be noise."""
    return value if value is None else round(value, 2) if abs(value) < 1000 else round(value)
