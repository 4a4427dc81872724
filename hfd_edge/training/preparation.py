"""What teacher, student and quantisation-aware training need before their first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hfd_edge.config import Recipe, TeacherRecipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.environment import commit
from hfd_edge.errors import CheckpointError, RecipeError, StorageError
from hfd_edge.hfdnet.network import MULTIPLE_PX
from hfd_edge.hfdnet.run import RECIPE_NAME, Run, RunInfo, now, package_versions
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.training.identity import training_keys
from hfd_edge.training.samples import Augmentation, Batches, TileStore, Unlabelled
from hfd_edge.training.schedule import Schedule

_ROUNDING = 1e-4
"""Statistics of the same data differ by less between machines, dB or stored values."""


def make_batches(
    run: Run, store: TileStore, *, epoch: int, eo_jitter: float, unlabelled: Unlabelled | None = None
) -> Batches:
    """The run's augmented batches of a store. Raises RecipeError."""
    training = run.recipe.training
    if training.batch < 2 * training.accumulate and training.crop_px == MULTIPLE_PX:
        pieces = "" if training.accumulate == 1 else f" in {training.accumulate} pieces"
        raise RecipeError(
            f"training.batch is {training.batch}{pieces} and training.crop_px {MULTIPLE_PX}: the coarsest "
            "map is then a single cell, which batch normalisation cannot standardise. Set training.batch to "
            f"at least {2 * training.accumulate}, or training.crop_px to at least {2 * MULTIPLE_PX}."
        )
    augmentation = Augmentation(
        crop_px=training.crop_px,
        flip=training.flip,
        eo_jitter=eo_jitter,
        sar_gain=_sar_gain(run, training.sar_gain_db),
        ignore_index=run.info.dataset.ignore_index,
    )
    return Batches(store, training.batch, augmentation, training.seed, unlabelled, epoch)


def _sar_gain(run: Run, gain_db: float) -> tuple[float, ...]:
    """The gain in standardised units; none for products without radiometry, which have no dB."""
    preprocessing = run.info.preprocessing
    if preprocessing is None:
        return ()
    if not preprocessing.logarithmic:
        return (0.0,) * preprocessing.bands
    return tuple(gain_db / std for std in preprocessing.std)


def make_schedule(run: Run, batches: Batches, *, ramp: float) -> Schedule:
    """The run's schedule; a fine-tuning has a length and a peak of its own."""
    training = run.recipe.training
    tuning = training if run.info.qat_sha256 is None else run.recipe.qat
    return Schedule(
        total=tuning.epochs * batches.steps_per_epoch,
        learning_rate=tuning.learning_rate,
        warmup=training.warmup,
        power=training.power,
        ramp=ramp,
    )


def open_teacher(
    teacher: Path | None, recipe: Recipe, folder: PairFolder, *, initialises: bool = True
) -> Run | None:
    """The teacher's run, checked against the data; None when nothing is taken from it.

    Args:
        teacher: Its folder, if one was given.
        recipe: Of the student.
        folder: Data.
        initialises: The student's first weights come from where `network.init` says.
    Raises:
        RecipeError: it is needed and missing, or does not fit.
        CheckpointError: it is no finished run.
    """
    reasons = []
    if recipe.distill.method != "none":
        reasons.append(f'distill.method = "{recipe.distill.method}"')
    if initialises and recipe.network.init == "teacher":
        reasons.append('network.init = "teacher"')
    if not reasons:
        return None
    if teacher is None:
        raise RecipeError(
            f"The recipe has {' and '.join(reasons)}, which needs a teacher, but none was given. Give the "
            "teacher's run folder (--teacher RUN), or train without one: --set distill.method=none and "
            "network.init=imagenet."
        )
    run = Run.open(teacher)
    if run.info.kind != "teacher":
        raise RecipeError(
            f"{teacher} is the run of a {run.info.kind}, not of a teacher. Give a teacher's run."
        )
    if run.info.classes != folder.config.classes:
        raise RecipeError(
            f"The teacher {teacher} knows the classes {list(run.info.classes)}, but {folder.root} has "
            f"{list(folder.config.classes)}. Train a teacher on these classes."
        )
    if run.info.dataset.eo != folder.config.eo:
        raise RecipeError(
            f"The teacher {teacher} was trained on EO input {run.info.dataset.eo}, but {folder.root} "
            f"declares {folder.config.eo}. Train a teacher on this input."
        )
    _refuse_other_split(run, folder)
    refuse_unfinished(run)
    return run


def refuse_unfinished(run: Run) -> None:
    """A run to learn or start from must have ended: another epoch would change its weights.

    Raises:
        CheckpointError: it has not.
    """
    metrics = run.metrics()
    # Older runs do not say how they ended; one that is finished has weights.
    if not run.weights_path.is_file() or ("ended" in metrics and metrics["ended"] is None):
        raise CheckpointError(
            f"The training of the {run.info.kind} {run.path} has not ended. Finish it with --resume."
        )


