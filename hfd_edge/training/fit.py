"""Stage one trains the optical teacher, stage two the SAR student with the teacher's help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hfd_edge.config import DistillRecipe, Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.datasets.statistics import eo_statistics, fit_preprocessing
from hfd_edge.errors import CheckpointError, DatasetError, RecipeError, StorageError
from hfd_edge.files import sha256
from hfd_edge.hfdnet.distillation import TERMS, Hfdm, Temperatures
from hfd_edge.hfdnet.encoder import adapt_bands
from hfd_edge.hfdnet.network import MULTIPLE_PX, HfdNet
from hfd_edge.hfdnet.run import RECIPE_NAME, Run, RunInfo, code_revision, now, package_versions
from hfd_edge.progress import Progress, silent
from hfd_edge.training.checkpoint import TrainingState
from hfd_edge.training.evaluate import eo_statistics_of
from hfd_edge.training.loop import OnEpoch, Plan, Trainer, identity_of, make_fabric, reproducible
from hfd_edge.training.objective import Distillation, Objective
from hfd_edge.training.samples import Augmentation, Batches, EoStatistics, TileCache, TileStore
from hfd_edge.training.schedule import Schedule


def train_teacher(
    folder: PairFolder,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train the teacher on the EO images of the labelled pairs.

    Args:
        folder: Data; train and val need EO and labels.
        recipe: How. With network.init = "teacher", which is the student's, the teacher starts from ImageNet.
        out: Run folder; must not exist, unless `resume`.
        resume: Go on with the run in `out` from its last checkpoint. On a CPU, the result is bit for bit
            that of a training which was never interrupted. A finished run is returned as it is.
        progress: Counts steps.
        on_epoch: Called with the run folder and the history after each epoch, and when a run is resumed.
    Returns:
        The finished run.
    Raises:
        DatasetError: EO or labels are missing, or a file is faulty.
        RecipeError: the recipe does not fit the data or the machine, or training diverged.
        StorageError: `out` exists (without `resume`), or cannot be written.
        CheckpointError: `resume` with another recipe or other data, or a damaged checkpoint.
    """
    out = Path(out)
    fabric = make_fabric(recipe.training.precision)
    train = _usable(folder, "train", eo=True, label=True)
    val = _usable(folder, "val", eo=True, label=True)
    if resume:
        run = _reopen(out, recipe, kind="teacher", data_sha256=folder.sha256, teacher_sha256=None)
    else:
        _refuse_existing(out)
        mean, std = eo_statistics(folder, progress=progress)
        run = Run(out, recipe, _info(folder, kind="teacher", eo_mean=mean, eo_std=std))
    with reproducible(fabric.device, recipe.training.seed):
        network = run.untrained_network(pretrained=recipe.network.init != "random")
        cache, eo = TileCache(recipe.training.cache_mb), eo_statistics_of(run)
        batches = _batches(
            run, TileStore(folder, train, None, eo, cache), eo_jitter=recipe.training.eo_jitter
        )
        plan = Plan(
            run=run,
            objective=Objective(network, ignore_index=folder.config.ignore_index),
            batches=batches,
            validation=TileStore(folder, val, None, eo, cache),
            schedule=_schedule(recipe, batches, ramp=0),
        )
        return _execute(plan, fabric, resume=resume, progress=progress, on_epoch=on_epoch)


