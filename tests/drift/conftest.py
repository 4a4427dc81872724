"""Images whose level, contrast and looks are known, and the statistics of a set of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hfd_edge.drift import TrainingStatistics, portray_image, training_statistics
from hfd_edge.drift.portraits import Key
from hfd_edge.sar.preprocessing import Preprocessing

BANDS = ("vv", "vh")
CHAIN = Preprocessing(
    units="intensity",
    looks=4.0,
    nodata=0.0,
    speckle="none",
    window_px=7,
    clip=((-30.0, 5.0), (-36.0, -2.0)),
    mean=(-12.0, -18.0),
    std=(4.0, 4.0),
)
MakeImage = Callable[..., np.ndarray]


def make_image(
    seed: int, *, rows: int = 128, cols: int = 128, looks: float = 4.0, units: str = "intensity"
) -> np.ndarray:
    """Ground that rolls by a few dB around a level of its own, VH 6 dB below VV, with speckle."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:rows, :cols]
    ground = -12 + rng.normal(0, 0.8) + 4 * np.sin(row / 29 + seed) * np.cos(col / 37)
    levels = np.stack([ground, ground - 6 + rng.normal(0, 0.2)])
    power = 10 ** (levels / 10) * rng.gamma(looks, 1 / looks, levels.shape)
    return (10 * np.log10(power) if units == "sigma0_db" else power).astype(np.float32)


def learn(
    preprocessing: Preprocessing = CHAIN, *, count: int = 40, units: str = "intensity", scale: float = 1.0
) -> Any:
    """Statistics of images 0 to `count`, on which water takes 10 to 30 %."""

    def seen(seed: int) -> tuple[Any, Mapping[Key, float]]:
        water = 0.1 + 0.2 * seed / count
        shares: Mapping[Key, float] = {("share", "water"): water, ("share", "soil"): 1 - water}
        image = make_image(seed, units=units) * np.float32(scale)
        return portray_image(image, preprocessing, bands=BANDS), shares

    return training_statistics((seen(seed) for seed in range(count)), preprocessing)


@pytest.fixture(scope="session")
def training() -> TrainingStatistics:
    """Of intensity images."""
    found = learn()
    assert found is not None
    return found
