"""What the student learns: labels (cross-entropy and Dice) and the teacher's features (HFDM).

Reconstructed from the paper's description (Gao & Dong, arXiv 2210.08988): the heterogeneous feature
distillation model carries latent EO features from the frozen teacher into the SAR student during training.
The losses below are named after their sources; their combination is ours. All are computed in float32,
whatever the precision of the maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

Pool = Callable[[Tensor], Tensor]
"""Makes sums over a piece of a batch, a vector, into those over the whole batch; the gradient is the piece's.

A loss that is a function of pooled sums has, added up over the pieces, the gradient that the whole batch
would give. Every loss pools once, whatever it sees, so that pieces agree on the order.
"""

_EPSILON = 1e-5

_LEAST_SIDES = 8
"""A search shifts by no more than a map's side over this: a shift leaves cells without partner at the edges,
and few cells match anything."""


class Temperatures(NamedTuple):
    """Softening of the two losses that compare distributions."""

    cwd: float = 4.0
    logits: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """How two maps are brought together before a loss compares them.

    Attributes:
        pool: Average 3x3 (stride 1) first.
        tolerance_px: Then search the shift, up to this in pixels of the input and at least one cell of the
            map, at which they fit best; 0 searches none, nor are maps of fewer than 8 cells a side searched.
            See `register`.
    """

    pool: bool = False
    tolerance_px: int = 0

    def __call__(
        self, student: Tensor, teacher: Tensor, *, mask: Tensor | None, stride: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both maps in float32 and the cells that count.

        Args:
            student: Projected map (batch, channels, rows, cols).
            teacher: The teacher's map, same shape; no gradient flows into it.
            mask: bool at the input's size, or None.
            stride: Pixels of the input to a cell.
        """
        mine, other = student.float(), teacher.detach().float()
        if self.pool:
            mine, other = (
                F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
                for features in (mine, other)
            )
        cells = _at_size(mask, mine.shape[2:])
        radius = min(-(-self.tolerance_px // stride), min(mine.shape[2:]) // _LEAST_SIDES)
        return register(mine, other, radius=radius, mask=cells)


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


def segmentation_losses(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    pool: Pool | None = None,
) -> dict[str, Tensor]:
    """Cross-entropy and soft Dice on logits upsampled to the label's size.

    ce = -sum_p w_p (1 - s_p)^gamma log s_p / sum_p w_p; dice = 1 - mean_k 2 sum_p s_pk t_pk / (sum_p s_pk +
    sum_p t_pk), with s = softmax(x), s_p that of the true class, t = one-hot truth, p over the batch's known
    pixels and k over the classes that occur in them (Milletari et al., 2016, with plain sums).

    Args:
        logits: (batch, classes, rows/4, cols/4) of HFD-Net, (batch, classes, rows, cols) of a baseline.
        label: Class ids (batch, rows, cols), any integer type.
        ignore_index: Label of unknown pixels, which have no effect.
        class_weights: w of a pixel by its true class, (classes,); None is 1 for all. Dice is weighted by its
            mean over classes already.
        focal_gamma: gamma (Lin et al., 2017, eq. 4); 0 is plain cross-entropy.
        pool: When the batch is a piece of a larger one, sums over all of that.
    Returns:
        "ce" and "dice", scalars; both 0 when no pixel is known.
    """
    log_probability = upsample(logits.float(), size=label.shape[1:]).log_softmax(1)
    known = label != ignore_index
    truth = torch.where(known, label, 0).long()
    picked = log_probability.gather(1, truth[:, None])[:, 0]
    if focal_gamma:
        # The floor: below it, exponents under 1 have no finite slope.
        picked = picked * (-torch.expm1(picked)).clamp(min=_EPSILON) ** focal_gamma
    counted = known if class_weights is None else known * class_weights[truth]

    weight = known[:, None].float()
    probability = log_probability.exp() * weight
    one_hot = torch.zeros_like(probability).scatter_(1, truth[:, None], weight)
    overlap, guessed = (probability * one_hot).sum((0, 2, 3)), probability.sum((0, 2, 3))
    total = one_hot.sum((0, 2, 3))
    surprise, count = (picked * counted).sum(), counted.sum()
    if pool is not None:
        sums = pool(torch.cat((surprise[None], count[None].to(surprise), overlap, guessed, total)))
        surprise, count = sums[0], sums[1]
        overlap, guessed, total = sums[2:].chunk(3)
    cross_entropy = -surprise / count.clamp(min=1 if class_weights is None else _EPSILON)
    score = 2 * overlap / (guessed + total + _EPSILON)
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
    comparison: Comparison = Comparison(),
    mask: Tensor | None = None,
    pool: Pool | None = None,
) -> dict[str, Tensor]:
    """The unweighted losses that carry the teacher's knowledge into the student.

    Args:
        student: Maps and logits of the student.
        teacher: The same of the teacher; no gradient flows into them.
        terms: Names in `TERMS`' values.
        hfdm: Projectors of the student's maps; may be None when `terms` is only "logits".
        temperatures: Softening.
        comparison: What is done about pairs that are misregistered by a few pixels.
        mask: bool (batch, rows, cols) at the input's size; other pixels have no effect. None is all. A
            cell of a map counts when at least half of its pixels do.
        pool: As in `segmentation_losses`.
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
        width_px = student.logits.shape[3] * LOGITS_STRIDE
        maps = [
            comparison(mine, other, mask=mask, stride=width_px // mine.shape[3])
            for mine, other in zip(hfdm(student.features), teacher.features, strict=True)
        ]
        for term, loss in (("hint", hint_loss), ("feature", feature_loss)):
            if term in terms:
                losses[term] = _mean([loss(a, b, mask=m, pool=pool) for a, b, m in maps])
        if "cwd" in terms:
            tau = temperatures.cwd
            losses["cwd"] = _mean([cwd_loss(a, b, temperature=tau, mask=m, pool=pool) for a, b, m in maps])
    if "logits" in terms:
        searched = replace(comparison, pool=False)  # an average of logits would be no label
        mine, other, cells = searched(student.logits, teacher.logits, mask=mask, stride=LOGITS_STRIDE)
        tau = temperatures.logits
        losses["logits"] = logits_loss(mine, other, temperature=tau, mask=cells, pool=pool)
    return losses


def register(
    student: Tensor, teacher: Tensor, *, radius: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cut two maps to one window, the teacher's where it fits the student's best.

    One shift for each image, not for each window of it: what is left after co-registration (orbit, time
    offset, mean height) moves a crop of a few hundred pixels as a whole, and the losses normalise over the
    whole map. A search in small windows finds a match anywhere, in noise too, and teaches less. The same
    inner cells of the student are compared at every shift, so no shift is cheaper for having fewer. Shifts
    are whole cells: below one, pooling is the remedy.

    Source: the shift-compensated error of the PROBA-V super-resolution challenge (Maertens et al., 2019),
    there of one band and also used as a loss. Distance here is that of `feature_loss`, blind to scale and
    offset; all terms then use the shift that it finds.

    Args:
        student: Projected map (batch, channels, rows, cols); the gradient passes the cut.
        teacher: The teacher's map, same shape.
        radius: Largest shift along each axis, cells; less than half a side.
        mask: bool (batch, rows, cols) of the student's cells that count, or None for all.
    Returns:
        The student's map without `radius` cells at each border, the teacher's of the same size, and the
        mask's. As given when radius is 0.
    """
    if radius == 0:
        return student, teacher, mask
    rows, cols = (side - 2 * radius for side in student.shape[2:])
    inner = slice(radius, radius + rows), slice(radius, radius + cols)
    mine, cells = student[..., inner[0], inner[1]], None if mask is None else mask[:, inner[0], inner[1]]
    # The nearest first: where all fit alike, nothing is shifted.
    tops = sorted(
        itertools.product(range(2 * radius + 1), repeat=2),
        key=lambda top: (top[0] - radius) ** 2 + (top[1] - radius) ** 2,
    )
    with torch.no_grad():
        standard = _standardise(mine.float(), cells)
        distances = []
        for top, left in tops:
            window = teacher[..., top : top + rows, left : left + cols].float()
            difference = (standard - _standardise(window, cells)).square()
            distances.append((difference if cells is None else difference * cells[:, None]).sum((1, 2, 3)))
        best = torch.tensor(tops, device=teacher.device)[torch.stack(distances).argmin(0)]
        down = best[:, 0, None, None] + torch.arange(rows, device=teacher.device)[:, None]
        right = best[:, 1, None, None] + torch.arange(cols, device=teacher.device)
        batch = torch.arange(len(teacher), device=teacher.device)[:, None, None]
        return mine, teacher[batch, :, down, right].movedim(3, 1), cells


def hint_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, pool: Pool | None = None
) -> Tensor:
    """mean (S - T)^2 over the mask's cells (FitNets, Romero et al. 2015).

    Args:
        student: Projected map (batch, channels, rows, cols).
        teacher: The teacher's map, same shape.
        mask: bool (batch, rows, cols), or None for all cells.
        pool: As in `segmentation_losses`.
    """
    return _masked_mean((student.float() - teacher.detach().float()).square(), mask, pool)


