"""The total loss is the documented sum, and learning it works."""

from __future__ import annotations

import pytest
import torch

from hfd_edge.hfdnet.distillation import Hfdm
from hfd_edge.hfdnet.network import HfdNet, Taps
from hfd_edge.training.objective import Distillation, Objective

WEIGHTS = {"feature": 0.3, "cwd": 2.0, "logits": 0.7}


def network(seed: int, *, bands: int = 2) -> HfdNet:
    torch.manual_seed(seed)
    return HfdNet(bands=bands, classes=3, encoder="resnet10t", channels=8)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, Taps]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 2, 64, 64, generator=generator)
    label = torch.randint(0, 3, (2, 64, 64), generator=generator)
    with torch.no_grad():
        teacher = network(5, bands=3).eval().taps(torch.randn(2, 3, 64, 64, generator=generator))
    return pixels, label, teacher


def objective(**options) -> Objective:
    torch.manual_seed(1)
    hfdm = Hfdm(8) if options.get("distillation") else None
    return Objective(network(0), ignore_index=255, hfdm=hfdm, **options)


def test_total_is_the_weighted_sum(batch) -> None:
    pixels, label, teacher = batch
    losses = objective(distillation=Distillation(weights=WEIGHTS))(pixels, label, teacher, None, 0.5)
    expected = losses["ce"] + losses["dice"] + 0.5 * sum(w * losses[t] for t, w in WEIGHTS.items())
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {"loss", "ce", "dice", *WEIGHTS}


def test_without_distillation_the_teacher_is_ignored(batch) -> None:
    pixels, label, teacher = batch
    plain = objective()
    assert plain.terms == ("ce", "dice")
    losses = plain(pixels, label, teacher, None, 1.0)
    torch.testing.assert_close(losses["loss"], losses["ce"] + losses["dice"])


def test_projectors_do_not_change_the_network_of_a_seed() -> None:
    plain, distilled = objective(), objective(distillation=Distillation(weights=WEIGHTS))
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, distilled.network.state_dict()[name]), name


def test_nothing_is_distilled_without_sar(batch) -> None:
    pixels, label, teacher = batch
    model = objective(distillation=Distillation(weights={"feature": 1.0}))
    nowhere = torch.zeros_like(label, dtype=torch.bool)
    assert model(pixels, label, teacher, nowhere, 1.0)["feature"].item() == 0
    assert model(pixels, label, teacher, ~nowhere, 1.0)["feature"].item() > 0


def test_correct_only_leaves_out_what_the_teacher_gets_wrong(batch) -> None:
    pixels, _, teacher = batch
    predicted = torch.nn.functional.interpolate(teacher.logits, scale_factor=4.0, mode="bilinear").argmax(1)
    model = objective(distillation=Distillation(weights={"logits": 1.0}, correct_only=True))
    everything = objective(distillation=Distillation(weights={"logits": 1.0}))
    right = model(pixels, predicted, teacher, None, 1.0)["logits"]
    torch.testing.assert_close(right, everything(pixels, predicted, teacher, None, 1.0)["logits"])
    assert model(pixels, (predicted + 1) % 3, teacher, None, 1.0)["logits"].item() == 0


def test_a_few_steps_lower_the_loss(batch) -> None:
    pixels, label, teacher = batch
    label = (pixels[:, 0] > 0).long()
    model = objective(distillation=Distillation(weights=WEIGHTS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(pixels, label, teacher, None, 1.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
