"""Fake INT8 quantisers in a network: the rounding of a deployed INT8 model, in trainable float arithmetic.

The scheme is that of the exported Q/DQ models: symmetric, weights with one scale per output channel (their
largest magnitude at that moment), activations with one fixed range per tensor; flow heads and classifier stay
as they are. Rounding and its straight-through gradient are nvidia-modelopt's `TensorQuantizer`.

Activation ranges are measured once and then fixed. Learning them gave no clear gain over well calibrated
ones in Wu et al., "Integer Quantization for Deep Learning Inference" (2020), and a fixed range is the same
number for every module that reads a tensor, as it must be in the exported graph.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfd_edge.errors import CheckpointError, RecipeError, require
from hfd_edge.hfdnet.network import MULTIPLE_PX, HfdNet

PURPOSE = "quantisation-aware training"
_QUANTIZER = "_quantizer."
_FOLDING_TOLERANCE = 1e-4
"""Largest change of the logits by folding, relative to their range; rounding alone stays near 1e-6."""


def quantised_convolutions(network: HfdNet) -> dict[str, nn.Conv2d]:
    """The convolutions that INT8 computes, by name: all but flow heads and classifier.

    The same as `hfd_edge.deploy.graph.high_precision_nodes` leaves over: a flow is an offset in pixels, and
    logits decide the argmax directly, so both stay in high precision.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name != "classifier" and name.rpartition(".")[2] != "flow_head"
    }


def fold_norms(network: HfdNet) -> None:
    """Move every batch normalisation that follows a convolution into its weights, in place.

    The quantisers then see the kernels that an exported model has. The normalisation stays in its place, so
    the state dict keeps its names, but does nothing except add its bias: mean 0, variance 1 (with epsilon),
    weight 1, which is no longer trained. It must run in evaluation mode from now on, or it would learn
    statistics again.

    Args:
        network: In evaluation mode, with its final weights.
    Raises:
        RecipeError: folding changes the logits, as it does where a convolution's result is also read before
            its normalisation.
    """
    pixels = _example(network)
    before = _run(network, pixels)
    with torch.no_grad():
        for convolution, norm in _normalised(network, pixels):
            _fold(convolution, norm)
    spread = float(before.max() - before.min())
    change = float((_run(network, pixels) - before).abs().max())
    if not change <= _FOLDING_TOLERANCE * max(spread, 1e-6):
        raise RecipeError(
            f"The encoder's batch normalisation cannot be folded into its convolutions: the logits change by "
            f"{change:.2e} of a range of {spread:.2e}. Choose an encoder in which each convolution has its "
            "own normalisation, such as those of the presets, or quantize without --qat."
        )


def activation_ranges(network: HfdNet, tiles: Iterable[Tensor], *, percentile: float) -> dict[str, float]:
    """Measure the range of what each quantised convolution reads.

    Args:
        network: In evaluation mode, without quantisers, where the tiles are.
        tiles: Standardised pixels (batch, bands, rows, cols); sides are multiples of 32.
        percentile: Share of the values of a tile that are not clipped, percent; 100 clips none. Zeros are
            not counted: they cost nothing, and after a ReLU they would be most of the values.
    Returns:
        Convolution to the largest, over the tiles, of this percentile of the magnitudes of its input. So
        speckle tails are clipped, but no tile as a whole, however bright it is. 1 where only zeros were seen.
    Raises:
        CheckpointError: the network gives NaN or infinity.
    """
    found = dict.fromkeys(quantised_convolutions(network), 0.0)

    def measure(name: str, maps: Tensor) -> None:
        found[name] = max(found[name], _magnitude(maps, percentile))

    with contextlib.ExitStack() as stack:
        for name, module in quantised_convolutions(network).items():
            hook = module.register_forward_pre_hook(lambda _, args, name=name: measure(name, args[0]))
            stack.callback(hook.remove)
        for pixels in tiles:
            if not torch.isfinite(_run(network, pixels)).all():
                raise CheckpointError(
                    "The student gives logits that are not finite on a calibration tile, so its ranges "
                    "cannot be measured. Check its weights with evaluate, or train it again."
                )
    return {name: value or 1.0 for name, value in found.items()}


def add_quantisers(network: HfdNet, ranges: Mapping[str, float]) -> None:
    """Let the network compute as INT8 would, in place.

    A map that a quantised convolution reads is rounded where it is made, so that all who read it get the
    rounded map: the exported graph has the same Q/DQ nodes above residual sums, warps and concatenations.

    Args:
        network: With folded normalisation; see `fold_norms`.
        ranges: From `activation_ranges`, one for each quantised convolution.
    Raises:
        CheckpointError: the ranges are those of another network.
        MissingExtraError: nvidia-modelopt is not installed.
    """
    convolutions = quantised_convolutions(network)
    if strange := sorted(convolutions.keys() ^ ranges.keys()):
        raise CheckpointError(
            f"There are ranges for {len(ranges)} convolutions, but INT8 computes {len(convolutions)} in this "
            f"network; they differ in {strange[:3]}. Start the quantisation-aware training again."
        )
    makers = _makers(network, _example(network))
    rounded: set[str] = set()
    build = _quantizer_builder()
    device = next(network.parameters()).device
    for name, module in convolutions.items():
        module.input_quantizer = build(axis=None)
        module.input_quantizer.amax = torch.tensor(ranges[name], device=device)
        # Without a stored range it takes the largest magnitude per channel at each call.
        module.weight_quantizer = build(axis=0)
        base: Any = type(module)
        module.__class__ = _quantised_class(base)
        maker = makers.get(name)
        if maker is None:
            module.register_forward_pre_hook(functools.partial(_quantise_argument, module.input_quantizer))
        elif maker not in rounded:
            rounded.add(maker)
            hook = functools.partial(_quantise_result, module.input_quantizer)
            network.get_submodule(maker).register_forward_hook(hook)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the quantisers' ranges: what the same network without quantisers holds."""
    return {name: value for name, value in state.items() if _QUANTIZER not in name}


