"""SpaceNet 6: airborne X-band SAR and WorldView-2 images of Rotterdam with building footprints.

Layout: `AOI_11_Rotterdam/<kind>/SN6_Train_AOI_11_Rotterdam_<kind>_<tile>.tif` for the kinds SAR-Intensity and
PS-RGB, and `AOI_11_Rotterdam/SummaryData/SN6_Train_AOI_11_Rotterdam_Buildings.csv` with columns ImageId (the
tile) and PolygonWKT_Pix (a footprint in pixels of the tile). A tile is named `<start>_<end>_tile_<number>`:
passes of the aeroplane overlap, so the same ground is in many tiles.

Names, bands and sizes (900 x 900 pixels of 0.5 m) from TorchGeo's SpaceNet6 class and the contest's winners;
zero outside the pass. Users disagree on whether the four bands (HH, HV, VH, VV, in this order) are decibels
or power, and the authors' text could not be read: they are copied as they are and count as "stretched". The
public test part has no labels and is not converted.

Source: Shermeyer et al. (2020), CVPR Workshops, arXiv:2004.06500.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig, EoInput, SarInput
from hfd_edge.datasets import source
from hfd_edge.datasets.public import PUBLIC
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.polygons import fill_polygons
from hfd_edge.raster.scene import SceneReader
from hfd_edge.sar.radiometry import valid_mask

TITLE = "SpaceNet 6"
CONFIG = DatasetConfig(
    name="spacenet6",
    classes=("ground", "building"),
    palette=((216, 210, 196), (204, 62, 58)),
    sar=SarInput(bands=("hh", "hv", "vh", "vv"), units="stretched", nodata=0.0),
    eo=EoInput(bands=("red", "green", "blue"), scale=255.0),
    source=PUBLIC["spacenet6"].source,
)
BORDERS = (0.7, 0.8)
"""Shares of the ground, from west to east, at which val and test begin."""
_PREFIX = "SN6_Train_AOI_11_Rotterdam"


@dataclass(frozen=True)
class _Tile:
    """One tile and the eastings that it covers, metres."""

    name: str
    sar: Path
    west: float
    east: float


def convert(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Write the training part as a data folder.

    Scheme `ground` cuts the city from west to east, because tiles of different passes show the same
    buildings; tiles across a border are left out. Pixels without SAR have no label.

    Args:
        src: Folder that holds AOI_11_Rotterdam/ (or train/AOI_11_Rotterdam/), or that folder itself.
        dst: New data folder.
        progress: Counts tiles.
    Raises:
        DatasetError: `src` has another layout, a tile lacks its optical image or georeference, or footprints
            cannot be read or are of other tiles.
        StorageError: `dst` exists already or cannot be written.
    """
    src = Path(src)
    files = sorted(_root(src).glob(f"SAR-Intensity/{_PREFIX}_SAR-Intensity_*.tif"))
    source.require_layout(
        files, src, title=TITLE, expected=f"AOI_11_Rotterdam/SAR-Intensity/{_PREFIX}_SAR-Intensity_*.tif"
    )
    root, tiles = _root(src), [_tile(path) for path in files]
    footprints = _footprints(root / "SummaryData" / f"{_PREFIX}_Buildings.csv", tiles)

    def read(tile: _Tile) -> Iterator[source.Sample]:
        eo = source.require_partner(root / "PS-RGB" / f"{_PREFIX}_PS-RGB_{tile.name}.tif", tile.sar)
        sar = source.read_bands(tile.sar, bands=4, title=TITLE)
        outlines = [one for text in footprints.get(tile.name, ()) for one in read_polygons(text)]
        label = fill_polygons(outlines, rows=sar.shape[1], cols=sar.shape[2])
        seen = valid_mask(sar, units=CONFIG.sar.units, nodata=CONFIG.sar.nodata)
        label[~seen] = CONFIG.ignore_index
        yield source.Sample(
            name=tile.name,
            group=tile.name,
            sar=sar,
            eo=source.read_bands(eo, bands=3, title=TITLE, dtype="uint8"),
            label=label,
            place=source.place_of(tile.sar),
        )

    source.write_pool(dst, CONFIG, tiles, read, {"ground": _split(tiles)}, progress=progress)


