"""Losses against numbers worked out by hand, and what must not influence them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfd_edge.config import Recipe
from hfd_edge.hfdnet.distillation import (
    TERMS,
    Comparison,
    Hfdm,
    Temperatures,
    cwd_loss,
    distillation_losses,
    feature_loss,
    hint_loss,
    logits_loss,
    register,
    segmentation_losses,
    teacher_is_right,
)
from hfd_edge.hfdnet.network import HfdNet, Taps

ALL = ("hint", "feature", "cwd", "logits")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taps(seed: int, *, channels: int = 4, size: int = 16) -> Taps:
    sides = (size, size // 2, size // 4, size // 8, size)
    maps = [noise(2, channels, side, side, seed=seed + i) for i, side in enumerate(sides)]
    return Taps(*maps, noise(2, 3, size, size, seed=seed + 9))


class Identity(Hfdm):
    """Projectors that change nothing."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, features):
        return list(features)


def test_hint_loss_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([3.0, 5.0]).view(1, 1, 1, 2)
    assert hint_loss(a, b).item() == pytest.approx((4 + 9) / 2)
    assert hint_loss(a, b, mask=torch.tensor([[[True, False]]])).item() == pytest.approx(4)


def test_feature_loss_by_hand() -> None:
    a, b = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), torch.tensor([10.0, 4.0]).view(1, 1, 1, 2)
    # Standardised: (-1, 1) and (1, -1), but for the epsilon in the variance.
    assert feature_loss(a, b).item() == pytest.approx(4, rel=1e-4)
    assert feature_loss(a, 7 * a - 2).item() == pytest.approx(0, abs=1e-6)


def test_cwd_loss_by_hand() -> None:
    a, b = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    # Channel 1: teacher (1/2, 1/2), student (1/4, 3/4); channel 2: equal.
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    got = cwd_loss(a.view(1, 2, 1, 2), b.view(1, 2, 1, 2), temperature=1.0)
    assert got.item() == pytest.approx(divergence / 2, rel=1e-5)
    soft = cwd_loss(2 * a.view(1, 2, 1, 2), 2 * b.view(1, 2, 1, 2), temperature=2.0)
    assert soft.item() == pytest.approx(4 * divergence / 2, rel=1e-5)


def test_logits_loss_by_hand() -> None:
    student = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    teacher = torch.zeros(1, 2, 1, 1)
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert logits_loss(student, teacher, temperature=1.0).item() == pytest.approx(divergence, rel=1e-5)


def test_losses_against_a_float64_reference() -> None:
    a, b = noise(2, 3, 5, 4).double().numpy(), noise(2, 3, 5, 4, seed=1).double().numpy()

    def soft(x: np.ndarray, axis: tuple[int, ...], tau: float) -> np.ndarray:
        e = np.exp((x - x.max(axis, keepdims=True)) / tau)
        return e / e.sum(axis, keepdims=True)

    def standard(x: np.ndarray) -> np.ndarray:
        return (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)

    p, q = soft(b, (2, 3), 4.0), soft(a, (2, 3), 4.0)
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    assert cwd_loss(*tensors, temperature=4.0).item() == pytest.approx(
        16 / (2 * 3) * (p * np.log(p / q)).sum(), rel=1e-4
    )
    expected = np.mean((standard(a) - standard(b)) ** 2)
    assert feature_loss(*tensors).item() == pytest.approx(expected, rel=1e-4)
    p, q = soft(b, (1,), 2.0), soft(a, (1,), 2.0)
    expected = 4 * (p * np.log(p / q)).sum(1).mean()
    assert logits_loss(*tensors, temperature=2.0).item() == pytest.approx(expected, rel=1e-4)


