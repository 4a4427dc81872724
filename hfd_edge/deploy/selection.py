"""Choose calibration tiles that cover a split, say how well they do, and keep the choice in the bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from hfd_edge.bundle import Bundle
from hfd_edge.config import Strict
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.descriptors import (
    CHOOSERS,
    Described,
    backscatter_limits,
    covering,
    describe_split,
    features,
)
from hfd_edge.deploy.record import CalibrationTile
from hfd_edge.deploy.tiles import Tiles
from hfd_edge.errors import DatasetError, ExportError
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.statistics import LOG_ENL_LIMITS

SELECTION = "calibration/tiles.json"
_LEAST_VALID = 0.1
"""Share of valid pixels below which a tile is not chosen. It would be the farthest of all to k-centre, and
what it brings to a histogram is the constant that stands for no-data."""
_ENL_BINS = 80
_NODATA_BINS = 20

Share = Annotated[float, Field(ge=0, le=1)]


class Spread(Strict):
    """How a quantity is distributed over the split and over the selection."""

    low: float = Field(description="Lower edge of the first bin.")
    high: float = Field(description="Upper edge of the last bin.")
    split: tuple[float, ...] = Field(min_length=1, description="Share of the split by bin of equal width.")
    selection: tuple[float, ...] = Field(min_length=1, description="The same of the selection.")

    @property
    def distance(self) -> float:
        """Wasserstein-1 distance: how far values must move on average, in units of the quantity."""
        apart = np.cumsum(np.subtract(self.split, self.selection))
        return float(np.abs(apart).sum() * (self.high - self.low) / len(self.split))


class Shares(Strict):
    """One share of the split's pixels and of the selection's."""

    split: Share
    selection: Share


class Coverage(Strict):
    """How well chosen tiles stand for their split."""

    radius: float = Field(
        ge=0, description="Largest distance, in descriptors, of a usable tile to its nearest chosen one."
    )
    mean_distance: float = Field(ge=0, description="Mean of these distances.")
    backscatter: dict[str, Spread] = Field(description="Standardised input, by band.")
    log_enl: Spread | None = Field(description="log10 of the looks of the tiles; None if unknown.")
    classes: dict[str, Shares] = Field(description="Labelled pixels by class; empty without labels.")
    nodata: Spread = Field(description="Share of pixels without data, by tile.")

    def figures(self) -> dict[str, Any]:
        """The coverage in a few numbers, for people and for --json."""
        classes = {name: shares.model_dump() for name, shares in self.classes.items()}
        return {
            "radius": self.radius,
            "mean_distance": self.mean_distance,
            "backscatter_distance": {name: spread.distance for name, spread in self.backscatter.items()},
            "log_enl_distance": None if self.log_enl is None else self.log_enl.distance,
            "nodata_distance": self.nodata.distance,
            "class_share": classes,
        }


class Selection(Strict):
    """Content of `SELECTION`: which tiles calibrate, how they were chosen, and what they cover."""

    method: str = Field(description="k-centre, random or even.")
    seed: int
    split: str
    tile_px: int = Field(gt=0)
    requested: int = Field(gt=0, description="Tiles asked for.")
    candidates: int = Field(gt=0, description="Tiles of the split that were looked at.")
    left_out: int = Field(ge=0, description="Candidates not chosen from: nearly all no-data.")
    tiles: tuple[CalibrationTile, ...] = Field(min_length=1)
    coverage: Coverage


def select(
    folder: PairFolder,
    preprocessing: Preprocessing,
    *,
    tile_px: int,
    count: int,
    method: str = "k-centre",
    seed: int = 0,
    split: str = "train",
    progress: Progress = silent,
) -> Selection:
    """Choose calibration tiles; the same ones every time for the same data, options and seed.

    The whole split is described first (`descriptors.describe_split`), one image in memory at a time.

    Args:
        folder: Data folder.
        preprocessing: The bundle's.
        tile_px: Side of the tiles.
        count: Tiles wanted; all there are if there are fewer.
        method: "k-centre" (cover the extremes), "random", or "even" (equal distances by name and place).
        seed: Of the random numbers.
        split: Split to choose from; the training split, or a score on the others means less.
        progress: Counts pairs.
    Returns:
        The tiles, in the order of the split, and their coverage of all its tiles.
    Raises:
        ExportError: unknown method, or fewer than 1 tile.
        DatasetError: the split is missing, a file is unreadable, or no tile has enough valid pixels.
    """
    if method not in CHOOSERS or count < 1 or seed < 0:
        raise ExportError(
            f"Choosing {count} tiles by {method!r} with seed {seed} is not possible; choose one of "
            f"{', '.join(CHOOSERS)}, at least 1 tile and a seed of 0 or more."
        )
    described = describe_split(folder, preprocessing, tile_px=tile_px, split=split, progress=progress)
    usable = [index for index, item in enumerate(described) if 1 - item.nodata_share >= _LEAST_VALID]
    if not usable:
        best = 1 - min(item.nodata_share for item in described)
        raise DatasetError(
            f"No tile of split '{split}' in {folder.root} has {_LEAST_VALID:.0%} valid pixels, which "
            f"calibration needs; the best of {len(described)} has {best:.1%}. Correct sar.nodata in "
            "dataset.toml, or use smaller tiles."
        )
    points = features([described[index] for index in usable], preprocessing)
    chooser, rng = CHOOSERS[method], np.random.default_rng(seed)
    picked = sorted(chooser(points, min(count, len(usable)), rng))  # neighbours share reading their image
    chosen = [usable[index] for index in picked]
    return Selection(
        method=method,
        seed=seed,
        split=split,
        tile_px=tile_px,
        requested=count,
        candidates=len(described),
        left_out=len(described) - len(usable),
        tiles=tuple(described[index].tile for index in chosen),
        coverage=_coverage(
            described,
            [described[index] for index in chosen],
            reach=covering(points, picked),
            folder=folder,
            preprocessing=preprocessing,
        ),
    )


def store_selection(bundle: Bundle, selection: Selection) -> Bundle:
    """Write the selection into the bundle, for `quantize` to calibrate on.

    Raises:
        ExportError: the tiles have another size than the bundle's.
        StorageError: the disk is full; the bundle is as it was.
    """
    _check_fit(bundle, selection)
    return bundle.add({SELECTION: (selection.model_dump_json(indent=2) + "\n").encode()})


def load_selection(bundle: Bundle) -> Selection | None:
    """Read the bundle's selection; None if it has none.

    Raises:
        ExportError: it is damaged, or made for another tile size.
        BundleError: the file was changed.
    """
    if SELECTION not in bundle.manifest.files:
        return None
    try:
        selection = Selection.model_validate(json.loads(bundle.file(SELECTION).read_text("utf-8")))
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{bundle.path / SELECTION} is damaged or from another version: {str(error).splitlines()[0]}. "
            f"{_fix(bundle)}"
        ) from error
    _check_fit(bundle, selection)
    return selection


def selected_tiles(folder: PairFolder, bundle: Bundle, selection: Selection) -> Tiles:
    """Tiles of a selection through the bundle's own preprocessing, read whenever they are iterated.

    Every hash is verified as its tile is read: iterating raises DatasetError when a file or the
    preprocessing changed since.
    """
    return Tiles(
        sources=selection.tiles,
        folder=folder,
        split=selection.split,
        preprocessing=bundle.manifest.preprocessing,
        tile_px=selection.tile_px,
    )


def _check_fit(bundle: Bundle, selection: Selection) -> None:
    if selection.tile_px != bundle.manifest.tile_px:
        raise ExportError(
            f"The calibration tiles of {bundle.path} have {selection.tile_px} pixels a side, its model takes "
            f"{bundle.manifest.tile_px}. {_fix(bundle)}"
        )


def _fix(bundle: Bundle) -> str:
    return f"Choose tiles again with: hfd-edge calibrate select {bundle.path} --data DIR"


def _coverage(
    every: Sequence[Described],
    some: Sequence[Described],
    *,
    reach: tuple[float, float],
    folder: PairFolder,
    preprocessing: Preprocessing,
) -> Coverage:
    nodata = [[item.nodata_share for item in items] for items in (every, some)]
    return Coverage(
        radius=reach[0],
        mean_distance=reach[1],
        backscatter=_backscatter(every, some, folder.config.sar.bands, preprocessing),
        log_enl=_enl(every, some),
        classes=_classes(every, some, folder.config.classes),
        nodata=_spread_of(*nodata, limits=(0.0, 1.0), bins=_NODATA_BINS),
    )


def _backscatter(
    every: Sequence[Described], some: Sequence[Described], bands: Sequence[str], preprocessing: Preprocessing
) -> dict[str, Spread]:
    totals = [np.sum([item.backscatter for item in items], axis=0) for items in (every, some)]
    return {
        name: Spread(low=low, high=high, split=_shares(totals[0][band]), selection=_shares(totals[1][band]))
        for band, (name, (low, high)) in enumerate(zip(bands, backscatter_limits(preprocessing), strict=True))
    }


def _enl(every: Sequence[Described], some: Sequence[Described]) -> Spread | None:
    known = [[item.log_enl for item in items if np.isfinite(item.log_enl)] for items in (every, some)]
    if not all(known):
        return None
    return _spread_of(*known, limits=LOG_ENL_LIMITS, bins=_ENL_BINS)


def _classes(
    every: Sequence[Described], some: Sequence[Described], names: Sequence[str]
) -> dict[str, Shares]:
    totals = [np.sum([item.classes for item in items], axis=0) for items in (every, some)]
    if not all(total.any() for total in totals):
        return {}
    split, selection = (_shares(total) for total in totals)
    return {name: Shares(split=split[index], selection=selection[index]) for index, name in enumerate(names)}


def _spread_of(
    every: Sequence[float], some: Sequence[float], *, limits: tuple[float, float], bins: int
) -> Spread:
    counts = [np.histogram(values, bins=bins, range=limits)[0] for values in (every, some)]
    return Spread(low=limits[0], high=limits[1], split=_shares(counts[0]), selection=_shares(counts[1]))


def _shares(counts: NDArray[np.int64]) -> tuple[float, ...]:
    return tuple((counts / counts.sum()).tolist())
