"""Train other SAR-only networks exactly as the SAR-only student is trained, to compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import CheckpointError, RecipeError
from hfd_edge.hfdnet.baselines import check_architecture
from hfd_edge.hfdnet.run import Run
from hfd_edge.progress import Progress, silent
from hfd_edge.training.devices import make_fabric, reproducible
from hfd_edge.training.fit import execute, preprocessing_of
from hfd_edge.training.objective import Objective
from hfd_edge.training.pairs import student_pairs
from hfd_edge.training.plan import OnEpoch, Plan
from hfd_edge.training.preparation import (
    make_batches,
    make_schedule,
    refuse_existing,
    reopen,
    run_info,
)
from hfd_edge.training.samples import TileCache, TileStore
from hfd_edge.training.supervision import supervision


def train_baseline(
    folder: PairFolder,
    recipe: Recipe,
    out: Path,
    *,
    arch: str,
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train a baseline on SAR: the student's encoder and first weights, input, losses, schedule and batches.

    Args:
        folder: Data; train and val need labels, EO is not looked at.
        recipe: How. Nothing is distilled: the run keeps the recipe with distill.method = "none".
        out: Run folder; must not exist, unless `resume`.
        arch: One of `hfd_edge.hfdnet.baselines.ARCHITECTURES`.
        resume: Go on with the run in `out` from its last checkpoint; see `hfd_edge.training.fit`.
        progress: Counts steps.
        on_epoch: Called with the run folder and the history after each epoch, and when a run is resumed.
    Returns:
        The finished run.
    Raises:
        DatasetError: labels are missing, or a file is faulty.
        RecipeError: the architecture is unknown or does not fit the recipe, the recipe does not fit the
            machine, or training diverged.
        StorageError: `out` exists (without `resume`), or cannot be written.
        CheckpointError: `resume` with another recipe, architecture or other data, or a damaged checkpoint.
        MissingExtraError: segmentation-models-pytorch is not installed.
    """
    out, recipe = Path(out), sar_only(recipe)
    check_architecture(arch)
    _check_recipe(recipe)
    fabric = make_fabric(recipe.training.precision)
    run = _begun(folder, recipe, out, arch) if resume else _new(folder, recipe, out, arch, progress)
    with reproducible(fabric.device, recipe.training.seed, deterministic=recipe.training.deterministic):
        network = run.untrained_network(pretrained=recipe.network.init == "imagenet")
        cache, preprocessing = TileCache(recipe.training.cache_mb), run.info.preprocessing
        pairs = student_pairs(folder, recipe)
        train = TileStore(folder, pairs.train, preprocessing, None, cache)
        batches = make_batches(run, train, epoch=pairs.epoch, eo_jitter=0.0)
        plan = Plan(
            run=run,
            objective=Objective(
                network,
                ignore_index=folder.config.ignore_index,
                supervision=supervision(recipe.training, folder, train.pairs, progress=progress),
            ),
            batches=batches,
            validation=replace(train, pairs=pairs.val),
            schedule=make_schedule(run, batches, ramp=0),
        )
        return execute(plan, fabric, resume=resume, progress=progress, on_epoch=on_epoch)


def sar_only(recipe: Recipe) -> Recipe:
    """The recipe with nothing distilled."""
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"method": "none"})})


def _check_recipe(recipe: Recipe) -> None:
    if recipe.network.init == "teacher":
        raise RecipeError(
            'network.init is "teacher", but a baseline is not built like the teacher. Set it to '
            '"imagenet" or "random".'
        )
    training = recipe.training
    if training.batch < 2 * training.accumulate:
        pieces = "" if training.accumulate == 1 else f" in {training.accumulate} pieces"
        raise RecipeError(
            f"training.batch is {training.batch}{pieces}, but several baselines pool the whole image to one "
            "cell, which batch normalisation cannot standardise for a single sample. Set training.batch to "
            f"at least {2 * training.accumulate}."
        )


def _begun(folder: PairFolder, recipe: Recipe, out: Path, arch: str) -> Run:
    run = reopen(out, recipe, kind="baseline", data_sha256=folder.sha256, teacher_sha256=None)
    if run.info.arch != arch:
        raise CheckpointError(
            f"{out} is the run of the architecture {run.info.arch}, not of {arch}. Give --arch "
            f"{run.info.arch}, or choose another --out."
        )
    return run


def _new(folder: PairFolder, recipe: Recipe, out: Path, arch: str, progress: Progress) -> Run:
    refuse_existing(out)
    preprocessing = preprocessing_of(folder, recipe, progress)
    return Run(out, recipe, run_info(folder, kind="baseline", arch=arch, preprocessing=preprocessing))
