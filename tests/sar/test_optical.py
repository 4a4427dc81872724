"""The simulator's camera: colours of classes, clouds, shadows."""

from __future__ import annotations

import numpy as np

from hfd_edge.sar.landscape import BUILDING, FOREST, GRASS, WATER, Ground, Window
from hfd_edge.sar.optical import Optics


def _ground(label: int, size: int = 96) -> Ground:
    zeros = np.zeros((size, size), np.float32)
    return Ground(
        label=np.full((size, size), label, np.uint8),
        kind=np.zeros((size, size), np.uint8),
        tone=zeros,
        offset_db=zeros,
        height_px=zeros.copy(),
        furrow=zeros,
    )


def _expose(seed: int, ground: Ground, *, clouds: bool = False) -> np.ndarray:
    size = ground.label.shape[0]
    optics = Optics(np.random.default_rng(seed), rows=size, cols=size, clouds=clouds)
    return optics.image(ground, Window(0, size, 0, size), np.random.default_rng(seed + 1)).astype(np.float64)


def test_colours_follow_the_classes_in_every_exposure() -> None:
    for seed in range(10):
        water, grass, forest = (
            _expose(seed, _ground(label)).mean(axis=(1, 2)) for label in (WATER, GRASS, FOREST)
        )
        assert water[2] > water[0], "water is blue"
        assert grass[1] > grass[0] and grass[1] > grass[2], "grass is green"
        assert forest[1] < grass[1], "forest is darker than grass"


def test_clouds_whiten_some_exposures_and_can_be_switched_off() -> None:
    ground = _ground(FOREST)
    white = [float((_expose(seed, ground, clouds=True).min(axis=0) > 200).mean()) for seed in range(30)]
    clear = [float((_expose(seed, ground, clouds=False).min(axis=0) > 200).mean()) for seed in range(30)]
    assert 2 <= sum(share > 0.01 for share in white) <= 20
    assert max(white) < 0.6
    assert max(clear) == 0


def test_buildings_shade_the_ground_on_one_side_only() -> None:
    bare, built = _ground(GRASS), _ground(GRASS)
    block = (slice(40, 50), slice(40, 50))
    built.label[block] = BUILDING
    built.height_px[block] = 3.0
    darker = (_expose(3, built) - _expose(3, bare)).mean(axis=0) < -20
    darker[block] = False
    rows, cols = np.nonzero(darker)
    assert 20 <= rows.size <= 100
    assert rows.min() >= 36 and rows.max() <= 53 and cols.min() >= 36 and cols.max() <= 53
    offset = abs(rows.mean() - 44.5) + abs(cols.mean() - 44.5)
    assert offset > 2
