"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a network: after each step, average = d average + (1 - d) weights.

    d is the decay, but at the first steps (1 + step) / (10 + step), or the average would long be that of the
    first weights (as in TensorFlow's ExponentialMovingAverage). Statistics of batch normalisation are
    averaged as well, counters are taken over (as in timm's ModelEma).

    Attributes:
        tensors: The average, by the names of the network's state.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self.tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step (from 0)."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the average's weights in the block, and its own afterwards."""
        own = {name: value.detach().clone() for name, value in self._network.state_dict().items()}
        try:
            self._load(self.tensors)
            yield
        finally:
            self._load(own)

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        # Copied into place: memory layouts, and what the optimizer refers to, stay as they are.
        for name, value in self._network.state_dict().items():
            value.copy_(tensors[name])
