"""Fake quantisers: folding, ranges, and the arithmetic of INT8."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from hfd_edge.errors import CheckpointError, MissingExtraError, RecipeError
from hfd_edge.hfdnet import fakequant as room
from hfd_edge.hfdnet.fakequant import (
    activation_ranges,
    add_quantisers,
    fold_norms,
    plain_state,
    quantised_convolutions,
)
from hfd_edge.hfdnet.network import HfdNet, perturb_flow


def trained(encoder: str = "test_resnet") -> HfdNet:
    """A small network whose normalisation has statistics, also with scales below 0."""
    torch.manual_seed(3)
    network = HfdNet(bands=2, classes=3, encoder=encoder, channels=8).eval()
    perturb_flow(network, seed=1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3.0)
    return network


def tiles(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1, 2, 64, 64, generator=generator) for _ in range(count)]


def logits(network: HfdNet, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(pixels)


@pytest.fixture
def folded() -> HfdNet:
    network = trained()
    fold_norms(network)
    return network


def check_folded(network: HfdNet) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.running_mean.any()
            assert (module.weight == 1).all() and not module.weight.requires_grad
            torch.testing.assert_close(
                module.running_var, torch.full_like(module.running_var, 1 - module.eps)
            )


def test_folding_changes_the_weights_and_nothing_else() -> None:
    network = trained()
    (pixels,) = tiles(1)
    before, names = logits(network, pixels), list(network.state_dict())
    kernel = network.encoder.body.layer1[0].conv1.weight.detach().clone()
    fold_norms(network)
    torch.testing.assert_close(logits(network, pixels), before, rtol=0, atol=1e-4 * float(before.std()))
    assert list(network.state_dict()) == names
    assert not torch.allclose(network.encoder.body.layer1[0].conv1.weight, kernel)
    check_folded(network)


def test_folding_twice_is_folding_once(folded: HfdNet) -> None:
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    fold_norms(folded)
    for name, value in folded.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7)


class ReadTwice(nn.Module):
    """The convolution's result is read before its normalisation, so it cannot be folded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4 * channels, channels, 1), nn.BatchNorm2d(channels)
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        found = self.conv(maps)
        return found + self.norm(found)


def test_what_cannot_be_folded_is_refused() -> None:
    network = trained()
    network.hfam.fuse = ReadTwice(8).eval()
    with pytest.raises(RecipeError, match=r"cannot be folded.*the logits change by .*Choose an encoder"):
        fold_norms(network)


def test_flow_heads_and_classifier_stay_in_high_precision(folded: HfdNet) -> None:
    everything = {name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d)}
    kept = everything - quantised_convolutions(folded).keys()
    heads = {f"hfam.{part}.{level}.flow_head" for part in ("align", "aggregate") for level in range(3)}
    assert kept == {"classifier", *heads}


def test_a_range_is_the_largest_percentile_of_any_tile(folded: HfdNet) -> None:
    dark, bright = tiles(2)
    bright = bright * 5
    bright[0, 0, 0, 0] = 1e4  # one speckle in 8192 values
    dark[:, :, :32] = 0  # no-data is not counted
    found = activation_ranges(folded, [bright, dark], percentile=99.0)
    stem = next(name for name in found if name.startswith("encoder.body.conv1"))
    magnitude = np.sort(np.abs(bright.numpy()).ravel())
    assert found[stem] == pytest.approx(magnitude[-82], rel=1e-6)  # 1 % of 8192 is 81.92
    alone = activation_ranges(folded, [dark], percentile=99.0)
    magnitude = np.sort(np.abs(dark.numpy()[dark.numpy() != 0]))
    assert alone[stem] == pytest.approx(magnitude[-41], rel=1e-6)  # 1 % of 4096 is 40.96
    assert activation_ranges(folded, [bright], percentile=100.0)[stem] == 1e4
    assert found.keys() == quantised_convolutions(folded).keys()


def test_measuring_leaves_no_trace(folded: HfdNet) -> None:
    before = logits(folded, tiles()[0])
    activation_ranges(folded, tiles(), percentile=100.0)
    assert torch.equal(logits(folded, tiles()[0]), before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in folded.modules())


def test_a_map_of_zeros_gets_a_range_nevertheless(folded: HfdNet) -> None:
    nn.init.constant_(folded.hfam.fuse[0].weight, 0.0)
    nn.init.zeros_(folded.hfam.laterals[0][0].weight)
    nn.init.zeros_(folded.hfam.laterals[0][1].bias)
    found = activation_ranges(folded, [tiles()[0]], percentile=100.0)
    assert found["hfam.aggregate.0.flow_fine"] > 0
    assert found["hfam.align.0.flow_fine"] == 1.0


def test_ranges_of_a_broken_student_are_refused(folded: HfdNet) -> None:
    nn.init.constant_(folded.classifier.weight, float("nan"))
    with pytest.raises(CheckpointError, match="not finite on a calibration tile.*Check its weights"):
        activation_ranges(folded, tiles(), percentile=100.0)


def as_int8(maps: np.ndarray, kernel: np.ndarray, amax: float) -> np.ndarray:
    """A 1x1 convolution in integers: codes of -128 to 127 and of -127 to 127, one scale a channel."""
    scale, scales = amax / 127, np.abs(kernel).max((1, 2, 3)) / 127
    codes = np.clip(np.rint(maps / scale), -128, 127).astype(np.int64)
    weights = np.rint(kernel / scales[:, None, None, None]).astype(np.int64)
    sums = np.einsum("oi,birc->borc", weights[:, :, 0, 0], codes)
    return sums * (scale * scales)[:, None, None]


