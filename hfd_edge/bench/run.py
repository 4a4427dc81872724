"""Runs a benchmark: check the output, time every variant there and back again, say what to doubt."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bench.coldstart import Start, start_once
from hfd_edge.bench.coldstart import summarise as summarise_starts
from hfd_edge.bench.golden import Inputs, load_inputs
from hfd_edge.bench.machine import describe_machine
from hfd_edge.bench.options import RATE_HZ, BenchOptions
from hfd_edge.bench.provenance import versions
from hfd_edge.bench.result import BenchFile, Kind, Record, Scenario
from hfd_edge.bench.sampling import Sampler
from hfd_edge.bench.scenarios import Frames, Scene, Tiles, Work, scene_work
from hfd_edge.bench.sensors import Sensors, open_sensors
from hfd_edge.bench.variants import Variant, file_of, find_variants
from hfd_edge.bench.visit import Visit, summarise, visit
from hfd_edge.bundle import Bundle
from hfd_edge.environment import allowed_cores, commit
from hfd_edge.files import sha256
from hfd_edge.progress import Progress, silent
from hfd_edge.runtime.segmenter import Segmenter

_COLD_STARTS = 3
_IDLE_S = 1.0


def run_bench(bundle: Bundle, *, options: BenchOptions, progress: Progress = silent) -> BenchFile:
    """Measure what a bundle costs on this machine.

    First the golden tiles: a variant that gives other labels is not timed. Then every scenario and cold
    start, each variant loaded by itself. Several variants are visited twice, there and back again, so that a
    machine that gets slower does so for all of them.

    Args:
        bundle: The bundle.
        options: What to measure.
        progress: Counts runs.
    Raises:
        BenchError: nothing that was asked for can run, or a process for the cold start failed.
        BackendError: a variant that was named cannot run here.
        BundleError: the bundle has no such model, or a file was changed.
        RasterError: the scene cannot be read, or does not fit the bundle.
        StorageError: there is no room for temporary files.
    """
    inputs = load_inputs(bundle)
    variants, refused = find_variants(bundle, options, inputs, progress)
    sound = [variant for variant in variants if variant.wrong is None]
    bench = _Bench(bundle, options, progress)
    starts: Mapping[Variant, Sequence[Start]] = {}
    scenarios: dict[Variant, list[Scenario]] = {variant: [] for variant in variants}
    with _meters(sound) as meters, tempfile.TemporaryDirectory() as folder:
        works = _works(options, inputs.tile, Path(folder)) if sound else []
        for work in works:
            for variant, found in bench.time(work, sound, meters).items():
                scenarios[variant].append(found)
        if options.cold_start:
            starts = bench.start(sound, works, inputs, Path(folder))
        notes = tuple(dict.fromkeys(note for meter in meters.values() for note in meter.sensors.notes))
    return BenchFile(
        bundle=bundle.manifest.name,
        bundle_sha256=sha256(bundle.path / "manifest.json"),
        machine=describe_machine(),
        versions=versions(),
        commit=commit(),
        command=options.command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        records=tuple(
            _record(bundle, options, variant, scenarios[variant], starts.get(variant, ()))
            for variant in variants
        ),
        not_run=refused,
        notes=notes,
    )


@dataclass(frozen=True)
class _Meter:
    """Sensors, and the power before the work, watts."""

    sensors: Sensors
    idle_w: float | None


@contextmanager
def _meters(variants: Sequence[Variant]) -> Iterator[dict[bool, _Meter]]:
    """Open the sensors of GPU work, of CPU work, or both: as these variants need them."""
    with ExitStack() as opened:
        meters = {}
        for gpu in sorted({variant.gpu for variant in variants}):
            sensors = opened.enter_context(closing(open_sensors(gpu=gpu)))
            known = sensors.power_source is not None
            meters[gpu] = _Meter(sensors, Sampler(sensors).idle(_IDLE_S) if known else None)
        yield meters


class _Bench:
    """What all measurements of a benchmark share."""

    def __init__(self, bundle: Bundle, options: BenchOptions, progress: Progress) -> None:
        self._bundle = bundle
        self._options = options
        self._progress = progress

    def time(
        self, work: Work, variants: Sequence[Variant], meters: Mapping[bool, _Meter]
    ) -> dict[Variant, Scenario]:
        """Time one scenario of all variants."""
        order = _there_and_back(variants)
        share = -(-work.runs * len(variants) // len(order))  # of the runs, in each visit
        visits: dict[Variant, list[Visit]] = {variant: [] for variant in variants}
        done = 0
        for variant in order:

            def tick(name: str = variant.name) -> None:
                nonlocal done
                done += 1
                self._progress(done, len(order) * share, f"{work.kind}: {name}")

            self._progress(done, len(order) * share, f"{work.kind}: {variant.name}, warming up")
            sensors = meters[variant.gpu].sensors
            visits[variant].append(visit(self._opener(variant), work, runs=share, sensors=sensors, tick=tick))
        self._progress(len(order) * share, len(order) * share, f"{work.kind}: done")
        return {
            variant: summarise(
                work,
                variant,
                found,
                max_jitter=self._options.max_jitter,
                idle_w=meters[variant.gpu].idle_w,
            )
            for variant, found in visits.items()
        }

    def start(
        self, variants: Sequence[Variant], works: Sequence[Work], inputs: Inputs, folder: Path
    ) -> dict[Variant, list[Start]]:
        """Start processes with all variants in turn; the first of each does the other works as well."""
        scene = next((work for work in works if isinstance(work, Scene)), None)
        tile = folder / "tile.npy"
        np.save(tile, inputs.tile)
        starts: dict[Variant, list[Start]] = {variant: [] for variant in variants}
        order = [variant for _ in range(_COLD_STARTS) for variant in variants]
        for done, variant in enumerate(order):
            self._progress(done, len(order), f"cold start: {variant.name}")
            starts[variant].append(
                start_once(
                    self._bundle,
                    tile,
                    variant=variant,
                    threads=self._options.threads,
                    stream=not starts[variant] and any(work.kind == "stream" for work in works),
                    scene=None if starts[variant] else scene,
                )
            )
        self._progress(len(order), len(order), "cold start: done")
        return starts

    def _opener(self, variant: Variant) -> Callable[[], Segmenter]:
        return lambda: Segmenter(
            self._bundle,
            backend=variant.backend,
            precision=variant.precision,
            threads=self._options.threads,
            overlap_px=variant.overlap_px,
        )


def _there_and_back(variants: Sequence[Variant]) -> list[Variant]:
    """A B B A; one variant has nobody to be compared with and is visited once."""
    return [*variants, *reversed(variants)] if len(variants) > 1 else list(variants)


def _works(options: BenchOptions, tile: NDArray[np.generic], folder: Path) -> list[Work]:
    def work(kind: Kind) -> Work:
        runs = options.runs_of(kind)
        if kind == "tile":
            return Tiles(tile, runs)
        if kind == "stream":
            return Frames(tile, runs, options.rate_hz or RATE_HZ)
        return scene_work(options.scene, tile=tile, folder=folder, runs=runs)

    return [work(kind) for kind in options.kinds]


def _record(
    bundle: Bundle,
    options: BenchOptions,
    variant: Variant,
    scenarios: Sequence[Scenario],
    starts: Sequence[Start],
) -> Record:
    relpath = file_of(bundle, variant)
    return Record(
        backend=variant.backend,
        precision=variant.precision,
        threads=options.threads or len(allowed_cores()),
        tile_px=bundle.manifest.tile_px,
        overlap_px=variant.overlap_px,
        model_sha256=bundle.manifest.files[relpath],
        bytes=(bundle.path / relpath).stat().st_size,
        miou=_miou(bundle, variant.precision),
        golden=variant.golden,
        cold_start=summarise_starts(starts) if starts else None,
        scenarios=tuple(_with_memory(scenario, starts) for scenario in scenarios),
        invalid=variant.doubts(),
    )


def _with_memory(scenario: Scenario, starts: Sequence[Start]) -> Scenario:
    """Take the peak of a process of its own, where there was one, for that of this process."""
    names = {"tile": "peak_mb", "stream": "stream_peak_mb", "scene": "scene_peak_mb"}
    peaks = [getattr(start, names[scenario.kind]) for start in starts]
    known = [peak for peak in peaks if peak is not None]
    if not known:
        return scenario
    memory = scenario.memory.model_copy(update={"host_peak_mb": max(known)})
    return scenario.model_copy(update={"memory": memory})


def _miou(bundle: Bundle, precision: str) -> float | None:
    """mIoU that the manifest has for a precision: that of the training's validation for FP32, 0 to 1."""
    scores = {str(name): found for name, found in bundle.manifest.metrics.items()}.get(precision, {})
    for found in (scores, scores.get("training", {})):
        value = found.get("miou")
        if isinstance(value, (int, float)):
            return float(value)
    return None
