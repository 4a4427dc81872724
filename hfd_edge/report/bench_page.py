"""What the page of a benchmark shows, as plain values for its template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hfd_edge.bench.result import STAGES, BenchFile, ColdStart, Kind, Record, Sample, Scenario
from hfd_edge.report import bench_charts as charts
from hfd_edge.report.bench_text import machine_lines, name_of, number, reasons
from hfd_edge.report.chart import HEIGHT, WIDTH, Point, scatter

_KINDS: dict[Kind, str] = {
    "tile": "One tile after the other",
    "stream": "A stream of frames",
    "scene": "A whole scene, from file to file",
}
_STAGE_NAMES = {"copy_in": "copy in", "copy_out": "copy out"}
_SENSORS: tuple[tuple[str, str, Callable[[Sample], float | None]], ...] = (
    ("power", "W", lambda sample: sample.power_w),
    ("temperature", "°C", lambda sample: sample.temperature_c),
    ("clock", "MHz", lambda sample: sample.clock_mhz),
)
_LEAST_DRAWN = 10  # a histogram of fewer runs shows less than the runs themselves
_CAUTION = (
    "Figures belong to the machine, power mode, clocks and versions named above. Another machine "
    "gives others, and so does the same one in another power mode.",
    "A percentile is of the runs that were timed; of fewer than a hundred runs the 99th "
    "percentile is the slowest run, or nearly so.",
    "Two measurements of one program on one machine differ. hfd-edge bench diff says whether a difference "
    "can be chance.",
)

Timed = list[tuple[Record, Scenario]]


def page(content: BenchFile) -> dict[str, Any]:
    """Everything that bench.html.j2 takes."""
    timed = {kind: _timed(content, kind) for kind in _KINDS}
    kinds = [kind for kind, found in timed.items() if found]
    return {
        "title": f"{content.bundle}: speed on {content.machine.text}",
        "not_built": "none",
        "facts": _facts(content),
        "reasons": reasons(content),
        "not_timed": [
            *(
                f"{name_of(record, content)}, see above."
                for record in content.records
                if not record.scenarios
            ),
            *content.not_run,
        ],
        "figures": _figures(content, timed),
        "scatter": _accuracy(content, timed),
        "scatter_width": WIDTH,
        "scatter_height": HEIGHT,
        "width": charts.WIDTH,
        "variants": [_variant(content, record) for record in content.records],
        "kinds": [_kind(content, kind, timed[kind]) for kind in kinds],
        "sensors": list(_sensors(content, timed)),
        "power_rows": [
            _power_row(content, record, one)
            for kind in kinds
            for record, one in timed[kind]
            if one.power.source
        ],
        "cold": _cold(content),
        "memory": list(_memory(content, timed)),
        "shared": any(record.scenarios and record.cold_start is None for record in content.records),
        "caution": _CAUTION,
    }


def _first(timed: dict[Kind, Timed]) -> Kind:
    """The scenario that stands for a variant: a tile, if there is one."""
    return next((kind for kind, found in timed.items() if found), "tile")


def _timed(content: BenchFile, kind: Kind) -> Timed:
    return [(record, found) for record in content.records if (found := record.scenario(kind)) is not None]


def _facts(content: BenchFile) -> list[tuple[str, str, bool]]:
    """Name, text, and whether it takes a line of its own."""
    machine = content.machine
    facts = [
        ("Bundle", f"{content.bundle}, SHA-256 {content.bundle_sha256[:12]}", True),
        ("Machine", "; ".join(machine_lines(content)), True),
        ("GPU", machine.gpu or "", False),
        ("Software", ", ".join(f"{name} {version}" for name, version in content.versions.items()), True),
        ("Command", content.command, True),
        ("Commit", (content.commit or "")[:12], False),
        ("Made", content.created.replace("T", " ").replace("Z", " UTC").replace("+00:00", " UTC"), False),
    ]
    return [fact for fact in facts if fact[1]]


def _figures(content: BenchFile, timed: dict[Kind, Timed]) -> list[dict[str, str]]:
    """Four numbers of the fastest variant that can be trusted."""
    trusted = {
        kind: [(record, one) for record, one in found if not record.invalid and not one.invalid]
        for kind, found in timed.items()
    }
    kind = _first(trusted)
    if not trusted[kind]:
        return []
    record, fastest = min(trusted[kind], key=lambda each: each[1].latency.p50_ms)
    work = f"a tile of {record.tile_px} px" if kind == "tile" else f"a {kind}"
    spread = fastest.latency
    latency = _figure(
        f"Fastest: {name_of(record, content)}",
        number(spread.p50_ms),
        "ms",
        f"median of {work}; 99 of 100 within {number(spread.p99_ms)} ms",
    )
    scene = record.scenario("scene")
    moved, of = (
        (scene, "of a scene, file to file") if scene and not scene.invalid else (fastest, f"of {work}")
    )
    energy = moved.power.energy_j_per_mpx
    spent = "energy n/a" if energy is None else f"{number(energy)} J a megapixel by {moved.power.source}"
    throughput = _figure("Throughput", number(moved.throughput_mpx_s), "Mpx/s", f"{of}; {spent}")
    return [latency, throughput, _cold_figure(record.cold_start), _memory_figure(record)]


def _cold_figure(cold: ColdStart | None) -> dict[str, str]:
    if cold is None:
        return _figure("Cold start", "not measured", mood="absent")
    text = f"import {cold.import_s:.2f}, load {cold.load_s:.2f}, first mask {cold.first_mask_s:.2f} s"
    return _figure("Cold start", f"{cold.total_s:.2f}", "s", text)


def _memory_figure(record: Record) -> dict[str, str]:
    peaks = [
        (one.memory.host_peak_mb, one) for one in record.scenarios if one.memory.host_peak_mb is not None
    ]
    if not peaks:
        return _figure("Peak memory", "not measured", mood="absent")
    peak, scenario = max(peaks, key=lambda each: each[0])
    device = scenario.memory.device_peak_mb
    beside = "" if device is None else f"; {number(device)} MB on the device"
    return _figure("Peak memory", number(peak), "MB", f"of the whole process, {scenario.kind}{beside}")


def _figure(name: str, value: str, unit: str = "", text: str = "", *, mood: str = "plain") -> dict[str, str]:
    return {"name": name, "value": value, "unit": unit, "text": text, "mood": mood}


def _accuracy(content: BenchFile, timed: dict[Kind, Timed]) -> dict[str, Any] | None:
    """The scatter of all variants that have a score and a time; None without any."""
    kind = _first(timed)
    points = [
        Point(
            label=name_of(record, content) + (", not valid" if record.invalid or one.invalid else ""),
            kind=record.precision,
            x=one.latency.p50_ms,
            y=100 * record.miou,
            size=record.bytes,
        )
        for record, one in timed[kind]
        if record.miou is not None
    ]
    if not points:
        return None
    spoken = "; ".join(
        f"{one.label}, {one.y:.2f} % mIoU, {one.x:.1f} ms, {one.size / 1e6:.1f} MB" for one in points
    )
    return {**scatter(points), "spoken": spoken, "of": kind}


def _variant(content: BenchFile, record: Record) -> dict[str, str]:
    golden = record.golden
    return {
        **_head(content, record, *record.scenarios),
        "miou": "n/a" if record.miou is None else f"{100 * record.miou:.2f}",
        "size": f"{record.bytes / 1e6:.1f}",
        "golden": "no golden tiles" if golden.agreement is None else f"{100 * golden.agreement:.2f}",
        "required": f"{100 * golden.required:.1f}",
        "tiles": str(golden.tiles),
        "threads": str(record.threads),
        "tile": f"{record.tile_px}, overlap {record.overlap_px}",
    }


def _head(content: BenchFile, record: Record, *scenarios: Scenario) -> dict[str, str]:
    """Name and colour of a variant, and whether its figures from these scenarios can be trusted."""
    valid = not record.invalid and not any(one.invalid for one in scenarios)
    return {
        "name": name_of(record, content),
        "precision": record.precision,
        "doubt": "" if valid else "not valid",
    }


def _kind(content: BenchFile, kind: Kind, timed: Timed) -> dict[str, Any]:
    """Everything about one scenario: table, distributions, stages."""
    first = timed[0][1]
    work = {
        "tile": f"{timed[0][0].tile_px} x {timed[0][0].tile_px} pixels, from values to labels.",
        "stream": f"{first.rate_hz or 0:g} frames a second were offered; late ones are dropped. "
        "Time from the offer of a frame to its labels.",
        "scene": f"{number(first.megapixels)} megapixels, read, segmented and written.",
    }[kind]
    staged = [(record, one) for record, one in timed if one.stages]
    end = max((_end(one) for _, one in staged), default=1.0)
    return {
        "id": kind,
        "title": _KINDS[kind],
        "work": work,
        "clock": " and ".join(dict.fromkeys(one.clock for _, one in timed)),
        "stream": kind == "stream",
        "rows": [_latency_row(content, record, one) for record, one in timed],
        "histograms": [_histogram(content, record, one) for record, one in timed if one.runs >= _LEAST_DRAWN],
        "few": [
            f"{name_of(record, content)}: {', '.join(map(number, one.latency.samples_ms))} ms"
            for record, one in timed
            if one.runs < _LEAST_DRAWN
        ],
        "timelines": _told_once(
            [
                {
                    **_head(content, record, one),
                    **charts.lanes(_stage_lanes(one), high=1.02 * end),
                    "text": _stage_note(one),
                }
                for record, one in staged
            ]
        ),
    }


def _histogram(content: BenchFile, record: Record, one: Scenario) -> dict[str, Any]:
    spread = one.latency
    return {
        **_head(content, record, one),
        **charts.histogram(spread.samples_ms, p50_ms=spread.p50_ms, p99_ms=spread.p99_ms),
        "text": f"p50 {number(spread.p50_ms)}, p99 {number(spread.p99_ms)}, "
        f"max {number(spread.max_ms)} ms; {one.runs} runs",
    }


def _told_once(drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Charts and their notes; a note that they share stands above them."""
    notes = {chart["text"] for chart in drawn}
    if len(notes) != 1:
        return {"note": "", "charts": drawn}
    return {"note": notes.pop(), "charts": [{**chart, "text": ""} for chart in drawn]}


