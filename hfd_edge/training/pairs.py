"""Which pairs a training takes, where some of them lack something."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hfd_edge.config import Recipe, TeacherInputs
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import UNLABELLED, Pair
from hfd_edge.errors import DatasetError, RecipeError
from hfd_edge.hfdnet.run import Run
from hfd_edge.training.samples import JoinedStores, TileStore, Unlabelled

_log = logging.getLogger("hfd_edge.training")

_ONE_DATE, _BOTH_DATES = "EO image", "EO image of both dates (eo/ and eo_before/)"
_IMAGES: dict[TeacherInputs, str] = {
    "eo": _ONE_DATE,
    "eo+sar": _ONE_DATE,
    "eo before+after": _BOTH_DATES,
    "eo before+after+sar": _BOTH_DATES,
}


class StudentPairs(NamedTuple):
    """What a student is trained on.

    Attributes:
        train: Pairs of its batches.
        val: Labelled pairs that it is validated on.
        epoch: Pairs that an epoch counts; see `epoch_pairs`.
        unlabelled: Training pairs that join the batches for the distillation alone.
    """

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    epoch: int
    unlabelled: tuple[Pair, ...] = ()


def teacher_pairs(
    folder: PairFolder, split: str, inputs: TeacherInputs, *, label_share: float = 1.0
) -> tuple[Pair, ...]:
    """Pairs with a label that is used, see `labelled`, and all that the teacher sees. Raises DatasetError."""
    pairs = labelled(folder, split, share=label_share)
    seen = tuple(pair for pair in pairs if pair.shows(inputs))
    _refuse_none(folder, split, [pair for pair in labelled(folder, split) if pair.shows(inputs)], inputs)
    if not seen:
        raise DatasetError(
            f"None of the {len(pairs)} pairs of split '{split}' of {folder.root} whose labels are used has "
            f"an {_IMAGES[inputs]}. Raise training.label_share from {label_share:g}."
        )
    _tell(folder, split, pairs, inputs, "the teacher leaves them out")
    return seen


def student_pairs(folder: PairFolder, recipe: Recipe, *, tell: bool = False) -> StudentPairs:
    """Pairs of train and val that have what the recipe needs.

    Batches are of pairs whose label is used, with and without EO, so that a student that distils has the same
    ones as one that does not. Where the teacher teaches, the others join them, if they have what it sees, and
    so do those of the list unlabelled.txt. Where no pair has a label, the others are the batches.

    Args:
        folder: Data.
        recipe: The student's; teacher.inputs is what its teacher sees.
        tell: Write into the log how many pairs lack EO.
    Raises:
        DatasetError: no pair of train can serve, or none of val has a label.
    """
    val, share = labelled(folder, "val"), recipe.training.label_share
    if recipe.distill.method == "none":
        return StudentPairs(labelled(folder, "train", share=share), val, epoch_pairs(folder))
    inputs, pairs = recipe.teacher.inputs, folder.pairs("train")
    listed = folder.unlabelled
    taught = tuple(pair for pair in (*pairs, *listed) if pair.shows(inputs))
    _refuse_none(folder, "train", taught, inputs)
    # With correct_only the teacher teaches nothing where no label says whether it is right.
    teaches = not recipe.distill.correct_only
    if teaches and all(pair.label is None for pair in pairs):
        return StudentPairs(taught, val, len(taught))
    train = labelled(folder, "train", share=share)
    used = set(train)
    rest = [pair for pair in pairs if pair not in used]
    joining = tuple(pair for pair in rest if teaches and pair.shows(inputs))
    if tell:
        _tell(folder, "train", train, inputs, "the student learns from their labels alone")
        if len(joining) < len(rest):
            _log.warning(
                "%d of %d pairs in split 'train' of %s have neither a label that is used nor %s, and are "
                "left out.",
                *(len(rest) - len(joining), len(pairs), folder.root),
                f"an {_IMAGES[inputs]}" if teaches else "a use with distill.correct_only",
            )
        if teaches:
            _tell(folder, UNLABELLED, listed, inputs, "these unlabelled pairs are left out")
    further = (pair for pair in listed if teaches and pair.shows(inputs))
    return StudentPairs(train, val, epoch_pairs(folder), (*joining, *further))


def epoch_pairs(folder: PairFolder, inputs: TeacherInputs | None = None) -> int:
    """Pairs that an epoch counts: the labelled ones of train, however many of the labels are used.

    So a share of the labels means neither a shorter training nor more validations.

    Args:
        folder: Data.
        inputs: Count only pairs that have this; None counts all.
    Raises:
        DatasetError: no pair has a label.
    """
    return sum(inputs is None or pair.shows(inputs) for pair in labelled(folder, "train"))


def labelled(folder: PairFolder, split: str, *, share: float = 1.0) -> tuple[Pair, ...]:
    """Pairs of a split that have a label.

    Args:
        folder: Data.
        split: "train", "val" or "test".
        share: How many of them, more than 0 to 1, at least one; evenly spaced by name, the same in every run.
    Raises:
        DatasetError: there are none.
    """
    pairs = tuple(pair for pair in folder.pairs(split) if pair.label is not None)
    if not pairs:
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no pair with a label. Add label/ files of the same "
            "names as the sar/ files."
        )
    count = max(1, round(share * len(pairs)))
    return tuple(pairs[(2 * place + 1) * len(pairs) // (2 * count)] for place in range(count))


def open_unlabelled(
    paths: Sequence[Path], recipe: Recipe, folder: PairFolder, teacher: Run | None
) -> tuple[PairFolder, ...]:
    """Data folders whose pairs join the distillation, checked against recipe, data and teacher.

    Args:
        paths: Their roots; their training pairs serve, of the training's split scheme where they have it.
        recipe: The student's.
        folder: The data that it is trained on.
        teacher: Its teacher's run.
    Raises:
        RecipeError: nothing would be learnt from pairs without label.
        DatasetError: a folder is none, or its pairs are not what student and teacher take.
    """
    if not paths:
        return ()
    if teacher is None or recipe.distill.method == "none":
        raise RecipeError(
            'Unlabelled pairs serve distillation alone, but distill.method is "none". Choose a method that '
            "distils, or leave out --unlabelled."
        )
    if not recipe.distill.unlabelled:
        raise RecipeError(
            "Unlabelled pairs cannot be used with distill.unlabelled = 0, their share of a batch. Raise it, "
            "or leave out --unlabelled."
        )
    if recipe.distill.correct_only:
        raise RecipeError(
            "Unlabelled pairs cannot be used with distill.correct_only = true: without truth, no pixel "
            "counts as one that the teacher gets right. Set it to false, or leave out --unlabelled."
        )
    return tuple(_open_unlabelled(Path(path), recipe, folder) for path in paths)


def _open_unlabelled(path: Path, recipe: Recipe, folder: PairFolder) -> PairFolder:
    other = PairFolder.open(path)
    if folder.scheme in other.schemes:
        other = PairFolder.open(path, scheme=folder.scheme)
    elif other.schemes and other.scheme is None:
        raise DatasetError(
            f"Unlabelled pairs {path} have the split schemes {', '.join(other.schemes)}, of which none is "
            f"that of {folder.root} ({folder.scheme}). Add a scheme of this name whose train.txt lists the "
            "pairs that are to serve, or leave one scheme."
        )
    found, wanted = other.config, folder.config
    if (found.sar.bands, found.sar.units) != (wanted.sar.bands, wanted.sar.units):
        raise DatasetError(
            f"Unlabelled pairs {path} have SAR bands {list(found.sar.bands)} in {found.sar.units}, but the "
            f"student takes {list(wanted.sar.bands)} in {wanted.sar.units}. Use pairs of the same SAR input."
        )
    seen, known = (None if config.eo is None else config.eo.bands for config in (found, wanted))
    if seen != known:
        raise DatasetError(
            f"Unlabelled pairs {path} have EO bands {seen}, but the teacher sees {known}. Use pairs of the "
            "same EO bands."
        )
    pairs, inputs = other.pairs("train"), recipe.teacher.inputs
    _refuse_none(other, "train", [pair for pair in pairs if pair.shows(inputs)], inputs)
    return other


def join_unlabelled(
    pairs: Sequence[Pair], folders: Sequence[PairFolder], store: TileStore, *, batch: int, share: float
) -> Unlabelled | None:
    """Tiles of the unlabelled pairs, prepared by the statistics of the training data, not by their own.

    What their pixels are (no-data, looks, EO scale) is for their own dataset.toml to say.

    Args:
        pairs: Of the training data's own folder; from `student_pairs`.
        folders: From `open_unlabelled`.
        store: The labelled tiles of the same training.
        batch: Labelled samples a batch.
        share: Of the whole batch that unlabelled samples are to be, 0 to less than 1; at least one sample,
            unless it is 0.
    Returns:
        None without any, and for a share of 0.
    """
    if not share:
        return None
    stores = [_without_labels(store, pairs)] if pairs else []
    for folder in folders:
        own = [pair for pair in folder.pairs("train") if pair.shows(store.inputs)]
        _tell(folder, "train", folder.pairs("train"), store.inputs, "these unlabelled pairs are left out")
        sar, preprocessing = folder.config.sar, store.preprocessing
        assert preprocessing is not None
        preprocessing = replace(preprocessing, looks=sar.looks, nodata=sar.nodata)
        stores.append(_without_labels(replace(store, folder=folder, preprocessing=preprocessing), own))
    return Unlabelled(JoinedStores(stores), max(1, round(batch * share / (1 - share)))) if stores else None


def _without_labels(store: TileStore, pairs: Sequence[Pair]) -> TileStore:
    """Labels are not even read: those of another folder may mean other classes."""
    return replace(store, pairs=[replace(pair, label=None) for pair in pairs])


def _refuse_none(folder: PairFolder, split: str, seen: Sequence[Pair], inputs: TeacherInputs) -> None:
    if not seen:
        missing = "eo_before/" if "before" in inputs else "eo/"
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no pair with an {_IMAGES[inputs]}, which a teacher with "
            f'teacher.inputs = "{inputs}" sees. Add {missing} files of the same names as the sar/ files, or '
            "take a teacher of other inputs."
        )


def _tell(
    folder: PairFolder, split: str, pairs: Sequence[Pair], inputs: TeacherInputs, consequence: str
) -> None:
    without = [pair.name for pair in pairs if not pair.shows(inputs)]
    if without:
        _log.warning(
            "%d of %d pairs in split '%s' of %s have no %s, first '%s': %s.",
            *(len(without), len(pairs), split, folder.root, _IMAGES[inputs], without[0], consequence),
        )
