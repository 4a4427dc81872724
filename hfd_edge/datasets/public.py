"""What the public data sets are: names, sizes, licences, citations. Plain words, so `--help` can show them.

Facts come from what the authors published, as far as it could be read; each converter's module says which
fact comes from where. Nothing here was checked against the full download.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """One public data set.

    Attributes:
        title: Its name as its authors write it.
        content: What it shows, one line.
        size: How large it is, in words.
        licence: What its authors allow, or that they do not say.
        citation: What to cite.
        note: What a user of the converted pixels must know; stands in dataset.toml.
    """

    title: str
    content: str
    size: str
    licence: str
    citation: str
    note: str = ""

    @property
    def source(self) -> str:
        """One paragraph for `source` in dataset.toml."""
        return f"{self.title}. Cite {self.citation}. Licence: {self.licence}. {self.note}".rstrip()


PUBLIC = {
    "ddhr": PublicSet(
        title="DDHR",
        content="Gaofen-3 SAR and Gaofen-2 optical, 1 m, 5 land cover classes",
        size="about 6,100 tiles of 256 pixels for one region",
        licence="none stated by the authors; ask before you redistribute",
        citation="Ren et al. (2022), A dual-stream high resolution network, JAG 112, 102896",
        note=(
            "SAR and optical images are 8-bit JPEG: no radiometry is left. The order of the class ids is "
            "that of other users' code; the authors' text could not be read."
        ),
    ),
    "dfc2020": PublicSet(
        title="DFC2020 (IEEE GRSS Data Fusion Contest 2020)",
        content="Sentinel-1 and Sentinel-2, 10 m, 10 land cover classes",
        size="6,114 tiles of 256 pixels",
        licence="not confirmed; see the contest's page at IEEE DataPort",
        citation="Schmitt et al. (2020), Weakly Supervised Semantic Segmentation of Satellite Images",
        note="The contest has no training part: train and val come from its test part, test from validation.",
    ),
    "ombria": PublicSet(
        title="OMBRIA",
        content="Sentinel-1 and Sentinel-2 before and after floods, flood masks",
        size="694 tiles of 256 pixels, under 1 GB",
        licence="none stated by the authors; do not redistribute",
        citation="Drakonakis et al. (2022), OmbriaNet, IEEE JSTARS",
    ),
    "sen1floods11": PublicSet(
        title="Sen1Floods11 (hand-labelled part)",
        content="Sentinel-1 and Sentinel-2 of 11 floods, 10 m, water masks by hand",
        size="446 chips of 512 pixels, about 3 GB",
        licence="none in the authors' readme; others call it CC BY 4.0",
        citation="Bonafilia et al. (2020), Sen1Floods11, CVPR Workshops, 210-211",
    ),
    "sen12ms": PublicSet(
        title="SEN12MS",
        content="Sentinel-1 and Sentinel-2 of all continents, 10 m, MODIS land cover",
        size="180,662 tiles of 256 pixels, hundreds of GB",
        licence="not confirmed; see its record at mediaTUM (1474000)",
        citation="Schmitt et al. (2019), SEN12MS, ISPRS Annals IV-2/W7, 153-160",
        note="Labels are MODIS maps of 500 m, resampled: about two thirds of them are right.",
    ),
    "spacenet6": PublicSet(
        title="SpaceNet 6 (MSAW), training part",
        content="Capella X band, four polarisations, and WorldView-2, 0.5 m, buildings",
        size="3,401 tiles of 900 pixels, about 39 GB",
        licence="CC BY-SA 4.0",
        citation="Shermeyer et al. (2020), SpaceNet 6, CVPR Workshops, arXiv:2004.06500",
        note=(
            "SAR values are uncalibrated, and sources differ on whether they are decibels, so they count as "
            "stretched. The radar looks along the rows, from north or south: train with flip = 'none'."
        ),
    ),
    "whu_opt_sar": PublicSet(
        title="WHU-OPT-SAR",
        content="Gaofen-3 SAR and Gaofen-1 optical, 5 m, 7 land use classes",
        size="100 scenes of 5556 x 3704 pixels",
        licence="none stated by the authors; ask before you redistribute",
        citation="Li et al. (2022), MCANet, JAG 106, 102638",
        note="SAR has no documented calibration and counts as stretched.",
    ),
}
"""Every data set that `data convert` knows, by the name to type."""