def test_a_convolution_computes_what_int8_does(folded: HfdNet) -> None:
    ranges = dict.fromkeys(quantised_convolutions(folded), 1.5)
    convolution = folded.hfam.align[0].flow_merge[0]
    kernel = convolution.weight.detach().numpy().astype(np.float64)
    add_quantisers(folded, ranges)
    maps = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(2))  # a tenth is clipped
    found = convolution(maps).detach().numpy()
    expected = as_int8(maps.numpy().astype(np.float64), kernel, 1.5)
    # Ties between two codes may fall either way; they are rare, and one code is a small step.
    step = 1.5 / 127 * np.abs(kernel).max()
    assert np.quantile(np.abs(found - expected), 0.999) < 1e-5
    assert np.abs(found - expected).max() < 2 * step
    assert np.abs(found - convolution_without_rounding(maps.numpy(), kernel)).max() > 10 * step


def convolution_without_rounding(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("oi,birc->borc", kernel[:, :, 0, 0], maps)


def test_gradients_pass_through_rounding_but_not_through_clipping(folded: HfdNet) -> None:
    convolution = folded.hfam.align[0].flow_merge[0]
    add_quantisers(folded, dict.fromkeys(quantised_convolutions(folded), 1.0))
    maps = torch.tensor([0.3, -0.9, 1.2, -4.0]).view(1, 1, 1, 4).repeat(1, 8, 1, 1).requires_grad_()
    convolution(maps).sum().backward()
    passed = maps.grad[0, :, 0] != 0
    assert passed[:, :2].all() and not passed[:, 2:].any()
    assert convolution._parameters["weight"].grad.abs().sum() > 0


def test_all_who_read_a_map_get_it_rounded(folded: HfdNet) -> None:
    ranges = activation_ranges(folded, tiles(), percentile=100.0)
    add_quantisers(folded, ranges)
    readers = {
        "encoder.body.layer2.0.conv1": folded.encoder.body.layer2[0],  # also its skip connection
        "hfam.align.0.flow_coarse": folded.hfam.align[0],  # also the warp
        "hfam.fuse.0": folded.hfam.fuse[0],  # a concatenation, which no module makes
    }
    taken: dict[str, torch.Tensor] = {}
    for name, module in readers.items():
        module.register_forward_pre_hook(lambda _, args, name=name: taken.update({name: args[0]}))
    logits(folded, tiles()[0])
    for name in readers:
        codes = taken[name] * (127 / ranges[name])
        assert codes.unique().numel() > 20
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3, msg=name)


def test_the_classifier_reads_floats(folded: HfdNet) -> None:
    add_quantisers(folded, activation_ranges(folded, tiles(), percentile=100.0))
    taken: list[torch.Tensor] = []
    folded.classifier.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    logits(folded, tiles()[0])
    assert taken[0].unique().numel() > 1000


def test_every_convolution_of_the_smallest_preset_is_rounded() -> None:
    """Its encoder has convolutions and norms of timm's own classes."""
    network = trained("tf_efficientnet_lite0")
    before = logits(network, tiles()[0])
    fold_norms(network)
    check_folded(network)
    torch.testing.assert_close(logits(network, tiles()[0]), before, rtol=0, atol=1e-4 * float(before.std()))
    add_quantisers(network, activation_ranges(network, tiles(), percentile=100.0))
    change = logits(network, tiles()[0]) - before
    assert 0.001 < float(change.std() / before.std()) < 0.5
    for name, module in quantised_convolutions(network).items():
        kernel = module._parameters["weight"].detach()
        levels = module.weight.detach() / (kernel.abs().amax((1, 2, 3), keepdim=True) / 127)
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3, msg=name)


def test_quantisers_stay_out_of_the_weights(folded: HfdNet) -> None:
    names = list(folded.state_dict())
    add_quantisers(folded, dict.fromkeys(quantised_convolutions(folded), 1.0))
    assert len(folded.state_dict()) == len(names) + len(quantised_convolutions(folded))
    assert list(plain_state(folded.state_dict())) == names


def test_ranges_of_another_network_are_refused(folded: HfdNet) -> None:
    ranges = dict.fromkeys(quantised_convolutions(folded), 1.0)
    ranges["elsewhere"] = ranges.pop("hfam.fuse.0")
    with pytest.raises(CheckpointError, match=r"they differ in \['elsewhere', 'hfam.fuse.0'\]"):
        add_quantisers(folded, ranges)


def test_a_fault_in_the_quantiser_is_never_silent(folded: HfdNet) -> None:
    add_quantisers(folded, dict.fromkeys(quantised_convolutions(folded), 1.0))
    del folded.hfam.fuse[0].weight_quantizer
    with pytest.raises(RuntimeError, match="the weight cannot be quantised"):
        logits(folded, tiles()[0])


def test_without_modelopt_the_extra_is_named(folded: HfdNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization.nn", None)
    ranges = dict.fromkeys(quantised_convolutions(folded), 1.0)
    with pytest.raises(MissingExtraError, match=rf"^{room.PURPOSE} needs .*pip install 'hfd-edge\[qat\]'"):
        add_quantisers(folded, ranges)