def test_all_terms_vanish_when_student_equals_teacher() -> None:
    losses = distillation_losses(taps(0), taps(0), terms=ALL, hfdm=Identity())
    assert set(losses) == set(ALL)
    assert all(abs(loss.item()) <= 1e-6 for loss in losses.values())
    losses = distillation_losses(taps(0), taps(50), terms=ALL, hfdm=Identity())
    assert all(loss.item() > 1e-3 for loss in losses.values())


def test_terms_are_means_over_the_taps() -> None:
    a, b = taps(0), taps(50)
    losses = distillation_losses(a, b, terms=("cwd",), hfdm=Identity(), temperatures=Temperatures(cwd=2.0))
    parts = [cwd_loss(x, y, temperature=2.0).item() for x, y in zip(a.features, b.features, strict=True)]
    assert losses["cwd"].item() == pytest.approx(np.mean(parts), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_reach_student_and_projectors_but_never_the_teacher(masked: bool) -> None:
    student, teacher = (Taps(*(t.requires_grad_() for t in taps(seed))) for seed in (0, 50))
    torch.manual_seed(0)
    hfdm = Hfdm(4)
    mask = noise(2, 64, 64, seed=3) > 0 if masked else None
    losses = distillation_losses(student, teacher, terms=ALL, hfdm=hfdm, mask=mask)
    sum(losses.values()).backward()
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in student)
    assert all(t.grad is None for t in teacher)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in hfdm.parameters())