@functools.cache
def _quantised_class(base: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """A subclass that computes with the rounded weight; works for timm's own convolutions, too."""

    class Quantised(base):
        @property
        def weight(self) -> Tensor:
            try:
                return _quantise(self.weight_quantizer, self._parameters["weight"])
            except AttributeError as error:
                # Otherwise torch would quietly hand out the weight that is not rounded.
                raise RuntimeError(f"the weight cannot be quantised: {error}") from error

    Quantised.__name__ = f"Quantised{base.__name__}"
    return Quantised


def _quantise_argument(quantizer: Any, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_quantise(quantizer, args[0]), *args[1:])


def _quantise_result(quantizer: Any, _: nn.Module, __: Any, result: Tensor) -> Tensor:
    return _quantise(quantizer, result)


def _quantise(quantizer: Any, tensor: Tensor) -> Tensor:
    """Round a tensor that is channels-last in memory, which modelopt would copy to channels-first."""
    return quantizer(tensor.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _quantizer_builder() -> Callable[..., nn.Module]:
    """Import modelopt, without its notices about the machine's GPU; give a maker of INT8 quantisers."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            layers = require("modelopt.torch.quantization.nn", extra="qat", purpose=PURPOSE)
            config = require("modelopt.torch.quantization.config", extra="qat", purpose=PURPOSE)
    finally:
        logger.setLevel(level)

    def build(*, axis: int | None) -> nn.Module:
        # What is clipped gets no gradient: no small step would change its code.
        attributes = config.QuantizerAttributeConfig(num_bits=8, axis=axis, pass_through_bwd=False)
        return layers.TensorQuantizer(attributes)

    return build


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    offset = norm.bias.double() - norm.running_mean.double() * scale
    if convolution.bias is not None:
        offset += convolution.bias.double() * scale
        convolution.bias.zero_()
        convolution.bias.requires_grad_(False)  # the normalisation's bias does its work
    convolution.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
    norm.bias.copy_(offset)
    norm.weight.fill_(1.0)
    norm.weight.requires_grad_(False)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)


def _normalised(network: nn.Module, pixels: Tensor) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the normalisation that reads its result."""
    calls = _calls(network, pixels)
    made = {id(call.result): call.module for call in calls if isinstance(call.module, nn.Conv2d)}
    for call in calls:
        if isinstance(call.module, nn.BatchNorm2d) and id(call.first) in made:
            yield made[id(call.first)], call.module


def _makers(network: nn.Module, pixels: Tensor) -> dict[str, str]:
    """Convolution to the module that makes its input; convolutions without such a module are left out.

    That is the last one to return the very map: an activation in place returns its normalisation's, and a
    block that of its last layer. Sums and concatenations are made by no module.
    """
    calls = _calls(network, pixels)
    found = {}
    for call in calls:
        if isinstance(call.module, nn.Conv2d):
            made = [other for other in calls if other.result is call.first and other.left < call.entered]
            if made:
                found[call.name] = max(made, key=lambda other: other.left).name
    return found


class _Call:
    """One call of a module; it holds the tensors, so their ids stay their own."""

    def __init__(self, name: str, module: nn.Module, first: Any, entered: int) -> None:
        self.name, self.module, self.first, self.entered = name, module, first, entered
        self.result: Any = None
        self.left = 0


def _calls(network: nn.Module, pixels: Tensor) -> list[_Call]:
    """Run the network and list the calls of its modules, callers before what they call."""
    calls: list[_Call] = []
    ticks = itertools.count(1)
    latest: dict[str, _Call] = {}

    def enter(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        latest[name] = _Call(name, module, args[0] if args else None, next(ticks))
        calls.append(latest[name])

    def leave(name: str, result: Any) -> None:
        latest[name].result, latest[name].left = result, next(ticks)

    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():
            before = module.register_forward_pre_hook(lambda m, args, name=name: enter(name, m, args))
            after = module.register_forward_hook(lambda _, __, result, name=name: leave(name, result))
            stack.callback(before.remove)
            stack.callback(after.remove)
        _run(network, pixels)
    return calls


def _run(network: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(pixels)


def _example(network: HfdNet) -> Tensor:
    """Seeded noise that fits the network."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, network.bands, 2 * MULTIPLE_PX, 2 * MULTIPLE_PX, generator=generator)
    return pixels.to(next(network.parameters()).device)


def _magnitude(maps: Tensor, percentile: float) -> float:
    """A percentile of the magnitudes that are not zero; 0 where all are."""
    magnitude = maps.abs().flatten()
    count = int(magnitude.count_nonzero())
    clipped = int(count * (1.0 - percentile / 100.0))
    return float(magnitude.topk(clipped + 1).values[-1]) if count else 0.0
