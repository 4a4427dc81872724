"""What a training says of itself: progress, history, metrics.json and what it took."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfd_edge.errors import RecipeError
from hfd_edge.progress import Progress
from hfd_edge.training.checkpoint import TrainingState
from hfd_edge.training.devices import device_name
from hfd_edge.training.plan import OnEpoch, Plan


@dataclass
class Reporter:
    """Keeps the clock and the sums of losses in a training's state, and makes figures of them.

    Attributes:
        plan: What is trained.
        state: How far it is.
        progress: Counts steps.
        on_epoch: Called when `publish` is.
        device: Where it runs.
    """

    plan: Plan
    state: TrainingState
    progress: Progress
    on_epoch: OnEpoch | None
    device: torch.device
    _first: int = field(init=False, default=0)
    _mark: float = field(init=False, default=0.0)
    _session_seconds: float = field(init=False, default=0.0)

    def start(self) -> None:
        """Start the clock of this session."""
        self._first = self.state.step
        self._mark = time.perf_counter()

    def lap(self, *, training: bool) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.state.seconds += now - self._mark
        if training:
            self.state.training_seconds += now - self._mark
            self._session_seconds += now - self._mark
        self._mark = now

    @property
    def names(self) -> tuple[str, ...]:
        """Of the losses, in the order of `sums`."""
        return ("loss", *self.plan.objective.terms)

    def sums(self) -> Tensor:
        """Sums of the losses over the epoch under way, float64 on the device, from the state."""
        values = [self.state.sums.get(name, 0.0) for name in self.names]
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def report(self, sums: Tensor) -> None:
        """Take the sums over from the device, check them, and tell how far the training is.

        Raises:
            RecipeError: the loss is no longer finite.
        """
        self.state.sums = dict(zip(self.names, sums.tolist(), strict=True))
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
        rate = (step - self._first) * self.plan.batches.batch / max(spent, 1e-9)
        epoch = (step - 1) // length
        score = f" mIoU {self.state.history[-1]['miou']:.3f}" if self.state.history else ""
        text = f"{self.plan.run.info.kind} epoch {epoch + 1}/{total // length}"
        self.progress(
            step, total, f"{text} loss {loss / (step - epoch * length):.3f}{score} {rate:.0f} img/s"
        )

    def add_row(self, scores: dict[str, Any], sums: Tensor) -> None:
        """Add the epoch that ended to the history; `sums` start again at 0."""
        length = self.plan.batches.steps_per_epoch
        self.state.history.append(
            {
                "epoch": self.state.step // length,
                "step": self.state.step,
                "lr": self.plan.schedule.rate(self.state.step - 1),
                "miou": scores["miou"],
                "iou": scores["iou"],
                **{name: total / length for name, total in self.state.sums.items()},
            }
        )
        self.state.sums = {}
        sums.zero_()

    def ended(self) -> str | None:
        """Why the training is over, in words; None while it is not."""
        patience, state = self.plan.run.recipe.training.patience, self.state
        if state.step >= self.plan.schedule.total:
            return "all epochs are done"
        if patience and state.best is not None and len(state.history) - state.best["epoch"] >= patience:
            return f"no better validation mIoU in {patience} epochs (training.patience)"
        return None

    def publish(self) -> None:
        """Write metrics.json and call `on_epoch`, if an epoch has ended. Raises StorageError."""
        self._write_metrics()
        if self.on_epoch is not None and self.state.history:
            self.on_epoch(self.plan.run.path, self.state.history)

    def _pairs(self) -> dict[str, int]:
        joining = self.plan.batches.unlabelled
        return {
            "pairs": len(self.plan.batches.store),
            "unlabelled_pairs": 0 if joining is None else len(joining.store),
        }

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
                "ended": self.ended(),
                **self._pairs(),
                "seconds": round(state.seconds, 3),
                "images_per_second": round(images / max(state.training_seconds, 1e-9), 3),
                "device": device_name(self.device),
                "precision": self.plan.run.recipe.training.precision,
                "history": state.history,
            }
        )
