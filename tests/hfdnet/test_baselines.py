"""The networks that the student is compared with."""

from __future__ import annotations

import pytest
import torch

from hfd_edge.config import NetworkRecipe
from hfd_edge.errors import RecipeError
from hfd_edge.hfdnet.baselines import ARCHITECTURES, from_recipe
from hfd_edge.hfdnet.encoder import build_encoder
from hfd_edge.hfdnet.network import from_recipe as student_from_recipe

SMALL = NetworkRecipe(encoder="mobilenetv3_small_050", init="random")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_gives_full_size_logits_and_learns(arch: str) -> None:
    torch.manual_seed(0)
    network = from_recipe(SMALL, arch=arch, bands=2, classes=3)
    pixels = torch.randn(2, 2, 64, 96)  # PAN takes no less than 128 x 128 by itself
    logits = network(pixels)
    assert logits.shape == (2, 3, 64, 96)
    logits.square().mean().backward()
    stem = network.network.encoder.model.conv_stem.weight
    assert stem.shape[1] == 2
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0


def test_small_tiles_are_padded_at_the_end_only() -> None:
    network = from_recipe(SMALL, arch="PAN", bands=1, classes=2).eval()
    pixels = torch.randn(1, 1, 64, 64)
    whole = torch.nn.functional.pad(pixels, (0, 64, 0, 64), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), network(whole)[:, :, :64, :64])


@pytest.mark.parametrize("arch", ["Unet", "DeepLabV3Plus"])
def test_imagenet_weights_are_those_of_the_student(arch: str) -> None:
    network = from_recipe(NetworkRecipe(preset="s"), arch=arch, bands=2, classes=2, pretrained=True)
    theirs = network.network.encoder.model.state_dict()
    ours = build_encoder("tf_efficientnet_lite0", bands=2, pretrained=True).body.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("arch", ["Unet", "PSPNet"])  # all of the encoder, and a part of it
def test_random_weights_are_those_of_the_student(arch: str) -> None:
    torch.manual_seed(3)
    theirs = from_recipe(SMALL, arch=arch, bands=2, classes=2).network.encoder.model.state_dict()
    torch.manual_seed(3)
    ours = student_from_recipe(SMALL, bands=2, classes=2).encoder.body.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_cut_down_encoder_takes_its_part_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_encoder("resnet10t", bands=3, pretrained=False).body.state_dict()
    monkeypatch.setattr("hfd_edge.hfdnet.encoder.imagenet_weights", lambda name: whole)
    network = from_recipe(
        NetworkRecipe(encoder="resnet10t"), arch="PSPNet", bands=1, classes=2, pretrained=True
    )
    taken = network.network.encoder.model.state_dict()
    assert len(taken) < len(whole)
    kernel = whole["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(taken["conv1.0.weight"], kernel)
    assert torch.equal(taken["layer1.0.conv1.weight"], whole["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("arch", "hint"), [("unet", "Did you mean Unet?"), ("Unet++", ""), ("DPT", "expected one of Unet, ")]
)
def test_unknown_architectures_are_refused(arch: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_recipe(SMALL, arch=arch, bands=1, classes=2)
    assert f"no baseline architecture '{arch}'" in str(caught.value)
    assert hint in str(caught.value)


def test_an_unknown_encoder_is_refused_as_the_student_refuses_it() -> None:
    with pytest.raises(RecipeError, match="network.encoder is 'resnet19', which timm"):
        from_recipe(NetworkRecipe(encoder="resnet19"), arch="Unet", bands=1, classes=2)
