"""The training loop that teacher and student share."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from torch import Tensor

from hfd_edge.config import Recipe
from hfd_edge.errors import DatasetError, RecipeError
from hfd_edge.hfdnet.fakequant import plain_state
from hfd_edge.hfdnet.network import HfdNet, Taps
from hfd_edge.hfdnet.run import Run
from hfd_edge.progress import Progress
from hfd_edge.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from hfd_edge.training.evaluate import Scorer
from hfd_edge.training.objective import Objective
from hfd_edge.training.samples import Batch, Batches, TileStore, prefetched, teacher_pixels
from hfd_edge.training.schedule import Schedule

History = list[dict[str, Any]]
OnEpoch = Callable[[Path, History], None]

_NEW_KEYS = (("teacher", "inputs"), ("distill", "tolerance_px"), ("distill", "unlabelled"))
"""Recipe keys, younger than the first checkpoints, whose defaults train as before there were any."""

_REPORT_EVERY = 10
"""Steps between looks at the loss on a GPU, where each look waits for it."""


@dataclass(frozen=True)
class Plan:
    """All that a training consists of, ready to run.

    Attributes:
        run: Folder that takes the results.
        objective: Losses around the network.
        batches: Training batches.
        validation: Whole labelled tiles of the validation split.
        schedule: Learning rate and distillation weight by step.
        teacher: Frozen network that sees EO; None when nothing is distilled.
        projector_rate: Learning rate of the projectors relative to the network's.
        start_counts: The weights before the first step may be the best; they are epoch 0.
    """

    run: Run
    objective: Objective
    batches: Batches
    validation: TileStore
    schedule: Schedule
    teacher: HfdNet | None = None
    projector_rate: float = 1.0
    start_counts: bool = False


@dataclass
class Trainer:
    """Runs a plan to its end, from the beginning or from its last checkpoint."""

    plan: Plan
    progress: Progress
    on_epoch: OnEpoch | None
    fabric: Any
    state: TrainingState
    optimizer: torch.optim.Optimizer = field(init=False)
    _model: Any = field(init=False)
    _fabric_optimizer: Any = field(init=False)
    _best: dict[str, Tensor] = field(init=False, default_factory=dict)
    _mark: float = field(init=False, default=0.0)
    _session_seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        objective = self.plan.objective.to(memory_format=torch.channels_last)
        training = self.plan.run.recipe.training
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(objective, training.weight_decay, projector_rate=self.plan.projector_rate),
            lr=training.learning_rate,
            fused=True,
        )
        self._model, self._fabric_optimizer = self.fabric.setup(objective, self.optimizer)
        if self.plan.teacher is not None:
            freeze(self.plan.teacher).to(self.device, memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.fabric.device

    def restore(self) -> None:
        """Go on from the last checkpoint, if the run has one. Raises CheckpointError."""
        path = self.plan.run.checkpoint_path
        if not path.is_file():
            return
        self.state, self._best = load_checkpoint(
            path, model=self.plan.objective, optimizer=self.optimizer, identity=self.state.identity
        )
        if self.state.scaler:
            self.fabric.strategy.precision.load_state_dict(self.state.scaler)
        if self._best:
            # A kill right after the checkpoint leaves the other files an epoch behind, or missing.
            self.plan.run.save_best(self._best)
            self._publish()

    def fit(self) -> None:
        """Run the steps that are left.

        Raises:
            RecipeError: the loss is no longer finite.
            DatasetError: a file is faulty, or no training or no validation pixel has a label.
            StorageError: a checkpoint cannot be written; the last one is whole.
        """
        first, total = self.state.step, self.plan.schedule.total
        every, length = self.plan.run.recipe.training.checkpoint_every, self.plan.batches.steps_per_epoch
        sums = self._sums()
        self._mark = time.perf_counter()
        if self.plan.start_counts and self.state.step == 0:
            self._keep_if_best(0, self._validate())
            self.plan.run.save_best(self._best)
        self._model.train()
        for step, batch in prefetched(self.plan.batches, range(first, total)):
            sums += self._step(step, batch)
            self.state.step = step + 1
            ends_epoch = self.state.step % length == 0
            saves = ends_epoch or self.state.step % every == 0
            if saves or self.device.type == "cpu" or self.state.step % _REPORT_EVERY == 0:
                self._report(sums, first)
            if saves:
                self._lap(training=True)
                if ends_epoch:
                    self._end_epoch(sums)
                self._save(ends_epoch)
                self._lap(training=False)

    def _lap(self, *, training: bool) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.state.seconds += now - self._mark
        if training:
            self.state.training_seconds += now - self._mark
            self._session_seconds += now - self._mark
        self._mark = now

    def _step(self, step: int, batch: Batch) -> Tensor:
        """One update; the losses as one float64 vector on the device."""
        torch.manual_seed(_step_seed(self.plan.run.recipe.training.seed, step))
        batch = self.fabric.to_device(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.schedule.rate(step) * group["relative_rate"]
        pixels = batch.sar
        if self.plan.run.info.kind == "teacher":
            pixels = teacher_pixels(batch, bands=self.plan.run.info.bands)
        losses = self._model(
            pixels, batch.label, self._teach(batch), batch.valid, self.plan.schedule.distillation(step)
        )
        self._fabric_optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(losses["loss"])
        self._fabric_optimizer.step()
        return torch.stack([losses[name].detach().double() for name in self._names])

    def _teach(self, batch: Batch) -> Taps | None:
        if self.plan.teacher is None:
            return None
        # Not inference_mode: its tensors may not take part in the student's backward pass.
        with torch.no_grad(), self.fabric.autocast():
            return self.plan.teacher.taps(teacher_pixels(batch, bands=self.plan.teacher.bands))

    @property
    def _names(self) -> tuple[str, ...]:
        return ("loss", *self.plan.objective.terms)

    def _sums(self) -> Tensor:
        """Sums of the losses over the epoch under way, from the state."""
        values = [self.state.sums.get(name, 0.0) for name in self._names]
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _report(self, sums: Tensor, first: int) -> None:
        """Take the sums over from the device, check them, and tell how far the training is."""
        self.state.sums = dict(zip(self._names, sums.tolist(), strict=True))
        step, length, total = self.state.step, self.plan.batches.steps_per_epoch, self.plan.schedule.total
        loss = self.state.sums["loss"]
        if not math.isfinite(loss):
            section = "training" if self.plan.run.info.qat_sha256 is None else "qat"
            raise RecipeError(
                f"The loss is {loss} at step {step} of {total}: training has diverged. Lower "
                f'{section}.learning_rate, or set training.precision = "32-true"; the last checkpoint is '
                "untouched."
            )
        spent = self._session_seconds + time.perf_counter() - self._mark
        rate = (step - first) * self.plan.batches.batch / max(spent, 1e-9)
        epoch = (step - 1) // length
        score = f" mIoU {self.state.history[-1]['miou']:.3f}" if self.state.history else ""
        text = f"{self.plan.run.info.kind} epoch {epoch + 1}/{total // length}"
        self.progress(
            step, total, f"{text} loss {loss / (step - epoch * length):.3f}{score} {rate:.0f} img/s"
        )

    def _end_epoch(self, sums: Tensor) -> None:
        """Validate, keep the weights if they are the best, add a row to the history."""
        self._check_learned()
        length = self.plan.batches.steps_per_epoch
        epoch = self.state.step // length
        scores = self._validate()
        self.state.history.append(
            {
                "epoch": epoch,
                "step": self.state.step,
                "lr": self.plan.schedule.rate(self.state.step - 1),
                "miou": scores["miou"],
                "iou": scores["iou"],
                **{name: total / length for name, total in self.state.sums.items()},
            }
        )
        self.state.sums = {}
        sums.zero_()
        self._keep_if_best(epoch, scores)

    def _keep_if_best(self, epoch: int, scores: dict[str, Any]) -> None:
        if self.state.best is None or scores["miou"] > self.state.best["miou"]:
            self.state.best = {"epoch": epoch, **scores}
            weights = plain_state(self.plan.objective.network.state_dict())
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _check_learned(self) -> None:
        """Refuse labels that are all unknown: the cross-entropy of an epoch is then 0, not merely small."""
        if self.state.history or self.state.sums["ce"] != 0 or "logits" in self._names:
            return
        raise DatasetError(
            f"No training pixel of {self.plan.batches.store.folder.root} has a label: the crops of the first "
            "epoch hold ignore_index only. Correct the label/ files of the split 'train'."
        )

    def _validate(self) -> dict[str, Any]:
        training = self.plan.run.recipe.training
        # Evaluation keeps no activations, so four times a training batch fits.
        scorer = Scorer(self.plan.validation, self.device, 4 * training.batch * training.crop_px**2)
        self._model.eval()
        with self.fabric.autocast():
            scores = scorer(self.plan.objective.network, text="validation").scores()
        self._model.train()
        if scores["pixels"] == 0:
            raise DatasetError(
                f"No validation pixel of {self.plan.validation.folder.root} has a label, so no epoch can be "
                "called the best. Add label/ files to the split 'val'."
            )
        return scores

    def _save(self, epoch_ended: bool) -> None:
        precision = self.fabric.strategy.precision
        self.state.scaler = dict(precision.state_dict()) if getattr(precision, "scaler", None) else {}
        save_checkpoint(
            self.plan.run.checkpoint_path,
            model=self.plan.objective,
            optimizer=self.optimizer,
            best=self._best,
            state=self.state,
        )
        if not epoch_ended:
            return
        assert self.state.best is not None
        if self.state.best["epoch"] == self.state.history[-1]["epoch"]:
            self.plan.run.save_best(self._best)
        self._publish()

    def _publish(self) -> None:
        """Write metrics.json and call `on_epoch`, if an epoch has ended."""
        self._write_metrics()
        if self.on_epoch is not None and self.state.history:
            self.on_epoch(self.plan.run.path, self.state.history)

    def _write_metrics(self) -> None:
        state, best = self.state, dict(self.state.best or {})
        images = state.step * self.plan.batches.batch
        self.plan.run.save_metrics(
            {
                "kind": self.plan.run.info.kind,
                "best_epoch": best.pop("epoch"),
                **best,
                "epochs": len(state.history),
                "steps": state.step,
                "seconds": round(state.seconds, 3),
                "images_per_second": round(images / max(state.training_seconds, 1e-9), 3),
                "device": device_name(self.device),
                "precision": self.plan.run.recipe.training.precision,
                "history": state.history,
            }
        )


def make_fabric(precision: str) -> Any:
    """A Fabric on the GPU where there is one, else on the CPU.

    Raises:
        RecipeError: the precision needs a GPU.
    """
    cuda = torch.cuda.is_available()
    if precision == "16-mixed" and not cuda:
        raise RecipeError(
            'training.precision is "16-mixed", which needs an NVIDIA GPU, and none is available. Set '
            '"bf16-mixed" or "32-true".'
        )
    return lightning_fabric.Fabric(accelerator="cuda" if cuda else "cpu", devices=1, precision=precision)


@contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch for the block, deterministic on a CPU; the caller's settings come back afterwards.

    GPUs stay free to choose faster algorithms: some operators here have no deterministic form there.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            if device.type == "cpu":
                torch.use_deterministic_algorithms(True)
                torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over all memory
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill


def freeze(network: HfdNet) -> HfdNet:
    """Put a teacher into evaluation mode and stop all its gradients."""
    return network.eval().requires_grad_(False)


def identity_of(run: Run) -> str:
    """Hash of what a checkpoint must agree with: recipe, data, teacher, where QAT started; hex."""
    recipe = training_keys(run.recipe, qat=run.info.qat_sha256 is not None)
    content: dict[str, Any] = {
        "kind": run.info.kind,
        "recipe": _without_new_defaults(recipe),
        "data": run.info.data_sha256,
        "teacher": run.info.teacher_sha256,
    }
    if run.info.unlabelled_sha256:
        content["unlabelled"] = run.info.unlabelled_sha256
    if run.info.qat_sha256 is not None:
        content["qat"] = run.info.qat_sha256
    if run.info.arch is not None:
        content["arch"] = run.info.arch
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def device_name(device: torch.device) -> str:
    """A device in words, for reports."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


def training_keys(recipe: Recipe, *, qat: bool) -> dict[str, Any]:
    """The recipe as plain values; without what only quantisation-aware training reads, unless `qat`."""
    return recipe.model_dump(mode="json", exclude=None if qat else {"qat"})


def _without_new_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """Leave out what checkpoints of earlier versions did not hash, where it changes nothing."""
    kept = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in recipe.items()}
    defaults = Recipe().model_dump(mode="json")
    for section, key in _NEW_KEYS:
        if kept[section][key] == defaults[section][key]:
            del kept[section][key]
    return {section: keys for section, keys in kept.items() if keys != {}}


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


def _step_seed(seed: int, step: int) -> int:
    """Seed of a step's random numbers (dropout of some encoders), so that none depend on the past."""
    return (seed * 1_000_003 + step) % (1 << 63)