def _latency_row(content: BenchFile, record: Record, one: Scenario) -> dict[str, str]:
    spread = one.latency
    times = {
        name: number(getattr(spread, f"{name}_ms")) for name in ("p50", "p90", "p95", "p99", "max", "mean")
    }
    return {
        **_head(content, record, one),
        **times,
        "jitter": number(spread.jitter_ms),
        "throughput": number(one.throughput_mpx_s),
        "runs": f"{one.runs} after {one.warmup_runs}",
        "dropped": "–" if one.dropped is None else str(one.dropped),
    }


def _has_starts(one: Scenario) -> bool:
    return all(stage.start_ms is not None for stage in one.stages)


def _overlap(one: Scenario) -> bool:
    """Whether stages that have no known start cannot have followed each other."""
    return sum(stage.p50_ms for stage in one.stages) > 1.05 * one.latency.p50_ms


def _stage_lanes(one: Scenario) -> list[charts.Lane]:
    bars = [charts.Lane("whole run", "whole", 0.0, one.latency.p50_ms, f"{number(one.latency.p50_ms)} ms")]
    known, overlap, passed = _has_starts(one), _overlap(one), 0.0
    for stage in sorted(
        one.stages, key=lambda stage: STAGES.index(stage.name) if stage.name in STAGES else 99
    ):
        start = (stage.start_ms or 0.0) if known else 0.0 if overlap else passed
        name = _STAGE_NAMES.get(stage.name, stage.name)
        bars.append(charts.Lane(name, stage.name, start, stage.p50_ms, f"{number(stage.p50_ms)} ms"))
        passed += stage.p50_ms
    return bars