def train_student(
    folder: PairFolder,
    recipe: Recipe,
    out: Path,
    *,
    teacher: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train the student on SAR, distilling from a frozen teacher as `recipe.distill` says.

    Args:
        folder: Data; distillation needs EO for every training pair, labels may be missing for some.
        recipe: How. distill.method = "none" is the SAR-only network.
        out: Run folder; must not exist, unless `resume`.
        teacher: The teacher's run folder; not used when nothing is taken from a teacher.
        resume: As in `train_teacher`.
        progress: Counts steps.
        on_epoch: Called with the run folder and the history after each epoch, and when a run is resumed.
    Returns:
        The finished run.
    Raises:
        DatasetError: EO or labels are missing, or a file is faulty.
        RecipeError: the teacher is missing or does not fit, the recipe does not fit the machine, or
            training diverged.
        StorageError: `out` exists (without `resume`), or cannot be written.
        CheckpointError: the teacher is no finished run; `resume` with another recipe, other data or
            another teacher; or a damaged checkpoint.
    """
    out = Path(out)
    fabric = make_fabric(recipe.training.precision)
    source = _open_teacher(teacher, recipe, folder)
    distils = recipe.distill.method != "none"
    train = _usable(folder, "train", eo=distils, label=not distils)
    val = _usable(folder, "val", eo=False, label=True)
    teacher_sha256 = None if source is None else sha256(source.weights_path)
    if resume:
        run = _reopen(out, recipe, kind="student", data_sha256=folder.sha256, teacher_sha256=teacher_sha256)
    else:
        _refuse_existing(out)
        settings = recipe.preprocessing
        preprocessing = fit_preprocessing(
            folder,
            speckle=settings.speckle,
            window_px=settings.window_px,
            clip_percentile=settings.clip_percentile,
            progress=progress,
        )
        info = _info(folder, kind="student", preprocessing=preprocessing, teacher_sha256=teacher_sha256)
        run = Run(out, recipe, info)
    with reproducible(fabric.device, recipe.training.seed):
        plan = _student_plan(run, folder, source, train=train, val=val)
        return _execute(plan, fabric, resume=resume, progress=progress, on_epoch=on_epoch)


def _student_plan(
    run: Run, folder: PairFolder, source: Run | None, *, train: Sequence[Pair], val: Sequence[Pair]
) -> Plan:
    recipe, preprocessing = run.recipe, run.info.preprocessing
    network = run.untrained_network(pretrained=recipe.network.init == "imagenet")
    expert = None if source is None else source.network()
    if recipe.network.init == "teacher" and expert is not None:
        network.load_state_dict(adapt_bands(expert.state_dict(), network.state_dict()))
    distils = recipe.distill.method != "none"
    eo: EoStatistics | None = eo_statistics_of(source) if distils and source is not None else None
    cache = TileCache(recipe.training.cache_mb)
    # The teacher was trained to see through jitter; undisturbed input gives the cleaner targets.
    batches = _batches(run, TileStore(folder, train, preprocessing, eo, cache), eo_jitter=0.0)
    objective = Objective(
        network,
        ignore_index=folder.config.ignore_index,
        distillation=_distillation(recipe.distill),
        # After the network, so that one seed gives it the same weights whatever the method.
        hfdm=_projectors(recipe.distill, network, expert),
    )
    return Plan(
        run=run,
        objective=objective,
        batches=batches,
        validation=TileStore(folder, val, preprocessing, None, cache),
        schedule=_schedule(recipe, batches, ramp=recipe.distill.ramp),
        teacher=expert if distils else None,
    )


def _execute(plan: Plan, fabric: Any, *, resume: bool, progress: Progress, on_epoch: OnEpoch | None) -> Run:
    trainer = Trainer(plan, progress, on_epoch, fabric, TrainingState(identity=identity_of(plan.run)))
    if resume:
        trainer.restore()
    else:
        # Not before all is ready: a recipe that cannot be trained leaves no folder in the way of the next.
        Run.create(plan.run.path, plan.run.recipe, plan.run.info)
    trainer.fit()
    return plan.run


def _batches(run: Run, store: TileStore, *, eo_jitter: float) -> Batches:
    training = run.recipe.training
    if training.batch == 1 and training.crop_px == MULTIPLE_PX:
        raise RecipeError(
            f"training.batch is 1 and training.crop_px {MULTIPLE_PX}: the coarsest map is then a single "
            "cell, which batch normalisation cannot standardise. Set training.batch to at least 2, or "
            f"training.crop_px to at least {2 * MULTIPLE_PX}."
        )
    augmentation = Augmentation(
        crop_px=training.crop_px,
        flip=training.flip,
        eo_jitter=eo_jitter,
        sar_gain=_sar_gain(run, training.sar_gain_db),
        ignore_index=run.info.dataset.ignore_index,
    )
    return Batches(store, training.batch, augmentation, training.seed)


def _sar_gain(run: Run, gain_db: float) -> tuple[float, ...]:
    """The gain in standardised units; none for products without radiometry, which have no dB."""
    preprocessing = run.info.preprocessing
    if preprocessing is None:
        return ()
    if not preprocessing.logarithmic:
        return (0.0,) * preprocessing.bands
    return tuple(gain_db / std for std in preprocessing.std)


def _schedule(recipe: Recipe, batches: Batches, *, ramp: float) -> Schedule:
    training = recipe.training
    return Schedule(
        total=training.epochs * batches.steps_per_epoch,
        learning_rate=training.learning_rate,
        warmup=training.warmup,
        power=training.power,
        ramp=ramp,
    )


def _distillation(recipe: DistillRecipe) -> Distillation:
    weights: Mapping[str, float] = {
        "hint": recipe.feature_weight,
        "feature": recipe.feature_weight,
        "cwd": recipe.cwd_weight,
        "logits": recipe.logits_weight,
    }
    return Distillation(
        weights={term: weights[term] for term in TERMS[recipe.method]},
        temperatures=Temperatures(cwd=recipe.cwd_temperature, logits=recipe.logits_temperature),
        pool=recipe.pool,
        correct_only=recipe.correct_only,
    )


def _projectors(recipe: DistillRecipe, network: HfdNet, teacher: HfdNet | None) -> Hfdm | None:
    if teacher is None or not set(TERMS[recipe.method]) - {"logits"}:
        return None
    return Hfdm(network.classifier.in_channels, teacher_channels=teacher.classifier.in_channels)


def _open_teacher(teacher: Path | None, recipe: Recipe, folder: PairFolder) -> Run | None:
    """The teacher's run, checked against the data; None when nothing is taken from it."""
    reasons = []
    if recipe.distill.method != "none":
        reasons.append(f'distill.method = "{recipe.distill.method}"')
    if recipe.network.init == "teacher":
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
    if not run.weights_path.is_file():
        raise CheckpointError(f"The teacher {teacher} has no weights yet. Finish it with --resume.")
    return run


def _usable(folder: PairFolder, split: str, *, eo: bool, label: bool) -> tuple[Pair, ...]:
    """Pairs of a split that have what a training needs.

    Pairs without label are left out where labels are needed. Missing EO is refused where pairs are needed
    for distillation, because leaving them out silently would change the comparison with the SAR-only run.
    """
    pairs = folder.pairs(split)
    if label:
        pairs = tuple(pair for pair in pairs if pair.label is not None)
    if not pairs:
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no pair with a label. Add label/ files of the same "
            "names as the sar/ files."
        )
    without = [pair.name for pair in pairs if eo and pair.eo is None]
    if without:
        raise DatasetError(
            f"{len(without)} of {len(pairs)} pairs in split '{split}' of {folder.root} have no EO image, "
            f"first '{without[0]}'. Add them, or take these pairs out of the split."
        )
    return pairs


