"""A trained network that INT8 with plain maxima destroys: a few channels are thousands of times the others.

Where a ReLU lies between two convolutions, one channel of the first can be scaled up and the second's weights
for it down by the same factor without changing the function. In one scale per tensor the other channels then
all become zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfd_edge.bundle import Bundle
from hfd_edge.config import DatasetConfig, write_toml
from hfd_edge.deploy.onnx_export import export_network
from hfd_edge.raster.image import write_image

from .conftest import BANDS, CLASSES, PALETTE, PREPROCESSING, SAR, TILE, make_manifest

VICTIMS = ("second", "fuse")
"""The layers that read the spoilt maps: what any sound gate has to keep, and all that it has to."""
_FACTOR = 4000.0
_LEVELS_DB = (-20.0, -12.0, -4.0)
_CHANNELS = 16


class Network(nn.Module):
    """Stride 4 with one residual block; the layers are named for the tests."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(BANDS, _CHANNELS, 3, stride=2, padding=1)
        self.down = nn.Conv2d(_CHANNELS, _CHANNELS, 3, stride=2, padding=1)
        self.first = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(_CHANNELS, _CHANNELS, 1)
        self.widen = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.fuse = nn.Conv2d(_CHANNELS, _CHANNELS, 1)
        self.last = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.classifier = nn.Conv2d(_CHANNELS, len(CLASSES), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        trunk = F.relu(self.down(F.relu(self.stem(pixels))))
        trunk = F.relu(trunk + self.second(F.relu(self.first(trunk))))
        merged = self.fuse(F.relu(self.widen(trunk)))
        return self.classifier(F.relu(self.last(F.relu(merged))))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four-look intensity (bands, 64, 64) over blocks of three levels, and the class of every pixel."""
    labels = np.repeat(np.repeat(rng.integers(0, len(CLASSES), (4, 4)), TILE // 4, 0), TILE // 4, 1)
    level = np.asarray(_LEVELS_DB)[labels]
    image = 10 ** (level / 10) * rng.gamma(4, 0.25, (BANDS, TILE, TILE))
    return image.astype(np.float32), labels.astype(np.uint8)


def trained() -> Network:
    """Train for a few seconds; the same weights every time."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(160):
        batch = [scene(rng) for _ in range(4)]
        pixels = torch.from_numpy(np.stack([PREPROCESSING(image)[0] for image, _ in batch]))
        truth = torch.from_numpy(np.stack([labels for _, labels in batch]).astype(np.int64))
        logits = F.interpolate(network(pixels), scale_factor=4.0, mode="bilinear", align_corners=False)
        optimizer.zero_grad()
        F.cross_entropy(logits, truth).backward()
        optimizer.step()
    return network.eval()


def spoil(network: Network) -> None:
    """Scale one channel of each victim's input up, and its weights in the victim down, in place."""
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(np.stack([PREPROCESSING(scene(rng)[0])[0] for _ in range(8)]))
    for before, after in ((network.first, network.second), (network.widen, network.fuse)):
        seen: list[Tensor] = []
        hook = before.register_forward_hook(lambda _, __, out, seen=seen: seen.append(F.relu(out)))
        with torch.no_grad():
            network(pixels)
            hook.remove()
            largest = seen[0].amax((0, 2, 3))
            effect = largest * after.weight.abs().amax((0, 2, 3))
            # The live channel that the victim needs least, so that its own loss is not what is measured.
            channel = int(torch.where(largest > 0.1, effect, torch.inf).argmin())
            before.weight[channel] *= _FACTOR
            before.bias[channel] *= _FACTOR
            after.weight[:, channel] /= _FACTOR


def write_data(root: Path) -> Path:
    """A data folder: 4 training and 8 validation tiles with labels."""
    config = DatasetConfig(name="hostile", classes=CLASSES, palette=PALETTE, sar=SAR, eo=None)
    rng = np.random.default_rng(7)
    for split, count in (("train", 4), ("val", 8)):
        for index in range(count):
            image, labels = scene(rng)
            write_image(root / split / "sar" / f"tile_{index}.tif", image)
            write_image(root / split / "label" / f"tile_{index}.png", labels[None])
    write_toml(root / "dataset.toml", config)
    return root


def write_bundle(path: Path, network: Network) -> Bundle:
    """Export a network as a bundle with an FP32 model."""
    model = path.with_suffix(".onnx")
    export_network(network, model, bands=BANDS, tile_px=TILE, head="quarter")
    return Bundle.create(path, make_manifest(name="hostile"), {"model.fp32.onnx": model})
