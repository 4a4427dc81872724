"""Segmentation accuracy over a whole split: from one confusion matrix, near outlines, and of confidences."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-5  # a softmax in float32 may add up to slightly more than 1


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
        return _mean(self.iou)

    @property
    def f1(self) -> dict[str, float | None]:
        """F1 (Dice) per class, 0 to 1: 2 IoU / (1 + IoU); None where `iou` is."""
        return {name: None if iou is None else 2 * iou / (1 + iou) for name, iou in self.iou.items()}

    @property
    def mf1(self) -> float:
        """Mean F1 over the classes that occur; 0 when none does."""
        return _mean(self.f1)

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
        return _mean(self.iou)


class Calibration:
    """How far confidences are from the share of labels that are right, over a whole split.

    Pixels are sorted into bins of equal width by the confidence in the label that they were given; three
    sums of each bin are kept, so a split of any size takes no memory.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eqs. 3 and 5; 15 bins as there.

    Attributes:
        pixels: int64 (bins,); pixels of each bin, whose upper bound belongs to it.
        hits: int64 (bins,); those whose label is right.
        confidence: float64 (bins,); sum of their confidences.
    """

    def __init__(self, *, bins: int = 15, ignore_index: int = 255) -> None:
        if bins < 1:
            raise ValueError(f"bins is {bins}, expected 1 or more")
        self.ignore_index = ignore_index
        self.pixels = np.zeros(bins, np.int64)
        self.hits = np.zeros(bins, np.int64)
        self.confidence = np.zeros(bins, np.float64)

    def add(
        self, truth: NDArray[np.integer], prediction: NDArray[np.integer], confidence: NDArray[np.floating]
    ) -> None:
        """Count one tile; three arrays of one shape.

        Args:
            truth: Class ids; pixels of `ignore_index` are left out.
            prediction: Class ids that were given.
            confidence: Probability of the given label, 0 to 1; pixels of NaN (no data) are left out.
        Raises:
            ValueError: shapes differ, or a confidence is no probability.
        """
        if not truth.shape == prediction.shape == confidence.shape:
            raise ValueError(
                f"truth {truth.shape}, prediction {prediction.shape} and confidence {confidence.shape} "
                "differ in shape"
            )
        known = (truth != self.ignore_index) & ~np.isnan(confidence)
        values = confidence[known].astype(np.float64)
        if values.size and not (values.min() >= 0 and values.max() <= 1 + _ROUNDING):
            raise ValueError(
                f"confidences reach from {values.min():.4g} to {values.max():.4g}, expected probabilities "
                "from 0 to 1; give the softmax of logits"
            )
        size = len(self.pixels)
        places = np.clip(np.ceil(values * size).astype(np.int64) - 1, 0, size - 1)
        self.pixels += np.bincount(places, minlength=size)
        self.hits += np.bincount(places[truth[known] == prediction[known]], minlength=size)
        self.confidence += np.bincount(places, weights=values, minlength=size)

    @property
    def ece(self) -> float | None:
        """Expected calibration error, 0 to 1; None before any pixel was counted."""
        total = int(self.pixels.sum())
        return float(np.abs(self.hits - self.confidence).sum() / total) if total else None


class Details:
    """What an evaluation measures beside the confusion matrix, which every validation counts, too.

    Attributes:
        boundary: Scores near outlines.
        calibration: Of the confidences that were given; empty without any.
    """

    def __init__(self, classes: tuple[str, ...], *, ignore_index: int = 255) -> None:
        self.boundary = BoundaryConfusion(classes, ignore_index=ignore_index)
        self.calibration = Calibration(ignore_index=ignore_index)

    def add(
        self,
        truth: NDArray[np.integer],
        prediction: NDArray[np.integer],
        confidence: NDArray[np.floating] | None = None,
    ) -> None:
        """Count one tile (rows, cols); see `Calibration.add`. Raises ValueError: shapes differ."""
        self.boundary.add(truth, prediction)
        if confidence is not None:
            self.calibration.add(truth, prediction, confidence)

    def scores(self, confusion: Confusion) -> dict[str, object]:
        """The figures beside `Confusion.scores`, JSON-ready.

        Args:
            confusion: Of the same tiles.
        Returns:
            f1 per class, mf1, boundary_iou per class, boundary_miou, ece (0 to 1; None without confidences),
            boundary_px, and the confusion counts (classes, classes + 1) as lists: rows are truth, columns
            what was said, the last one no label.
        """
        return {
            "f1": confusion.f1,
            "mf1": confusion.mf1,
            "boundary_iou": self.boundary.iou,
            "boundary_miou": self.boundary.miou,
            "boundary_px": self.boundary.distance_px,
            "ece": self.calibration.ece,
            "confusion": confusion.counts.tolist(),
        }


def _mean(scores: dict[str, float | None]) -> float:
    present = [value for value in scores.values() if value is not None]
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
