"""Simulated data on disk: a data folder of pairs, and a large georeferenced scene with its truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hfd_edge.config import DatasetConfig, EoInput, SarInput, write_toml
from hfd_edge.datasets.layout import CONFIG_NAME, KINDS
from hfd_edge.files import atomic_folder
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.georeference import Georeference
from hfd_edge.raster.image import write_image
from hfd_edge.raster.scene import MaskWriter, SceneWriter
from hfd_edge.sar.simulate import (
    CLASSES,
    LOOKS,
    NODATA_LABEL,
    PALETTE,
    SAR_INPUT,
    SceneRenderer,
    simulate_scene,
)

PIXEL_M = 10.0
_UPPER_LEFT = (600_000.0, 5_400_000.0)
_UTM_31N = (
    'PROJCS["WGS 84 / UTM zone 31N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,'
    'AUTHORITY["EPSG","7030"]],AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]],'
    'PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",3],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],'
    'UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
    'AUTHORITY["EPSG","32631"]]'
)
"""EPSG:32631 in the form that georeferences hold."""


def dataset_config(*, looks: float = LOOKS) -> DatasetConfig:
    """dataset.toml of simulated pairs."""
    return DatasetConfig(
        name="simulated",
        classes=CLASSES,
        palette=PALETTE,
        ignore_index=NODATA_LABEL,
        sar=sar_input(looks=looks),
        eo=EoInput(bands=("red", "green", "blue"), scale=255.0),
        source="Simulated by hfd-edge (hfd_edge.sar.simulate); free to use.",
    )


def sar_input(*, looks: float = LOOKS) -> SarInput:
    """What simulated SAR pixels are."""
    return SAR_INPUT.model_copy(update={"looks": looks})


def write_dataset(
    out: Path,
    *,
    train: int,
    val: int,
    test: int,
    size_px: int,
    seed: int,
    looks: float = LOOKS,
    progress: Progress = silent,
) -> None:
    """Write a data folder of simulated pairs; each tile is a scene of its own.

    SAR is a float32 GeoTIFF, EO and label are PNG. Equal arguments write equal files, and a longer split
    starts with the pairs of a shorter one.

    Args:
        out: New folder.
        train: Training pairs.
        val: Validation pairs.
        test: Test pairs.
        size_px: Side of the tiles.
        seed: 0 or more.
        looks: Looks of the speckle.
        progress: Counts pairs.
    Raises:
        StorageError: `out` exists already or cannot be written.
        ValueError: `size_px`, `seed` or `looks` is out of range.
    """
    jobs = [
        (split, index)
        for split, count in (("train", train), ("val", val), ("test", test))
        for index in range(count)
    ]
    with atomic_folder(Path(out)) as folder:
        for done, (split, index) in enumerate(jobs):
            progress(done, len(jobs), f"simulate {split} pairs")
            _write_pair(
                folder / split, index, size_px=size_px, seed=_pair_seed(seed, split, index), looks=looks
            )
        write_toml(folder / CONFIG_NAME, dataset_config(looks=looks))
    progress(len(jobs), len(jobs), "simulate pairs")


def write_scene(
    path: Path,
    *,
    rows: int,
    cols: int,
    seed: int,
    looks: float = LOOKS,
    progress: Progress = silent,
) -> Path:
    """Write a large scene as GeoTIFF (EPSG:32631, 10 m) and its truth beside it, in bounded memory.

    Args:
        path: SAR image to write, .tif; bands VV and VH, no-data 0.
        rows: Height, pixels.
        cols: Width, pixels.
        seed: 0 or more.
        looks: Looks of the speckle.
        progress: Counts megapixels.
    Returns:
        The label map's path, `<stem>.label.tif` in the same folder.
    Raises:
        RasterError: `path` is not named as a GeoTIFF.
        StorageError: a file cannot be written; then neither is left behind half.
        ValueError: `rows`, `cols`, `seed` or `looks` is out of range.
    """
    path = Path(path)
    label_path = path.with_name(f"{path.stem}.label.tif")
    place = Georeference(
        crs=_UTM_31N, transform=(PIXEL_M, 0.0, _UPPER_LEFT[0], 0.0, -PIXEL_M, _UPPER_LEFT[1])
    )
    renderer = SceneRenderer(rows=rows, cols=cols, seed=seed, looks=looks)
    total = rows * cols / 1e6
    with (
        MaskWriter(
            label_path,
            rows=rows,
            cols=cols,
            palette=PALETTE,
            classes=CLASSES,
            georeference=place,
            nodata_label=NODATA_LABEL,
        ) as labels,
        SceneWriter(
            path,
            bands=len(SAR_INPUT.bands),
            rows=rows,
            cols=cols,
            dtype=np.float32,
            georeference=place,
            nodata=SAR_INPUT.nodata,
        ) as scene,
    ):
        for row0, sar, label in renderer.radar_blocks():
            progress(row0 * cols / 1e6, total, "simulate scene (megapixels)")
            scene.write_rows(row0, sar)
            labels.write_rows(row0, label)
    progress(total, total, "simulate scene (megapixels)")
    return label_path


def _write_pair(folder: Path, index: int, *, size_px: int, seed: int, looks: float) -> None:
    scene = simulate_scene(rows=size_px, cols=size_px, seed=seed, looks=looks)
    name = f"scene_{index:04d}"
    sar, eo, label = (folder / kind / name for kind in KINDS)
    write_image(sar.with_suffix(".tif"), scene.sar, nodata=SAR_INPUT.nodata)
    write_image(eo.with_suffix(".png"), scene.eo)
    write_image(label.with_suffix(".png"), scene.label)


def _pair_seed(seed: int, split: str, index: int) -> int:
    """A seed of its own for each pair, wherever the splits end."""
    stream = ("train", "val", "test").index(split)
    return int(np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0])