def _end(one: Scenario) -> float:
    return max(bar.start + bar.length for bar in _stage_lanes(one))


def _stage_note(one: Scenario) -> str:
    if _has_starts(one):
        return "Medians of start and length."
    if _overlap(one):
        return (
            "The stages ran at the same time; when each began was not recorded, so all are drawn from zero."
        )
    return "Median lengths, drawn one after the other."


def _sensors(content: BenchFile, timed: dict[Kind, Timed]) -> Iterator[dict[str, Any]]:
    """A chart for each variant and scenario: power, or what else was read; other sensors in words."""
    for kind, found in timed.items():
        for record, one in found:
            series = {name: _series(one, value) for name, _, value in _SENSORS}
            drawn = next((name for name, points in series.items() if points), None)
            if drawn is None:
                continue
            told = "; ".join(_range(name, unit, series[name]) for name, unit, _ in _SENSORS if series[name])
            yield {
                **_head(content, record, one),
                **charts.line(series[drawn], base=one.power.idle_w if drawn == "power" else None),
                "of": kind,
                "kind": drawn,
                "text": told[0].upper() + told[1:],
            }


def _series(one: Scenario, value: Callable[[Sample], float | None]) -> list[tuple[float, float]]:
    return [(each.at_s, read) for each in one.power.samples if (read := value(each)) is not None]


