"""OMBRIA: Sentinel-1 and Sentinel-2 before and after eleven floods, with the mapped flood.

The authors' layout is `OmbriaS1/{train,test}/{AFTER,MASK}/S1_{after,mask}_NNNN.png` and
`OmbriaS2/{train,test}/{BEFORE,AFTER}/S2_{before,after}_NNNN.png`. Copies that carry `label/<scene>_NNNN.png`
(0 dry, 1 flood, 255 void) and `splits/<scheme>/{train,val,test}.txt` beside it are converted with these. To a
scheme `event`, which keeps whole floods for the test, come `new_flood` and `new_flood_2`; see `_new_floods`.

Source: Drakonakis et al. (2022), "OmbriaNet", IEEE JSTARS.
"""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfd_edge.config import DatasetConfig, EoInput, SarInput, write_toml
from hfd_edge.datasets.layout import EO_BEFORE, UNLABELLED
from hfd_edge.errors import DatasetError, RasterError
from hfd_edge.files import atomic_folder, write_text
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.image import read_image, write_image

CONFIG = DatasetConfig(
    name="ombria",
    classes=("dry", "flood"),
    palette=((204, 188, 140), (30, 100, 200)),
    ignore_index=255,
    sar=SarInput(bands=("sar",), units="stretched"),
    eo=EoInput(bands=("red", "green", "blue"), scale=255.0),
    source=(
        "OMBRIA, github.com/geodrak/OMBRIA; cite Drakonakis et al., OmbriaNet, IEEE JSTARS 2022. The "
        "authors state no licence: do not redistribute. SAR is stretched to 8 bits per tile (no absolute "
        "radiometry), EO is a false-colour composite, labels are the mapped flood, not permanent water."
    ),
)

PARTS = ("train", "test")
VAL_SHARE = 0.1
_VAL_SEED = 0
_RUN_TILES = 10


@dataclass(frozen=True)
class _Tile:
    """One tile of the source: its files, and its name in the data folder."""

    name: str
    part: str
    number: int
    sar: Path
    eo: Path
    eo_before: Path
    mask: Path


