"""DDHR: Gaofen-3 SAR and Gaofen-2 optical tiles of Pohang, Xi'an and Dongying, with land cover.

Layout of one region: `GF3/<number>.jpg`, `GF2/<number>.jpg`, `label/<number>.png`, and the authors' random
halves `trainM_list.txt` and `valM_list.txt`, whose lines are `.../GF2/N.jpg .../GF3/N.jpg .../label/N.png`.

From the authors' repository (XD-MG/DDHRNet): folders, lists, five classes, label 255 ignored, tiles of 256
pixels. The names of the classes and their order (building, road, greenery, water, farmland) are those of a
user's MMSegmentation class for DDHR-SK: the authors' paper could not be read, so check them on a few tiles.

Source: Ren et al. (2022), JAG 112, 102896.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig, EoInput, SarInput
from hfd_edge.datasets import source
from hfd_edge.datasets.public import PUBLIC
from hfd_edge.errors import DatasetError, RasterError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.image import read_image

TITLE = "DDHR"
CONFIG = DatasetConfig(
    name="ddhr",
    classes=("building", "road", "greenery", "water", "farmland"),
    palette=((200, 60, 60), (148, 160, 190), (90, 160, 95), (20, 99, 191), (220, 205, 120)),
    sar=SarInput(bands=("sar",), units="stretched"),
    eo=EoInput(bands=("red", "green", "blue"), scale=255.0),
    source=PUBLIC["ddhr"].source,
)
_LISTS = {"train": "trainM_list.txt", "val": "valM_list.txt"}
_VAL_SHARE, _TEST_SHARE = 0.1, 0.2
_IDS = {255: 255, **{value: value for value in range(5)}}


def convert(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Write one region as a data folder.

    Where both lists are there, scheme `authors` tests on the tiles of their valM list and takes a tenth of
    their trainM list as val. Without lists, scheme `runs` takes a tenth as val and a fifth as test, in runs
    of consecutive numbers: random tiles of one image are neighbours of each other.

    Args:
        src: Folder of one region, which holds GF2/, GF3/ and label/.
        dst: New data folder.
        progress: Counts tiles.
    Raises:
        DatasetError: `src` has another layout, a tile lacks a file, or a list names an unknown tile.
        StorageError: `dst` exists already or cannot be written.
    """
    src = Path(src)
    names = sorted((path.stem for path in (src / "GF3").glob("*.jpg")), key=lambda stem: (len(stem), stem))
    source.require_layout(names, src, title=TITLE, expected="GF3/<number>.jpg beside GF2/ and label/")

    def read(name: str) -> Iterator[source.Sample]:
        sar = src / "GF3" / f"{name}.jpg"
        eo = source.require_partner(src / "GF2" / f"{name}.jpg", sar)
        label = source.require_partner(src / "label" / f"{name}.png", sar)
        yield source.Sample(
            name=name,
            group=name,
            sar=_grey(sar),
            eo=source.read_bands(eo, bands=3, title=TITLE, dtype="uint8"),
            label=source.map_labels(
                source.read_bands(label, bands=1, title=TITLE)[0], _IDS, label, title=TITLE
            ),
        )

    source.write_pool(dst, CONFIG, names, read, _schemes(src, names), progress=progress)


def _schemes(src: Path, names: list[str]) -> source.Schemes:
    if not all((src / name).is_file() for name in _LISTS.values()):
        test = source.take_runs(names, _TEST_SHARE)
        rest = [name for name in names if name not in test]
        val = source.take_runs(rest, _VAL_SHARE)
        return {"runs": {"train": [name for name in rest if name not in val], "val": val, "test": test}}
    train, test = (_listed(src / _LISTS[part], set(names)) for part in ("train", "val"))
    val = source.take_runs([name for name in names if name in train], _VAL_SHARE)
    return {"authors": {"train": train - val, "val": val, "test": test}}


def _listed(path: Path, known: set[str]) -> set[str]:
    names = {Path(line.split()[0]).stem for line in source.read_names(path)}
    if unknown := sorted(names - known):
        raise DatasetError(
            f"{path} lists {unknown[0]}, but GF3/ has no tile of that number ({len(unknown)} missing). Fetch "
            "the rest of the data set."
        )
    return names


def _grey(path: Path) -> NDArray[np.uint8]:
    """One band of a JPEG that may hold the same grey three times."""
    try:
        image = read_image(path)
    except RasterError as error:
        raise DatasetError(f"{error} (while reading {path}; fetch the file again)") from error
    if len(image) not in (1, 3) or image.dtype != np.uint8:
        raise DatasetError(
            f"{path} has {len(image)} bands of {image.dtype}, but SAR of {TITLE} is grey, 8 bits. Fetch the "
            "file again."
        )
    return image[:1]
