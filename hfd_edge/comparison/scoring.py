"""Labels of every variant against the truth and against FP32, one variant and one tile at a time."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.comparison.result import KEPT_TILES, NotRun, TileFlips
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.errors import BackendError, DatasetError
from hfd_edge.files import storage_errors
from hfd_edge.metrics import BoundaryConfusion, Confusion
from hfd_edge.progress import Progress
from hfd_edge.runtime.segmenter import Segmenter

REFERENCE = "fp32"

Labels = NDArray[np.uint8]
Key = tuple[str, str]  # precision, backend


@dataclass(frozen=True)
class Bench:
    """What every run of a comparison shares."""

    bundle: Bundle
    folder: PairFolder
    split: str
    pairs: tuple[Pair, ...]
    threads: int
    progress: Progress


class Shelf:
    """Label maps that wait on disk: a split has thousands, and each is needed again by every variant."""

    def __init__(self) -> None:
        # Without a name in the file system, so nothing is left behind however the process ends.
        with storage_errors(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile(prefix="hfd-edge-")  # noqa: SIM115  closed by `close`
        self._places: list[tuple[int, int, tuple[int, ...]]] = []

    def __len__(self) -> int:
        return len(self._places)

    def put(self, labels: Labels) -> None:
        """Keep a label map (rows, cols); the first has index 0. Raises StorageError."""
        packed = zlib.compress(labels.tobytes(), 1)
        with storage_errors(Path(tempfile.gettempdir())):
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(packed)
        self._places.append((start, len(packed), labels.shape))

    def get(self, index: int) -> Labels:
        """Give a label map back, read-only. Raises StorageError: what was put did not fit on the disk."""
        start, size, shape = self._places[index]
        with storage_errors(Path(tempfile.gettempdir())):  # reading writes out what was buffered
            self._file.seek(start)
            packed = self._file.read(size)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()


class Tally:
    """Counts over a split, of one variant against the truth and against the reference.

    Attributes:
        confusion: Truth against labels.
        tiles: Its counts, one array (classes, classes + 1) a tile.
        boundary: The same near outlines.
        with_data: Pixels with data.
        flipped: Pixels whose label differs from the reference's.
        broken: Labelled pixels that the reference has right and the variant wrong.
        corrected: The other way round.
        most_flipped: Tiles with the largest share of flipped pixels, worst first.
    """

    def __init__(self, folder: PairFolder, *, nodata_label: int) -> None:
        config = folder.config
        self.confusion = Confusion(config.classes, ignore_index=config.ignore_index)
        self.boundary = BoundaryConfusion(config.classes, ignore_index=config.ignore_index)
        self.tiles: list[NDArray[np.int64]] = []
        self.with_data = self.flipped = self.broken = self.corrected = 0
        self.most_flipped: list[TileFlips] = []
        self._nodata_label = nodata_label

    def add(self, name: str, *, truth: Labels, labels: Labels, reference: Labels) -> None:
        """Count one tile; three label maps of one shape."""
        before = self.confusion.counts.copy()
        self.confusion.add(truth, labels)
        self.tiles.append(self.confusion.counts - before)
        self.boundary.add(truth, labels)
        differs = labels != reference
        flipped = int(np.count_nonzero(differs))
        with_data = int(np.count_nonzero((reference != self._nodata_label) | differs))
        self.flipped += flipped
        self.with_data += with_data
        differs &= truth != self.confusion.ignore_index  # an unknown pixel is neither right nor wrong
        self.broken += int(np.count_nonzero(differs & (reference == truth)))
        self.corrected += int(np.count_nonzero(differs & (labels == truth)))
        if flipped:
            tiles = [*self.most_flipped, TileFlips(name, flipped / with_data)]
            self.most_flipped = sorted(tiles, key=lambda tile: (-tile.flipped, tile.name))[:KEPT_TILES]


def score_all(
    bench: Bench, backends: Sequence[str], *, strict: bool
) -> tuple[dict[Key, Tally], list[NotRun]]:
    """Score each variant on each backend; one at a time is loaded.

    Returns:
        The tallies by precision and backend, the reference first; and what a backend refused.
    Raises:
        DatasetError: no pixel of the split is labelled.
        BackendError: the reference cannot run, or with `strict` any other.
    """
    keys = [(precision, backend) for backend in backends for precision in bench.bundle.precisions]
    reference = (REFERENCE, backends[0])
    tallies: dict[Key, Tally] = {}
    not_run = []
    with closing(Shelf()) as shelf:
        for key in [reference, *(key for key in keys if key != reference)]:
            try:
                tallies[key] = _score(bench, key, shelf)
            except BackendError as error:
                if strict or key == reference:
                    raise
                not_run.append(NotRun(*key, reason=str(error)))
            if tallies[reference].confusion.pixels == 0:
                raise DatasetError(no_pixel(bench.folder, bench.split, len(bench.pairs)))
    return tallies, not_run


def _score(bench: Bench, key: Key, shelf: Shelf) -> Tally:
    """Score one variant; the first one's labels go to the shelf, the others are compared with them."""
    precision, backend = key
    tally = Tally(bench.folder, nodata_label=bench.bundle.manifest.nodata_label)
    total = len(bench.pairs)
    first = len(shelf) == 0
    with Segmenter(bench.bundle, backend=backend, precision=precision, threads=bench.threads) as segment:
        for index, pair in enumerate(bench.pairs):
            bench.progress(index, total, f"{precision} on {backend} mIoU {tally.confusion.miou:.3f}")
            truth = bench.folder.load_label(pair)
            labels = segment(bench.folder.load_sar(pair))
            if first:
                shelf.put(labels)
            reference = labels if first else shelf.get(index)
            tally.add(pair.name, truth=truth, labels=labels, reference=reference)
    bench.progress(total, total, f"{precision} on {backend} mIoU {tally.confusion.miou:.3f}")
    return tally


def no_pixel(folder: PairFolder, split: str, count: int) -> str:
    """What to say of a split with so many label files and no label."""
    return (
        f"Split '{split}' of {folder.root} has no labelled pixel ({count} label files), so variants cannot "
        "be compared on it. Add label/ files to it, or choose another one with --split."
    )
