"""Score any predictor on a split, the same way for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError
from hfd_edge.metrics import Confusion, Details
from hfd_edge.progress import Progress, silent

Array = NDArray[Any]


def evaluate(
    predict: Callable[[Array], NDArray[np.uint8]],
    folder: PairFolder,
    *,
    split: str,
    progress: Progress = silent,
    counts: dict[str, NDArray[np.int64]] | None = None,
    details: Details | None = None,
) -> Confusion:
    """Count truth against prediction over the labelled pairs of a split.

    Args:
        predict: Takes the stored SAR image (bands, rows, cols) in the folder's units, gives labels
            (rows, cols). Ids outside the classes (no-data) count as errors where the truth is known.
        folder: Data with labels; pairs without one are left out.
        split: "train", "val" or "test".
        progress: Counts tiles, with the mIoU so far.
        counts: Takes the confusion counts of each tile, by the pair's name.
        details: Takes the tiles, for the scores that cost more; without confidences.
    Returns:
        The confusion matrix over the whole split.
    Raises:
        DatasetError: no pair of the split has a label with a known pixel, or a file is faulty.
        ValueError: `predict` gives another size than the label map's.
    """
    labelled = [pair for pair in folder.pairs(split) if pair.label is not None]
    confusion = Confusion(folder.config.classes, ignore_index=folder.config.ignore_index)
    for done, pair in enumerate(labelled):
        progress(done, len(labelled), f"evaluate {split} mIoU {confusion.miou:.3f}")
        truth = folder.load_label(pair)
        labels, before = predict(folder.load_sar(pair)), confusion.counts.copy()
        confusion.add(truth, labels)
        if counts is not None:
            counts[pair.name] = confusion.counts - before
        if details is not None:
            details.add(truth, labels)
    if confusion.pixels == 0:
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no labelled pixel ({len(labelled)} label files, all "
            f"ignore_index {folder.config.ignore_index}), so it cannot be scored. Add label/ files to it, "
            f"or choose another one with --split."
        )
    progress(len(labelled), len(labelled), f"evaluate {split} mIoU {confusion.miou:.3f}")
    return confusion
