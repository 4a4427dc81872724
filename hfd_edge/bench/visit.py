"""One visit of a variant: load it, warm it up, time it, and watch everything meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hfd_edge.bench.doubts import OtherLoad, drift_doubt, jitter_doubt, synchronisation_doubt
from hfd_edge.bench.measure import spread, stages, warm_up
from hfd_edge.bench.memory import PeakMemory
from hfd_edge.bench.result import Memory, Power, Scenario
from hfd_edge.bench.sampling import Sampler
from hfd_edge.bench.scenarios import Series, Work
from hfd_edge.bench.sensors import Sensors
from hfd_edge.bench.variants import Variant
from hfd_edge.errors import BenchError
from hfd_edge.runtime.segmenter import Segmenter


@dataclass(frozen=True)
class Visit:
    """What a visit found.

    Attributes:
        warmup_runs: Runs before the timed ones.
        series: The timed ones.
        memory: Peaks, loading and warm-up included.
        power: While they were timed.
        doubts: What shows only while they are timed: not warm, throttled, other programs.
    """

    warmup_runs: int
    series: Series
    memory: Memory
    power: Power
    doubts: tuple[str, ...]


def visit(
    open_segmenter: Callable[[], Segmenter],
    work: Work,
    *,
    runs: int,
    sensors: Sensors,
    tick: Callable[[], None],
) -> Visit:
    """Time so many runs of a variant that is loaded for it, and for nothing else.

    Args:
        open_segmenter: Loads the variant.
        work: What to time.
        runs: Timed runs.
        sensors: Power, temperature and clocks.
        tick: Called after each run.
    Raises:
        HfdEdgeError: the segmentation failed.
    """
    with PeakMemory() as memory, open_segmenter() as segment:
        with OtherLoad() as load:  # of the warm-up too: the timed runs of a GPU are too short to tell
            warmed, cold = warm_up(lambda: work.warm(segment, memory.look), work.rule)
            with Sampler(sensors) as sampler:
                series = work.timed(segment, runs, tick)
        memory.look()
    if not series.runs:
        raise BenchError(f"The {work.kind} gave no mask at all in {runs} runs. Report this as a fault.")
    if min(run.ms for run in series.runs) <= 0:
        raise BenchError(
            f"The clock stood still while a {work.kind} was segmented, so nothing can be timed here. Measure "
            "where the system's monotonic clock works: not in a sandbox that hides or coarsens it."
        )
    power = sampler.power(work.megapixels * len(series.runs) / series.wall_s)
    throttled = f"throttled: {' '.join(sampler.throttled)}" if sampler.throttled else None
    doubts = (cold, load.doubt(), throttled, load.quota_doubt())
    return Visit(warmed, series, memory.read(), power, tuple(doubt for doubt in doubts if doubt))


def summarise(
    work: Work, variant: Variant, visits: Sequence[Visit], *, max_jitter: float, idle_w: float | None
) -> Scenario:
    """Put the visits of a variant together, in the order in which they were made.

    Args:
        work: What was timed.
        variant: What ran.
        visits: At least one.
        max_jitter: Share of the mean beyond which the standard deviation is noise.
        idle_w: Power before the first visit.
    """
    runs = [run for found in visits for run in found.series.runs]
    times = [run.ms for run in runs]
    wall_s = sum(found.series.wall_s for found in visits)
    throughput = work.megapixels * len(runs) / wall_s
    doubts: list[str | None] = [doubt for found in visits for doubt in found.doubts]
    steady = work.kind != "stream"  # what a frame of a stream waits depends on where it meets the others
    if steady:
        doubts += [drift_doubt(times), jitter_doubt(times, most=max_jitter)]
    elif all(run.stages_ms for run in runs):  # but the work on it stays the same
        doubts.append(drift_doubt([sum(run.stages_ms.values()) for run in runs]))
    events = variant.events and work.kind != "scene"
    if work.kind != "scene":  # the mask is in a file, so everything was waited for
        doubts.append(synchronisation_doubt(runs, gpu=variant.gpu))
    device = [run.device_ms for run in runs if run.device_ms is not None]
    dropped = [found.series.dropped for found in visits if found.series.dropped is not None]
    return Scenario(
        kind=work.kind,
        clock="cuda events" if variant.events else "monotonic",
        warmup_runs=sum(found.warmup_runs for found in visits),
        runs=len(runs),
        megapixels=work.megapixels,
        latency=spread(times),
        device=spread(device) if events and device else None,
        throughput_mpx_s=throughput,
        rate_hz=work.rate_hz,
        dropped=sum(dropped) if dropped else None,
        stages=stages(runs, one_by_one=work.kind == "tile"),
        memory=_largest([found.memory for found in visits]),
        power=_joined([found.power for found in visits], throughput=throughput, idle_w=idle_w),
        invalid=_one_of_a_kind([doubt for doubt in doubts if doubt]),
    )


def _one_of_a_kind(doubts: Sequence[str]) -> tuple[str, ...]:
    """The first reason of each kind: that it holds for two visits, or shows in two ways, is no news."""
    kinds: dict[str, str] = {}
    for doubt in doubts:
        kinds.setdefault(doubt.partition(":")[0], doubt)
    return tuple(kinds.values())


def _largest(found: Sequence[Memory]) -> Memory:
    host = [memory.host_peak_mb for memory in found if memory.host_peak_mb is not None]
    device = [memory.device_peak_mb for memory in found if memory.device_peak_mb is not None]
    return Memory(host_peak_mb=max(host, default=None), device_peak_mb=max(device, default=None))


def _joined(found: Sequence[Power], *, throughput: float, idle_w: float | None) -> Power:
    """Power of all visits; what lies between two of them is not timed: their samples follow one another."""
    samples, offset_s = [], 0.0
    for power in found:
        samples += [sample.model_copy(update={"at_s": offset_s + sample.at_s}) for sample in power.samples]
        offset_s = samples[-1].at_s if samples else 0.0
    means = [(power.mean_w, len(power.samples) or 1) for power in found if power.mean_w is not None]
    mean_w = sum(mean * count for mean, count in means) / sum(count for _, count in means) if means else None
    return Power(
        source=next((power.source for power in found if power.source), None),
        idle_w=idle_w,
        mean_w=mean_w,
        peak_w=max((power.peak_w for power in found if power.peak_w is not None), default=None),
        energy_j_per_mpx=None if mean_w is None else mean_w / throughput,
        samples=tuple(samples),
    )
