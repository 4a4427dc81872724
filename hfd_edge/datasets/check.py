"""What is wrong with a data folder, all of it at once and before a training finds out.

A *fault* stops or spoils a training or a score. A *warning* is legal, but rarely meant: labels may be missing
for pairs that serve distillation alone; EO may be missing where only the SAR network looks, and labelled
training pairs without it train the student on their label alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import (
    CONFIG_NAME,
    EO_BEFORE,
    LISTS,
    UNLABELLED,
    Pair,
    Pool,
    find_leak,
    read_list,
)
from hfd_edge.errors import DatasetError, RasterError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.georeference import grid_difference
from hfd_edge.raster.image import georeference_of
from hfd_edge.sar.radiometry import valid_mask

Array = NDArray[Any]
Level = Literal["fault", "warning"]
_LEAK = "a score on pairs that a training has seen says nothing"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        level: "fault" or "warning".
        where: File, folder or split that it is about, below the data folder.
        text: What was found and what to do, one line.
    """

    level: Level
    where: str
    text: str


@dataclass(frozen=True)
class Check:
    """All that is wrong with a folder.

    Attributes:
        findings: In the order of the layout: names and lists, files, splits against each other.
        pairs: Pairs in each split, "train" or "<scheme>/train", and in each "<scheme>/unlabelled", as far as
            the list can be read.
    """

    findings: tuple[Finding, ...]
    pairs: Mapping[str, int]

    def of(self, level: Level) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(finding for finding in self.findings if finding.level == level)


@dataclass(frozen=True)
class _Facts:
    """What a pair's pixels say, kept after they are forgotten.

    Attributes:
        digest: Hash of the SAR pixels; None where they cannot be read.
        above_zero: No valid SAR pixel is below zero.
        classes: Class ids in the label; None without a readable one.
    """

    digest: bytes | None = None
    above_zero: bool = False
    classes: frozenset[int] | None = None


@dataclass(frozen=True)
class _Scheme:
    """The pairs of each list under one scheme, as far as it can be read."""

    prefix: str
    splits: Mapping[str, tuple[Pair, ...]]
    unlabelled: tuple[Pair, ...] = ()  # not of `splits`: they may lack what those of a split may not

    @property
    def lists(self) -> Mapping[str, tuple[Pair, ...]]:
        """All of them, the unlabelled ones last."""
        return {**self.splits, UNLABELLED: self.unlabelled} if self.unlabelled else self.splits


def check_folder(folder: PairFolder, split: str | None = None, *, progress: Progress = silent) -> Check:
    """Read every file and list everything that is wrong, rather than raise on the first.

    Args:
        folder: What to check; of a pool with several split schemes and none chosen, all schemes.
        split: Read only the files of this split, and compare no splits; None is all that there is.
        progress: Counts pairs.
    Raises:
        DatasetError: `split` is given and does not exist, or its list is faulty.
    """
    findings: list[Finding] = []
    schemes: list[_Scheme] = []
    if split is not None:
        pairs = list(folder.pairs(split))
        counts = {split: len(pairs)}
    else:
        findings, schemes = _names(folder)
        pairs = [pool.pairs[name] for pool in folder.pools() for name in sorted(pool.pairs)]
        counts = {f"{one.prefix}{name}": len(own) for one in schemes for name, own in one.lists.items()}
    facts: dict[Path, _Facts] = {}
    for done, pair in enumerate(pairs):
        progress(done, len(pairs), f"checking {pair.name}")
        found, facts[pair.sar] = _files(folder, pair)
        findings += found
    findings += _decibels(pairs, facts)
    for scheme in schemes:
        findings += _missing_eo(scheme)
        findings += _missing_files(scheme)
        findings += _same_pixels(scheme, facts)
        findings += _unknown_labels(folder, scheme, facts)
        findings += _absent_classes(folder, scheme, facts)
    progress(len(pairs), len(pairs), f"checked, {len(findings)} findings")
    return Check(tuple(findings), counts)


def _names(folder: PairFolder) -> tuple[list[Finding], list[_Scheme]]:
    """Faults of names and lists, and the splits of every scheme in question."""
    findings: list[Finding] = []
    pools = folder.pools()
    for pool in pools:
        findings += [_fault(folder, folder.root, text) for text in pool.faults]
    if not folder.schemes:
        if not pools:
            text = f"{folder.root} has no train/, val/ or test/ folder. Add at least train/."
            findings.append(_fault(folder, folder.root, text))
        splits = {name: tuple(pool.pairs.values()) for name, pool in zip(folder.splits, pools, strict=True)}
        return findings, [_Scheme("", splits)]
    schemes = []
    for scheme in folder.schemes if folder.scheme is None else (folder.scheme,):
        lists = {name: folder.root / "splits" / scheme / f"{name}.txt" for name in LISTS}
        found = {name: path for name, path in lists.items() if path.is_file()}
        findings += _lists(folder, found, pools[0])
        listed = {name: _listed(path, pools[0]) for name, path in found.items()}
        schemes.append(_Scheme(f"{scheme}/", unlabelled=listed.pop(UNLABELLED, ()), splits=listed))
    return findings, schemes


