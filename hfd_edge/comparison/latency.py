"""Time of one tile on the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hfd_edge.comparison.scoring import Bench, Key
from hfd_edge.raster.tiling import mirrored
from hfd_edge.runtime.backends import GPU_BACKENDS
from hfd_edge.runtime.backends.tuning import RUNS, time_in_turns

__all__ = ["RUNS", "time_all"]


def time_all(bench: Bench, keys: Iterable[Key]) -> dict[Key, list[float]]:
    """Time a tile on every row that runs on the CPU, each in its turn; milliseconds."""
    keys = [key for key in keys if key[1] not in GPU_BACKENDS]
    return time_in_turns(bench.bundle, keys, _tile(bench), threads=bench.threads, progress=bench.progress)


def _tile(bench: Bench) -> NDArray[np.float32]:
    """A real tile as the network takes it, (1, bands, tile_px, tile_px); a smaller image is mirrored."""
    manifest = bench.bundle.manifest
    pixels, _ = manifest.preprocessing(bench.folder.load_sar(bench.pairs[0]))
    rows, cols = (
        np.concatenate((np.arange(min(size, manifest.tile_px)), mirrored(size, manifest.tile_px)))
        for size in pixels.shape[1:]
    )
    return np.ascontiguousarray(pixels[None, :, rows[:, None], cols])
