"""A benchmark in words: what its tables and its page both say."""

from __future__ import annotations

from hfd_edge.bench.bootstrap import Bounds
from hfd_edge.bench.result import BenchFile, Record
from hfd_edge.report.page import signed
from hfd_edge.report.pictures import PREDICTIONS


def name_of(record: Record, content: BenchFile) -> str:
    """What a record is called: its precision, and its backend where there are several."""
    several = len({one.backend for one in content.records}) > 1
    caption = PREDICTIONS.get(record.precision, record.precision)
    return f"{caption} {record.backend}" if several else caption


def reasons(content: BenchFile) -> list[str]:
    """Why figures cannot be trusted, a sentence each, with the variant that it is about."""
    told = []
    for record in content.records:
        name = name_of(record, content)
        told += [f"{name}: {reason}" for reason in record.invalid]
        told += [f"{name}, {one.kind}: {reason}" for one in record.scenarios for reason in one.invalid]
    return told


def machine_lines(content: BenchFile) -> list[str]:
    """The machine, its settings, and what ran on it."""
    machine = content.machine
    backends = " and ".join(dict.fromkeys(record.backend for record in content.records))
    lines = [machine.text, backends, _threads(content)]
    lines += [f"power mode {machine.power_mode}"] if machine.power_mode else []
    return [*lines, *([f"clocks {machine.clocks}"] if machine.clocks else [])]


def _threads(content: BenchFile) -> str:
    counts = sorted({record.threads for record in content.records})
    return f"{' and '.join(map(str, counts))} thread{'' if counts == [1] else 's'}"


def number(value: float) -> str:
    """Three digits; whole numbers from a hundred on."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def worse(ratio: float) -> str:
    """A ratio of costs as percent with its sign: "+12.0 %" costs more."""
    return f"{signed(100 * (ratio - 1))} %"


def bounds(found: Bounds | None) -> str:
    """Bounds of a ratio of costs, in percent."""
    return "-" if found is None else f"{worse(found.low)} to {worse(found.high)}"
