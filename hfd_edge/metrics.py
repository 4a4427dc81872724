"""Segmentation accuracy from one confusion matrix over a whole split."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


class Confusion:
    """Counts of (truth, prediction) pairs; scores are taken over all pixels seen, not per tile.

    Attributes:
        classes: Class names, in label order.
        counts: int64 (classes, classes + 1); rows are truth, columns are prediction. The last column
            counts pixels that were given no label at all (no-data), which is an error where the truth
            is known.
        tiles: Label maps added.
    """

    def __init__(self, classes: tuple[str, ...], *, ignore_index: int = 255) -> None:
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.counts = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        self.tiles = 0

    def add(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
        """Count one tile; two arrays of the same shape. Pixels whose truth is `ignore_index` are left out.

        Raises:
            ValueError: shapes differ, or truth holds an id that is neither a class nor `ignore_index`.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        size = len(self.classes)
        known = truth != self.ignore_index
        rows = truth[known].astype(np.int64)
        strange = rows[(rows < 0) | (rows >= size)]
        if strange.size:
            raise ValueError(f"truth holds label {strange[0]}, but there are {size} classes")
        columns = np.minimum(prediction[known].astype(np.int64), size)
        flat = np.bincount(rows * (size + 1) + columns, minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)
        self.tiles += 1

    @property
    def pixels(self) -> int:
        """Pixels counted."""
        return int(self.counts.sum())

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union per class, 0 to 1; None for a class in neither truth nor prediction."""
        hit = np.diag(self.counts)
        union = self.counts.sum(1) + self.counts[:, :-1].sum(0) - hit
        return {
            name: float(h / u) if u else None for name, h, u in zip(self.classes, hit, union, strict=True)
        }

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur; 0 when none does."""
        present = [value for value in self.iou.values() if value is not None]
        return float(np.mean(present)) if present else 0.0

    @property
    def accuracy(self) -> float:
        """Share of counted pixels that are right; 0 when there are none."""
        return float(np.trace(self.counts) / self.pixels) if self.pixels else 0.0

    def scores(self) -> dict[str, object]:
        """The figures as one JSON-ready mapping: miou, iou, accuracy, pixels, tiles."""
        return {
            "miou": self.miou,
            "iou": self.iou,
            "accuracy": self.accuracy,
            "pixels": self.pixels,
            "tiles": self.tiles,
        }


class BoundaryConfusion:
    """IoU of the pixels near the outlines of each class, over a whole split.

    IoU over areas hardly notices a coastline that moved by two pixels; quantisation moves outlines first.
    A band as wide as `distance_px` along the inner side of every region's outline is kept, of truth and
    prediction each, and the IoU is taken over the kept pixels. Borders of the image are no outlines.

    Source: Cheng et al., "Boundary IoU", CVPR 2021, eq. 2; their distance is 2 % of the image diagonal.

    Attributes:
        classes: Class names, in label order.
        hits: Pixels in both bands, per class.
        union: Pixels in either band, per class.
    """

    def __init__(self, classes: tuple[str, ...], *, distance_px: int = 3, ignore_index: int = 255) -> None:
        if distance_px < 1:
            raise ValueError(f"distance_px is {distance_px}, expected 1 or more")
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.distance_px = distance_px
        self.hits = np.zeros(len(self.classes), np.int64)
        self.union = np.zeros(len(self.classes), np.int64)

    def add(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
        """Count one tile; two arrays (rows, cols). Pixels whose truth is `ignore_index` are left out.

        Raises:
            ValueError: shapes differ.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        known = truth != self.ignore_index
        for label in range(len(self.classes)):
            # Unknown pixels belong to no class and draw no outline: both sides see them alike.
            real = _inner_band(truth == label, ~known, self.distance_px)
            found = _inner_band((prediction == label) & known, ~known, self.distance_px)
            self.hits[label] += np.count_nonzero(real & found)
            self.union[label] += np.count_nonzero(real | found)

    @property
    def iou(self) -> dict[str, float | None]:
        """Boundary IoU per class, 0 to 1; None for a class without any outline."""
        return {
            name: float(h / u) if u else None
            for name, h, u in zip(self.classes, self.hits, self.union, strict=True)
        }

    @property
    def miou(self) -> float:
        """Mean boundary IoU over the classes that have an outline; 0 when none has."""
        present = [value for value in self.iou.values() if value is not None]
        return float(np.mean(present)) if present else 0.0


def _inner_band(mask: NDArray[np.bool_], unknown: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """Pixels of a mask that lie within `width_px` (chessboard distance) of its outline."""
    side = 2 * width_px + 1
    solid = (mask | unknown).astype(np.uint8)
    inner = cv2.erode(
        solid, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1
    ).astype(bool)
    return np.asarray(mask & ~inner)


def flipped_share(first: NDArray[np.integer], second: NDArray[np.integer]) -> float:
    """Share of pixels, 0 to 1, on which two label maps of one shape differ."""
    return float(np.mean(first != second)) if first.size else 0.0
