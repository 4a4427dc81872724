"""SEN12MS and DFC2020: Sentinel-1, Sentinel-2 and land cover of the same pixels, all over the world.

SEN12MS: `ROIs<number>_<season>/{s1,s2,lc}_<scene>/ROIs<number>_<season>_{s1,s2,lc}_<scene>_p<tile>.tif`, with
the authors' `train_list.txt` and `test_list.txt` beside the seasons. s1 is VV, VH as sigma0 in dB; s2 has all
13 bands, reflectance times 10000; band 1 of lc is the IGBP class, 1 to 17.
DFC2020: `ROIs0000_{validation,test}/{s1,s2,dfc}_<scene>/...` named alike; dfc is a label of 10 m, 1 to 10.

Layout, bands and lists from TorchGeo's SEN12MS class; the ten classes, how IGBP maps to them, and the broken
tile from the contest's baseline (lukasliebel/dfc2020_baseline). Looks are not stated: 4.4 is ESA's figure for
IW GRD. The licences could not be confirmed.

Sources: Schmitt et al. (2019), ISPRS Annals IV-2/W7, 153-160; Schmitt et al. (2020), Weakly Supervised
Semantic Segmentation of Satellite Images for Land Cover Mapping.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfd_edge.config import DatasetConfig, SarInput
from hfd_edge.datasets import source
from hfd_edge.datasets.public import PUBLIC
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent

CLASSES = {
    "forest": (0, 153, 0),
    "shrubland": (198, 176, 68),
    "savanna": (251, 255, 19),
    "grassland": (182, 255, 5),
    "wetland": (39, 255, 135),
    "cropland": (194, 79, 68),
    "urban": (165, 165, 165),
    "snow": (105, 255, 248),
    "barren": (249, 255, 164),
    "water": (28, 13, 255),
}
"""The ten classes of the contest, in its colours."""
IGBP = {
    0: 255, **dict.fromkeys(range(1, 6), 0), 6: 1, 7: 1, 8: 2, 9: 2, 10: 3, 11: 4, 12: 5, 13: 6, 14: 5, 15: 7,
    16: 8, 17: 9, 255: 255,
}  # fmt: skip
"""IGBP value -> position in CLASSES."""
_DFC = {0: 255, 255: 255, **{value: value - 1 for value in range(1, 11)}}
_BROKEN = "ROIs1868_summer_146_p202"  # its Sentinel-1 file holds NaN
_NAME = re.compile(r"(ROIs\d+_[a-z]+)_[a-z0-9]+_(\w+)_p(\d+)(?:\.tif)?")
_VAL_SHARE = 0.1


@dataclass(frozen=True)
class _Tile:
    """Files of one tile; `scene` groups those of one place."""

    name: str
    scene: str
    sar: Path
    eo: Path
    label: Path


def convert(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Write SEN12MS as a data folder of ten classes.

    Scheme `authors`: their train and test lists; a tenth of the train scenes is val, each scene whole.

    Args:
        src: Folder that holds ROIs*/, train_list.txt and test_list.txt.
        dst: New data folder.
        progress: Counts tiles.
    Raises:
        DatasetError: `src` has another layout, or a tile lacks a file.
        StorageError: `dst` exists already or cannot be written.
    """
    src, title = Path(src), "SEN12MS"
    tiles = _tiles(src, "ROIs*_*", "lc", title)
    known = {tile.name: tile for tile in tiles}
    lists = {part: _listed(src / f"{part}_list.txt", known) for part in ("train", "test")}
    scenes = sorted({known[name].scene for name in lists["train"]})
    val = source.take_runs(scenes, _VAL_SHARE, run=1)
    train = [name for name in lists["train"] if known[name].scene not in val]
    rest = [name for name in lists["train"] if known[name].scene in val]
    schemes = {"authors": {"train": train, "val": rest, "test": lists["test"]}}
    _write(dst, "sen12ms", tiles, schemes, ids=IGBP, bands=4, progress=progress)


