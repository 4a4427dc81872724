"""The history of a training as TensorBoard shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfd_edge.errors import require
from hfd_edge.files import storage_errors
from hfd_edge.training.plan import History

FOLDER = "tensorboard"
_NO_SCALARS = ("epoch", "step", "iou")


class TensorBoard:
    """An `OnEpoch` that writes the scalars of each epoch into the run's folder `tensorboard`.

    A resumed training writes all of its history anew, so no epoch is missing or there twice.

    Raises:
        MissingExtraError: the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        require("tensorboard", extra="tensorboard", purpose="--tensorboard")
        self._writer: Any = None
        self._written = 0

    def __call__(self, run: Path, history: History) -> None:
        """Write the epochs that are new, at the number of their last step. Raises StorageError."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run / FOLDER
        with storage_errors(folder):
            if self._writer is None:
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
                self._writer = SummaryWriter(str(folder))
            for row in history[self._written :]:
                self._add(row)
            self._written = len(history)
            self._writer.flush()

    def _add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in _NO_SCALARS:
                group = "validation" if name == "miou" else "schedule" if name == "lr" else "loss"
                self._writer.add_scalar(f"{group}/{name}", value, row["step"])
        for name, value in row["iou"].items():
            if value is not None:
                self._writer.add_scalar(f"iou/{name}", value, row["step"])
        self._writer.add_scalar("schedule/epoch", row["epoch"], row["step"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