def convert(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Write OMBRIA as a data folder with common folders and split lists.

    SAR, EO of both dates and given labels are copied byte for byte. Without `label/`, labels come from the
    authors' masks (0 and 255 become 0 and 1). Without `splits/`, the scheme is called 'authors': their train
    and test folders, with a tenth of train as val, taken in runs of consecutive numbers because neighbouring
    numbers show neighbouring ground.

    Args:
        src: Folder that holds OmbriaS1/ and OmbriaS2/.
        dst: New data folder.
        progress: Counts tiles.
    Raises:
        DatasetError: `src` has another layout, a tile lacks a file, or a list names an unknown tile.
        StorageError: `dst` exists already or cannot be written.
    """
    src = Path(src)
    given = _given_names(src)
    tiles = _tiles(src, given)
    schemes = _given_splits(src, tiles) if (src / "splits").is_dir() else {"authors": _authors_split(tiles)}
    if "event" in schemes and "new_flood" not in schemes:
        schemes |= _new_floods(schemes["event"])
    with atomic_folder(Path(dst)) as out:
        for kind in ("sar", "eo", EO_BEFORE, "label"):
            (out / kind).mkdir()
        for done, tile in enumerate(tiles):
            progress(done, len(tiles), f"convert ombria {tile.name}")
            shutil.copyfile(tile.sar, out / "sar" / f"{tile.name}.png")
            shutil.copyfile(tile.eo, out / "eo" / f"{tile.name}.png")
            shutil.copyfile(tile.eo_before, out / EO_BEFORE / f"{tile.name}.png")
            _write_label(src, tile, out / "label" / f"{tile.name}.png")
        for scheme, splits in schemes.items():
            for split, names in splits.items():
                write_text(out / "splits" / scheme / f"{split}.txt", "".join(f"{name}\n" for name in names))
        write_toml(out / "dataset.toml", CONFIG)
    progress(len(tiles), len(tiles), "convert ombria")


def _tiles(src: Path, given: dict[int, str]) -> list[_Tile]:
    """All tiles, sorted by part and number; every file of each is there."""
    tiles = []
    for part in PARTS:
        folder = src / "OmbriaS1" / part / "AFTER"
        for sar in sorted(folder.glob("S1_after_*.png")):
            number = _number(sar)
            tile = _Tile(
                name=given.get(number, f"{part}_{number:04d}"),
                part=part,
                number=number,
                sar=sar,
                eo=src / "OmbriaS2" / part / "AFTER" / f"S2_after_{sar.stem[-4:]}.png",
                eo_before=src / "OmbriaS2" / part / "BEFORE" / f"S2_before_{sar.stem[-4:]}.png",
                mask=src / "OmbriaS1" / part / "MASK" / f"S1_mask_{sar.stem[-4:]}.png",
            )
            for path in (tile.eo, tile.eo_before, tile.mask):
                if not path.is_file():
                    raise DatasetError(
                        f"{sar} has no partner {path}. Fetch the missing file, or remove the tile."
                    )
            tiles.append(tile)
    if not tiles:
        raise DatasetError(
            f"{src} is not OMBRIA: there is no OmbriaS1/train/AFTER/S1_after_NNNN.png in it. "
            f"Give the folder that holds OmbriaS1/ and OmbriaS2/."
        )
    names = [tile.name for tile in tiles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError(f"{src}: tile {twice[0]} is in both train and test. Remove one of them.")
    return tiles


def _number(path: Path) -> int:
    match = re.search(r"_(\d{4})$", path.stem)
    if match is None:
        raise DatasetError(
            f"{path} is not named ..._NNNN.png (four digits) as in OMBRIA. Rename or remove it."
        )
    return int(match.group(1))


def _given_names(src: Path) -> dict[int, str]:
    """Tile number -> name, from label/ and splits/; empty for the authors' own distribution."""
    stems = {path.stem for path in (src / "label").glob("*.png")}
    for path in (src / "splits").glob("*/*.txt"):
        stems.update(Path(line.strip()).stem for line in path.read_text("utf-8").splitlines() if line.strip())
    names: dict[int, str] = {}
    for stem in sorted(stems):
        number = _number(Path(stem))
        if number in names:
            raise DatasetError(
                f"{src}: label/ and splits/ call tile {number:04d} both {names[number]} and {stem}."
            )
        names[number] = stem
    return names


def _given_splits(src: Path, tiles: list[_Tile]) -> dict[str, dict[str, list[str]]]:
    known = {tile.name for tile in tiles}
    schemes: dict[str, dict[str, list[str]]] = {}
    for path in sorted((src / "splits").glob("*/*.txt")):
        names = [Path(line.strip()).stem for line in path.read_text("utf-8").splitlines() if line.strip()]
        missing = [name for name in names if name not in known]
        if missing:
            raise DatasetError(
                f"{path} lists {missing[0]}, but OmbriaS1/ has no tile of that number. Fetch it, or remove "
                f"the line."
            )
        schemes.setdefault(path.parent.name, {})[path.stem] = names
    return schemes


def _authors_split(tiles: list[_Tile]) -> dict[str, list[str]]:
    """The authors' train and test; val is a tenth of train in runs of consecutive tiles."""
    train = [tile.name for tile in tiles if tile.part == "train"]
    test = [tile.name for tile in tiles if tile.part == "test"]
    if len(train) < 2 or not test:
        raise DatasetError(
            f"OmbriaS1/ has {len(train)} train and {len(test)} test tiles, but at least two and one are "
            f"needed to make train, val and test. Fetch the rest of the data set."
        )
    run = max(1, min(_RUN_TILES, len(train) // 10))
    runs = [train[start : start + run] for start in range(0, len(train), run)]
    count = max(1, round(VAL_SHARE * len(runs)))
    chosen = np.random.default_rng(_VAL_SEED).choice(len(runs), size=count, replace=False)
    val = {name for index in chosen for name in runs[index]}
    return {"train": [name for name in train if name not in val], "val": sorted(val), "test": test}


def _new_floods(event: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Schemes of floods of which there are pairs of SAR and EO, but no map yet; none with single tiles.

    As `event`, but for the floods of its test: the first half of the tiles of each are pairs without label,
    the second half is the test; in the second scheme the other way round, so both together test all tiles.
    Neighbouring numbers show neighbouring ground: the halves meet in one place.
    """
    first: list[str] = []
    second: list[str] = []
    by_flood = itertools.groupby(sorted(event.get("test", ())), key=lambda name: name.rpartition("_")[0])
    for names in (list(group) for _, group in by_flood):
        first += names[: len(names) // 2]
        second += names[len(names) // 2 :]
    if not first:
        return {}
    return {
        "new_flood": {**event, UNLABELLED: first, "test": second},
        "new_flood_2": {**event, UNLABELLED: second, "test": first},
    }


def _write_label(src: Path, tile: _Tile, out: Path) -> None:
    given = src / "label" / f"{tile.name}.png"
    if given.is_file():
        shutil.copyfile(given, out)
        return
    if given.parent.is_dir():
        raise DatasetError(f"{src / 'label'} has no {given.name} for {tile.sar}. Add it, or remove label/.")
    try:
        mask = read_image(tile.mask)
    except RasterError as error:
        raise DatasetError(f"{error} (while reading {tile.mask}; fetch the file again)") from error
    values = np.unique(mask)
    if mask.shape[0] != 1 or not np.isin(values, (0, 255)).all():
        raise DatasetError(
            f"{tile.mask} has {mask.shape[0]} bands with values {values[:5].tolist()}, but an OMBRIA mask "
            f"has one band of 0 and 255. Fetch the file again."
        )
    write_image(out, (mask == 255).astype(np.uint8))
