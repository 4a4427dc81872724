"""What the training images look like, for the manifest: the runtime compares scenes with it."""

from __future__ import annotations

import numpy as np

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.drift import Portrait, TrainingStatistics, class_shares, portray_image, training_statistics
from hfd_edge.drift.portraits import Key
from hfd_edge.sar.preprocessing import Preprocessing

# As many tell all that limits need; a data set of a hundred thousand would take an hour.
_MOST_IMAGES = 1000


def describe_training(
    folder: PairFolder, preprocessing: Preprocessing, *, split: str = "train"
) -> TrainingStatistics | None:
    """Measure how the images of a training split differ from each other.

    Args:
        folder: The data that a network was trained on.
        preprocessing: The network's.
        split: Split to describe, at most 1000 pairs that are spread evenly over it.
    Returns:
        None where the folder has no such split, or too few images to tell.
    Raises:
        DatasetError: a file is faulty.
    """
    if split not in folder.splits:
        return None
    pairs = folder.pairs(split)
    step = -(-len(pairs) // _MOST_IMAGES)
    return training_statistics(
        (describe_pair(folder, pair, preprocessing) for pair in pairs[::step]), preprocessing
    )


def describe_pair(
    folder: PairFolder, pair: Pair, preprocessing: Preprocessing
) -> tuple[Portrait, dict[Key, float]]:
    """The portrait of a pair's SAR image, and the class shares of its label. Raises DatasetError."""
    config = folder.config
    portrait = portray_image(folder.load_sar(pair), preprocessing, bands=config.sar.bands)
    if pair.label is None:
        return portrait, {}
    counts = np.bincount(folder.load_label(pair).ravel(), minlength=256)
    return portrait, class_shares(counts, config.classes)