def test_cells_outside_the_mask_have_no_effect() -> None:
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[0, :, 32:] = False
    student, teacher = taps(0), taps(50)
    disturbed = Taps(*(t.clone() for t in student))
    for tensor in disturbed:
        tensor[0, ..., tensor.shape[-1] // 2 :] += 100.0
    options = {"terms": ALL, "hfdm": Identity(), "mask": mask}
    before = distillation_losses(student, teacher, **options)
    after = distillation_losses(disturbed, teacher, **options)
    for term in ALL:
        torch.testing.assert_close(after[term], before[term])
    without = distillation_losses(disturbed, teacher, terms=ALL, hfdm=Identity())
    assert all(without[term] > before[term] for term in ("hint", "logits"))


def test_a_full_mask_is_no_mask_and_an_empty_one_gives_zero() -> None:
    student, teacher = taps(0), taps(50)
    plain = distillation_losses(student, teacher, terms=ALL, hfdm=Identity())
    full = torch.ones(2, 64, 64, dtype=torch.bool)
    same = distillation_losses(student, teacher, terms=ALL, hfdm=Identity(), mask=full)
    for term in ALL:
        torch.testing.assert_close(same[term], plain[term], rtol=1e-4, atol=1e-6)
    empty = distillation_losses(student, teacher, terms=ALL, hfdm=Identity(), mask=~full)
    assert all(loss.item() == 0 for loss in empty.values())


def test_pooling_forgives_a_shift_by_one_pixel() -> None:
    teacher = taps(0, size=32)
    shifted = Taps(*(t.roll(1, -1) for t in teacher))
    plain, pooled = (
        distillation_losses(
            shifted, teacher, terms=("hint", "cwd"), hfdm=Identity(), comparison=Comparison(pool=pool)
        )
        for pool in (False, True)
    )
    assert pooled["hint"] < 0.5 * plain["hint"]
    assert pooled["cwd"] < 0.5 * plain["cwd"]


def smooth(shift: int, *, size: int = 64) -> Tensor:
    """Maps with structure of several cells, a window at (shift, -shift) of one larger noise."""
    wide = torch.nn.functional.avg_pool2d(noise(2, 4, size + 24, size + 24), 5, stride=1, padding=2)
    return wide[..., 8 + shift : 8 + shift + size, 8 - shift : 8 - shift + size]


@pytest.mark.parametrize("term", ["hint", "feature", "cwd", "logits"])
def test_a_search_finds_shifts_within_the_tolerance_alone(term: str) -> None:
    def loss(shift: int, tolerance_px: int) -> float:
        # At stride 4: a shift by 2 cells is one by 8 pixels.
        student, teacher = (Taps(*[5 * smooth(by)] * 6) for by in (0, shift))
        comparison = Comparison(tolerance_px=tolerance_px)
        options = {"terms": (term,), "hfdm": Identity(), "comparison": comparison}
        return distillation_losses(student, teacher, **options)[term].item()

    plain = loss(2, 0)
    assert loss(2, 8) < 1e-6 and loss(2, 5) < 1e-6  # 5 pixels are rounded up to 2 cells
    assert loss(2, 4) > 0.1 * plain > 1e-3
    assert loss(0, 8) == pytest.approx(0, abs=1e-6)


def test_a_pair_of_images_shifted_by_eight_pixels() -> None:
    """Through a whole network, whose deeper maps do not shift by whole cells."""
    torch.manual_seed(0)
    network = HfdNet(bands=3, classes=3, encoder="resnet10t", channels=16).eval()
    wide = torch.nn.functional.avg_pool2d(noise(2, 3, 288, 288), 9, stride=1, padding=4)
    wide /= wide.std()

    def loss(image: Tensor, tolerance_px: int) -> float:
        comparison = Comparison(tolerance_px=tolerance_px)
        options = {"terms": ("feature",), "hfdm": Identity(), "comparison": comparison}
        with torch.no_grad():
            maps = network.taps(wide[..., 16:272, 16:272]), network.taps(image)
            return distillation_losses(*maps, **options)["feature"].item()

    shifted, unrelated = wide[..., 24:280, 8:264], wide.roll((100, 77), (2, 3))[..., 16:272, 16:272]
    assert loss(shifted, 8) < 0.4 * loss(shifted, 0)
    assert loss(unrelated, 8) > 0.9 * loss(unrelated, 0), "a search must not make anything fit"


def test_each_image_has_its_own_shift_and_the_gradient_passes() -> None:
    student = smooth(0).clone().requires_grad_()
    teacher = torch.stack([smooth(1)[0], smooth(-2)[1]])
    mine, other, cells = register(student, teacher, radius=2)
    assert cells is None and mine.shape == other.shape == (2, 4, 60, 60)
    assert torch.equal(mine, other)
    nearby = register(student, teacher + noise(2, 4, 64, 64, seed=4) * 0.1, radius=2)
    feature_loss(nearby[0], nearby[1]).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad[..., 2:-2, 2:-2].abs().min() > 0
    assert student.grad[..., :2].abs().max() == 0  # the border has no partner at some shift


def test_the_search_looks_at_the_cells_of_the_mask() -> None:
    student, teacher = smooth(0), smooth(1).clone()
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[:, :, 32:] = False
    teacher[..., 34:] = smooth(-2)[..., 34:] * 50  # would win without the mask
    mine, other, cells = register(student, teacher, radius=2, mask=mask)
    assert cells is not None and cells.shape == (2, 60, 60)
    assert hint_loss(mine, other, mask=cells).item() == 0
    assert hint_loss(*register(student, teacher, radius=2)[:2]).item() > 0
    empty = register(student, teacher, radius=2, mask=torch.zeros_like(mask))
    assert feature_loss(empty[0], empty[1], mask=empty[2]).item() == 0


def test_small_maps_are_not_shifted_away() -> None:
    comparison = Comparison(tolerance_px=32)
    for side, left in ((4, 4), (8, 6), (16, 12)):
        maps = noise(1, 2, side, side)
        assert comparison(maps, maps, mask=None, stride=4)[0].shape[2:] == (left, left)


def test_every_tolerance_that_a_recipe_may_ask_for_is_searched() -> None:
    crop = Recipe().training.crop_px
    most = crop // 8
    Recipe.model_validate({"distill": {"tolerance_px": most}})
    maps = noise(1, 1, crop // 4, crop // 4)
    left = Comparison(tolerance_px=most)(maps, maps, mask=None, stride=4)[0].shape[2]
    assert crop // 4 - left == 2 * (most // 4)


def test_projectors_may_change_the_width() -> None:
    torch.manual_seed(0)
    losses = distillation_losses(
        taps(0, channels=4), taps(50, channels=6), terms=TERMS["hfdm"], hfdm=Hfdm(4, teacher_channels=6)
    )
    assert set(losses) == {"feature", "cwd"}


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = (Taps(*(t.bfloat16() for t in taps(seed))) for seed in (0, 50))
    losses = distillation_losses(student, teacher, terms=ALL, hfdm=Identity())
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


def test_methods_name_their_terms() -> None:
    assert distillation_losses(taps(0), taps(1), terms=TERMS["none"], hfdm=None) == {}
    assert set(distillation_losses(taps(0), taps(1), terms=TERMS["logits"], hfdm=None)) == {"logits"}
    with pytest.raises(ValueError, match="need the projectors"):
        distillation_losses(taps(0), taps(1), terms=TERMS["cwd"], hfdm=None)
    with pytest.raises(ValueError, match=r"unknown distillation terms \['magic'\]"):
        distillation_losses(taps(0), taps(1), terms=("magic",), hfdm=None)


def test_segmentation_losses_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 1)
    logits[0, 1] = math.log(3)  # constant, so upsampling changes nothing: p = (1/4, 3/4)
    label = torch.full((1, 4, 4), 255)
    label[0, 0, :2] = torch.tensor([0, 1])
    losses = segmentation_losses(logits, label, ignore_index=255)
    assert losses["ce"].item() == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2, rel=1e-5)
    dice = [2 * 0.25 / (0.5 + 1), 2 * 0.75 / (1.5 + 1)]
    assert losses["dice"].item() == pytest.approx(1 - sum(dice) / 2, rel=1e-4)


