"""A small network with a real warp, its ONNX file, a data folder and a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.config import DatasetConfig, SarInput, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.onnx_export import export_network
from hfd_edge.hfdnet.alignment import FlowAlignment
from hfd_edge.hfdnet.network import perturb_flow
from hfd_edge.raster.image import write_image
from hfd_edge.sar.preprocessing import Preprocessing

TILE, BANDS = 64, 2
CLASSES = ("water", "land", "city")
PALETTE = ((0, 0, 255), (0, 128, 0), (200, 0, 0))
SAR = SarInput(bands=("vv", "vh"), units="intensity", looks=4.0, nodata=0.0)
PREPROCESSING = Preprocessing(
    units="intensity",
    looks=4.0,
    nodata=0.0,
    speckle="none",
    window_px=7,
    clip=((-30.0, 5.0), (-30.0, 5.0)),
    mean=(-12.0, -12.0),
    std=(5.0, 5.0),
)


def block(channels_in: int, channels: int, step: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, stride=step, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6())


class Mini(nn.Module):
    """Two levels, one flow alignment, a classifier: every part that deployment treats specially."""

    def __init__(self, method: str = "grid_sample") -> None:
        super().__init__()
        self.fine = nn.Sequential(block(BANDS, 32, 2), block(32, 32, 2))
        self.coarse = block(32, 32, 2)
        self.align = FlowAlignment(32, method=method)
        self.merge = block(64, 32, 1)
        self.classifier = nn.Conv2d(32, len(CLASSES), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.fine(pixels)
        aligned = self.align(self.coarse(fine), fine)
        return self.classifier(self.merge(torch.cat((fine, aligned), 1)))


def make_mini(*, method: str = "grid_sample", flow: bool = True) -> Mini:
    """Build the network with fixed weights; batch statistics are not trivial, so folding them shows."""
    torch.manual_seed(3)
    network = Mini(method).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.3, 1.0)
                module.weight.uniform_(0.8, 1.5)
                module.bias.normal_(0, 0.3)
    if flow:
        perturb_flow(network, seed=5)
    with torch.no_grad():  # every class wins somewhere
        logits = network(torch.from_numpy(make_tiles(2, seed=9)))
        network.classifier.bias -= logits.mean((0, 2, 3))
    return network


def make_tiles(count: int, *, seed: int = 0, tile: int = TILE) -> np.ndarray:
    """Standardised tiles with regions and speckle."""
    rng = np.random.default_rng(seed)
    level = np.repeat(np.repeat(rng.normal(size=(count, BANDS, 4, 4)), tile // 4, 2), tile // 4, 3)
    return (level + np.log(rng.gamma(4, 0.25, level.shape))).astype(np.float32)


def make_manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "mini",
        "classes": CLASSES,
        "palette": PALETTE,
        "sar": SAR,
        "preprocessing": PREPROCESSING,
        "head": "quarter",
        "tile_px": TILE,
        "precisions": {"fp32": "model.fp32.onnx"},
        "provenance": Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    }
    return Manifest.model_validate({**values, **changes})


@pytest.fixture(scope="session")
def mini() -> Mini:
    return make_mini()


@pytest.fixture(scope="session")
def mini_onnx(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "model.fp32.onnx"
    export_network(mini, path, bands=BANDS, tile_px=TILE, head="quarter")
    return path


@pytest.fixture(scope="session")
def gather_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gather") / "model.fp32.onnx"
    export_network(make_mini(method="gather"), path, bands=BANDS, tile_px=TILE, head="quarter")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: 5 training and 2 validation images of 80 x 72 pixels, intensity with no-data."""
    root = tmp_path_factory.mktemp("data") / "pairs"
    config = DatasetConfig(name="mini", classes=CLASSES, palette=PALETTE, sar=SAR, eo=None)
    rng = np.random.default_rng(11)
    for split, count in (("train", 5), ("val", 2)):
        for index in range(count):
            level = np.repeat(np.repeat(rng.normal(-12, 5, (BANDS, 10, 9)), 8, 1), 8, 2)
            image = (10 ** (level / 10) * rng.gamma(4, 0.25, level.shape)).astype(np.float32)
            image[:, :10, :12] = 0.0
            write_image(root / split / "sar" / f"tile_{index}.tif", image)
            labels = (level[:1] > -12).astype(np.uint8)
            write_image(root / split / "label" / f"tile_{index}.png", labels)
    write_toml(root / "dataset.toml", config)
    return root


@pytest.fixture(scope="session")
def folder(data: Path) -> PairFolder:
    return PairFolder.open(data)


@pytest.fixture
def bundle(tmp_path: Path, mini_onnx: Path) -> Bundle:
    return Bundle.create(tmp_path / "mini.hfd", make_manifest(), {"model.fp32.onnx": mini_onnx})


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Give a function that reads every file below a folder, temporary ones included."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read
