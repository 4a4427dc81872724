"""The sum that training minimises, as one module so that mixed precision wraps all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hfd_edge.hfdnet.baselines import Baseline
from hfd_edge.hfdnet.distillation import (
    Comparison,
    Hfdm,
    Pool,
    Temperatures,
    distillation_losses,
    segmentation_losses,
    teacher_is_right,
)
from hfd_edge.hfdnet.network import HfdNet, Taps


@dataclass(frozen=True)
class Distillation:
    """What is taken from the teacher.

    Attributes:
        weights: Weight of each term; see `hfd_edge.hfdnet.distillation.TERMS`. Empty without a teacher.
        temperatures: Softening.
        comparison: What is done about misregistered pairs.
        correct_only: Only pixels that the teacher gets right.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    temperatures: Temperatures = field(default_factory=Temperatures)
    comparison: Comparison = field(default_factory=Comparison)
    correct_only: bool = False


@dataclass(frozen=True)
class Supervision:
    """How pixels count in the cross-entropy; see `hfd_edge.hfdnet.distillation.segmentation_losses`.

    Attributes:
        class_weights: One a class; None is 1 for all.
        focal_gamma: 0 is plain cross-entropy.
    """

    class_weights: tuple[float, ...] | None = None
    focal_gamma: float = 0.0


class Objective(nn.Module):
    """L = CE + Dice + ramp * sum of weighted distillation terms.

    Attributes:
        network: The network in training.
        hfdm: Its projectors, None when no term compares feature maps.
        frozen_norms: The network's batch normalisation keeps its statistics, in training mode, too.
    """

    def __init__(
        self,
        network: HfdNet | Baseline,
        *,
        ignore_index: int,
        supervision: Supervision = Supervision(),
        distillation: Distillation = Distillation(),
        hfdm: Hfdm | None = None,
        frozen_norms: bool = False,
    ) -> None:
        super().__init__()
        self.frozen_norms = frozen_norms
        self.network = network
        self.hfdm = hfdm
        self._ignore_index = ignore_index
        self._focal_gamma = supervision.focal_gamma
        weights = supervision.class_weights
        # A buffer follows the network to its device; the recipe and the data say its values, no checkpoint.
        self.register_buffer("_weights", None if weights is None else torch.tensor(weights), persistent=False)
        self._distillation = distillation

    def train(self, mode: bool = True) -> Objective:
        """As of any module, but for the normalisation that is frozen."""
        super().train(mode)
        if self.frozen_norms:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    @property
    def terms(self) -> Sequence[str]:
        """Names of the losses that `forward` gives, beside "loss"."""
        return ("ce", "dice", *self._distillation.weights)

    def forward(
        self,
        pixels: Tensor,
        label: Tensor,
        teacher: Taps | None,
        valid: Tensor | None,
        ramp: float,
        pool: Pool | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses of a batch.

        Args:
            pixels: Network input (batch, bands, rows, cols).
            label: int64 (batch, rows, cols).
            teacher: The teacher's maps for the same pixels; None without distillation.
            valid: bool (batch, rows, cols), where SAR has data and the pair has EO; None for everywhere.
                Nothing is distilled elsewhere: what one of both does not see it can neither teach nor learn.
            ramp: Factor of the distillation terms, 0 to 1.
            pool: When the batch is a piece of a larger one, sums over all of that; the losses are then those
                of the larger one, their gradient is this piece's share.
        Returns:
            "loss" (their weighted sum) and each unweighted term.
        """
        # Baselines have no taps: nothing is distilled into them.
        taps = None if teacher is None else self.network.taps(pixels)
        logits = self.network(pixels) if taps is None else taps.logits
        losses = segmentation_losses(
            logits,
            label,
            ignore_index=self._ignore_index,
            class_weights=self._weights,
            focal_gamma=self._focal_gamma,
            pool=pool,
        )
        total = losses["ce"] + losses["dice"]
        settings = self._distillation
        if settings.weights and taps is not None and teacher is not None:
            mask = valid
            if settings.correct_only:
                right = teacher_is_right(teacher.logits, label)
                mask = right if valid is None else right & valid
            distilled = distillation_losses(
                taps,
                teacher,
                terms=tuple(settings.weights),
                hfdm=self.hfdm,
                temperatures=settings.temperatures,
                comparison=settings.comparison,
                mask=mask,
                pool=pool,
            )
            for term, loss in distilled.items():
                total = total + ramp * settings.weights[term] * loss
            losses.update(distilled)
        return {"loss": total, **losses}
