"""What the student learns: labels (cross-entropy and Dice) and the teacher's features (HFDM).

Reconstructed from the paper's description (Gao & Dong, arXiv 2210.08988): the heterogeneous feature
distillation model carries latent EO features from the frozen teacher into the SAR student during training.
The losses below are named after their sources; their combination is ours. All are computed in float32,
whatever the precision of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfd_edge.hfdnet.alignment import upsample
from hfd_edge.hfdnet.network import LOGITS_STRIDE, Taps

TERMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "logits": ("logits",),
    "fitnet": ("hint",),
    "cwd": ("cwd",),
    "hfdm": ("feature", "cwd"),
    "hfdm+logits": ("feature", "cwd", "logits"),
}
"""Distillation method -> the losses that it adds up."""

_EPSILON = 1e-5


class Temperatures(NamedTuple):
    """Softening of the two losses that compare distributions."""

    cwd: float = 4.0
    logits: float = 1.0


class Hfdm(nn.Module):
    """Projectors phi_i = 1x1 conv - BN - ReLU - 1x1 conv, one a tap; training only, never exported."""

    def __init__(self, channels: int, *, teacher_channels: int | None = None, taps: int = 5) -> None:
        """Build the projectors.

        Args:
            channels: Width C of the student's maps.
            teacher_channels: Width of the teacher's maps; the student's by default.
            taps: Maps compared: P2, P3, P4, P5, Z.
        """
        super().__init__()
        self.projectors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, teacher_channels or channels, 1),
            )
            for _ in range(taps)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """phi_i(S_i) for each of the student's maps S_i, in the teacher's width."""
        return [project(feature) for project, feature in zip(self.projectors, features, strict=True)]


def segmentation_losses(logits: Tensor, label: Tensor, *, ignore_index: int) -> dict[str, Tensor]:
    """Cross-entropy and soft Dice on logits upsampled to the label's size.

    ce = -mean_p log softmax(x)_{p, y_p}; dice = 1 - mean_k 2 sum_p s_pk t_pk / (sum_p s_pk + sum_p t_pk),
    with s = softmax(x), t = one-hot truth, p over the batch's known pixels and k over the classes that occur
    in them (Milletari et al., 2016, with plain sums).

    Args:
        logits: (batch, classes, rows/4, cols/4).
        label: Class ids (batch, rows, cols), any integer type.
        ignore_index: Label of unknown pixels, which have no effect.
    Returns:
        "ce" and "dice", scalars; both 0 when no pixel is known.
    """
    rows, cols = logits.shape[2] * LOGITS_STRIDE, logits.shape[3] * LOGITS_STRIDE
    log_probability = upsample(logits.float(), size=(rows, cols)).log_softmax(1)
    known = label != ignore_index
    truth = torch.where(known, label, 0).long()
    count = known.sum().clamp(min=1)
    picked = log_probability.gather(1, truth[:, None])[:, 0]
    cross_entropy = -(picked * known).sum() / count

    weight = known[:, None].float()
    probability = log_probability.exp() * weight
    one_hot = torch.zeros_like(probability).scatter_(1, truth[:, None], weight)
    overlap = (probability * one_hot).sum((0, 2, 3))
    total = one_hot.sum((0, 2, 3))
    score = 2 * overlap / (probability.sum((0, 2, 3)) + total + _EPSILON)
    present = total > 0
    dice = ((1 - score) * present).sum() / present.sum().clamp(min=1)
    return {"ce": cross_entropy, "dice": dice}


def distillation_losses(
    student: Taps,
    teacher: Taps,
    *,
    terms: Sequence[str],
    hfdm: Hfdm | None,
    temperatures: Temperatures = Temperatures(),
    pool: bool = False,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """The unweighted losses that carry the teacher's knowledge into the student.

    Args:
        student: Maps and logits of the student.
        teacher: The same of the teacher; no gradient flows into them.
        terms: Names in `TERMS`' values.
        hfdm: Projectors of the student's maps; may be None when `terms` is only "logits".
        temperatures: Softening.
        pool: Average 3x3 (stride 1) before maps are compared, for pairs misregistered by a few pixels.
        mask: bool (batch, rows, cols) at the input's size; other pixels have no effect. None is all. A
            cell of a map counts when at least half of its pixels do.
    Returns:
        A scalar for each term.
    Raises:
        ValueError: a term is unknown, or projectors are missing.
    """
    unknown = set(terms) - {"hint", "feature", "cwd", "logits"}
    if unknown:
        raise ValueError(f"unknown distillation terms {sorted(unknown)}, expected hint, feature, cwd, logits")
    losses: dict[str, Tensor] = {}
    if set(terms) - {"logits"}:
        if hfdm is None:
            raise ValueError(f"terms {list(terms)} compare feature maps and need the projectors (hfdm)")
        pairs = [
            (_prepare(mine, pool=pool), _prepare(other.detach(), pool=pool))
            for mine, other in zip(hfdm(student.features), teacher.features, strict=True)
        ]
        masks = [_at_size(mask, mine.shape[2:]) for mine, _ in pairs]
        for term, loss in (("hint", hint_loss), ("feature", feature_loss)):
            if term in terms:
                losses[term] = _mean([loss(a, b, mask=m) for (a, b), m in zip(pairs, masks, strict=True)])
        if "cwd" in terms:
            tau = temperatures.cwd
            losses["cwd"] = _mean(
                [cwd_loss(a, b, temperature=tau, mask=m) for (a, b), m in zip(pairs, masks, strict=True)]
            )
    if "logits" in terms:
        cells = _at_size(mask, student.logits.shape[2:])
        losses["logits"] = logits_loss(
            student.logits, teacher.logits, temperature=temperatures.logits, mask=cells
        )
    return losses


def hint_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """mean (S - T)^2 over the mask's cells (FitNets, Romero et al. 2015).

    Args:
        student: Projected map (batch, channels, rows, cols).
        teacher: The teacher's map, same shape.
        mask: bool (batch, rows, cols), or None for all cells.
    """
    return _masked_mean((student.float() - teacher.detach().float()).square(), mask)


def feature_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """mean (N(S) - N(T))^2, with N the standardisation of each channel of each image over its cells.

    Standardised, because EO and SAR maps differ in scale and offset, which carry no structure. Arguments
    as in `hint_loss`.
    """
    difference = _standardise(student.float(), mask) - _standardise(teacher.detach().float(), mask)
    return _masked_mean(difference.square(), mask)


def cwd_loss(student: Tensor, teacher: Tensor, *, temperature: float, mask: Tensor | None = None) -> Tensor:
    """tau^2 / (N C) sum_{n,c} KL(softmax_hw(T/tau) || softmax_hw(S/tau)), channel-wise distillation.

    Source: Shu et al. (2021), eqs. 3-5. Arguments as in `hint_loss`; images without any cell in the mask
    add 0.
    """
    ours = student.float().flatten(2) / temperature
    theirs = teacher.detach().float().flatten(2) / temperature
    if mask is not None:
        left_out = ~mask.flatten(1)[:, None]
        # A finite floor: a row of -inf alone would turn into NaN.
        ours, theirs = ours.masked_fill(left_out, -1e9), theirs.masked_fill(left_out, -1e9)
    ours, theirs = ours.log_softmax(2), theirs.log_softmax(2)
    divergence = theirs.exp() * (theirs - ours)
    if mask is not None:
        divergence = divergence * mask.flatten(1)[:, None]
    return temperature**2 * divergence.sum(2).mean()


def logits_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """tau^2 mean_p KL(softmax_k(T/tau) || softmax_k(S/tau)) over the mask's cells (Hinton et al. 2015).

    Args:
        student: Logits (batch, classes, rows, cols).
        teacher: The teacher's logits, same shape.
        temperature: tau.
        mask: bool (batch, rows, cols), or None for all cells.
    """
    ours = (student.float() / temperature).log_softmax(1)
    theirs = (teacher.detach().float() / temperature).log_softmax(1)
    divergence = (theirs.exp() * (theirs - ours)).sum(1, keepdim=True)
    return temperature**2 * _masked_mean(divergence, mask)


def teacher_is_right(logits: Tensor, label: Tensor) -> Tensor:
    """Where the teacher's label equals the truth: bool (batch, rows, cols); False where truth is unknown.

    Args:
        logits: The teacher's logits (batch, classes, rows/4, cols/4).
        label: Class ids (batch, rows, cols).
    """
    predicted = upsample(logits.float(), size=label.shape[1:]).argmax(1)
    return predicted == label


def _prepare(features: Tensor, *, pool: bool) -> Tensor:
    features = features.float()
    if not pool:
        return features
    return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)


def _at_size(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """Cells of which at least half the pixels are in the mask: bool (batch, rows, cols) at `size`."""
    if mask is None:
        return None
    stride = mask.shape[-1] // int(size[1])
    return F.avg_pool2d(mask[:, None].float(), stride)[:, 0] >= 0.5


def _standardise(features: Tensor, mask: Tensor | None) -> Tensor:
    """(x - mean) / std per image and channel, over the mask's cells."""
    if mask is None:
        spread, mean = torch.var_mean(features, (2, 3), correction=0, keepdim=True)
        return (features - mean) * torch.rsqrt(spread + _EPSILON)
    weight = mask[:, None].float()
    count = weight.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (features * weight).sum((2, 3), keepdim=True) / count
    centred = features - mean
    spread = (centred.square() * weight).sum((2, 3), keepdim=True) / count
    return centred * torch.rsqrt(spread + _EPSILON)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over batch, channels and the mask's cells; 0 when the mask is empty."""
    if mask is None:
        return values.mean()
    weight = mask[:, None].float()
    return (values * weight).sum() / (weight.sum() * values.shape[1]).clamp(min=1)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
