"""Time of one tile on the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from hfd_edge.comparison.scoring import Bench, Key
from hfd_edge.raster.tiling import mirrored
from hfd_edge.runtime.backends import GPU_BACKENDS, Backend, open_backend

RUNS = 20
"""Timed runs of each row, at most."""

_WARM_RUNS, _LEAST_RUNS = 2, 3
_SECONDS_PER_VISIT = 5.0


def time_all(bench: Bench, keys: Iterable[Key]) -> dict[Key, list[float]]:
    """Time a tile on every row that runs on the CPU; milliseconds.

    Each row is visited twice, there and back again: a machine that gets slower (heat, other work) then does
    so for all of them.
    """
    keys = [key for key in keys if key[1] not in GPU_BACKENDS]
    tile = _tile(bench)
    times: dict[Key, list[float]] = {key: [] for key in keys}
    visits = [*keys, *reversed(keys)]
    for done, key in enumerate(visits):
        bench.progress(done, len(visits), f"latency of {key[0]} on {key[1]}")
        model = open_backend(bench.bundle, backend=key[1], precision=key[0], threads=bench.threads)
        with closing(model):
            times[key] += _visit(model, tile)
    bench.progress(len(visits), len(visits), "latency")
    return times


def _visit(model: Backend, tile: NDArray[np.float32]) -> list[float]:
    """Time one tile again and again, milliseconds; a slow device stops after some seconds."""
    for _ in range(_WARM_RUNS):
        model.run(tile)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < RUNS // 2:
        started = time.perf_counter()
        model.run(tile)
        ended = time.perf_counter()
        times.append(1000 * (ended - started))
        if ended - began > _SECONDS_PER_VISIT and len(times) >= _LEAST_RUNS:
            break
    return times


def _tile(bench: Bench) -> NDArray[np.float32]:
    """A real tile as the network takes it, (1, bands, tile_px, tile_px); a smaller image is mirrored."""
    manifest = bench.bundle.manifest
    pixels, _ = manifest.preprocessing(bench.folder.load_sar(bench.pairs[0]))
    rows, cols = (
        np.concatenate((np.arange(min(size, manifest.tile_px)), mirrored(size, manifest.tile_px)))
        for size in pixels.shape[1:]
    )
    return np.ascontiguousarray(pixels[None, :, rows[:, None], cols])
