"""How often images like the training images raise an alarm for drift, and how often planted faults do.

    python benchmarks/drift.py --ombria data/ombria --demo runs/demo/data/pairs --shared ../shared/data

Each set's training split gives the statistics that a bundle would hold; its other splits are the held-out
images. KOMPSAT-5, Gaofen-3, AIRSAR and VH of Sentinel-1 are cut into crops and split by scene, AIRSAR by
columns. "Other region" is Texas for training in California, where each product has a stretch of its own.
Faults are planted into the held-out images; those that the check of units refuses are counted as refused.
With `--bundle` (of OMBRIA) class shares of the held-out images come from its predictions, as they do on a
device; otherwise from labels. The result is benchmarks/results/<machine>/drift.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _results import write

from hfd_edge.bundle import Bundle
from hfd_edge.config import DatasetConfig, SarInput, Units, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.statistics import fit_preprocessing
from hfd_edge.deploy.describe import describe_training
from hfd_edge.drift import DriftReport, class_shares, compare, portray_image
from hfd_edge.errors import RadiometryError
from hfd_edge.progress import Progress
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.report.console import bars
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.sar.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
Fault = Callable[[np.ndarray, Preprocessing], np.ndarray]


@dataclass(frozen=True)
class Crops:
    """A shared set that has no split: which crops of it train.

    Attributes:
        folder: Below `--shared`.
        sar: What its pixels are.
        side_px: Side of the crops.
        trains: Whether a crop trains, by file name and column.
    """

    folder: str
    sar: SarInput
    side_px: int
    trains: Callable[[str, int], bool]


SHARED = {
    "kompsat5": Crops(
        "kompsat5_water",
        SarInput(bands=("x",), units="intensity"),
        256,
        lambda name, _: name[:8] not in ("WTR00004", "WTR00008"),
    ),
    "sentinel1-vh": Crops(
        "volkov_s1s2_pairs_unlabelled",
        SarInput(bands=("vh",), units="amplitude"),
        256,
        lambda name, _: name not in ("T11SLT_089", "T11SMT_214", "T14RNT_272"),
    ),
    "sentinel1-vh, other region": Crops(
        "volkov_s1s2_pairs_unlabelled",
        SarInput(bands=("vh",), units="amplitude"),
        256,
        lambda name, _: name.startswith("T11S"),
    ),
    "gaofen3": Crops(
        "gf3_quadpol_unlabelled",
        SarInput(bands=("hh", "hv", "vh", "vv"), units="amplitude"),
        128,
        lambda name, _: name != "testA_5",
    ),
    "airsar": Crops(
        "airsar_polsar_multiclass",
        SarInput(bands=("t11", "t22", "t33"), units="stretched"),
        128,
        lambda _, col: col < 640,
    ),
}


def cut(crops: Crops, shared: Path, work: Path) -> PairFolder:
    """Make a data folder of crops."""
    for path in sorted((shared / crops.folder / "sar").glob("*.tif")):
        image, side = read_image(path), crops.side_px
        for row in range(0, image.shape[1] - side + 1, side):
            for col in range(0, image.shape[2] - side + 1, side):
                split = "train" if crops.trains(path.stem, col) else "test"
                target = work / split / "sar" / f"{path.stem}_{row:04}_{col:04}.tif"
                write_image(target, image[:, row : row + side, col : col + side])
    config = DatasetConfig(
        name=crops.folder, classes=("a", "b"), palette=((0, 0, 0), (255, 255, 255)), sar=crops.sar, eo=None
    )
    write_toml(work / "dataset.toml", config)
    return PairFolder.open(work)


def in_decibels(folder: PairFolder, work: Path) -> PairFolder:
    """The same data in decibels."""
    for split in folder.splits:
        for pair in folder.pairs(split):
            image = folder.load_sar(pair)
            with np.errstate(divide="ignore"):
                decibels = np.where(image > 0, 10 * np.log10(image), np.nan).astype(np.float32)
            write_image(work / split / "sar" / f"{pair.name}.tif", decibels)
    sar = folder.config.sar.model_copy(update={"units": "sigma0_db", "nodata": None})
    write_toml(work / "dataset.toml", folder.config.model_copy(update={"sar": sar}))
    return PairFolder.open(work)


def gain(decibels: float, *, saturated: bool = False) -> Fault:
    """More power by so many dB; saturated: cut off where the training data end."""

    def fault(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        units = preprocessing.units
        if units == "sigma0_db":
            result = image + np.float32(decibels)
        else:
            result = image * np.float32(10 ** (decibels / (10 if units == "intensity" else 20)))
        if saturated:
            ends = np.array([high for _, high in preprocessing.clip], np.float32)[:, None, None]
            if units != "stretched":
                ends = _stored(ends, units)
            result = np.minimum(result, ends)
        return result.astype(np.float32)

    return fault


def _stored(decibels: np.ndarray, units: Units) -> np.ndarray:
    if units == "sigma0_db":
        return decibels
    return 10 ** (decibels / (10 if units == "intensity" else 20))


def power(exponent: float) -> Fault:
    """Amplitude for power (0.5) or the reverse (2)."""
    return lambda image, _: image.astype(np.float64) ** exponent


def smooth(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A boxcar of 5 x 5 pixels, of power."""
    linear = 10 ** (image / 10) if preprocessing.units == "sigma0_db" else image.astype(np.float32)
    if preprocessing.units == "amplitude":
        linear = linear**2
    mean = np.stack([cv2.blur(np.nan_to_num(band), (5, 5)) for band in linear])
    if preprocessing.units == "sigma0_db":
        return 10 * np.log10(np.maximum(mean, 1e-9))
    return np.sqrt(mean) if preprocessing.units == "amplitude" else mean


