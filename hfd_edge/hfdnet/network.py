"""HFD-Net: one architecture for the optical teacher and the SAR student, with separate weights.

Reconstructed from the paper's description (Gao & Dong, arXiv 2210.08988); encoder and widths are ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hfd_edge.config import NetworkRecipe
from hfd_edge.errors import RecipeError
from hfd_edge.hfdnet.alignment import Hfam, WarpMethod, upsample
from hfd_edge.hfdnet.encoder import PRESETS, STRIDES, build_encoder

MULTIPLE_PX = STRIDES[-1]
"""Sides of the input must be multiples of this, the coarsest stride."""
LOGITS_STRIDE = STRIDES[0]


class Taps(NamedTuple):
    """Feature maps that distillation compares, and the logits.

    All are (batch, channels, rows, cols): p2, z and logits at stride 4, p3, p4, p5 at 8, 16 and 32.
    """

    p2: Tensor
    p3: Tensor
    p4: Tensor
    p5: Tensor
    z: Tensor
    logits: Tensor

    @property
    def features(self) -> tuple[Tensor, ...]:
        """P2, P3, P4, P5, Z."""
        return self[:5]


class HfdNet(nn.Module):
    """Encoder, heterogeneous feature alignment, 1x1 classifier at stride 4."""

    def __init__(
        self,
        *,
        bands: int,
        classes: int,
        encoder: str,
        channels: int,
        hfam: bool = True,
        warp: WarpMethod = "grid_sample",
        pretrained: bool = False,
    ) -> None:
        """Build the network.

        Args:
            bands: Input bands.
            classes: Classes K.
            encoder: timm name of the encoder.
            channels: Decoder width C.
            hfam: Feature alignment; False is plain bilinear upsampling.
            warp: How warps are computed; see `alignment.warp`.
            pretrained: Start the encoder from ImageNet weights.
        Raises:
            RecipeError: the encoder is unknown, or its weights cannot be fetched.
        """
        super().__init__()
        self.bands = bands
        self.classes = classes
        self.encoder = build_encoder(encoder, bands=bands, pretrained=pretrained)
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.hfam = Hfam(self.encoder.channels, channels=channels, enabled=hfam, method=warp)

    def taps(self, pixels: Tensor) -> Taps:
        """All maps that distillation uses.

        Args:
            pixels: Standardised input (batch, bands, rows, cols); sides are multiples of 32.
        Raises:
            ValueError: wrong bands or sides.
        """
        _, bands, rows, cols = pixels.shape
        if bands != self.bands:
            raise ValueError(f"input has {bands} bands, but the network was built for {self.bands}")
        if rows % MULTIPLE_PX or cols % MULTIPLE_PX:
            raise ValueError(f"input is {rows} x {cols} pixels, but sides must be multiples of {MULTIPLE_PX}")
        p2, p3, p4, p5, z = self.hfam(self.encoder(pixels))
        return Taps(p2, p3, p4, p5, z, self.classifier(z))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits at stride 4: (batch, classes, rows/4, cols/4). See `taps` for input and errors."""
        return self.taps(pixels).logits

    def count_parameters(self) -> int:
        """Trainable weights."""
        return sum(weight.numel() for weight in self.parameters())


class FullHead(nn.Module):
    """Bring a network's logits from stride 4 to the input's size, for exports with head = "full"."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (batch, classes, rows, cols), bilinear with half-pixel centres."""
        return upsample(self.network(pixels), size=pixels.shape[2:])


def from_recipe(recipe: NetworkRecipe, *, bands: int, classes: int, pretrained: bool = False) -> HfdNet:
    """Build the network that a recipe names.

    Args:
        recipe: Preset, or encoder and width that override it.
        bands: Input bands.
        classes: Classes K.
        pretrained: Start the encoder from ImageNet weights; `recipe.init` is the trainer's business.
    Raises:
        RecipeError: the encoder is unknown, or its weights cannot be fetched.
    """
    if recipe.preset not in PRESETS:
        raise RecipeError(f"network.preset is {recipe.preset!r}, expected one of {', '.join(PRESETS)}.")
    encoder, channels = PRESETS[recipe.preset]
    return HfdNet(
        bands=bands,
        classes=classes,
        encoder=recipe.encoder or encoder,
        channels=recipe.channels or channels,
        hfam=recipe.hfam,
        warp=recipe.warp,
        pretrained=pretrained,
    )


def perturb_flow(network: nn.Module, *, seed: int, scale: float = 0.5) -> None:
    """Give every flow head random weights, in place.

    A freshly built network has zero flow, which hides every fault of a warp. Checks of an exported graph
    call this on a copy first.

    Args:
        network: Any module that holds `FlowAlignment`.
        seed: Seed of the random numbers.
        scale: Standard deviation of the flow head's bias, in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if ".flow_head." in f".{name}":
                spread = scale if weight.ndim == 1 else scale / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