def _refuse_other_split(teacher: Run, folder: PairFolder) -> None:
    """A teacher of another split scheme of these data knows labels that the student is scored on."""
    trained = teacher.recipe.split
    if teacher.info.dataset != folder.config or None in (trained, folder.scheme) or trained == folder.scheme:
        return
    raise RecipeError(
        f"The teacher {teacher.path} was trained on the split '{trained}', but the student's is "
        f"'{folder.scheme}': it may have seen labels of the student's val and test pairs. Train a teacher on "
        "this split."
    )


def with_inputs_of(teacher: Run | None, recipe: Recipe) -> Recipe:
    """The student's recipe, so that it says what its teacher sees; as it is without a teacher."""
    if teacher is None:
        return recipe
    return recipe.model_copy(update={"teacher": TeacherRecipe(inputs=teacher.info.sees)})


def refuse_other_sar(teacher: Run, preprocessing: Preprocessing | None) -> None:
    """A teacher that sees SAR sees the student's SAR input, which must be what it was trained on.

    Raises:
        RecipeError: bands, filter or statistics differ; the latter by more than another machine's rounding.
    """
    trained = teacher.info.preprocessing
    if "sar" not in teacher.info.sees or _same_input(trained, preprocessing):
        return
    raise RecipeError(
        f"The teacher {teacher.path} sees SAR as {trained}, but the student takes "
        f"{preprocessing}. Train both on the same data, with the same split and [preprocessing]."
    )


def _same_input(one: Preprocessing | None, other: Preprocessing | None) -> bool:
    if one is None or other is None or one.bands != other.bands:
        return one == other
    first, second = (np.array([*zip(*each.clip, strict=True), each.mean, each.std]) for each in (one, other))
    settings = replace(one, clip=other.clip, mean=other.mean, std=other.std)
    return settings == other and np.allclose(first, second, rtol=0, atol=_ROUNDING)


def run_info(
    folder: PairFolder, *, kind: Literal["teacher", "student", "baseline"], **fields: Any
) -> RunInfo:
    """What is known of a run before its first step; `fields` are further ones of `RunInfo`."""
    return RunInfo(
        kind=kind,
        dataset=folder.config,
        data_sha256=folder.sha256,
        versions=package_versions(
            *(["nvidia-modelopt"] if fields.get("qat_sha256") else []),
            *(["segmentation-models-pytorch"] if fields.get("arch") else []),
        ),
        commit=commit(),
        created=now(),
        **fields,
    )


def refuse_existing(out: Path) -> None:
    """Raises StorageError: there is something at `out`."""
    if out.exists():
        raise StorageError(
            f"{out} already exists. Choose another --out, remove it, or go on with its training by --resume."
        )


def reopen(
    out: Path,
    recipe: Recipe,
    *,
    kind: str,
    data_sha256: str,
    teacher_sha256: str | None,
    unlabelled_sha256: tuple[str, ...] = (),
    qat_sha256: str | None = None,
) -> Run:
    """The run in `out`, which must be of the same recipe, data, teacher and start. Raises CheckpointError."""
    if not out.exists():
        raise CheckpointError(f"There is no run {out} to resume. Leave out --resume to start one.")
    run = Run.open(out)
    if run.info.kind != kind:
        raise CheckpointError(
            f"{out} is the run of a {run.info.kind}, not of a {kind}. Choose another --out."
        )
    qat = qat_sha256 is not None
    changed = differences(training_keys(run.recipe, qat=qat), training_keys(recipe, qat=qat))
    if changed:
        raise CheckpointError(
            f"{out} was begun with another recipe: {'; '.join(changed)}. Resume with {out / RECIPE_NAME}, or "
            "start again in another --out."
        )
    for what, begun, now_seen in (
        ("data (data_sha256)", run.info.data_sha256, data_sha256),
        ("teacher (teacher_sha256)", run.info.teacher_sha256, teacher_sha256),
        ("unlabelled pairs (unlabelled_sha256)", *_hashes(run.info.unlabelled_sha256, unlabelled_sha256)),
        ("student to start from (qat_sha256)", run.info.qat_sha256, qat_sha256),
    ):
        if begun != now_seen:
            raise CheckpointError(
                f"{out} was begun with another {what}: {str(begun)[:12]} then, {str(now_seen)[:12]} now. "
                "Restore it, or start again in another --out."
            )
    return run


def _hashes(*many: tuple[str, ...]) -> tuple[str | None, ...]:
    """Each tuple as one word, for comparison and message."""
    return tuple(",".join(hashes) or None for hashes in many)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys that differ, as "section.key was 1, is 2"."""
    found: list[str] = []
    for key in old:
        if isinstance(old[key], Mapping):
            found += differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            found.append(f"{prefix}{key} was {old[key]!r}, is {new[key]!r}")
    return found
