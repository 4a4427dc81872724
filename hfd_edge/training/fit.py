"""Stage one trains the optical teacher, stage two the SAR student with the teacher's help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfd_edge.config import DistillRecipe, Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.statistics import eo_statistics, fit_preprocessing
from hfd_edge.files import sha256
from hfd_edge.hfdnet.distillation import TERMS, Comparison, Hfdm, Temperatures
from hfd_edge.hfdnet.encoder import adapt_bands
from hfd_edge.hfdnet.network import HfdNet
from hfd_edge.hfdnet.run import Run
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.training.checkpoint import TrainingState
from hfd_edge.training.devices import make_fabric, reproducible
from hfd_edge.training.evaluate import eo_statistics_of
from hfd_edge.training.identity import identity_of
from hfd_edge.training.loop import Trainer
from hfd_edge.training.objective import Distillation, Objective
from hfd_edge.training.pairs import (
    epoch_pairs,
    join_unlabelled,
    open_unlabelled,
    student_pairs,
    teacher_pairs,
)
from hfd_edge.training.plan import OnEpoch, Plan
from hfd_edge.training.preparation import (
    make_batches,
    make_schedule,
    open_teacher,
    refuse_existing,
    refuse_other_sar,
    reopen,
    run_info,
    with_inputs_of,
)
from hfd_edge.training.samples import EoStatistics, TileCache, TileStore
from hfd_edge.training.supervision import supervision


def train_teacher(
    folder: PairFolder,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train the teacher on the labelled pairs that have what it sees (teacher.inputs).

    Args:
        folder: Data; train and val need pairs with EO and labels, others are left out.
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
    inputs = recipe.teacher.inputs
    train = teacher_pairs(folder, "train", inputs, label_share=recipe.training.label_share)
    val = teacher_pairs(folder, "val", inputs)
    if resume:
        run = reopen(out, recipe, kind="teacher", data_sha256=folder.sha256, teacher_sha256=None)
    else:
        refuse_existing(out)
        mean, std = eo_statistics(folder, progress=progress)
        preprocessing = preprocessing_of(folder, recipe, progress) if "sar" in inputs else None
        fields = {"eo_mean": mean, "eo_std": std, "inputs": inputs, "preprocessing": preprocessing}
        run = Run(out, recipe, run_info(folder, kind="teacher", **fields))
    with reproducible(fabric.device, recipe.training.seed, deterministic=recipe.training.deterministic):
        network = run.untrained_network(pretrained=recipe.network.init != "random")
        cache, eo = TileCache(recipe.training.cache_mb), eo_statistics_of(run)
        store = TileStore(folder, train, run.info.preprocessing, eo, cache, inputs)
        epoch, jitter = epoch_pairs(folder, inputs), recipe.training.eo_jitter
        batches = make_batches(run, store, epoch=epoch, eo_jitter=jitter)
        plan = Plan(
            run=run,
            objective=Objective(
                network,
                ignore_index=folder.config.ignore_index,
                supervision=supervision(recipe.training, folder, train, progress=progress),
            ),
            batches=batches,
            validation=replace(store, pairs=val),
            schedule=make_schedule(run, batches, ramp=0),
        )
        return execute(plan, fabric, resume=resume, progress=progress, on_epoch=on_epoch)


def train_student(
    folder: PairFolder,
    recipe: Recipe,
    out: Path,
    *,
    teacher: Path | None = None,
    unlabelled: Sequence[Path] = (),
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train the student on SAR, distilling from a frozen teacher as `recipe.distill` says.

    Args:
        folder: Data. Training pairs may lack the label, then they distil alone (distill.unlabelled), or the
            EO that the teacher sees, then their label alone counts.
        recipe: How. distill.method = "none" is the SAR-only network.
        out: Run folder; must not exist, unless `resume`.
        teacher: The teacher's run folder; not used when nothing is taken from a teacher. What it sees is
            what teacher.inputs in the run's own recipe says afterwards.
        unlabelled: Data folders whose training pairs of SAR and EO distil, too; see distill.unlabelled.
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
        CheckpointError: the teacher is no finished run; `resume` with another recipe, other data, another
            teacher or other unlabelled pairs; or a damaged checkpoint.
    """
    out = Path(out)
    fabric = make_fabric(recipe.training.precision)
    source = open_teacher(teacher, recipe, folder)
    recipe = with_inputs_of(source, recipe)
    student_pairs(folder, recipe)
    joining = open_unlabelled(unlabelled, recipe, folder, source)
    hashes: dict[str, Any] = {
        "teacher_sha256": None if source is None else sha256(source.weights_path),
        "unlabelled_sha256": tuple(other.sha256 for other in joining),
    }
    if resume:
        run = reopen(out, recipe, kind="student", data_sha256=folder.sha256, **hashes)
    else:
        refuse_existing(out)
        preprocessing = preprocessing_of(folder, recipe, progress)
        run = Run(out, recipe, run_info(folder, kind="student", preprocessing=preprocessing, **hashes))
    if source is not None:
        refuse_other_sar(source, run.info.preprocessing)
    with reproducible(fabric.device, recipe.training.seed, deterministic=recipe.training.deterministic):
        network = run.untrained_network(pretrained=recipe.network.init == "imagenet")
        expert = None if source is None else source.network()
        if recipe.network.init == "teacher" and expert is not None:
            network.load_state_dict(adapt_bands(expert.state_dict(), network.state_dict()))
        eo = None if source is None else eo_statistics_of(source)
        plan = student_plan(run, folder, network, expert=expert, eo=eo, unlabelled=joining, progress=progress)
        return execute(plan, fabric, resume=resume, progress=progress, on_epoch=on_epoch)


