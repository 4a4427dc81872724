"""How much each class counts, where some are rare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hfd_edge.config import TrainingRecipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.errors import DatasetError, RecipeError
from hfd_edge.progress import Progress, silent
from hfd_edge.training.objective import Supervision


def supervision(
    training: TrainingRecipe, folder: PairFolder, pairs: Sequence[Pair], *, progress: Progress = silent
) -> Supervision:
    """What the labels' losses are, as the recipe says.

    Args:
        training: The recipe's section.
        folder: Data.
        pairs: The training pairs; those without label are left out.
        progress: Counts pairs, where labels have to be counted.
    Raises:
        RecipeError: there are not as many weights as classes.
        DatasetError: a label is faulty, or none knows a pixel.
    """
    weights: tuple[float, ...] | None
    wanted: tuple[float, ...] | Literal["none", "balanced"] = training.class_weights
    if wanted == "none":
        weights = None
    elif wanted == "balanced":
        weights = balanced_weights(folder, pairs, progress=progress)
    else:
        weights = wanted
        if len(weights) != len(folder.config.classes):
            raise RecipeError(
                f"training.class_weights has {len(weights)} numbers, but {folder.root} has the "
                f"{len(folder.config.classes)} classes {list(folder.config.classes)}. Give one for each, in "
                "this order."
            )
    return Supervision(class_weights=weights, focal_gamma=training.focal_gamma)


def balanced_weights(
    folder: PairFolder, pairs: Sequence[Pair], *, progress: Progress = silent
) -> tuple[float, ...]:
    """Median-frequency balancing: median of the classes' frequencies over a class' own.

    The frequency of a class is its share of the known pixels of the labels that hold it. A class that no
    label holds has weight 1, which nothing uses, and does not count for the median.

    Source: Eigen and Fergus (2015), section 6.3.1.
    Raises:
        DatasetError: a label is faulty, or none knows a pixel.
    """
    size = len(folder.config.classes)
    pixels, around = np.zeros(size, np.int64), np.zeros(size, np.int64)
    labelled = [pair for pair in pairs if pair.label is not None]
    for done, pair in enumerate(labelled):
        progress(done, len(labelled), f"class frequencies {pair.name}")
        counts = np.bincount(folder.load_label(pair).ravel(), minlength=256)[:size]
        pixels += counts
        around += np.where(counts > 0, counts.sum(), 0)
    progress(len(labelled), len(labelled), "class frequencies")
    there = pixels > 0
    if not there.any():
        raise DatasetError(
            f'training.class_weights is "balanced", but no training label of {folder.root} knows a pixel. '
            "Correct the label/ files of the split 'train'."
        )
    frequency = pixels[there] / around[there]
    weights = np.ones(size)
    weights[there] = np.median(frequency) / frequency
    return tuple(weights.tolist())