def _lists(folder: PairFolder, lists: Mapping[str, Path], pool: Pool) -> list[Finding]:
    findings = []
    for path in lists.values():
        findings += [_fault(folder, path, text) for text in read_list(path, pool)[1]]
    for first, second in itertools.combinations(lists.values(), 2):
        findings += [_fault(folder, first, text) for text in find_leak(first, second, pool)]
    return findings


def _listed(path: Path, pool: Pool) -> tuple[Pair, ...]:
    names = dict.fromkeys(read_list(path, pool)[0])
    return tuple(pool.pairs[name] for name in names if name in pool.pairs)


def _files(folder: PairFolder, pair: Pair) -> tuple[list[Finding], _Facts]:
    """Read the files of one pair."""
    findings: list[Finding] = []

    def load(path: Path | None, read: Callable[[Pair], Array]) -> Array | None:
        try:
            return None if path is None else read(pair)
        except DatasetError as error:
            # An unreadable SAR file fails each comparison of sizes.
            if all(finding.text != str(error) for finding in findings):
                findings.append(_fault(folder, path or folder.root, str(error)))
            return None

    sar = load(pair.sar, folder.load_sar)
    eo = load(pair.eo, folder.load_eo)
    before = load(pair.eo_before, folder.load_eo_before)
    label = load(pair.label, folder.load_label)
    if sar is None:
        return findings, _Facts()
    for path, image in ((pair.eo, eo), (pair.eo_before, before), (pair.label, label)):
        if path is not None and image is not None:
            findings += _grids(folder, pair.sar, path, sar.shape[1:])
    config = folder.config
    valid = valid_mask(sar, units=config.sar.units, nodata=config.sar.nodata)
    above_zero = config.sar.units == "sigma0_db" and bool((sar[:, valid] >= 0).all())
    return findings, _Facts(
        digest=_digest(sar),
        above_zero=above_zero,
        classes=None if label is None else _classes(label, config),
    )


def _digest(image: Array) -> bytes:
    """Hash pixels, not the file: the same scene may be packed in another way."""
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _classes(label: Array, config: DatasetConfig) -> frozenset[int]:
    counts = np.bincount(label.ravel(), minlength=256)
    return frozenset(index for index in range(len(config.classes)) if counts[index])


def _grids(folder: PairFolder, sar: Path, other: Path, size: Sequence[int]) -> list[Finding]:
    """Whether both say that they lie at one place, where both say anything."""
    try:
        first = georeference_of(sar)
        if first.crs is None and first.transform is None:
            return []
        difference = grid_difference(first, georeference_of(other), rows=size[0], cols=size[1])
    except RasterError:  # changed since its pixels were read
        return []
    if difference is None:
        return []
    text = (
        f"{other} lies elsewhere than {sar}: {difference}. Resample it to the grid of the SAR image, or "
        "correct the georeference of the one that is wrong."
    )
    return [_fault(folder, other, text)]


def _decibels(pairs: Sequence[Pair], facts: Mapping[Path, _Facts]) -> list[Finding]:
    """Linear power in [0, 100] passes for decibels; real backscatter in dB is mostly below zero."""
    linear = [pair for pair in pairs if facts[pair.sar].above_zero]
    if not linear:
        return []
    text = (
        f"{len(linear)} of {len(pairs)} SAR images have no value below 0, first {linear[0].sar}, but units "
        f'is "sigma0_db". If they are linear power, set units = "intensity" in {CONFIG_NAME}.'
    )
    return [Finding("warning", CONFIG_NAME, text)]


def _missing_eo(scheme: _Scheme) -> Iterator[Finding]:
    """EO, of either date, that some pairs have and others do not; whoever has none trains from SAR alone."""
    train, val = scheme.splits.get("train", ()), scheme.splits.get("val", ())
    lists = {"train": train, "val": tuple(pair for pair in val if pair.label), UNLABELLED: scheme.unlabelled}
    uses = {
        "train": "a student learns from their labels alone",
        "val": "score no teacher",
        UNLABELLED: "and they teach a student nothing",
    }
    for kind in ("eo", EO_BEFORE):
        if not any(getattr(pair, kind) for pair in train):
            continue
        for name, pairs in lists.items():
            without = [pair for pair in pairs if getattr(pair, kind) is None]
            if not without:
                continue
            image = "EO image" if kind == "eo" else "EO image of the earlier date"
            text = (
                f"{_count(without, pairs)} of {scheme.prefix}{name} have no {image}, first "
                f"'{without[0].name}'; a teacher that sees it leaves them out, {uses[name]}. Add "
                f"{kind}/{without[0].name}.png or .tif, unless that is meant."
            )
            yield Finding("warning", f"{scheme.prefix}{name}", text)


