"""The training loop that teacher and student share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfd_edge.errors import DatasetError, RecipeError
from hfd_edge.files import remove_unfinished
from hfd_edge.hfdnet.distillation import Pool
from hfd_edge.hfdnet.fakequant import plain_state
from hfd_edge.hfdnet.network import HfdNet, Taps
from hfd_edge.progress import Progress
from hfd_edge.training.average import WeightAverage
from hfd_edge.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from hfd_edge.training.devices import share_norms
from hfd_edge.training.evaluate import Scorer
from hfd_edge.training.objective import Objective
from hfd_edge.training.plan import OnEpoch, Plan
from hfd_edge.training.pooling import Recorder, across_processes, add_up, pools, still_norms
from hfd_edge.training.reporter import Reporter
from hfd_edge.training.samples import Batch, prefetched, teacher_pixels

_log = logging.getLogger("hfd_edge.training")

_REPORT_EVERY = 10
"""Steps between looks at the loss on a GPU, where each look waits for it."""


class _Inputs(NamedTuple):
    """Arguments of the objective for one piece of a batch."""

    pixels: Tensor
    label: Tensor
    teacher: Taps | None
    valid: Tensor | None
    ramp: float


@dataclass
class Trainer:
    """Runs a plan to its end, from the beginning or from its last checkpoint.

    Several processes share every batch and the validation; the first alone writes files.

    Raises:
        RecipeError: the batch has fewer samples than pieces.
    """

    plan: Plan
    progress: Progress
    on_epoch: OnEpoch | None
    fabric: Any
    state: TrainingState
    optimizer: torch.optim.Optimizer = field(init=False)
    _model: Any = field(init=False)
    _fabric_optimizer: Any = field(init=False)
    _average: WeightAverage | None = field(init=False, default=None)
    _best: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        training = self.plan.run.recipe.training
        self._check_pieces()
        if not self.plan.objective.frozen_norms:
            share_norms(self.plan.objective, self.fabric)
        objective = self.plan.objective.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(objective, training.weight_decay, projector_rate=self.plan.projector_rate),
            lr=training.learning_rate,
            fused=True,
        )
        self._model, self._fabric_optimizer = self.fabric.setup(objective, self.optimizer)
        if training.ema:
            self._average = WeightAverage(objective.network, training.ema)
        if self.plan.teacher is not None:
            freeze(self.plan.teacher).to(self.device, memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.fabric.device

    def restore(self) -> None:
        """Go on from the last checkpoint, if the run has one. Raises CheckpointError."""
        if self.fabric.is_global_zero:  # what a kill in the middle of writing left behind
            remove_unfinished(self.plan.run.path)
        path = self.plan.run.checkpoint_path
        if not path.is_file():
            return
        self.state, self._best = load_checkpoint(
            path,
            model=self.plan.objective,
            optimizer=self.optimizer,
            identity=self.state.identity,
            average=None if self._average is None else self._average.tensors,
        )
        if self.state.scaler:
            self.fabric.strategy.precision.load_state_dict(self.state.scaler)
        if self._best and self.fabric.is_global_zero:
            # A kill right after the checkpoint leaves the other files an epoch behind, or missing.
            self.plan.run.save_best(self._best)
            self._reporter().publish()

    def fit(self) -> None:
        """Run the steps that are left.

        Raises:
            RecipeError: the loss is no longer finite.
            DatasetError: a file is faulty, or no training or no validation pixel has a label.
            StorageError: a checkpoint cannot be written; the last one is whole.
        """
        length, every = self.plan.batches.steps_per_epoch, self.plan.run.recipe.training.checkpoint_every
        reporter = self._reporter()
        sums = reporter.sums()
        steps = range(self.state.step, self.plan.schedule.total)
        if steps and (ended := reporter.ended()):
            if self.fabric.is_global_zero:
                _log.warning("%s has stopped: %s. There is nothing to go on with.", self.plan.run.path, ended)
            steps = range(0)
        reporter.start()
        if self.plan.start_counts and self.state.step == 0:
            self._keep_if_wanted(0, self._validate())
            self._save_best()
            reporter.lap(training=False)
        self._model.train()
        for step, pieces in self._batches(steps):
            sums += self._step(step, pieces)
            self.state.step = step + 1
            ends_epoch = self.state.step % length == 0
            saves = ends_epoch or self.state.step % every == 0
            if saves or self.device.type == "cpu" or self.state.step % _REPORT_EVERY == 0:
                reporter.report(sums)
            if saves:
                reporter.lap(training=True)
                if ends_epoch:
                    self._end_epoch(reporter, sums)
                self._save(reporter, ends_epoch)
                reporter.lap(training=False)
                if ends_epoch and reporter.ended():
                    break
        self.fabric.barrier()  # whoever reads the run's files afterwards finds them

    def _reporter(self) -> Reporter:
        return Reporter(self.plan, self.state, self.progress, self.on_epoch, self.device)

    def _check_pieces(self) -> None:
        accumulate, processes = self.plan.run.recipe.training.accumulate, self.fabric.world_size
        if self.plan.batches.batch < accumulate * processes:
            raise RecipeError(
                f"training.batch is {self.plan.batches.batch}, too few for {processes} processes with "
                f"training.accumulate = {accumulate}, each of which takes a sample at least. Raise it, or "
                "start fewer processes."
            )

    def _batches(self, steps: range) -> Iterator[tuple[int, list[Batch]]]:
        if self.device.type != "cpu":
            return prefetched(self._pieces, steps)
        # The network has every core: a thread beside it would make all of them wait at each of its operators.
        return ((step, self._pieces(step)) for step in steps)

    def _pieces(self, step: int) -> list[Batch]:
        """This process' share of a step's batch, in as many pieces as the recipe wants."""
        count = self.plan.run.recipe.training.accumulate
        first, total = self.fabric.global_rank * count, self.fabric.world_size * count
        return [self.plan.batches.piece(step, first + index, total) for index in range(count)]

    def _step(self, step: int, pieces: Sequence[Batch]) -> Tensor:
        """One update; the losses of the whole batch as one float64 vector on the device."""
        processes, last = self.fabric.world_size, len(pieces) - 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.schedule.rate(step) * group["relative_rate"]
        inputs = [self._inputs(piece, step) for piece in pieces]
        pools = self._pools(inputs, step)
        self._fabric_optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for index, (given, pool) in enumerate(zip(inputs, pools, strict=True)):
            self._seed(step, index)
            with self._without_sync(processes > 1 and index < last):
                losses = self._model(*given, pool)
                # Gradients are averaged over processes, but each is a share of the whole.
                self.fabric.backward(losses["loss"] * processes if processes > 1 else losses["loss"])
        self._fabric_optimizer.step()
        if self._average is not None:
            self._average.update(step)
        return torch.stack([losses[name].detach().double() for name in ("loss", *self.plan.objective.terms)])

    def _inputs(self, piece: Batch, step: int) -> _Inputs:
        piece = self.fabric.to_device(piece)
        pixels = piece.sar
        if self.plan.run.info.kind == "teacher":
            pixels = teacher_pixels(piece, bands=self.plan.run.info.bands)
        ramp = self.plan.schedule.distillation(step)
        return _Inputs(pixels, piece.label, self._teach(piece), piece.valid, ramp)

    def _teach(self, batch: Batch) -> Taps | None:
        if self.plan.teacher is None:
            return None
        # Not inference_mode: its tensors may not take part in the student's backward pass.
        with torch.no_grad(), self.fabric.autocast():
            return self.plan.teacher.taps(teacher_pixels(batch, bands=self.plan.teacher.bands))

    def _pools(self, inputs: Sequence[_Inputs], step: int) -> Sequence[Pool | None]:
        """What makes the losses of each piece those of the whole batch; see `pooling`."""
        if len(inputs) == 1:
            return [across_processes if self.fabric.world_size > 1 else None]
        recorders = [Recorder() for _ in inputs]
        with torch.no_grad(), still_norms(self.plan.objective), self.fabric.autocast():
            for index, (given, recorder) in enumerate(zip(inputs, recorders, strict=True)):
                self._seed(step, index)
                self.plan.objective(*given, recorder)
        return pools(recorders)

    def _seed(self, step: int, index: int) -> None:
        """Random numbers (dropout of some encoders) of a piece, so that none depend on the past."""
        training = self.plan.run.recipe.training
        piece = self.fabric.global_rank * training.accumulate + index
        torch.manual_seed((training.seed * 1_000_003 + step + (piece << 40)) % (1 << 63))

    def _without_sync(self, off: bool) -> AbstractContextManager[Any]:
        """Gradients of all but the last piece stay in the process."""
        return self.fabric.no_backward_sync(self._model) if off else nullcontext()

    def _end_epoch(self, reporter: Reporter, sums: Tensor) -> None:
        """Validate, keep the weights if they are wanted, add a row to the history."""
        self._check_learned()
        scores = self._validate()
        reporter.add_row(scores, sums)
        self._keep_if_wanted(self.state.history[-1]["epoch"], scores)

    def _keep_if_wanted(self, epoch: int, scores: dict[str, Any]) -> None:
        """Keep the weights, if they are what the recipe wants to keep, so far."""
        # A fine-tuning keeps its start where it does not help, whatever its recipe says.
        any_later = self.plan.run.recipe.training.keep == "last" and not self.plan.start_counts
        best = self.state.best
        if best is None or any_later or scores["miou"] > best["miou"]:
            self.state.best = {"epoch": epoch, **scores}
            with self._kept_weights():
                weights = plain_state(self.plan.objective.network.state_dict())
                self._best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _kept_weights(self) -> AbstractContextManager[None]:
        """The network as it is validated and saved: with the average of its weights, if there is one."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _check_learned(self) -> None:
        """Refuse labels that are all unknown: the cross-entropy of an epoch is then 0, not merely small."""
        if self.state.history or self.state.sums["ce"] != 0 or "logits" in self.plan.objective.terms:
            return
        raise DatasetError(
            f"No training pixel of {self.plan.batches.store.folder.root} has a label: the crops of the first "
            "epoch hold ignore_index only. Correct the label/ files of the split 'train'."
        )

    def _validate(self) -> dict[str, Any]:
        training, rank, processes = self.plan.run.recipe.training, *self._place()
        store = replace(self.plan.validation, pairs=self.plan.validation.pairs[rank::processes])
        # Evaluation keeps no activations, so four times a piece of a training batch fits.
        piece = max(training.batch // (training.accumulate * processes), 1)
        scorer = Scorer(store, self.device, 4 * piece * training.crop_px**2)
        network = self.plan.objective.network
        self._model.eval()
        with self._kept_weights(), self.fabric.autocast():
            if processes > 1:
                _agree(network)
            confusion = scorer(network, text="validation")
        self._model.train()
        seen = add_up(torch.tensor([*confusion.counts.ravel(), confusion.tiles], device=self.device)).tolist()
        confusion.counts.flat[:], confusion.tiles = seen[:-1], seen[-1]
        scores = confusion.scores()
        if scores["pixels"] == 0:
            raise DatasetError(
                f"No validation pixel of {self.plan.validation.folder.root} has a label, so no epoch can be "
                "called the best. Add label/ files to the split 'val'."
            )
        return scores

    def _save(self, reporter: Reporter, epoch_ended: bool) -> None:
        precision = self.fabric.strategy.precision
        self.state.scaler = dict(precision.state_dict()) if getattr(precision, "scaler", None) else {}
        if not self.fabric.is_global_zero:
            return
        save_checkpoint(
            self.plan.run.checkpoint_path,
            model=self.plan.objective,
            optimizer=self.optimizer,
            best=self._best,
            state=self.state,
            average=None if self._average is None else self._average.tensors,
        )
        if epoch_ended:
            assert self.state.best is not None
            if self.state.best["epoch"] == self.state.history[-1]["epoch"]:
                self._save_best()
            reporter.publish()

    def _save_best(self) -> None:
        if self.fabric.is_global_zero:
            self.plan.run.save_best(self._best)

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of all."""
        return self.fabric.global_rank, self.fabric.world_size


def freeze(network: HfdNet) -> HfdNet:
    """Put a teacher into evaluation mode and stop all its gradients."""
    return network.eval().requires_grad_(False)


def _agree(network: torch.nn.Module) -> None:
    """Take the first process' tensors: statistics of batch normalisation are each process' own."""
    for tensor in network.state_dict().values():
        torch.distributed.broadcast(tensor, 0)


def _parameter_groups(
    objective: Objective, weight_decay: float, *, projector_rate: float
) -> list[dict[str, Any]]:
    """Decay convolution kernels only: biases and normalisation have no scale to keep small."""
    groups = []
    for part, rate in ((objective.network, 1.0), (objective.hfdm, projector_rate)):
        weights = [] if part is None else list(part.parameters())
        kernels = [weight for weight in weights if weight.ndim > 1]
        others = [weight for weight in weights if weight.ndim <= 1]
        groups.append({"params": kernels, "weight_decay": weight_decay, "relative_rate": rate})
        groups.append({"params": others, "weight_decay": 0.0, "relative_rate": rate})
    return [group for group in groups if group["params"]]
