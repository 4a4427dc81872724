"""Quantisation-aware training: a finished student learns to compute in INT8, with its teacher's help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.errors import CheckpointError, RecipeError, require
from hfd_edge.files import sha256
from hfd_edge.hfdnet.fakequant import PURPOSE, activation_ranges, add_quantisers, fold_norms
from hfd_edge.hfdnet.network import MULTIPLE_PX, HfdNet
from hfd_edge.hfdnet.run import RECIPE_NAME, Run
from hfd_edge.progress import Progress, silent
from hfd_edge.training.devices import make_fabric, reproducible
from hfd_edge.training.evaluate import eo_statistics_of
from hfd_edge.training.fit import execute, student_plan
from hfd_edge.training.pairs import student_pairs
from hfd_edge.training.plan import OnEpoch
from hfd_edge.training.preparation import (
    differences,
    open_teacher,
    refuse_existing,
    refuse_other_sar,
    refuse_unfinished,
    reopen,
    run_info,
    with_inputs_of,
)
from hfd_edge.training.samples import TileCache, TileStore, images


def train_qat(
    folder: PairFolder,
    recipe: Recipe,
    out: Path,
    *,
    start: Path,
    teacher: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Fine-tune a finished student with INT8 rounding in every forward pass.

    The student's normalisation is folded into its kernels, the ranges of its activations are measured on
    training tiles (and then fixed), and it is trained as before, teacher included, for `recipe.qat.epochs`.
    Validation scores, and so the best epoch, are those of the rounded network. The student as it was,
    rounded, counts as epoch 0: where fine-tuning does not help, its weights are kept. What is written are
    ordinary float weights, which export as any student's, and the ranges, which `quantize` then uses.

    Args:
        folder: Data, of the classes and input that the student was trained on.
        recipe: The student's; [qat] says how. Losses and batches may differ, but not split, network and
            preprocessing.
        out: Run folder; must not exist, unless `resume`.
        start: The student's run folder.
        teacher: The teacher's run folder; not used with distill.method = "none".
        resume: As in `train_teacher`.
        progress: Counts calibration tiles, then steps.
        on_epoch: Called with the run folder and the history after each epoch, and when a run is resumed.
    Returns:
        The finished run.
    Raises:
        DatasetError: the data do not fit the student, EO or labels are missing, or a file is faulty.
        RecipeError: `start` is no student or does not fit the recipe, the teacher is missing or does not
            fit, or training diverged.
        StorageError: `out` exists (without `resume`), or cannot be written.
        CheckpointError: `start` or the teacher is no finished run; `resume` with another recipe, other data,
            another teacher or another student; or a damaged checkpoint.
        MissingExtraError: the qat extra is not installed.
    """
    out = Path(out)
    require("modelopt", extra="qat", purpose=PURPOSE)  # before an hour's work, not after
    fabric = make_fabric(recipe.training.precision)
    student = _open_student(start, recipe, folder)
    source = open_teacher(teacher, recipe, folder, initialises=False)
    recipe = with_inputs_of(source, recipe)
    if source is not None:
        refuse_other_sar(source, student.info.preprocessing)
    pairs = student_pairs(folder, recipe)
    seen = sorted((*pairs.train, *pairs.unlabelled), key=lambda pair: pair.name)  # ranges need no labels
    hashes: dict[str, Any] = {
        "teacher_sha256": None if source is None else sha256(source.weights_path),
        "qat_sha256": sha256(student.weights_path),
    }
    if resume:
        run = reopen(out, recipe, kind="student", data_sha256=folder.sha256, **hashes)
    else:
        refuse_existing(out)
        info = run_info(folder, kind="student", preprocessing=student.info.preprocessing, **hashes)
        run = Run(out, recipe, info)
    with reproducible(fabric.device, recipe.training.seed, deterministic=recipe.training.deterministic):
        network = student.network().to(fabric.device)
        fold_norms(network)
        # Not measured again: on another machine they would differ in the last bit.
        ranges = run.quantizers() if resume else _measure(run, folder, seen, network, progress)
        assert ranges is not None  # the run says that it was trained with quantisers
        add_quantisers(network, ranges)
        expert, eo = (None, None) if source is None else (source.network(), eo_statistics_of(source))
        plan = student_plan(run, folder, network, expert=expert, eo=eo, progress=progress)
        return execute(plan, fabric, resume=resume, progress=progress, on_epoch=on_epoch, ranges=ranges)


def quantised_network(run: Run) -> HfdNet:
    """The network of a quantisation-aware training as it was trained: its weights behind its quantisers.

    Returns:
        On the CPU, in evaluation mode; its logits are those of the INT8 model, up to its residue of float
        arithmetic.
    Raises:
        CheckpointError: the run is not one of these, or is damaged.
        MissingExtraError: the qat extra is not installed.
    """
    ranges = run.quantizers()
    if ranges is None:
        raise CheckpointError(f"{run.path} was trained without quantisers. Train it with --qat RUN.")
    network = run.network()
    add_quantisers(network, ranges)
    return network


def _open_student(start: Path, recipe: Recipe, folder: PairFolder) -> Run:
    """The run to start from, checked against recipe and data."""
    run = Run.open(start)
    if run.info.kind != "student":
        raise RecipeError(
            f"{start} is the run of a {run.info.kind}, but quantisation-aware training continues a student. "
            "Give --qat the run folder of a student."
        )
    refuse_unfinished(run)
    changed = differences(_fixed(run.recipe), _fixed(recipe))
    if changed:
        raise RecipeError(
            f"The recipe does not fit the student {start}: {'; '.join(changed)}. Use its own "
            f"{RECIPE_NAME}, or change only [training], [distill] and [qat]."
        )
    trained = run.info.dataset
    folder.require_fit("the student", classes=trained.classes, sar=trained.sar)
    return run


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """The keys that a fine-tuning cannot change; both forms of the warp have the same weights.

    Under another split scheme it would train on, or be scored on, pairs of the other side.
    """
    kept = {"split": True, "network": True, "preprocessing": True}
    return recipe.model_dump(mode="json", include=kept, exclude={"network": {"init", "warp"}})


def _measure(
    run: Run, folder: PairFolder, pairs: Sequence[Pair], network: HfdNet, progress: Progress
) -> dict[str, float]:
    """Ranges of the activations on whole training tiles, spread evenly over the split."""
    settings = run.recipe.qat
    places = np.linspace(0, len(pairs) - 1, min(settings.calibration_tiles, len(pairs))).round().astype(int)
    store = TileStore(folder, [pairs[place] for place in places], run.info.preprocessing, None, TileCache(0))
    device = next(network.parameters()).device

    def tiles() -> Iterator[Tensor]:
        for index in range(len(store)):
            yield _padded(images(store[index].sar[None])).to(device)
            progress(index + 1, len(store), "calibrating")

    return activation_ranges(network, tiles(), percentile=settings.percentile)


def _padded(pixels: Tensor) -> Tensor:
    """Sides to multiples of 32 by repeating the edge, as in validation."""
    rows, cols = pixels.shape[2:]
    with torch.no_grad():
        return F.pad(pixels, (0, -cols % MULTIPLE_PX, 0, -rows % MULTIPLE_PX), mode="replicate")
