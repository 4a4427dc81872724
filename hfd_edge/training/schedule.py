"""Learning rate and loss weights as functions of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then polynomial decay to 0; distillation weights rise linearly.

    Attributes:
        total: Steps of the whole training.
        learning_rate: Peak.
        warmup: Share of steps of linear warm-up.
        power: Exponent of the decay.
        ramp: Share of steps over which distillation weights rise from 0.
    """

    total: int
    learning_rate: float
    warmup: float
    power: float
    ramp: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0); never 0."""
        decay = (1 - step / self.total) ** self.power
        return self.learning_rate * decay * _rise(step, self.warmup * self.total)

    def distillation(self, step: int) -> float:
        """Factor of the distillation losses at a step, 0 to 1."""
        return _rise(step, self.ramp * self.total)


def _rise(step: int, steps: float) -> float:
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
