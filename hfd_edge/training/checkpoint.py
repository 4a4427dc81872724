"""The resumable checkpoint: one safetensors file, written whole or not at all.

Tensors are named by prefix: "model/" (network and projectors), "optimizer/<parameter>/<entry>" (AdamW's
moments and step counts), "best/" (weights of the best epoch so far) and "average/" (the moving average of the
weights, where one is kept); the rest is JSON in the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfd_edge.errors import CheckpointError
from hfd_edge.hfdnet.run import load_state, read_tensors, write_tensors

_HEADER = "hfd_edge"
_VERSION = 1


@dataclass
class TrainingState:
    """How far a training is, beside its tensors.

    Attributes:
        identity: Hash of recipe, data and teacher; a checkpoint of another training is refused.
        step: Steps done.
        history: One row for each epoch done.
        sums: Sum of each loss over the steps of the epoch under way.
        best: Scores of the kept epoch (training.keep), with its number as "epoch"; None before the first.
        seconds: Wall time so far, validation included.
        training_seconds: Wall time of the training steps alone.
        scaler: State of the gradient scaler; empty but for 16-mixed.
    """

    identity: str
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    training_seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    state: TrainingState,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that is needed to go on.

    Args:
        path: File to replace.
        model: Network and projectors.
        optimizer: Over exactly the model's parameters.
        best: Weights of the epoch that is kept; empty before the first.
        state: All the rest.
        average: Moving average of the network's state, if one is kept.
    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{entry}"] = value
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in (average or {}).items()}
    header = {"format": "pt", _HEADER: json.dumps({"version": _VERSION, **asdict(state)})}
    write_tensors(path, tensors, header)


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    average: Mapping[str, Tensor] | None = None,
) -> tuple[TrainingState, dict[str, Tensor]]:
    """Restore model, optimizer and average in place.

    Args:
        path: Written by `save_checkpoint`.
        model: The same network and projectors, already on its device.
        optimizer: A new one over the model's parameters.
        identity: What the checkpoint must belong to.
        average: Takes the moving average, if one is kept.
    Returns:
        The state, and the best weights so far (on the CPU).
    Raises:
        CheckpointError: damaged, of another version, or of another training.
    """
    tensors, header = read_tensors(path)
    try:
        content = json.loads(header[_HEADER])
        version = content.pop("version")
        if version != _VERSION:
            raise CheckpointError(
                f"{path} has checkpoint version {version}, but this hfd-edge reads version {_VERSION}. Go on "
                "with the hfd-edge that wrote it, or train again."
            )
        state = TrainingState(**content)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no checkpoint of hfd-edge ({error!r}). Train again.") from error
    if state.identity != identity:
        raise CheckpointError(
            f"{path} belongs to another training (its identity is {state.identity[:12]}, this run's is "
            f"{identity[:12]}). Restore this run's own checkpoint, or train into another --out."
        )
    load_state(model, _below(tensors, "model/"), source=path)
    _load_optimizer(model, optimizer, _below(tensors, "optimizer/"))
    kept = _below(tensors, "average/")
    for name, value in (average or {}).items():
        value.copy_(kept[name])  # there, for the identity says that an average is kept
    return state, _below(tensors, "best/")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, entries: Mapping[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in entries.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            # Same memory layout as the parameter: the fused update walks both in memory order.
            value = torch.empty_like(parameter).copy_(value)
        elif entry == "step":
            # Fused updates count steps beside the parameter, the others on the CPU.
            fused = any(group.get("fused") for group in optimizer.param_groups)
            value = value.to(parameter.device) if fused else value
        optimizer.state[parameter][entry] = value.detach()
