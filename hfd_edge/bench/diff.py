"""Two benchmarks compared: what became slower or larger, and whether that can be chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hfd_edge.bench.bootstrap import Bounds, ratio_bounds
from hfd_edge.bench.result import BenchFile, ColdStart, Record, Scenario
from hfd_edge.errors import BenchError

Verdict = Literal["regression", "improvement", "same", "cannot tell"]

MEMORY_NOISE_MB = 8.0
"""Peak memory of two runs of one program differs by this much: arenas of the allocator, stacks of threads."""


@dataclass(frozen=True)
class Change:
    """One figure on both sides.

    Attributes:
        record: Backend and precision, for example "onnxruntime int8".
        scenario: Kind of scenario; "cold start" for that of the record.
        figure: For example "latency p50".
        unit: Of `old` and `new`.
        ratio: Cost of new over cost of old: above 1 is worse, for throughput too.
        bounds: Where the ratio lies in 95 of 100 repetitions; None where the runs cannot tell.
        verdict: "regression": the bounds lie wholly above 1 + tolerance. "improvement": wholly below
            1 / (1 + tolerance), so exchanged sides give exchanged verdicts. "same": the upper bound is not
            above 1 + tolerance. "cannot tell": none of these.
    """

    record: str
    scenario: str
    figure: str
    unit: str
    old: float
    new: float
    ratio: float
    bounds: Bounds | None
    verdict: Verdict


@dataclass(frozen=True)
class Difference:
    """Something else that differs between the two files, as text; "-" where a side does not have it."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Diff:
    """What `compare_benches` found.

    Attributes:
        tolerance: Share by which a figure may become worse.
        changes: Every figure that both sides have, in the order of the old file.
        differences: Machine, versions, commit and models that are not the same.
        only_old: Records and scenarios that the new file lacks.
        only_new: Records and scenarios that the old file lacks.
        not_compared: Scenarios on both sides that did other work, a sentence each.
    """

    tolerance: float
    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    not_compared: tuple[str, ...]

    def having(self, verdict: Verdict) -> tuple[Change, ...]:
        """The changes with this verdict."""
        return tuple(change for change in self.changes if change.verdict == verdict)


