"""From class logits at reduced resolution to full-size labels, in one pass and bounded memory.

Networks stop at stride 4; enlarging K score maps to full size before taking the largest would need 16 K
times the memory of the logits. Here both happen together on a few rows at a time.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Full-size pixels enlarged at once: two float32 buffers of 4 MB, which stay in the cache of a CPU core's
# cluster while the overhead of the halo rows stays below a fifth even for scenes 20000 pixels wide.
_CHUNK_PX = 1 << 20


def labels_from_logits(
    logits: NDArray[np.floating[Any]], *, stride: int, rows: int, cols: int
) -> NDArray[np.uint8]:
    """Enlarge logits and take the class with the largest score at every pixel.

    The enlargement is bilinear with half-pixel centres and clamped edges, which is what
    `torch.nn.functional.interpolate(scale_factor=stride, mode="bilinear", align_corners=False)` does.

    Args:
        logits: Scores (classes, h, w), any monotonic scale; float32 is used as it is.
        stride: Pixels per logit along each axis; 1 takes the largest score only.
        rows: Rows wanted, at most h * stride; what lies beyond is padding and is cropped.
        cols: Columns wanted, at most w * stride.
    Returns:
        Labels (rows, cols); the first of equal maxima wins.
    Raises:
        ValueError: the shape of `logits` does not allow this.
    """
    return labels_rows(logits, stride=stride, start=0, stop=rows, cols=cols)


def labels_rows(
    logits: NDArray[np.floating[Any]], *, stride: int, start: int, stop: int, cols: int, first: int = 0
) -> NDArray[np.uint8]:
    """Label a window of rows from a band of logits rows, as `labels_from_logits` would label the whole.

    A pixel row between two logits rows needs both. The band must therefore reach one logits row beyond
    the window where the map goes on; at an end of the band the values are clamped as at the map's edge.

    Args:
        logits: Scores (classes, n, w): rows `first` to `first + n` of the whole map.
        stride: Pixels per logit along each axis.
        start: First pixel row wanted, counted in the whole map.
        stop: Pixel row after the last one wanted.
        cols: Columns wanted, at most w * stride.
        first: Row of the whole map that the band starts with.
    Returns:
        Labels (stop - start, cols).
    Raises:
        ValueError: the window is not inside the band, or `logits` is not (classes, rows, cols).
    """
    _check(logits, stride=stride, rows=(start - first * stride, stop - first * stride), cols=cols)
    labels = np.zeros((stop - start, cols), np.uint8)
    classes, height, width = logits.shape
    if classes == 1 or not labels.size:
        return labels
    step = max(1, _CHUNK_PX // (width * stride * stride))
    # The halo that interpolation reads; with stride 1 there is none.
    halo = 1 if stride > 1 else 0
    top, bottom = start // stride - first, -(-stop // stride) - first
    for row in range(top, bottom, step):
        end = min(row + step, bottom)
        low, high = max(row - halo, 0), min(end + halo, height)
        enlarged = _argmax(logits[:, low:high], stride=stride)
        begin, finish = max(start, (first + row) * stride), min(stop, (first + end) * stride)
        offset = (first + low) * stride
        labels[begin - start : finish - start] = enlarged[begin - offset : finish - offset, :cols]
    return labels


def _argmax(logits: NDArray[np.floating[Any]], *, stride: int) -> NDArray[np.uint8]:
    """Enlarge one chunk class by class and keep a running maximum."""
    if len(logits) == 2:
        # Interpolation is linear, so one enlarged difference decides between two classes.
        difference = np.subtract(logits[1], logits[0], dtype=np.float32)
        return (_enlarge(difference, stride=stride) > 0).view(np.uint8)
    best = _enlarge(logits[0], stride=stride).copy()
    labels = np.zeros(best.shape, np.uint8)
    scores: NDArray[np.float32] | None = None
    larger, candidate = np.empty(best.shape, bool), np.empty(best.shape, np.uint8)
    for label in range(1, len(logits)):
        scores = _enlarge(logits[label], stride=stride, out=scores)
        np.greater(scores, best, out=larger)  # strict: the first of equal maxima stays
        np.maximum(best, scores, out=best)
        # Labels rise with the loop, so the larger label is the later one; faster than a masked write.
        np.multiply(larger.view(np.uint8), np.uint8(label), out=candidate)
        np.maximum(labels, candidate, out=labels)
    return labels


def _enlarge(
    scores: NDArray[np.floating[Any]], *, stride: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    scores = np.ascontiguousarray(scores, np.float32)
    if stride == 1:
        return scores
    size = (scores.shape[1] * stride, scores.shape[0] * stride)
    return cv2.resize(scores, size, dst=out, interpolation=cv2.INTER_LINEAR)


def _check(logits: NDArray[Any], *, stride: int, rows: tuple[int, int], cols: int) -> None:
    if logits.ndim != 3 or 0 in logits.shape or len(logits) > 255:
        raise ValueError(f"logits are {logits.shape}, expected (1 to 255 classes, rows, cols), none empty")
    if stride < 1:
        raise ValueError(f"stride is {stride}, expected 1 or more")
    height, width = logits.shape[1] * stride, logits.shape[2] * stride
    if not 0 <= rows[0] <= rows[1] <= height or not 0 <= cols <= width:
        raise ValueError(
            f"rows {rows[0]} to {rows[1]} and {cols} columns were asked for, but {logits.shape[1]} x "
            f"{logits.shape[2]} logits at stride {stride} cover {height} x {width} pixels"
        )