def _info(folder: PairFolder, *, kind: Literal["teacher", "student"], **fields: Any) -> RunInfo:
    return RunInfo(
        kind=kind,
        dataset=folder.config,
        data_sha256=folder.sha256,
        versions=package_versions(),
        commit=code_revision(),
        created=now(),
        **fields,
    )


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise StorageError(
            f"{out} already exists. Choose another --out, remove it, or go on with its training by --resume."
        )


def _reopen(out: Path, recipe: Recipe, *, kind: str, data_sha256: str, teacher_sha256: str | None) -> Run:
    """The run in `out`, which must be of the same recipe, data and teacher."""
    if not out.exists():
        raise CheckpointError(f"There is no run {out} to resume. Leave out --resume to start one.")
    run = Run.open(out)
    if run.info.kind != kind:
        raise CheckpointError(
            f"{out} is the run of a {run.info.kind}, not of a {kind}. Choose another --out."
        )
    changed = _differences(run.recipe.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changed:
        raise CheckpointError(
            f"{out} was begun with another recipe: {'; '.join(changed)}. Resume with {out / RECIPE_NAME}, or "
            "start again in another --out."
        )
    for what, begun, now_seen in (
        ("data (data_sha256)", run.info.data_sha256, data_sha256),
        ("teacher (teacher_sha256)", run.info.teacher_sha256, teacher_sha256),
    ):
        if begun != now_seen:
            raise CheckpointError(
                f"{out} was begun with another {what}: {str(begun)[:12]} then, {str(now_seen)[:12]} now. "
                "Restore it, or start again in another --out."
            )
    return run


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys that differ, as "section.key was 1, is 2"."""
    found: list[str] = []
    for key in old:
        if isinstance(old[key], Mapping):
            found += _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            found.append(f"{prefix}{key} was {old[key]!r}, is {new[key]!r}")
    return found
