"""Where a training runs: one device, or the processes that torchrun started; and how far it is repeatable."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning_fabric
import torch
from lightning_fabric.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn

from hfd_edge.errors import RecipeError

_log = logging.getLogger("hfd_edge.training")

_NO_DETERMINISTIC_FORM = re.compile(r"(\S+) does not have a deterministic implementation")


def make_fabric(precision: str) -> Any:
    """A Fabric on the GPU where there is one, else on the CPU; under torchrun, one of several that agree.

    Raises:
        RecipeError: the precision needs a GPU, or there are fewer GPUs than processes.
    """
    cuda = torch.cuda.is_available()
    if precision == "16-mixed" and not cuda:
        raise RecipeError(
            'training.precision is "16-mixed", which needs an NVIDIA GPU, and none is available. Set '
            '"bf16-mixed" or "32-true".'
        )
    accelerator = "cuda" if cuda else "cpu"
    if not _launched():
        return lightning_fabric.Fabric(accelerator=accelerator, devices=1, precision=precision)
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if cuda and here > torch.cuda.device_count():
        raise RecipeError(
            f"torchrun started {here} processes on this machine, which has {torch.cuda.device_count()} GPUs. "
            "Give --nproc-per-node at most the number of GPUs."
        )
    fabric = lightning_fabric.Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=everywhere // here,
        # Not every encoder's last layers lead to a loss.
        strategy=DDPStrategy(find_unused_parameters=True),
        precision=precision,
    )
    fabric.launch()
    return fabric


def _launched() -> bool:
    """Whether torchrun started this process, as one of several."""
    return torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def share_norms(objective: nn.Module, fabric: Any) -> None:
    """Let batch normalisation see the samples of all processes, in place; PyTorch can on GPUs alone."""
    if fabric.world_size == 1:
        return
    if fabric.device.type == "cuda":
        convert_sync_batchnorm(objective)  # timm's: torch's would drop the activations inside timm's layers
    elif fabric.is_global_zero:
        _log.warning(
            "On CPUs, batch normalisation sees the samples of its own process alone, 1 of %d shares of a "
            "batch; on GPUs it sees the whole batch.",
            fabric.world_size,
        )


def leads() -> bool:
    """Whether this process is to talk to people: the only one, or the first that torchrun started."""
    return not _launched() or int(os.environ["RANK"]) == 0


def device_name(device: torch.device) -> str:
    """A device in words, for reports."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


@contextmanager
def reproducible(device: torch.device, seed: int, *, deterministic: bool = False) -> Iterator[None]:
    """Seed torch for the block, deterministic on a CPU; the caller's settings come back afterwards.

    GPUs stay free to choose faster algorithms unless `deterministic`: some operators have no other form
    there.

    Raises:
        RecipeError: an operator of the block has no deterministic form.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _named_operator(device):
        torch.manual_seed(seed)
        try:
            if device.type == "cuda" and deterministic:
                # Read when cuBLAS is first used; without it, products of matrices are refused.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            if device.type == "cpu" or deterministic:
                torch.use_deterministic_algorithms(True)
                torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over all memory
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def _named_operator(device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        found = _NO_DETERMINISTIC_FORM.match(str(error))
        if found is None:
            raise
        operator = found[1]
        remedy = 'Set network.warp = "gather"' if "grid_sampler" in operator else "Choose another encoder"
        if device.type != "cpu":
            remedy += ", or set training.deterministic = false"
        raise RecipeError(
            f"The operator {operator} has no deterministic form on this {device.type.upper()}, but the "
            f"training was to be deterministic. {remedy}."
        ) from error