def test_cross_entropy_equals_torch() -> None:
    logits, label = (
        noise(2, 3, 4, 4),
        torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0)),
    )
    label[0, :5] = 255
    whole = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    expected = torch.nn.functional.cross_entropy(whole, label, ignore_index=255)
    torch.testing.assert_close(segmentation_losses(logits, label, ignore_index=255)["ce"], expected)


def test_perfect_logits_have_no_loss_even_when_a_class_is_absent() -> None:
    label = torch.ones(1, 8, 8, dtype=torch.long)
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1] = 50.0
    losses = segmentation_losses(logits, label, ignore_index=255)
    assert losses["ce"].item() <= 1e-6
    assert losses["dice"].item() <= 1e-4


def test_unknown_pixels_have_no_effect_and_get_no_gradient() -> None:
    label = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    label[1] = 255
    logits = noise(2, 3, 8, 8).requires_grad_()
    losses = segmentation_losses(logits, label, ignore_index=255)
    sum(losses.values()).backward()
    assert logits.grad[0].abs().max() > 0
    assert logits.grad[1].abs().max() == 0
    disturbed = logits.detach().clone()
    disturbed[1] += noise(3, 8, 8, seed=4)
    for name, value in segmentation_losses(disturbed, label, ignore_index=255).items():
        torch.testing.assert_close(value, losses[name])


def test_a_batch_without_labels_costs_nothing() -> None:
    logits = noise(1, 3, 4, 4).requires_grad_()
    losses = segmentation_losses(logits, torch.full((1, 16, 16), 7), ignore_index=7)
    assert losses["ce"].item() == 0
    assert losses["dice"].item() == 0
    sum(losses.values()).backward()
    assert logits.grad.abs().max() == 0


def test_teacher_is_right_only_where_the_truth_is_known() -> None:
    logits = torch.zeros(1, 2, 1, 1)
    logits[0, 1] = 1.0
    label = torch.tensor([[[1, 0, 255, 1]]]).expand(1, 4, 4)
    assert teacher_is_right(logits, label)[0, 0].tolist() == [True, False, False, True]
