"""Looks at a scene while it is segmented, to say whether it is like what the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Manifest
from hfd_edge.drift import DriftReport, PatchSampler, class_shares, compare, portray, portray_image
from hfd_edge.runtime.scene import RowSink, RowSource

Array = NDArray[Any]

# Rows and columns of labels from one that is counted to the next.
_STEP_PX = 8


@dataclass(frozen=True, eq=False)
class _Watched:
    """A source whose rows a sampler sees too. It reads in whatever thread it is read in, one at a time."""

    inner: RowSource
    sampler: PatchSampler

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def cols(self) -> int:
        return self.inner.cols

    @property
    def name(self) -> str:
        return self.inner.name

    def read(self, row0: int, row1: int) -> Array:
        raw = self.inner.read(row0, row1)
        self.sampler.take(row0, raw)
        return raw


@dataclass(frozen=True, eq=False)
class _Counted:
    """A sink whose labels are counted, one of `_STEP_PX` squared."""

    inner: RowSink
    counts: NDArray[np.int64]

    def write_rows(self, row0: int, labels: NDArray[np.uint8]) -> None:
        some = labels[-row0 % _STEP_PX :: _STEP_PX, ::_STEP_PX]
        self.counts[:] += np.bincount(some.ravel(), minlength=256)
        self.inner.write_rows(row0, labels)


class Watch:
    """Wraps the source and the sink of one scene, and knows afterwards what went by; see `report`.

    A bundle without statistics of its training images is watched for nothing: both stay as they are.
    """

    def __init__(self, manifest: Manifest, source: RowSource, sink: RowSink) -> None:
        """Wrap both.

        Args:
            manifest: The bundle's.
            source: Rows of stored pixels.
            sink: Takes labels.
        """
        self._manifest = manifest
        self.source, self.sink = source, sink
        if manifest.training is not None:
            self._sampler = PatchSampler(rows=source.rows, cols=source.cols)
            self._counts = np.zeros(256, np.int64)
            self.source = _Watched(source, self._sampler)
            self.sink = _Counted(sink, self._counts)

    def report(self) -> DriftReport | None:
        """Compare what went by with the training images, once all has.

        Raises:
            RadiometryError: the pixels are not in the manifest's units.
        """
        manifest = self._manifest
        if manifest.training is None:
            return None
        portrait = portray(self._sampler.patches, manifest.preprocessing, bands=manifest.sar.bands)
        shares = class_shares(self._counts, manifest.classes)
        return compare(portrait, manifest.training, manifest.preprocessing, shares=shares)


def check_image(manifest: Manifest, image: Array, labels: Array | None) -> DriftReport | None:
    """Compare an image in memory with the training images of a bundle; None where it has no statistics.

    Args:
        manifest: The bundle's.
        image: Stored pixels (bands, rows, cols).
        labels: Its mask (rows, cols), for the class shares.
    Raises:
        RadiometryError: the pixels are not in the manifest's units.
    """
    if manifest.training is None:
        return None
    portrait = portray_image(image, manifest.preprocessing, bands=manifest.sar.bands)
    counts = np.bincount(np.ravel(labels if labels is not None else []).astype(np.uint8), minlength=256)
    shares = class_shares(counts, manifest.classes)
    return compare(portrait, manifest.training, manifest.preprocessing, shares=shares)
