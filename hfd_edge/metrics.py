"""Segmentation accuracy from one confusion matrix over a whole split."""

from __future__ import annotations

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


def flipped_share(first: NDArray[np.integer], second: NDArray[np.integer]) -> float:
    """Share of pixels, 0 to 1, on which two label maps of one shape differ."""
    return float(np.mean(first != second)) if first.size else 0.0
