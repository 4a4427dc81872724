"""Warps: zero flow is bilinear, the two export forms agree, the flow has the meaning that is documented."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfd_edge.hfdnet.alignment import FlowAlignment, Hfam, PlainUpsampling, sampling_grid, upsample, warp

METHODS = ("grid_sample", "gather")
SIZES = [((4, 6), (8, 12)), ((3, 5), (12, 20)), ((1, 1), (8, 8)), ((7, 5), (7, 5)), ((5, 3), (11, 13))]
SIZES += [((16, 16), (32, 32)), ((12, 20), (96, 160))]


def features(size: tuple[int, int], *, batch: int = 2, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("coarse", "fine"), SIZES)
def test_zero_flow_is_bilinear_upsampling(method, coarse, fine) -> None:
    x = features(coarse).sigmoid()
    got = warp(x, torch.zeros(2, 2, *fine), size=fine, method=method)
    expected = F.interpolate(x, size=fine, mode="bilinear", align_corners=False)
    assert (got - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(("coarse", "fine"), SIZES)
@pytest.mark.parametrize("scale", [0.3, 3.0, 100.0])
def test_both_forms_agree_under_flow(coarse, fine, scale: float) -> None:
    flow = scale * features(fine, channels=2, seed=1)
    results = [warp(features(coarse), flow, size=fine, method=method) for method in METHODS]
    assert (results[0] - results[1]).abs().max() <= 1e-4


def test_both_forms_have_the_same_finite_gradients() -> None:
    gradients = []
    for method in METHODS:
        x = features((6, 5)).requires_grad_()
        flow = (2.0 * features((12, 10), channels=2, seed=1)).requires_grad_()
        weight = features((12, 10), seed=2)
        (warp(x, flow, size=(12, 10), method=method) * weight).sum().backward()
        gradients.append((x.grad, flow.grad))
    for first, second in zip(*gradients, strict=True):
        assert torch.isfinite(first).all()
        assert first.abs().max() > 0
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_flow_moves_by_output_pixels_columns_first(method) -> None:
    x = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 1.0  # look one column to the right
    got = warp(x, flow, size=(4, 5), method=method)[0, 0]
    torch.testing.assert_close(got[:, :4], x[0, 0, :, 1:])
    torch.testing.assert_close(got[:, 4], x[0, 0, :, 4])  # the border repeats
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 1] = -2.0  # look two rows up
    got = warp(x, flow, size=(4, 5), method=method)[0, 0]
    torch.testing.assert_close(got[2:], x[0, 0, :2])
    torch.testing.assert_close(got[0], x[0, 0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_maps_are_sampled_at_exact_positions(method) -> None:
    x = features((16, 16), channels=1).bfloat16()
    flow = 3 * features((64, 64), channels=2, seed=1)
    got = warp(x, flow, size=(64, 64), method=method)
    expected = warp(x.float(), flow, size=(64, 64), method=method)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected.bfloat16())
    assert sampling_grid(flow.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_non_contiguous_features(method) -> None:
    x = features((8, 6)).transpose(2, 3)
    flow = features((12, 16), channels=2, seed=1)
    got = warp(x, flow, size=(12, 16), method=method)
    torch.testing.assert_close(got, warp(x.contiguous(), flow, size=(12, 16), method=method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_broken_flow_does_not_crash_the_process(method, value: float) -> None:
    x = features((16, 16)).requires_grad_()
    flow = torch.full((2, 2, 32, 32), value, requires_grad=True)
    got = warp(x, flow, size=(32, 32), method=method)
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert torch.isfinite(x.grad).all()


def test_wrong_size_and_method_are_refused() -> None:
    with pytest.raises(ValueError, match=r"flow is \(4, 4\), but the output size is \(8, 8\)"):
        warp(features((2, 2)), torch.zeros(2, 2, 4, 4), size=(8, 8), method="gather")
    with pytest.raises(ValueError, match="expected 'grid_sample' or 'gather'"):
        warp(features((2, 2)), torch.zeros(2, 2, 4, 4), size=(4, 4), method="nearest")
    with pytest.raises(ValueError, match="not a whole multiple"):
        upsample(features((3, 4)), size=(8, 8))


def test_a_new_alignment_has_zero_flow_that_can_learn() -> None:
    torch.manual_seed(0)
    align = FlowAlignment(8, method="grid_sample")
    coarse, fine = features((4, 4), channels=8), features((8, 8), channels=8, seed=1)
    assert align.flow(coarse, fine).abs().max() == 0
    torch.testing.assert_close(align(coarse, fine), upsample(coarse, size=(8, 8)), rtol=0, atol=1e-6)
    (align(coarse, fine) * fine).sum().backward()
    assert align.flow_head.weight.grad.abs().max() > 0


def test_disabled_alignment_has_no_flow_parameters_and_the_same_other_weights() -> None:
    modules = []
    for enabled in (True, False):
        torch.manual_seed(3)
        modules.append(Hfam((4, 6, 8, 10), channels=8, enabled=enabled))
    on, off = (module.state_dict() for module in modules)
    assert {name for name in on if name not in off} == {name for name in on if ".flow_" in name}
    assert all(torch.equal(on[name], value) for name, value in off.items())
    assert not list(PlainUpsampling().parameters())


def test_hfam_gives_five_maps() -> None:
    levels = [features((32 >> i, 48 >> i), channels=c) for i, c in enumerate((4, 6, 8, 10))]
    maps = Hfam((4, 6, 8, 10), channels=8)(levels)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (8, 32, 48),
        (8, 16, 24),
        (8, 8, 12),
        (8, 4, 6),
        (8, 32, 48),
    ]