def _root(src: Path) -> Path:
    """The folder that holds SAR-Intensity/, or `src` where there is none."""
    folders = [src, src / "AOI_11_Rotterdam", src / "train" / "AOI_11_Rotterdam"]
    return next((one for one in folders if (one / "SAR-Intensity").is_dir()), src)


def read_polygons(text: str) -> list[list[NDArray[np.float64]]]:
    """Read a polygon or multipolygon in well-known text.

    Returns:
        Polygons as rings, the outline first and then the holes; each (points, 2) as x, y. Further
        coordinates of a point are left out; an empty polygon gives none.
    Raises:
        DatasetError: the text is no polygon.
    """
    if not re.fullmatch(r"\s*(MULTI)?POLYGON\s*Z?\s*(\(.*\)|EMPTY)\s*", text, re.IGNORECASE | re.DOTALL):
        raise DatasetError(f"'{text[:60]}' is not a polygon in well-known text. Fetch the CSV again.")
    polygons = re.split(r"(?<=\)\))\s*,", text)  # of a multipolygon
    rings = [[_ring(ring) for ring in re.findall(r"\(([^()]+)\)", polygon)] for polygon in polygons]
    return [polygon for polygon in rings if polygon]


def _ring(text: str) -> NDArray[np.float64]:
    try:
        return np.array([[float(value) for value in point.split()[:2]] for point in text.split(",")])
    except ValueError as error:
        raise DatasetError(
            f"'{text[:60]}' is not a ring of points ({error}). Fetch the CSV again."
        ) from error


def _footprints(path: Path, tiles: Sequence[_Tile]) -> Mapping[str, list[str]]:
    """Tile -> its footprints as text; of some of the tiles, or all labels would say that nothing is built."""
    found: dict[str, list[str]] = {}
    limit = csv.field_size_limit(sys.maxsize)  # harbour sheds have long outlines
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["ImageId"], []).append(row["PolygonWKT_Pix"])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({error}). Fetch SummaryData/ as well.") from error
    except KeyError as error:
        raise DatasetError(f"{path} has no column {error}, as SpaceNet 6 has. Fetch it again.") from error
    finally:
        csv.field_size_limit(limit)
    if not any(tile.name in found for tile in tiles):
        raise DatasetError(
            f"{path} names none of the {len(tiles)} tiles in SAR-Intensity/ (first '{tiles[0].name}'), but "
            f"{', '.join(list(found)[:2]) or 'none at all'}. Fetch SummaryData/ of the same part."
        )
    return found


def _tile(path: Path) -> _Tile:
    place = source.place_of(path)
    if place.transform is None:
        raise DatasetError(
            f"{path} has no georeference, by which tiles are split. Fetch the file again; do not re-save it."
        )
    name = path.stem.removeprefix(f"{_PREFIX}_SAR-Intensity_")
    west, pixel = place.transform[2], place.transform[0]
    return _Tile(name, path, west, west + pixel * _width(path))


def _width(path: Path) -> int:
    with SceneReader(path) as scene:
        return scene.cols


def _split(tiles: Sequence[_Tile]) -> dict[str, list[str]]:
    """West to east: train, val, test; what lies across a border is in none."""
    low, high = min(tile.west for tile in tiles), max(tile.east for tile in tiles)
    edges = [-np.inf, *(low + share * (high - low) for share in BORDERS), np.inf]
    return {
        split: [tile.name for tile in tiles if tile.west >= west and tile.east <= east]
        for split, west, east in zip(("train", "val", "test"), edges, edges[1:], strict=False)
    }