def _range(name: str, unit: str, points: list[tuple[float, float]]) -> str:
    low, high = (number(pick(value for _, value in points)) for pick in (min, max))
    return f"{name} {low if low == high else f'{low} to {high}'}\N{NO-BREAK SPACE}{unit}"


def _power_row(content: BenchFile, record: Record, one: Scenario) -> dict[str, str]:
    power = one.power
    values = {
        name: _optional(getattr(power, name)) for name in ("idle_w", "mean_w", "peak_w", "energy_j_per_mpx")
    }
    head = _head(content, record, one)
    return {**head, "of": one.kind, "source": power.source or "n/a", **values}


def _cold(content: BenchFile) -> dict[str, Any]:
    started = [(record, record.cold_start) for record in content.records if record.cold_start is not None]
    high = 1.02 * max((cold.total_s for _, cold in started), default=1.0)
    return _told_once(
        [
            {
                **_head(content, record),
                **charts.lanes(_cold_lanes(cold), high=high),
                "text": _cold_note(cold),
            }
            for record, cold in started
        ]
    )


def _cold_note(cold: ColdStart) -> str:
    processes = f"Median of {cold.runs} {'process' if cold.runs == 1 else 'processes'}"
    return f"{processes}." if cold.peak_mb is None else f"{processes}; peak memory {number(cold.peak_mb)} MB."


def _cold_lanes(cold: ColdStart) -> list[charts.Lane]:
    steps = [
        ("import", "read", cold.import_s),
        ("load", "copy_in", cold.load_s),
        ("first mask", "infer", cold.first_mask_s),
    ]
    before = max(cold.total_s - sum(seconds for *_, seconds in steps), 0.0)
    bars = [charts.Lane("in all", "whole", 0.0, cold.total_s, f"{cold.total_s:.2f} s")]
    passed = 0.0
    for name, kind, seconds in [("interpreter", "whole", before), *steps]:
        bars.append(charts.Lane(name, kind, passed, seconds, f"{seconds:.2f} s"))
        passed += seconds
    return bars


def _memory(content: BenchFile, timed: dict[Kind, Timed]) -> Iterator[dict[str, Any]]:
    """One chart for each place (host, device) and scenario, a bar a variant."""
    places = (("Host", "host_peak_mb"), ("Device", "device_peak_mb"))
    peaks = {
        (place, kind): [
            (name_of(record, content), record.precision, amount)
            for record, one in found
            if (amount := getattr(one.memory, field)) is not None
        ]
        for place, field in places
        for kind, found in timed.items()
    }
    for (place, kind), found in peaks.items():
        if found:
            high = max(amount for (other, _), each in peaks.items() if other == place for *_, amount in each)
            bars = [
                charts.Lane(name, css, 0.0, amount, f"{number(amount)} MB") for name, css, amount in found
            ]
            yield {"name": f"{place}, {kind}", "doubt": "", **charts.lanes(bars, high=1.02 * max(high, 1.0))}


def _optional(value: float | None) -> str:
    return "n/a" if value is None else number(value)
