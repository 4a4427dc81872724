"""Checkpoints: all of the state, bit for bit, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hfd_edge.errors import CheckpointError
from hfd_edge.hfdnet.run import read_tensors, write_tensors
from hfd_edge.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint


def make(*, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))
    model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def saved(path: Path, *, steps: int = 3) -> Path:
    model, optimizer = make()
    train(model, optimizer, range(steps))
    state = TrainingState(
        identity="abc", step=steps, history=[{"epoch": 1, "loss": 0.1 + 0.2, "iou": {"a": None}}]
    )
    best = {"w": torch.arange(3.0)}
    save_checkpoint(path, model=model, optimizer=optimizer, best=best, state=state)
    return path


def test_going_on_equals_never_having_stopped(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt.safetensors")
    model, optimizer = make()
    state, best = load_checkpoint(path, model=model, optimizer=optimizer, identity="abc")
    assert state.step == 3
    assert state.history == [{"epoch": 1, "loss": 0.1 + 0.2, "iou": {"a": None}}]
    assert torch.equal(best["w"], torch.arange(3.0))
    train(model, optimizer, range(3, 6))
    straight, straight_optimizer = make()
    train(straight, straight_optimizer, range(6))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_moments_keep_the_layout_of_their_weights(tmp_path: Path) -> None:
    model, optimizer = make()
    load_checkpoint(saved(tmp_path / "c.safetensors"), model=model, optimizer=optimizer, identity="abc")
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].stride() == parameter.stride()


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors", steps=0)
    model, optimizer = make()
    state, _ = load_checkpoint(path, model=model, optimizer=optimizer, identity="abc")
    assert state.step == 0
    assert not optimizer.state


def test_another_training_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors")
    model, optimizer = make()
    with pytest.raises(CheckpointError, match="belongs to another training"):
        load_checkpoint(path, model=model, optimizer=optimizer, identity="xyz")
    wide, optimizer = make(width=8)
    with pytest.raises(CheckpointError, match="tensors differ"):
        load_checkpoint(path, model=wide, optimizer=optimizer, identity="abc")


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_truncation_is_named(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path / "c.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    model, optimizer = make()
    with pytest.raises(CheckpointError, match=r"c.safetensors .* is damaged"):
        load_checkpoint(path, model=model, optimizer=optimizer, identity="abc")


def test_other_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors")
    tensors, header = read_tensors(path)
    content = json.loads(header["hfd_edge"])
    model, optimizer = make()
    write_tensors(path, tensors, {"hfd_edge": json.dumps({**content, "version": 99})})
    with pytest.raises(CheckpointError, match="has checkpoint version 99, but this hfd-edge reads version 1"):
        load_checkpoint(path, model=model, optimizer=optimizer, identity="abc")
    write_tensors(path, tensors, {})
    with pytest.raises(CheckpointError, match="is no checkpoint of hfd-edge"):
        load_checkpoint(path, model=model, optimizer=optimizer, identity="abc")
    write_tensors(path, tensors, {"hfd_edge": json.dumps({**content, "mood": "odd"})})
    with pytest.raises(CheckpointError, match="is no checkpoint of hfd-edge"):
        load_checkpoint(path, model=model, optimizer=optimizer, identity="abc")