def feature_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, pool: Pool | None = None
) -> Tensor:
    """mean (N(S) - N(T))^2, with N the standardisation of each channel of each image over its cells.

    Standardised, because EO and SAR maps differ in scale and offset, which carry no structure. Arguments
    as in `hint_loss`.
    """
    difference = _standardise(student.float(), mask) - _standardise(teacher.detach().float(), mask)
    return _masked_mean(difference.square(), mask, pool)


def cwd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
    pool: Pool | None = None,
) -> Tensor:
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
    return temperature**2 * _masked_mean(divergence.sum(2), None, pool)


def logits_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
    pool: Pool | None = None,
) -> Tensor:
    """tau^2 mean_p KL(softmax_k(T/tau) || softmax_k(S/tau)) over the mask's cells (Hinton et al. 2015).

    Args:
        student: Logits (batch, classes, rows, cols).
        teacher: The teacher's logits, same shape.
        temperature: tau.
        mask: bool (batch, rows, cols), or None for all cells.
        pool: As in `segmentation_losses`.
    """
    ours = (student.float() / temperature).log_softmax(1)
    theirs = (teacher.detach().float() / temperature).log_softmax(1)
    divergence = (theirs.exp() * (theirs - ours)).sum(1, keepdim=True)
    return temperature**2 * _masked_mean(divergence, mask, pool)


def teacher_is_right(logits: Tensor, label: Tensor) -> Tensor:
    """Where the teacher's label equals the truth: bool (batch, rows, cols); False where truth is unknown.

    Args:
        logits: The teacher's logits (batch, classes, rows/4, cols/4).
        label: Class ids (batch, rows, cols).
    """
    predicted = upsample(logits.float(), size=label.shape[1:]).argmax(1)
    return predicted == label


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


def _masked_mean(values: Tensor, mask: Tensor | None, pool: Pool | None) -> Tensor:
    """Mean over batch, channels and the mask's cells; 0 when the mask is empty."""
    if mask is None:
        if pool is None:
            return values.mean()
        total, count = values.sum(), values.new_tensor(float(values.numel()))
    else:
        weight = mask[:, None].float()
        total, count = (values * weight).sum(), weight.sum() * values.shape[1]
    if pool is not None:
        total, count = pool(torch.stack((total, count))).unbind()
    return total / count.clamp(min=1)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
