"""WHU-OPT-SAR: a hundred Gaofen-3 and Gaofen-1 scenes of Hubei with land use, cut into tiles.

Layout: `{sar,optical,lbl}/<scene>.tif`, scenes named like NH49E001013.

From the authors' repository (AmberHen/WHU-OPT-SAR-dataset): 100 scenes of 5556 x 3704 pixels at 5 m; optical
is red, green, blue, near infrared; label values 0 background, 10 farmland, ... 70 others; 80 scenes are for
training and 20 for test. Folder names from users' code (SOLC, MCANet re-implementation). That SAR is one
band, and both images 8 bits, follows from how that code reads them (five bands together; image libraries of 8
bits) and could not be confirmed, so other files are refused rather than scaled wrongly.

Source: Li et al. (2022), MCANet, JAG 106, 102638.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hfd_edge.config import DatasetConfig, EoInput, SarInput
from hfd_edge.datasets import source
from hfd_edge.datasets.public import PUBLIC
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.georeference import Georeference

TITLE = "WHU-OPT-SAR"
TILE_PX = 512
"""Side of the tiles; those at the right and lower edge of a scene are smaller."""
CONFIG = DatasetConfig(
    name="whu_opt_sar",
    classes=("farmland", "city", "village", "water", "forest", "road", "others"),
    palette=(
        (204, 102, 0), (255, 0, 0), (255, 255, 0), (0, 0, 255), (85, 166, 0), (93, 255, 255), (153, 102, 153),
    ),
    sar=SarInput(bands=("sar",), units="stretched"),
    eo=EoInput(bands=("red", "green", "blue", "nir"), scale=255.0),
    source=PUBLIC["whu_opt_sar"].source,
)  # fmt: skip
TEST = frozenset({
    "NH49E001014", "NH49E001017", "NH49E002012", "NH49E002016", "NH49E003014", "NH49E003024", "NH49E004011",
    "NH49E005011", "NH49E005019", "NH49E006019", "NH49E007014", "NH49E008013", "NH49E009017", "NH49E010020",
    "NH49E011024", "NH49E012020", "NH49E013010", "NH50E007002", "NH50E011005", "NH50E014003",
})  # fmt: skip
"""The authors' test scenes; all others are for training."""
_VAL_SHARE = 0.1
_IDS = {0: 255, **{10 * value: value - 1 for value in range(1, 8)}}


def convert(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Cut the scenes into tiles and write them as a data folder.

    Scheme `authors`: their test scenes; a tenth of the others is val, each scene whole. Tiles without a label
    are left out.

    Args:
        src: Folder that holds sar/, optical/ and lbl/.
        dst: New data folder.
        progress: Counts scenes.
    Raises:
        DatasetError: `src` has another layout, or a scene lacks a file or has other bands.
        StorageError: `dst` exists already or cannot be written.
    """
    src = Path(src)
    scenes = sorted((src / "sar").glob("*.tif"))
    source.require_layout(scenes, src, title=TITLE, expected="sar/*.tif beside optical/ and lbl/")
    names = [path.stem for path in scenes]
    test = [name for name in names if name in TEST]
    rest = [name for name in names if name not in TEST]
    val = source.take_runs(rest, _VAL_SHARE, run=1)
    schemes = {"authors": {"train": [name for name in rest if name not in val], "val": val, "test": test}}
    source.write_pool(dst, CONFIG, scenes, _tiles, schemes, progress=progress)


def _tiles(path: Path) -> Iterator[source.Sample]:
    """The tiles of one scene; the scene is in memory."""
    optical, lbl = (path.parent.parent / kind / path.name for kind in ("optical", "lbl"))
    sar = source.read_bands(path, bands=1, title=TITLE, dtype="uint8")
    eo = source.read_bands(source.require_partner(optical, path), bands=4, title=TITLE, dtype="uint8")
    raw = source.read_bands(source.require_partner(lbl, path), bands=1, title=TITLE)[0]
    label = source.map_labels(raw, _IDS, lbl, title=TITLE)
    rows, cols = label.shape
    if sar.shape[1:] != (rows, cols) or eo.shape[1:] != (rows, cols):
        raise DatasetError(
            f"{path} is {sar.shape[1]}x{sar.shape[2]} pixels (rows x cols), but optical is "
            f"{eo.shape[1]}x{eo.shape[2]} and lbl {rows}x{cols}. Fetch the files again."
        )
    place = source.place_of(path)
    for row0 in range(0, rows, TILE_PX):
        for col0 in range(0, cols, TILE_PX):
            window = (slice(row0, row0 + TILE_PX), slice(col0, col0 + TILE_PX))
            if (label[window] == CONFIG.ignore_index).all():
                continue
            yield source.Sample(
                name=f"{path.stem}_r{row0 // TILE_PX:02d}_c{col0 // TILE_PX:02d}",
                group=path.stem,
                sar=sar[:, window[0], window[1]],
                eo=eo[:, window[0], window[1]],
                label=label[window],
                place=_moved(place, row0, col0),
            )


def _moved(place: Georeference, row0: int, col0: int) -> Georeference:
    """The georeference of a window that begins at (row0, col0)."""
    if place.transform is None:
        return Georeference(crs=place.crs)
    a, b, c, d, e, f = place.transform
    corner = (a, b, c + a * col0 + b * row0, d, e, f + d * col0 + e * row0)
    return replace(Georeference(crs=place.crs), transform=corner)
