"""One batch in several pieces, one after the other or in several processes, with the whole batch's gradient.

The losses are no means over samples: Dice is a ratio of sums over the batch, cross-entropy and distillation
divide by the pixels that count. So the mean of the pieces' losses is not the batch's loss. Instead each piece
computes the loss of the whole from sums over all pieces (`hfd_edge.hfdnet.distillation.Pool`), but passes the
gradient of its own samples only; added up, the gradients are those of the whole batch.

Pieces in other processes give their sums while the losses are computed. Pieces that come later in the same
process are run twice, first without gradients for their sums alone: that costs a third more computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfd_edge.hfdnet.distillation import Pool


class _Replaced(torch.autograd.Function):
    """The value of `whole`, with the gradient of `own`."""

    @staticmethod
    def forward(context: Any, own: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Recorder:
    """Keeps the sums of a piece, which count as they are."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def __call__(self, sums: Tensor) -> Tensor:
        self.sums.append(sums.detach())
        return sums


class Totals:
    """Gives each piece the sums over all pieces, in the order in which they were recorded."""

    def __init__(self, totals: Sequence[Tensor]) -> None:
        self._left = iter(totals)

    def __call__(self, sums: Tensor) -> Tensor:
        return _Replaced.apply(sums, next(self._left))


def across_processes(sums: Tensor) -> Tensor:
    """Sums over the pieces that all processes are at."""
    return _Replaced.apply(sums, add_up(sums.detach().clone()))


def add_up(values: Tensor) -> Tensor:
    """The sum over processes, in place; as it is in a single one."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def pools(recorders: Sequence[Recorder]) -> list[Pool]:
    """One pool for each piece of this process, from what the pieces recorded."""
    totals = [add_up(torch.stack(parts).sum(0)) for parts in zip(*(r.sums for r in recorders), strict=True)]
    return [Totals(totals) for _ in recorders]


@contextmanager
def still_norms(model: nn.Module) -> Iterator[None]:
    """Batch normalisation standardises as in training, but learns no statistics."""
    norms = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
