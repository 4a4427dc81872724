"""Sen1Floods11: Sentinel-1 and Sentinel-2 chips of eleven floods, with water mapped by hand.

Layout (v1.1): `v1.1/data/flood_events/HandLabeled/{S1Hand,S2Hand,LabelHand}/EVENT_ID_{S1Hand,S2Hand,
LabelHand}.tif`, and `v1.1/splits/flood_handlabeled/flood_{train,valid,test,bolivia}_data.csv`, whose lines
are `EVENT_ID_S1Hand.tif,EVENT_ID_LabelHand.tif` without header.

From the authors' repository and bucket documentation (cloudtostreet/Sen1Floods11): S1 is VV, VH in dB,
float32; S2 has all 13 bands, top-of-atmosphere reflectance times 10000; labels are -1 no data, 0 not water, 1
water; 446 chips of 512 x 512 at 10 m. Names of the lists and columns from several users' loaders that agree.
The authors count their looks nowhere: 4.4 is what ESA gives for IW GRD, before Earth Engine resampled it.

Source: Bonafilia et al. (2020), CVPR Workshops, 210-211.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hfd_edge.config import DatasetConfig, SarInput
from hfd_edge.datasets import source
from hfd_edge.datasets.public import PUBLIC
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent

TITLE = "Sen1Floods11"
CONFIG = DatasetConfig(
    name="sen1floods11",
    classes=("dry", "water"),
    palette=((204, 188, 140), (30, 100, 200)),
    sar=SarInput(bands=("vv", "vh"), units="sigma0_db", looks=4.4),
    eo=source.SENTINEL2_EO,
    source=PUBLIC["sen1floods11"].source,
)
_IDS = {-1: 255, 0: 0, 1: 1}
_HAND = Path("data/flood_events/HandLabeled")
_LISTS = Path("splits/flood_handlabeled")


def convert(src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Write the hand-labelled part as a data folder.

    Scheme `authors` is the authors' train, valid and test. Where their list of Bolivia is there, which is in
    none of these, scheme `bolivia` has it as test: an event never seen in training.

    Args:
        src: Folder that holds v1.1/, or v1.1 itself.
        dst: New data folder.
        progress: Counts chips.
    Raises:
        DatasetError: `src` has another layout, a chip lacks a file, or a list names an unknown chip.
        StorageError: `dst` exists already or cannot be written.
    """
    src = Path(src)
    root = src / "v1.1" if (src / "v1.1").is_dir() else src
    chips = sorted(
        path.stem.removesuffix("_S1Hand") for path in (root / _HAND / "S1Hand").glob("*_S1Hand.tif")
    )
    source.require_layout(chips, src, title=TITLE, expected=f"v1.1/{_HAND}/S1Hand/*_S1Hand.tif")

    def read(chip: str) -> Iterator[source.Sample]:
        sar, eo, label = (
            root / _HAND / kind / f"{chip}_{kind}.tif" for kind in ("S1Hand", "S2Hand", "LabelHand")
        )
        yield source.Sample(
            name=chip,
            group=chip,
            sar=source.read_bands(sar, bands=2, title=TITLE),
            eo=source.read_sentinel2(source.require_partner(eo, sar), title=TITLE),
            label=source.map_labels(
                source.read_bands(source.require_partner(label, sar), bands=1, title=TITLE)[0],
                _IDS, label, title=TITLE,
            ),
            place=source.place_of(sar),
        )  # fmt: skip

    source.write_pool(dst, CONFIG, chips, read, _schemes(root, set(chips)), progress=progress)


def _schemes(root: Path, chips: set[str]) -> source.Schemes:
    def listed(name: str) -> list[str]:
        path = root / _LISTS / f"flood_{name}_data.csv"
        names = [line.removesuffix(".tif").removesuffix("_S1Hand") for line in source.read_names(path)]
        if unknown := [chip for chip in names if chip not in chips]:
            raise DatasetError(
                f"{path} lists {unknown[0]}, but S1Hand/ has no chip of that name ({len(unknown)} missing). "
                "Fetch the rest of the data set."
            )
        return names

    authors = {"train": listed("train"), "val": listed("valid"), "test": listed("test")}
    if not (root / _LISTS / "flood_bolivia_data.csv").is_file():
        return {"authors": authors}
    return {"authors": authors, "bolivia": {**authors, "test": listed("bolivia")}}