def student_plan(
    run: Run,
    folder: PairFolder,
    network: HfdNet,
    *,
    expert: HfdNet | None,
    eo: EoStatistics | None,
    unlabelled: Sequence[PairFolder] = (),
    progress: Progress = silent,
) -> Plan:
    """A student's training as its recipe says.

    Args:
        run: The student's.
        folder: Data.
        network: With its first weights; with quantisers where the run is a quantisation-aware training.
        expert: The teacher; None when the recipe takes nothing from it.
        eo: How the teacher's input is standardised.
        unlabelled: Folders whose pairs distil, too.
        progress: Counts pairs, where their labels have to be counted first.
    """
    recipe, preprocessing, tunes = run.recipe, run.info.preprocessing, run.info.qat_sha256 is not None
    train, val, epoch, rest = student_pairs(folder, recipe, tell=True)
    distils = recipe.distill.method != "none"
    cache = TileCache(recipe.training.cache_mb)
    store = TileStore(folder, train, preprocessing, eo if distils else None, cache, recipe.teacher.inputs)
    # The teacher was trained to see through jitter; undisturbed input gives the cleaner targets.
    batch, share = recipe.training.batch, recipe.distill.unlabelled
    joining = join_unlabelled(rest, unlabelled, store, batch=batch, share=share)
    batches = make_batches(run, store, epoch=epoch, eo_jitter=0.0, unlabelled=joining)
    objective = Objective(
        network,
        ignore_index=folder.config.ignore_index,
        supervision=supervision(recipe.training, folder, train, progress=progress),
        distillation=_distillation(recipe.distill),
        # After the network, so that one seed gives it the same weights whatever the method.
        hfdm=_projectors(recipe.distill, network, expert),
        frozen_norms=tunes,
    )
    return Plan(
        run=run,
        objective=objective,
        batches=batches,
        validation=TileStore(folder, val, preprocessing, None, cache),
        schedule=make_schedule(run, batches, ramp=recipe.qat.ramp if tunes else recipe.distill.ramp),
        teacher=expert if distils else None,
        # A finished run keeps no projectors: new ones must learn as fast as the first did.
        projector_rate=recipe.training.learning_rate / recipe.qat.learning_rate if tunes else 1.0,
        start_counts=tunes,
    )


def execute(
    plan: Plan,
    fabric: Any,
    *,
    resume: bool,
    progress: Progress,
    on_epoch: OnEpoch | None,
    ranges: Mapping[str, float] | None = None,
) -> Run:
    """Run a plan to its end; `ranges` are what a new run's quantizers.json holds."""
    trainer = Trainer(plan, progress, on_epoch, fabric, TrainingState(identity=identity_of(plan.run)))
    if resume:
        trainer.restore()
    else:
        # Not before all is ready: a recipe that cannot be trained leaves no folder in the way of the next.
        fabric.barrier()
        if fabric.is_global_zero:
            Run.create(plan.run.path, plan.run.recipe, plan.run.info, ranges=ranges)
    trainer.fit()
    return plan.run


def preprocessing_of(folder: PairFolder, recipe: Recipe, progress: Progress) -> Preprocessing:
    """The SAR input of a new run. Raises DatasetError or RadiometryError."""
    settings = recipe.preprocessing
    return fit_preprocessing(
        folder,
        speckle=settings.speckle,
        window_px=settings.window_px,
        clip_percentile=settings.clip_percentile,
        progress=progress,
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
        comparison=Comparison(pool=recipe.pool, tolerance_px=recipe.tolerance_px),
        correct_only=recipe.correct_only,
    )


def _projectors(recipe: DistillRecipe, network: HfdNet, teacher: HfdNet | None) -> Hfdm | None:
    if teacher is None or not set(TERMS[recipe.method]) - {"logits"}:
        return None
    return Hfdm(network.classifier.in_channels, teacher_channels=teacher.classifier.in_channels)
