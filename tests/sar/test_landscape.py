"""The made-up land: varied, repeatable, and without seams between windows."""

from __future__ import annotations

import numpy as np
import pytest

from hfd_edge.sar.landscape import BUILDING, CLASSES, EDGE_PX, Landscape, SmoothNoise, Window


def _land(seed: int, rows: int = 300, cols: int = 280) -> Landscape:
    return Landscape(np.random.default_rng(seed), rows=rows, cols=cols)


def test_windows_of_one_landscape_agree_where_they_overlap() -> None:
    land = _land(5)
    whole = land.ground(Window(-8, 308, -16, 296))
    part = land.ground(Window(101, 222, 37, 150))
    inner = (slice(EDGE_PX, -EDGE_PX), slice(EDGE_PX, -EDGE_PX))
    rows, cols = slice(101 + 8, 222 + 8), slice(37 + 16, 150 + 16)
    for name in ("label", "kind", "tone", "offset_db", "height_px", "furrow"):
        np.testing.assert_array_equal(
            getattr(part, name)[inner], getattr(whole, name)[rows, cols][inner], err_msg=name
        )


def test_noise_is_standardised_and_agrees_between_windows() -> None:
    noise = SmoothNoise(np.random.default_rng(0), rows=700, cols=900, spacing_px=32, octaves=3)
    whole = noise(Window(0, 700, 0, 900))
    assert abs(float(whole.mean())) < 0.15
    assert 0.85 < float(whole.std()) < 1.15
    np.testing.assert_allclose(
        noise(Window(255, 259, -60, 900))[:, 60:], whole[255:259], atol=1e-6, err_msg="seam"
    )


def test_every_class_occurs_and_none_rules() -> None:
    counts = np.zeros(len(CLASSES))
    for seed in range(12):
        counts += np.bincount(
            _land(seed).ground(Window(0, 300, 0, 280)).label.ravel(), minlength=len(CLASSES)
        )
    shares = counts / counts.sum()
    assert shares.min() > 0.02
    assert shares.max() < 0.5


def test_only_buildings_have_height_and_none_is_a_sliver() -> None:
    for seed in range(4):
        ground = _land(seed).ground(Window(0, 300, 0, 280))
        built = ground.label == BUILDING
        np.testing.assert_array_equal(ground.height_px > 0, built)
        padded = np.pad(built, 1)
        across = padded[1:-1, :-2] | padded[1:-1, 2:]
        along = padded[:-2, 1:-1] | padded[2:, 1:-1]
        assert not (built & ~(across & along)).any()


def test_equal_seeds_give_equal_land_and_others_do_not() -> None:
    window = Window(0, 64, 0, 64)
    first, same, other = (_land(seed, 64, 64).ground(window) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.label, same.label)
    np.testing.assert_array_equal(first.tone, same.tone)
    assert (first.tone != other.tone).any()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 500), (500, 3)])
def test_odd_sizes(rows: int, cols: int) -> None:
    assert _land(0, rows, cols).ground(Window(0, rows, 0, cols)).label.shape == (rows, cols)
