"""SAR-only networks to compare with: well-known decoders of segmentation-models-pytorch on HFD-Net's encoder.

They are for comparison, not for devices: they train, resume and are evaluated as a student is, but are not
exported.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hfd_edge.config import NetworkRecipe
from hfd_edge.errors import CheckpointError, RecipeError, require
from hfd_edge.hfdnet.encoder import PRESETS, build_encoder

ARCHITECTURES = (
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "PAN",
    "UPerNet",
    "Segformer",
)
"""Spelt as segmentation-models-pytorch spells them; all take any pyramid encoder of timm."""

_PURPOSE = "A baseline network"
_LEAST_PX = {"PAN": 128}
"""PAN halves the map at stride 16 three times, which takes 8 cells."""


class Baseline(nn.Module):
    """A network of segmentation-models-pytorch with that library's own settings.

    Its depth and dilation are the library's defaults for the architecture: PSPNet, for example, uses the
    encoder down to stride 8 alone, and DeepLabV3Plus dilates its last stage.

    Attributes:
        bands: Input bands.
        classes: Classes K.
        network: The library's module.
    """

    def __init__(self, *, arch: str, encoder: str, bands: int, classes: int, pretrained: bool) -> None:
        """Build the network.

        Args:
            arch: One of `ARCHITECTURES`.
            encoder: timm name of the encoder.
            bands: Input bands.
            classes: Classes K.
            pretrained: Start the encoder from ImageNet weights; see
                `hfd_edge.hfdnet.encoder.build_encoder`. Either way, one seed of torch gives the encoder the
                weights that HFD-Net's has.
        Raises:
            RecipeError: the architecture or the encoder is unknown, they do not fit each other, or the
                weights cannot be fetched.
            CheckpointError: the library's encoder is not timm's own.
            MissingExtraError: segmentation-models-pytorch is not installed.
        """
        super().__init__()
        check_architecture(arch)
        library = require("segmentation_models_pytorch", extra="train", purpose=_PURPOSE)
        # Refuses what HFD-Net could not take either, and draws the first weights that HFD-Net would draw.
        first = build_encoder(encoder, bands=bands, pretrained=pretrained).body.state_dict()
        self.bands = bands
        self.classes = classes
        self._least_px = _LEAST_PX.get(arch, 1)
        try:
            # "tu-": the encoder is timm's, tensor by tensor, not the library's own version of it.
            self.network: Any = getattr(library, arch)(
                encoder_name=f"tu-{encoder}", encoder_weights=None, in_channels=bands, classes=classes
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise RecipeError(
                f"{arch} does not take the encoder {encoder!r} ({type(error).__name__}: {error}). Choose "
                "another --arch, or another encoder, for example preset s or m."
            ) from error
        _load_encoder(self.network.encoder.model, first, encoder)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits at full size.

        Args:
            pixels: Standardised input (batch, bands, rows, cols); sides are multiples of 32. Where an
                architecture needs larger ones (PAN: 128), edges repeat at the bottom and the right, and the
                logits are cut back.
        Returns:
            (batch, classes, rows, cols); decoders that stop earlier are upsampled by the library.
        """
        rows, cols = pixels.shape[2:]
        short = (max(self._least_px - rows, 0), max(self._least_px - cols, 0))
        if any(short):
            pixels = F.pad(pixels, (0, short[1], 0, short[0]), mode="replicate")
        return self.network(pixels)[:, :, :rows, :cols]

    def count_parameters(self) -> int:
        """Trainable weights, those of encoder stages that the architecture leaves unused included."""
        return sum(weight.numel() for weight in self.parameters())


def check_architecture(arch: str) -> None:
    """Raises RecipeError: `arch` is none of `ARCHITECTURES`."""
    if arch in ARCHITECTURES:
        return
    near = difflib.get_close_matches(arch.lower(), [name.lower() for name in ARCHITECTURES], n=1)
    hint = "".join(f" Did you mean {name}?" for name in ARCHITECTURES if name.lower() in near)
    raise RecipeError(
        f"There is no baseline architecture {arch!r}; expected one of {', '.join(ARCHITECTURES)}.{hint}"
    )


def from_recipe(
    recipe: NetworkRecipe, *, arch: str, bands: int, classes: int, pretrained: bool = False
) -> Baseline:
    """Build an architecture on the recipe's encoder; its `channels`, `hfam` and `warp` have no meaning here.

    Raises:
        RecipeError: as in `Baseline`.
        CheckpointError: as in `Baseline`.
        MissingExtraError: as in `Baseline`.
    """
    return Baseline(
        arch=arch,
        encoder=recipe.encoder or PRESETS[recipe.preset][0],
        bands=bands,
        classes=classes,
        pretrained=pretrained,
    )


def _load_encoder(body: nn.Module, weights: Mapping[str, Tensor], encoder: str) -> None:
    """Start from the weights of HFD-Net's encoder; cut-down encoders take their part of them."""
    names = list(body.state_dict())
    if missing := [name for name in names if name not in weights]:
        raise CheckpointError(
            f"segmentation-models-pytorch builds the encoder {encoder!r} with tensors that timm's has not, "
            f"first {missing[0]}. Install segmentation-models-pytorch>=0.4 and the timm that it asks for."
        )
    body.load_state_dict({name: weights[name] for name in names})