def speckled(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Single-look speckle on top, as of another product level."""
    noise = RNG.exponential(size=image.shape).astype(np.float32) + np.float32(1e-6)
    if preprocessing.units == "sigma0_db":
        return image + 10 * np.log10(noise)
    return image * (np.sqrt(noise) if preprocessing.units == "amplitude" else noise)


FAULTS: dict[str, tuple[frozenset[str], Fault]] = {
    **{
        f"gain {step:+d} dB": (frozenset({"intensity", "amplitude", "sigma0_db"}), gain(step))
        for step in (3, 6, 10, -10)
    },
    "uncalibrated (+50 dB)": (frozenset({"intensity"}), gain(50)),
    "gain +10 dB, saturated": (frozenset({"intensity", "amplitude", "sigma0_db"}), gain(10, saturated=True)),
    "doubled, saturated": (frozenset({"stretched"}), gain(20 * np.log10(2), saturated=True)),
    "amplitude for power": (frozenset({"intensity"}), power(0.5)),
    "power for amplitude": (frozenset({"amplitude"}), power(2.0)),
    "linear for dB": (frozenset({"sigma0_db"}), lambda image, _: 10 ** (image / 10)),
    "dB for linear": (
        frozenset({"intensity", "amplitude"}),
        lambda image, _: 20 * np.log10(np.maximum(image, 1e-6)),
    ),
    "reversed": (frozenset({"stretched"}), lambda image, _: float(image.max()) - image),
    "smoothed 5 x 5": (frozenset({"intensity", "amplitude", "sigma0_db", "stretched"}), smooth),
    "single-look": (frozenset({"intensity", "amplitude", "sigma0_db"}), speckled),
    "bands reversed": (
        frozenset({"intensity", "amplitude", "sigma0_db", "stretched"}),
        lambda image, _: image[::-1],
    ),
}
"""Fault -> units in which it can be planted, and how."""


class Set:
    """One set: its training statistics, and its held-out images with class shares."""

    def __init__(self, name: str, folder: PairFolder, bundle: Path | None, progress: Progress) -> None:
        self.name, self.folder = name, folder
        self.bands = folder.config.sar.bands
        self.preprocessing = fit_preprocessing(folder, progress=progress)
        training = describe_training(folder, self.preprocessing)
        assert training is not None, name
        self.training = training
        self.bundle = bundle

    @cached_property
    def held_out(self) -> list[tuple[np.ndarray, dict[Any, float]]]:
        """Held-out images with the shares of their labels or predictions."""
        segment = Segmenter(Bundle.open(self.bundle)) if self.bundle else None
        found = []
        for split in self.folder.splits:
            for pair in self.folder.pairs(split) if split != "train" else ():
                image = self.folder.load_sar(pair)
                labels = segment(image) if segment else None
                if labels is None and pair.label is not None:
                    labels = self.folder.load_label(pair)
                counts = np.bincount([] if labels is None else labels.ravel(), minlength=256)
                found.append((image, class_shares(counts, self.folder.config.classes)))
        return found

    def check(self, image: np.ndarray, shares: dict[Any, float] | None = None) -> DriftReport | None:
        """Compare an image; None where the units are refused before."""
        try:
            portrait = portray_image(image, self.preprocessing, bands=self.bands)
        except RadiometryError:
            return None
        return compare(portrait, self.training, self.preprocessing, shares=shares)

    def row(self, case: str, images: Sequence[tuple[np.ndarray, dict[Any, float]]]) -> dict[str, Any]:
        """One measurement over images with shares."""
        reports = [self.check(image, shares) for image, shares in images]
        found = [report for report in reports if report is not None and report.findings]
        kinds = [finding.kind for report in found for finding in report.findings[:1]]
        told = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        return {
            "set": self.name,
            "units": self.folder.config.sar.units,
            "training_images": self.training.images,
            "case": case,
            "images": len(reports),
            "refused": sum(report is None for report in reports),
            "unjudged": sum(report is not None and report.unjudged is not None for report in reports),
            "alarms": len(found),
            "share": (len(found) + sum(report is None for report in reports)) / len(reports),
            "first_finding": told,
            "example": found[0].findings[0].message if found else None,
        }


def rows_of(one: Set, others: Sequence[Set]) -> list[dict[str, Any]]:
    """Held-out images as they are, with each fault, and images of other sets."""
    held = one.held_out
    rows = [one.row("held out", held)]
    for fault, (units, plant) in FAULTS.items():
        if one.preprocessing.units in units and not (fault == "bands reversed" and len(one.bands) == 1):
            rows.append(one.row(fault, [(plant(image, one.preprocessing), shares) for image, shares in held]))
    for name in one.folder.config.classes if held[0][1] else ():
        shares = {("share", other): float(other == name) for other in one.folder.config.classes}
        rows.append(one.row(f"all {name}", [(image, shares) for image, _ in held]))
    for other in others:
        if other is not one and len(other.bands) == len(one.bands):
            units = "same" if other.preprocessing.units == one.preprocessing.units else "other"
            foreign = [(image, {}) for image, _ in other.held_out]
            rows.append(one.row(f"{other.name} instead ({units} units)", foreign))
    return rows


def cost(one: Set, side_px: int) -> dict[str, Any]:
    """What looking at a scene takes, beside segmenting it."""
    image = one.held_out[0][0]
    tiles = -(-side_px // image.shape[1])
    scene = np.tile(image, (1, tiles, tiles))[:, :side_px, :side_px]
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        one.check(scene)
        spent.append(1000 * (time.perf_counter() - started))
    return {"set": one.name, "case": f"cost of {side_px} x {side_px}", "median_ms": statistics.median(spent)}


def main() -> None:
    """Describe, plant, count, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ombria", type=Path, required=True, help="data folder of OMBRIA")
    parser.add_argument("--demo", type=Path, required=True, help="data folder of the demo's simulated pairs")
    parser.add_argument(
        "--shared", type=Path, help="folder of the other real sets; without, they are left out"
    )
    parser.add_argument("--bundle", type=Path, help="bundle of OMBRIA, for predicted class shares")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hfd-edge-") as work, bars() as progress:
        demo = PairFolder.open(args.demo)
        folders = {
            "ombria spatial": PairFolder.open(args.ombria, scheme="spatial"),
            "ombria event": PairFolder.open(args.ombria, scheme="event"),
            "simulated": demo,
            "simulated, dB": in_decibels(demo, Path(work) / "decibels"),
        }
        for name, crops in SHARED.items() if args.shared else ():
            folders[name] = cut(crops, args.shared, Path(work) / name)
        sets = [
            Set(name, folder, args.bundle if name == "ombria spatial" else None, progress)
            for name, folder in folders.items()
        ]
        rows = []
        for done, one in enumerate(sets):
            progress(done, len(sets), f"drift of {one.name}")
            rows += rows_of(one, sets)
        rows += [cost(one, side) for one in sets[2:3] for side in (512, 2048, 8192)]
        progress(len(sets), len(sets), "drift")
    for row in rows:
        if "share" in row:
            print(f"{row['set']:16} {row['case']:36} {row['images']:4} {100 * row['share']:6.1f} %")
    print(write("drift", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
