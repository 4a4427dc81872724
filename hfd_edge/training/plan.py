"""All that a training consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfd_edge.hfdnet.network import HfdNet
from hfd_edge.hfdnet.run import Run
from hfd_edge.training.objective import Objective
from hfd_edge.training.samples import Batches, TileStore
from hfd_edge.training.schedule import Schedule

History = list[dict[str, Any]]
OnEpoch = Callable[[Path, History], None]


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