def convert_dfc2020(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Write DFC2020 as a data folder of ten classes.

    The contest trains on SEN12MS and has a validation and a test part of its own. Scheme `contest` trains on
    nine tenths of its test part, with the rest as val, and tests on its validation part: the roles that
    later users (GFM-Bench, for one) give them, though their choice of tiles is another.

    Args:
        src: Folder that holds ROIs0000_validation/ and ROIs0000_test/.
        dst: New data folder.
        progress: Counts tiles.
    Raises:
        DatasetError: `src` has another layout, or a tile lacks a file.
        StorageError: `dst` exists already or cannot be written.
    """
    src, title = Path(src), "DFC2020"
    parts = {part: _tiles(src, f"ROIs0000_{part}", "dfc", title) for part in ("test", "validation")}
    names = {part: [tile.name for tile in tiles] for part, tiles in parts.items()}
    val = source.take_runs(names["test"], _VAL_SHARE)
    train = [name for name in names["test"] if name not in val]
    schemes = {"contest": {"train": train, "val": val, "test": names["validation"]}}
    tiles = [*parts["test"], *parts["validation"]]
    _write(dst, "dfc2020", tiles, schemes, ids=_DFC, bands=1, progress=progress)


def _tiles(src: Path, folders: str, label: str, title: str) -> list[_Tile]:
    """Every tile with all its files, in the order of scenes and numbers."""
    tiles = []
    for sar in src.glob(f"{folders}/s1_*/*.tif"):
        match = _NAME.fullmatch(sar.name)
        if match is None:
            raise DatasetError(f"{sar} is not named ROIs..._s1_<scene>_p<tile>.tif as in {title}. Remove it.")
        season, scene, number = match.groups()
        eo, labels = (_sibling(sar, kind) for kind in ("s2", label))
        name = f"{season}_{scene}_p{number}"
        tiles.append(_Tile(name, f"{season}_{scene}", sar, eo, labels))
    source.require_layout(tiles, src, title=title, expected=f"{folders}/s1_*/ROIs..._s1_<scene>_p<tile>.tif")
    return sorted(tiles, key=lambda tile: (tile.scene, int(tile.name.rsplit("_p", 1)[1])))


def _sibling(sar: Path, kind: str) -> Path:
    folder = sar.parent.with_name(sar.parent.name.replace("s1_", f"{kind}_", 1))
    return source.require_partner(folder / sar.name.replace("_s1_", f"_{kind}_", 1), sar)


def _listed(path: Path, known: Mapping[str, _Tile]) -> list[str]:
    """Names of a list of the authors; its lines name the file of any of the three images."""
    names = []
    for line in source.read_names(path):
        match = _NAME.fullmatch(line)
        name = "" if match is None else "{}_{}_p{}".format(*match.groups())
        if name not in known and name != _BROKEN:
            raise DatasetError(
                f"{path} lists {line}, but no ROIs*/s1_*/ holds that tile. Fetch the rest of the data set."
            )
        names.append(name)
    return [name for name in names if name != _BROKEN]


def _write(
    dst: Path,
    key: str,
    tiles: list[_Tile],
    schemes: source.Schemes,
    *,
    ids: Mapping[int, int],
    bands: int,
    progress: Progress,
) -> None:
    title = PUBLIC[key].title

    def read(tile: _Tile) -> Iterator[source.Sample]:
        label = source.read_bands(tile.label, bands=bands, title=title)[0]
        yield source.Sample(
            name=tile.name,
            group=tile.name,
            sar=source.read_bands(tile.sar, bands=2, title=title).astype(np.float32),
            eo=source.read_sentinel2(tile.eo, title=title),
            label=source.map_labels(label, ids, tile.label, title=title),
            place=source.place_of(tile.sar),
        )

    config = DatasetConfig(
        name=key,
        classes=tuple(CLASSES),
        palette=tuple(CLASSES.values()),
        sar=SarInput(bands=("vv", "vh"), units="sigma0_db", looks=4.4),
        eo=source.SENTINEL2_EO,
        source=PUBLIC[key].source,
    )
    source.write_pool(dst, config, tiles, read, schemes, progress=progress)