def _missing_files(scheme: _Scheme) -> Iterator[Finding]:
    """Labels that some pairs have and others do not, and splits that are missing.

    Labels may be missing for pairs that only distil, never for all.
    """
    if "train" in scheme.splits and "val" not in scheme.splits:
        where = f"{scheme.prefix}val"
        text = (
            f"There is no {where}, and training cannot choose its best epoch without. Move some labelled "
            "pairs of train there."
        )
        yield Finding("fault", where, text)
    for name, pairs in scheme.splits.items():
        without = [pair for pair in pairs if pair.label is None]
        if not without:
            continue
        where = f"{scheme.prefix}{name}"
        if len(without) == len(pairs) and name != "test":
            but = ", but students by a teacher of other data" if name == "train" else ""
            text = (
                f"No pair of {where} has a label: nothing can be trained{but}. Add label/ files of its names."
            )
            yield Finding("fault", where, text)
        else:
            use = "serve distillation alone" if name == "train" else "are left out of every score"
            text = (
                f"{_count(without, pairs)} of {where} have no label, first '{without[0].name}'; they {use}. "
                "Add the labels, unless that is meant."
            )
            yield Finding("warning", where, text)


def _same_pixels(scheme: _Scheme, facts: Mapping[Path, _Facts]) -> Iterator[Finding]:
    """Copies of one SAR image under several names."""
    first_of: dict[str, dict[bytes, Pair]] = {}
    for name, pairs in scheme.lists.items():
        own = first_of.setdefault(name, {})
        twins = []
        for pair in pairs:
            digest = facts[pair.sar].digest
            if digest is not None and own.setdefault(digest, pair) is not pair:
                twins.append((own[digest], pair))
        if twins:
            one, two = twins[0]
            text = (
                f"{one.sar} and {two.sar} hold the same pixels ({len(twins)} copies in "
                f"{scheme.prefix}{name}). Keep one of them: copies weigh twice in training and score."
            )
            yield Finding("warning", f"{scheme.prefix}{name}", text)
    for (name, own), (other, others) in itertools.combinations(first_of.items(), 2):
        # A pair that both lists name is the lists' fault, and was told.
        both = [digest for digest in own if digest in others and own[digest].sar != others[digest].sar]
        if both:
            trained = {name, other} == {"train", UNLABELLED}
            why = "copies weigh twice in training" if trained else _LEAK
            text = (
                f"{own[both[0]].sar} ({name}) and {others[both[0]].sar} ({other}) hold the same pixels "
                f"({len(both)} images). Remove them from one of the two: {why}."
            )
            yield Finding("warning" if trained else "fault", f"{scheme.prefix}{other}", text)


def _unknown_labels(folder: PairFolder, scheme: _Scheme, facts: Mapping[Path, _Facts]) -> Iterator[Finding]:
    """Splits whose labels say nothing of any pixel."""
    for name, pairs in scheme.splits.items():
        known = _known(pairs, facts)
        if not known or any(known):
            continue
        where = f"{scheme.prefix}{name}"
        use = "scored" if name == "test" else "trained"
        text = (
            f"The {len(known)} labels of {where} hold nothing but ignore_index {folder.config.ignore_index}: "
            f"nothing can be {use}. Correct the label/ files, or ignore_index in {CONFIG_NAME}."
        )
        yield Finding("warning" if name == "test" else "fault", where, text)


def _absent_classes(folder: PairFolder, scheme: _Scheme, facts: Mapping[Path, _Facts]) -> Iterator[Finding]:
    """Classes that no training label shows, so that nothing can learn them."""
    known = _known(scheme.splits.get("train", ()), facts)
    if not any(known):
        return
    present = frozenset[int]().union(*known)
    absent = [name for index, name in enumerate(folder.config.classes) if index not in present]
    if absent:
        where = f"{scheme.prefix}train"
        text = (
            f"No label of {where} holds {', '.join(map(repr, absent))} ({len(known)} labels read): a network "
            f"cannot learn what it never sees. Add such pairs, or remove the class from {CONFIG_NAME}."
        )
        yield Finding("warning", where, text)


def _known(pairs: Sequence[Pair], facts: Mapping[Path, _Facts]) -> list[frozenset[int]]:
    """Classes of each label that can be read."""
    seen = [facts[pair.sar].classes for pair in pairs]
    return [classes for classes in seen if classes is not None]


def _count(some: Sequence[Pair], pairs: Sequence[Pair]) -> str:
    return f"{len(some)} of {len(pairs)} pairs"


def _fault(folder: PairFolder, where: Path, text: str) -> Finding:
    inside = where.relative_to(folder.root).as_posix() if where.is_relative_to(folder.root) else str(where)
    return Finding("fault", inside, text)
