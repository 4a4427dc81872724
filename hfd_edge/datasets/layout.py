"""How a data folder names its files: which tiles there are, and which belong together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from hfd_edge.config import TeacherInputs
from hfd_edge.errors import DatasetError

CONFIG_NAME = "dataset.toml"
SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"
"""List beside those of the splits: pairs that distil whatever labels they have."""
LISTS = (*SPLITS, UNLABELLED)
"""What a scheme may list, in order."""
KINDS = ("sar", "eo", "label")
EO_BEFORE = "eo_before"
SUFFIXES = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Pair:
    """The files of one tile; all but `sar` are None where there is none.

    Attributes:
        name: What its files are called, without suffix.
        sar: SAR image.
        eo: EO image of about the same date.
        label: Class ids.
        eo_before: EO image of an earlier date, before the event that the labels show.
    """

    name: str
    sar: Path
    eo: Path | None
    label: Path | None
    eo_before: Path | None = None

    def shows(self, inputs: TeacherInputs) -> bool:
        """Whether it has the EO images that such a teacher sees; SAR is there in every pair."""
        return self.eo is not None and ("before" not in inputs or self.eo_before is not None)


@dataclass(frozen=True)
class Pool:
    """What one level of `{sar,eo,eo_before,label}` holds, and what is wrong with its names."""

    pairs: dict[str, Pair]
    faults: tuple[str, ...]


def find_schemes(root: Path) -> tuple[str, ...]:
    """Names of the split schemes of a pool, sorted; empty without splits/. Raises DatasetError."""
    if not (root / "splits").is_dir():
        return ()
    found = (
        entry.name
        for entry in (root / "splits").iterdir()
        if any((entry / f"{split}.txt").is_file() for split in SPLITS)
    )
    schemes = tuple(sorted(found))
    if not schemes:
        raise DatasetError(
            f"{root / 'splits'} holds no scheme. Write splits/<scheme>/train.txt, val.txt and test.txt."
        )
    return schemes


def read_list(path: Path, pool: Pool) -> tuple[list[str], list[str]]:
    """Read a split list: names, sorted, and what is wrong with them, one line each."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        return [], [f"{path} is not UTF-8 text ({error}). Write one name a line."]
    names = sorted(_stem(line) for line in lines if line)
    faults = [
        f"{path} lists '{name}', but there is no sar/{name}.png or .tif. Add the file, or remove the line."
        for name in names
        if name not in pool.pairs
    ]
    twice = sorted({name for name, following in itertools.pairwise(names) if name == following})
    faults += [f"{path} lists '{name}' more than once. Remove the extra lines." for name in twice]
    if not names:
        faults.append(f"{path} lists no pair. Write one name a line.")
    return names, faults


def find_leak(first: Path, second: Path, pool: Pool) -> list[str]:
    """One line when two split lists name the same pairs, else nothing."""
    both = sorted({*read_list(first, pool)[0]} & {*read_list(second, pool)[0]})
    if not both:
        return []
    return [
        f"{first} and {second.name} both list '{both[0]}' ({len(both)} pairs). Remove them from one of the "
        "lists: a score on pairs that a training has seen says nothing."
    ]


def _stem(line: str) -> str:
    """A listed name without its image suffix; dots inside a name stay."""
    for suffix in SUFFIXES:
        if line.lower().endswith(suffix):
            return line[: -len(suffix)]
    return line


def index_pool(base: Path) -> Pool:
    """Match the files of `base`/{sar,eo,eo_before,label} by name."""
    faults: list[str] = []
    files = {kind: _files(base / kind, faults) for kind in (*KINDS, EO_BEFORE)}
    if not files["sar"]:
        faults.append(f"{base / 'sar'} holds no PNG or TIFF. Put one SAR image per pair there.")
    for kind in ("eo", "label", EO_BEFORE):
        for name in sorted(files[kind].keys() - files["sar"].keys()):
            faults.append(
                f"{files[kind][name]} has no SAR image of the same name in {base / 'sar'}. "
                f"Rename it after its SAR image, or remove it."
            )
    pairs = {
        name: Pair(name, path, *(files[kind].get(name) for kind in ("eo", "label", EO_BEFORE)))
        for name, path in files["sar"].items()
    }
    return Pool(pairs=pairs, faults=tuple(faults))


def _files(folder: Path, faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            faults.append(f"{path} and {found[path.stem].name} have the same name. Keep one of them.")
        found[path.stem] = path
    return found
