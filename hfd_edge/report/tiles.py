"""Pictures of a split's tiles with what models say of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig, Units
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.evaluation import Predict
from hfd_edge.report.pictures import TilePictures, tile_pictures
from hfd_edge.report.sheets import write_predictions
from hfd_edge.sar.radiometry import intensity_to_db, to_intensity, valid_mask

Array = NDArray[Any]


def draw_tiles(
    folder: PairFolder, predict: Mapping[str, Predict], *, split: str, count: int
) -> list[TilePictures]:
    """Draw evenly spaced tiles of a split with what each model says of them.

    Args:
        folder: Data folder.
        predict: Raw SAR (bands, rows, cols) to labels (rows, cols), by variant (keys of
            `hfd_edge.report.pictures.PREDICTIONS`).
        split: Split to draw from.
        count: Tiles to draw; fewer when the split is smaller.
    """
    pairs = folder.pairs(split)
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    config = folder.config
    tiles = []
    for pair in (pairs[index] for index in chosen):
        sar = folder.load_sar(pair)
        tiles.append(
            tile_pictures(
                pair.name,
                sar=display_values(sar, units=config.sar.units, nodata=config.sar.nodata),
                eo=None if pair.eo is None else folder.load_eo(pair),
                truth=None if pair.label is None else folder.load_label(pair),
                predictions={name: voided(one(sar), config) for name, one in predict.items()},
                palette=config.palette,
                void=config.ignore_index,
            )
        )
    return tiles


def voided(labels: Array, config: DatasetConfig) -> Array:
    """Give labels the data folder's id for unknown pixels where a model has its own for no-data."""
    return np.where(labels < len(config.classes), labels, np.uint8(config.ignore_index))


def display_values(image: Array, *, units: Units, nodata: float | None) -> Array:
    """SAR as people look at it: unfiltered dB, or stretched values as they are; NaN where invalid."""
    if units == "stretched":
        return np.where(valid_mask(image, units=units, nodata=nodata), image, np.nan).astype(np.float32)
    return np.asarray(intensity_to_db(to_intensity(image, units=units, nodata=nodata)), np.float32)


def write_tiles(
    folder: PairFolder, predict: Mapping[str, Predict], path: Path, *, split: str, count: int = 3
) -> None:
    """Write what `draw_tiles` draws as one PNG. Raises StorageError."""
    tiles = draw_tiles(folder, predict, split=split, count=count)
    write_predictions(tiles, path, classes=folder.config.classes, palette=folder.config.palette)
