"""Runs the comparison."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence, Set
from contextlib import suppress

import numpy as np

from hfd_edge import __version__
from hfd_edge.bundle import Bundle
from hfd_edge.comparison.bootstrap import drop_interval
from hfd_edge.comparison.latency import RUNS, time_all
from hfd_edge.comparison.result import Comparison, EngineRow, Row
from hfd_edge.comparison.scoring import Bench, Key, Tally, no_pixel, score_all
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.engine_record import read_engine_record
from hfd_edge.environment import allowed_cores
from hfd_edge.errors import BackendError, DatasetError, EngineError
from hfd_edge.progress import Progress, silent
from hfd_edge.runtime.backends import available_backends


def compare(
    bundle: Bundle,
    folder: PairFolder,
    *,
    split: str = "test",
    backends: Sequence[str] = (),
    tiles: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Score every variant of a bundle on every backend, then time them on the CPU.

    One variant is loaded at a time and one tile is in memory; the reference's labels wait in a temporary
    file. FP32 on the first backend is the reference.

    Args:
        bundle: Bundle with an FP32 model.
        folder: Labelled data.
        split: "train", "val" or "test".
        backends: Backends to run; one that is named is used or refused. None named: those of this machine,
            and a variant that one of them refuses is listed in `Comparison.not_run`.
        tiles: Score only so many tiles, evenly spread over the split; None for all that have a label.
        threads: CPU threads; None for one per core.
        progress: Counts the tiles of each variant.
    Raises:
        DatasetError: the data do not fit the bundle, or the split has no labelled pixel.
        BundleError: the bundle has no FP32 model, or a file of it was changed.
        BackendError: the reference, or a backend that was named, cannot run.
        StorageError: there is no room for temporary files.
    """
    manifest = bundle.manifest
    folder.require_fit("the bundle", classes=manifest.classes, sar=manifest.sar)
    if "auto" in backends:
        raise BackendError(
            f"backends are {list(backends)}, but a comparison names each of them. Leave 'auto' out, or leave "
            f"them all out for every one of this machine: {', '.join(available_backends())}."
        )
    chosen = tuple(dict.fromkeys(backends)) or available_backends()
    pairs = _labelled(folder, split, tiles)
    threads = len(allowed_cores()) if threads is None else threads
    bench = Bench(bundle, folder, split, pairs, threads, progress)
    tallies, not_run = score_all(bench, chosen, strict=bool(backends))
    times = time_all(bench, tallies)
    reference = next(iter(tallies.values()))
    rows = tuple(
        _row(key, tally, reference, size=bundle.model(key[0]).stat().st_size, times_ms=times.get(key))
        for key, tally in tallies.items()
    )
    return Comparison(
        bundle=str(bundle.path),
        name=manifest.name,
        data=str(folder.root),
        split=split,
        scheme=folder.scheme,
        tiles=reference.confusion.tiles,
        pixels=reference.confusion.pixels,
        boundary_px=reference.boundary.distance_px,
        tile_px=manifest.tile_px,
        threads=bench.threads,
        latency_runs=RUNS,
        reference=chosen[0],
        rows=rows,
        not_run=tuple(not_run),
        engines=tuple(_engine(bundle, name, tallies.keys()) for name in manifest.engines),
        versions=_versions(chosen),
    )


def _row(key: Key, tally: Tally, reference: Tally, *, size: int, times_ms: list[float] | None) -> Row:
    scores, against = tally.confusion, reference.confusion
    drops = {
        name: 100 * (before - after)
        for name, after in scores.iou.items()
        if after is not None and (before := against.iou[name]) is not None
    }
    worst = None if tally is reference else max(drops, key=lambda name: drops[name], default=None)
    interval = None if tally is reference else drop_interval(reference.tiles, tally.tiles)
    return Row(
        precision=key[0],
        backend=key[1],
        miou=scores.miou,
        iou=scores.iou,
        boundary_miou=tally.boundary.miou,
        boundary_iou=tally.boundary.iou,
        accuracy=scores.accuracy,
        drop_points=100 * (against.miou - scores.miou),
        drop_low_points=None if interval is None else interval[0],
        drop_high_points=None if interval is None else interval[1],
        worst_class=worst,
        worst_class_drop_points=None if worst is None else drops[worst],
        boundary_drop_points=100 * (reference.boundary.miou - tally.boundary.miou),
        flipped=tally.flipped / max(tally.with_data, 1),
        broken=tally.broken / max(scores.pixels, 1),
        corrected=tally.corrected / max(scores.pixels, 1),
        bytes=size,
        latency_ms=None if times_ms is None else float(np.percentile(times_ms, 50)),
        latency_p90_ms=None if times_ms is None else float(np.percentile(times_ms, 90)),
        most_flipped=tuple(tally.most_flipped),
    )


def _engine(bundle: Bundle, name: str, ran: Set[Key]) -> EngineRow:
    """Read what an engine's sidecar says; an engine whose sidecar cannot be trusted is still listed."""
    path = bundle.path / bundle.manifest.engines[name]
    if not path.is_file():
        text = f"{path} is missing. Copy the bundle again, or build the engine again."
        return EngineRow(name=name, bytes=0, not_run=text)
    try:
        record = read_engine_record(path)
    except EngineError as error:
        return EngineRow(name=name, bytes=path.stat().st_size, not_run=str(error))
    models: dict[str, str] = {str(key): file for key, file in bundle.manifest.precisions.items()}
    model = models.get(record.precision)
    not_run = f"needs backend {record.flavour}; here: {', '.join(available_backends())}"
    return EngineRow(
        name=name,
        bytes=path.stat().st_size,
        not_run=None if (record.precision, record.flavour) in ran else not_run,
        target=record.target,
        precision=record.precision,
        flavour=record.flavour,
        version=record.version,
        compute_capabilities=record.compute_capabilities,
        weights_bytes=record.weights_bytes,
        activation_bytes=record.activation_bytes,
        current=model is not None and bundle.manifest.files[model] == record.onnx_sha256,
    )


def _labelled(folder: PairFolder, split: str, count: int | None) -> tuple[Pair, ...]:
    if count is not None and count < 1:
        raise DatasetError(f"tiles is {count}, expected 1 or more, or None for the whole split.")
    pairs = [pair for pair in folder.pairs(split) if pair.label is not None]
    if not pairs:
        raise DatasetError(no_pixel(folder, split, 0))
    if count is None or count >= len(pairs):
        return tuple(pairs)
    return tuple(pairs[index] for index in np.linspace(0, len(pairs) - 1, count).round().astype(int))


def _versions(backends: Sequence[str]) -> dict[str, str]:
    versions = {"hfd-edge": __version__}
    for backend in backends:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[backend] = importlib.metadata.version(backend.replace("_", "-"))
    return versions