def compare_benches(
    old: BenchFile, new: BenchFile, *, tolerance: float, across: bool = False, allow_invalid: bool = False
) -> Diff:
    """Compare every figure of the records and scenarios that both files have.

    Args:
        old: What is compared against.
        new: What has to hold its own.
        tolerance: Share by which a figure may become worse: 0.05 for 5 %. It covers what differs between two
            starts of one program, which the runs of one file do not show, and that of many figures some
            leave their bounds by chance.
        across: Compare although machine, power mode, clocks or threads differ.
        allow_invalid: Compare although a record says that its figures cannot be trusted.
    Raises:
        BenchError: the machines or their settings differ, a record is invalid, or nothing can be compared.
        ValueError: the tolerance is negative.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}, expected 0 or more")
    if not allow_invalid:
        _refuse_invalid(old, "old")
        _refuse_invalid(new, "new")
    settings = tuple(_settings(old, new))
    if settings and not across:
        told = "; ".join(f"{one.name}: {one.old} and now {one.new}" for one in settings)
        raise BenchError(
            f"The two benchmarks were not made alike ({told}), so a difference would not be the program's. "
            "Measure both on one machine with the same settings, or compare nevertheless with --across."
        )
    olds, news = _parts(old), _parts(new)
    common = [name for name in olds if name in news]
    other_work = {name: reason for name in common if (reason := _other_work(olds[name], news[name]))}
    unlike = {name for name in common if _process(olds, name) != _process(news, name)}
    changes = tuple(
        _change(name, figure, tolerance)
        for name in common
        if name not in other_work
        for figure in _figures(olds[name], news[name])
        if not (figure.name == _HOST and name in unlike)
    )
    result = Diff(
        tolerance=tolerance,
        changes=changes,
        differences=(*settings, *_background(old, new)),
        only_old=tuple(" ".join(name) for name in olds if name not in news),
        only_new=tuple(" ".join(name) for name in news if name not in olds),
        not_compared=(
            *(f"{' '.join(name)}: {reason}" for name, reason in other_work.items()),
            *(f"{' '.join(name)} {_HOST}: {_UNLIKE}" for name in common if name in unlike),
        ),
    )
    if not changes:
        raise BenchError(_nothing(result))
    return result


_Name = tuple[str, str]  # record and scenario
_Part = Scenario | ColdStart
_HOST = "host memory"
_UNLIKE = "that of processes which held different things; measure neither side with --no-cold-start"


@dataclass(frozen=True)
class _Figure:
    name: str
    unit: str
    old: float
    new: float
    ratio: float
    bounds: Bounds | None


def _record_name(record: Record) -> str:
    return f"{record.backend} {record.precision}"


def _parts(content: BenchFile) -> dict[_Name, _Part]:
    parts: dict[_Name, _Part] = {}
    for record in content.records:
        for scenario in record.scenarios:
            parts[_record_name(record), scenario.kind] = scenario
        if record.cold_start is not None:
            parts[_record_name(record), "cold start"] = record.cold_start
    return parts


def _process(parts: dict[_Name, _Part], name: _Name) -> set[str]:
    """Variants that shared the process whose memory was measured; none where it had one of its own."""
    return set() if (name[0], "cold start") in parts else {record for record, _ in parts}


def _refuse_invalid(content: BenchFile, side: str) -> None:
    told = [
        f"{_record_name(record)}{where}: {reason.rstrip('.')}"
        for record in content.records
        for where, reasons in [
            ("", record.invalid),
            *((f" {scenario.kind}", scenario.invalid) for scenario in record.scenarios),
        ]
        for reason in reasons
    ]
    if told:
        raise BenchError(
            f"The {side} benchmark holds figures that cannot be trusted ({'; '.join(told)}). Measure it "
            "again, or compare nevertheless with --allow-invalid."
        )


def _settings(old: BenchFile, new: BenchFile) -> Iterator[Difference]:
    """What makes figures incomparable: machine, power mode, clocks, threads."""
    # The slug of a GPU or board says nothing of the CPU beside it, or of its JetPack.
    machine = "slug" if old.machine.slug != new.machine.slug else "text"
    for name, field in (("machine", machine), ("power mode", "power_mode"), ("clocks", "clocks")):
        yield from _difference(name, getattr(old.machine, field), getattr(new.machine, field))
    for one, other in _common_records(old, new):
        yield from _difference(f"threads of {_record_name(one)}", one.threads, other.threads)


def _background(old: BenchFile, new: BenchFile) -> Iterator[Difference]:
    """What may explain a change: versions, commit, models, tiles."""
    for name in dict.fromkeys((*old.versions, *new.versions)):
        yield from _difference(name, old.versions.get(name), new.versions.get(name))
    yield from _difference("commit", old.commit, new.commit)
    for one, other in _common_records(old, new):
        name = _record_name(one)
        yield from _difference(f"model of {name}", one.model_sha256[:12], other.model_sha256[:12])
        yield from _difference(f"tile of {name}", f"{one.tile_px} px", f"{other.tile_px} px")
        yield from _difference(f"overlap of {name}", f"{one.overlap_px} px", f"{other.overlap_px} px")


def _common_records(old: BenchFile, new: BenchFile) -> Iterator[tuple[Record, Record]]:
    others = {_record_name(record): record for record in new.records}
    for record in old.records:
        if _record_name(record) in others:
            yield record, others[_record_name(record)]


def _difference(name: str, old: object, new: object) -> Iterator[Difference]:
    if old != new:
        yield Difference(name, *("-" if value is None else str(value) for value in (old, new)))


def _other_work(old: _Part, new: _Part) -> str | None:
    """Why two scenarios of one kind are not the same work; None if they are."""
    if not (isinstance(old, Scenario) and isinstance(new, Scenario)):
        return None
    if old.megapixels != new.megapixels:
        return f"a run was of {old.megapixels:g} megapixels and is now of {new.megapixels:g}"
    if old.rate_hz != new.rate_hz:
        return f"frames were offered at {old.rate_hz or 0:g} a second and are now at {new.rate_hz or 0:g}"
    return None


def _figures(old: _Part, new: _Part) -> Iterator[_Figure]:
    if isinstance(old, ColdStart) and isinstance(new, ColdStart):
        known = bool(old.samples_s and new.samples_s)
        bounds = ratio_bounds(old.samples_s, new.samples_s)["p50"] if known else None
        yield _Figure("total", "s", old.total_s, new.total_s, new.total_s / old.total_s, bounds)
        yield from _memory(_HOST, old.peak_mb, new.peak_mb)
    elif isinstance(old, Scenario) and isinstance(new, Scenario):
        first, second = old.latency, new.latency
        found = ratio_bounds(first.samples_ms, second.samples_ms)
        for name, before, after in (
            ("p50", first.p50_ms, second.p50_ms),
            ("p99", first.p99_ms, second.p99_ms),
        ):
            yield _Figure(f"latency {name}", "ms", before, after, after / before, found[name])
        if old.device is not None and new.device is not None:
            one, other = old.device.p50_ms, new.device.p50_ms
            within = ratio_bounds(old.device.samples_ms, new.device.samples_ms)["p50"]
            yield _Figure("device p50", "ms", one, other, other / one, within)
        yield _kept(old, new) if old.kind == "stream" else _throughput(old, new, found["mean"])
        yield from _memory(_HOST, old.memory.host_peak_mb, new.memory.host_peak_mb)
        yield from _memory("device memory", old.memory.device_peak_mb, new.memory.device_peak_mb)


def _throughput(old: Scenario, new: Scenario, mean: Bounds | None) -> _Figure:
    ratio = old.throughput_mpx_s / new.throughput_mpx_s
    # One figure a file: it is as uncertain as the mean of the runs that it was made of.
    scale = ratio / (new.latency.mean_ms / old.latency.mean_ms)
    bounds = None if mean is None else Bounds(mean.low * scale, mean.high * scale)
    return _Figure("throughput", "Mpx/s", old.throughput_mpx_s, new.throughput_mpx_s, ratio, bounds)


def _kept(old: Scenario, new: Scenario) -> _Figure:
    """Frames that a stream did not drop. No latency shows those that it did, and the rate is given."""
    (first, noise), (second, other) = (_share(one) for one in (old, new))
    bounds = Bounds(
        low=max(first - noise, first / 2) / min(second + other, 1.0),
        high=min(first + noise, 1.0) / max(second - other, second / 2),
    )
    return _Figure("frames kept", "%", 100 * first, 100 * second, first / second, bounds)


def _share(stream: Scenario) -> tuple[float, float]:
    """Share of the frames that gave a mask, and two standard deviations of it if drops are chance."""
    dropped = stream.dropped or 0
    offered = stream.runs + dropped
    return stream.runs / offered, 2 * math.sqrt(max(dropped, 1)) / offered


def _memory(name: str, old: float | None, new: float | None) -> Iterator[_Figure]:
    if old is not None and new is not None:
        # Amounts below the noise count as the noise: a ratio of two nothings says nothing.
        first, second = max(old, MEMORY_NOISE_MB), max(new, MEMORY_NOISE_MB)
        bounds = Bounds((second - MEMORY_NOISE_MB) / first, (second + MEMORY_NOISE_MB) / first)
        yield _Figure(name, "MB", old, new, second / first, bounds)


def _change(name: _Name, figure: _Figure, tolerance: float) -> Change:
    return Change(
        record=name[0],
        scenario=name[1],
        figure=figure.name,
        unit=figure.unit,
        old=figure.old,
        new=figure.new,
        ratio=figure.ratio,
        bounds=figure.bounds,
        verdict=_verdict(figure.bounds, tolerance),
    )


def _verdict(bounds: Bounds | None, tolerance: float) -> Verdict:
    if bounds is None:
        return "cannot tell"
    if bounds.low > 1 + tolerance:
        return "regression"
    if bounds.high < 1 / (1 + tolerance):
        return "improvement"
    return "same" if bounds.high <= 1 + tolerance else "cannot tell"


def _nothing(result: Diff) -> str:
    sides = [
        f"only in the {side} one: {', '.join(names)}"
        for side, names in (("old", result.only_old), ("new", result.only_new))
        if names
    ]
    told = "; ".join([*sides, *result.not_compared]) or "neither file holds a timed scenario"
    return (
        f"The two benchmarks have nothing in common that can be compared ({told}). Measure the same "
        "variants and scenarios on both sides."
    )
