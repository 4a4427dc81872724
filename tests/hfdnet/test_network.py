"""The network: shapes, equivalences, export of both warps."""

from __future__ import annotations

import copy

import pytest
import torch

from hfd_edge.config import NetworkRecipe
from hfd_edge.errors import RecipeError
from hfd_edge.hfdnet.network import FullHead, HfdNet, from_recipe, perturb_flow


def tiny(*, seed: int = 0, **options) -> HfdNet:
    torch.manual_seed(seed)
    return HfdNet(**{"bands": 2, "classes": 3, "encoder": "resnet10t", "channels": 8, **options}).eval()


def pixels(*size: int, bands: int = 2) -> torch.Tensor:
    return torch.randn(2, bands, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
@pytest.mark.parametrize("bands", [1, 3])
def test_logits_at_stride_4_for_any_multiple_of_32(size, bands: int) -> None:
    network = tiny(bands=bands)
    taps = network.taps(pixels(*size, bands=bands))
    assert tuple(taps.logits.shape) == (2, 3, size[0] // 4, size[1] // 4)
    assert [f.shape[2] for f in taps.features] == [size[0] // s for s in (4, 8, 16, 32, 4)]
    assert torch.equal(network(pixels(*size, bands=bands)), taps.logits)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bands, but the network was built for 2"):
        tiny()(pixels(32, 32, bands=3))
    with pytest.raises(ValueError, match="48 x 64 pixels, but sides must be multiples of 32"):
        tiny()(pixels(48, 64))


def test_a_new_network_equals_the_one_without_alignment() -> None:
    on, off = tiny(), tiny(hfam=False)
    for name, value in off.state_dict().items():  # one seed, the same weights
        assert torch.equal(on.state_dict()[name], value), name
    x = pixels(64, 64)
    torch.testing.assert_close(on(x), off(x), rtol=0, atol=1e-5)
    assert off.count_parameters() < on.count_parameters()
    perturb_flow(on, seed=0)
    assert (on(x) - off(x)).abs().max() > 1e-3


def test_warps_agree_on_a_whole_network_with_flow() -> None:
    networks = [tiny(), tiny(warp="gather")]
    for network in networks:
        perturb_flow(network, seed=5)
    x = pixels(64, 64)
    first, second = (network(x) for network in networks)
    assert (first - second).abs().max() <= 1e-4 * first.abs().max()


def test_full_head_is_bilinear_times_4() -> None:
    network = tiny()
    x = pixels(64, 32)
    expected = torch.nn.functional.interpolate(
        network(x), size=(64, 32), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(FullHead(network)(x), expected)


def test_recipe_chooses_encoder_width_and_alignment() -> None:
    recipe = NetworkRecipe(encoder="resnet10t", channels=24, hfam=False)
    network = from_recipe(recipe, bands=1, classes=4)
    assert network.classifier.weight.shape == (4, 24, 1, 1)
    assert not [name for name, _ in network.named_parameters() if "flow" in name]
    small = from_recipe(NetworkRecipe(), bands=2, classes=2)
    assert small.classifier.in_channels == 64
    assert 3.0e6 < small.count_parameters() < 4.0e6


def test_unknown_preset_is_refused() -> None:
    recipe = NetworkRecipe.model_construct(preset="xl", encoder=None, channels=None)
    with pytest.raises(RecipeError, match="'xl', expected one of s, m, l"):
        from_recipe(recipe, bands=1, classes=2)


def test_perturbed_flow_is_seeded_and_touches_nothing_else() -> None:
    first, second = tiny(), tiny()
    before = copy.deepcopy(first.state_dict())
    perturb_flow(first, seed=1)
    perturb_flow(second, seed=1)
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".flow_head." in name}
    assert all(torch.equal(first.state_dict()[name], second.state_dict()[name]) for name in changed)


@pytest.mark.parametrize("warp", ["grid_sample", "gather"])
def test_export_keeps_the_numbers_for_any_batch(warp, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    pytest.importorskip("onnxscript", reason="torch's exporter")
    network = tiny(warp=warp)
    perturb_flow(network, seed=2)
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        network,
        (pixels(64, 64),),
        input_names=["sar"],
        output_names=["logits"],
        opset_version=18,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        verbose=False,
    )
    program.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(3, 2, 64, 64, generator=torch.Generator().manual_seed(9))
    (got,) = session.run(None, {"sar": x.numpy()})
    expected = network(x)
    assert (torch.from_numpy(got) - expected).abs().max() <= 1e-4 * expected.abs().max()
    operators = {node.op_type for node in program.model.graph}
    assert ("GridSample" in operators) == (warp == "grid_sample")
    assert "Shape" not in operators  # constant factors: no shape arithmetic for an engine builder
    assert not {"IsNaN", "IsInf"} & operators  # the guard of training stays out of the graph
