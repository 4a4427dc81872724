"""What converters of public data sets share: reading with clear errors, and writing tile by tile."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig, EoInput, write_toml
from hfd_edge.datasets.layout import CONFIG_NAME
from hfd_edge.errors import DatasetError, RasterError
from hfd_edge.files import atomic_folder, write_text
from hfd_edge.progress import Progress
from hfd_edge.raster.georeference import Georeference
from hfd_edge.raster.image import georeference_of, read_image, write_image
from hfd_edge.sar.radiometry import valid_mask

Array = NDArray[Any]
Source = TypeVar("Source")
Schemes = Mapping[str, Mapping[str, Collection[str]]]
"""Scheme -> split -> the groups in it."""

SENTINEL2 = ("b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b8a", "b9", "b10", "b11", "b12")
"""Bands of Sentinel-2 in the files of SEN12MS, DFC2020 and Sen1Floods11."""
SENTINEL2_EO = EoInput(
    bands=("red", "green", "blue", "nir", "b5", "b6", "b7", "b8a", "b11", "b12"), scale=10000.0
)
"""The bands of 10 and 20 m, colours first; those of 60 m show the air rather than the ground."""
_KEPT = tuple(
    SENTINEL2.index(band) for band in ("b4", "b3", "b2", "b8", "b5", "b6", "b7", "b8a", "b11", "b12")
)


@dataclass(frozen=True)
class Sample:
    """One tile on its way into the pool.

    Attributes:
        name: File name without suffix.
        group: What split lists go by: the tile, or the scene that it was cut from.
        sar: (bands, rows, cols) in the units of the configuration.
        eo: (bands, rows, cols), or None.
        label: uint8 (rows, cols), or None.
        place: Where it lies; kept in GeoTIFFs.
    """

    name: str
    group: str
    sar: Array
    eo: Array | None
    label: Array | None
    place: Georeference = field(default_factory=Georeference)


def write_pool(
    dst: Path,
    config: DatasetConfig,
    sources: Sequence[Source],
    read: Callable[[Source], Iterable[Sample]],
    schemes: Schemes,
    *,
    progress: Progress,
) -> None:
    """Write a data folder with common folders and split lists; one tile is in memory at a time.

    Tiles without a valid SAR pixel are left out, and so are tiles of no split: nothing could use them.

    Args:
        dst: New data folder; it appears when all is written.
        config: Its dataset.toml.
        sources: What to read, in order.
        read: The tiles of one source.
        schemes: Which groups each split takes.
        progress: Counts sources.
    Raises:
        DatasetError: a source is faulty, or a split stays empty.
        StorageError: `dst` exists already or cannot be written.
    """
    lists: dict[tuple[str, str], list[str]] = {
        (scheme, split): [] for scheme, splits in schemes.items() for split in splits
    }
    groups = {key: frozenset(schemes[key[0]][key[1]]) for key in lists}
    blank = 0
    with atomic_folder(Path(dst)) as out:
        for done, source in enumerate(sources):
            progress(done, len(sources), f"convert {config.name}")
            for sample in read(source):
                used = [key for key, members in groups.items() if sample.group in members]
                if not valid_mask(sample.sar, units=config.sar.units, nodata=config.sar.nodata).any():
                    blank += 1
                elif used:
                    _write(out, sample)
                    for key in used:
                        lists[key].append(sample.name)
        _write_lists(out, lists, config.name)
        write_toml(out / CONFIG_NAME, config)
    without = f", {blank} tiles without valid SAR left out" if blank else ""
    progress(len(sources), len(sources), f"convert {config.name}{without}")


def _write_lists(out: Path, lists: Mapping[tuple[str, str], list[str]], name: str) -> None:
    for (scheme, split), names in lists.items():
        if not names:
            raise DatasetError(
                f"Split '{split}' of '{scheme}' would hold no tile of {name}. Fetch the rest of the data set."
            )
        write_text(out / "splits" / scheme / f"{split}.txt", "".join(f"{one}\n" for one in names))


def _write(out: Path, sample: Sample) -> None:
    for kind, image in (("sar", sample.sar), ("eo", sample.eo), ("label", sample.label)):
        if image is None:
            continue
        bands = 1 if image.ndim == 2 else len(image)
        if kind == "label" or (
            image.dtype == np.uint8 and bands in (1, 3) and sample.place == Georeference()
        ):
            write_image(out / kind / f"{sample.name}.png", image)
        else:
            write_image(out / kind / f"{sample.name}.tif", image, georeference=sample.place)


def read_bands(path: Path, *, bands: int, title: str, dtype: str | None = None) -> Array:
    """Read an image of the source, (bands, rows, cols).

    Args:
        path: File of the source.
        bands: Bands that it must have.
        title: The data set, for the error.
        dtype: Type that it must have; None takes any.
    Raises:
        DatasetError: unreadable, or another number of bands or type.
    """
    try:
        image = read_image(path)
    except RasterError as error:
        raise DatasetError(f"{error} (while reading {path}; fetch the file again)") from error
    if len(image) != bands or (dtype is not None and image.dtype.name != dtype):
        wanted = f"{bands}{f' of {dtype}' if dtype else ''}"
        raise DatasetError(
            f"{path} has {len(image)} bands of {image.dtype}, but {title} has {wanted} there. Fetch the file "
            "again; if the authors changed their format, convert these files yourself."
        )
    return image


def read_sentinel2(path: Path, *, title: str) -> NDArray[np.uint16]:
    """The bands of `SENTINEL2_EO` from a file of all 13, limited to 0..65535; NaN is 0.

    Raises:
        DatasetError: unreadable, or another number of bands.
    """
    stored = read_bands(path, bands=len(SENTINEL2), title=title)[list(_KEPT)]
    return np.clip(np.nan_to_num(stored), 0, 65535).astype(np.uint16)


def place_of(path: Path) -> Georeference:
    """Where a source file lies. Raises DatasetError: it cannot be read."""
    try:
        return georeference_of(path)
    except RasterError as error:
        raise DatasetError(f"{error} (while reading {path}; fetch the file again)") from error


def map_labels(label: Array, ids: Mapping[int, int], path: Path, *, title: str) -> NDArray[np.uint8]:
    """Translate the source's label values.

    Args:
        label: (rows, cols) of integers.
        ids: Source value -> label id; a value that is not here is a fault.
        path: Where they come from, for the error.
        title: The data set, for the error.
    Raises:
        DatasetError: a value is not in `ids`.
    """
    out = np.empty(label.shape, np.uint8)
    for value in np.unique(label):
        if value not in ids:
            raise DatasetError(
                f"{path} holds label value {value}, but {title} has {', '.join(map(str, sorted(ids)))}. "
                "Fetch the file again."
            )
        out[label == value] = ids[int(value)]
    return out


def require_layout(found: Collection[Any], src: Path, *, title: str, expected: str) -> None:
    """Refuse a folder without any of the files that the data set has. Raises DatasetError."""
    if not found:
        raise DatasetError(f"{src} is not {title}: it holds no {expected}. Give the folder that holds it.")


def require_partner(path: Path, of: Path) -> Path:
    """A file that belongs to another one. Raises DatasetError: it is missing."""
    if not path.is_file():
        raise DatasetError(f"{of} has no partner {path}. Fetch the missing file, or remove the tile.")
    return path


def read_names(path: Path) -> list[str]:
    """First column of a list of the source, without header. Raises DatasetError: it is missing or empty."""
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}). Fetch it from the authors' page.") from error
    names = [row[0].strip() for row in rows if row and row[0].strip()]
    if not names:
        raise DatasetError(f"{path} lists nothing. Fetch it again from the authors' page.")
    return names


def take_runs(names: Sequence[str], share: float, *, run: int = 10, seed: int = 0) -> set[str]:
    """Choose a share of the names in runs of consecutive ones: neighbouring names show neighbouring ground.

    Args:
        names: In the order of the ground; of none, none are taken.
        share: 0 to 1; at least one run is taken, and one is left where there are two.
        run: Names in a run; shorter where there are fewer than ten runs.
        seed: The same seed chooses the same runs.
    """
    if not names:
        return set()
    step = max(1, min(run, len(names) // 10))
    runs = [names[start : start + step] for start in range(0, len(names), step)]
    count = min(max(1, round(share * len(runs))), max(1, len(runs) - 1))
    chosen = np.random.default_rng(seed).choice(len(runs), size=count, replace=False)
    return {name for index in chosen for name in runs[index]}
