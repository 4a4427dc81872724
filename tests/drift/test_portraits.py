"""What an image looks like in a few figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hfd_edge.drift import PatchSampler, class_shares, portray_image
from hfd_edge.errors import RadiometryError
from hfd_edge.sar.statistics import frame_statistics

from .conftest import BANDS, CHAIN, make_image


def test_figures_are_those_of_the_image() -> None:
    # 256 x 256 is all sampled: 16 patches of 64 x 64.
    image = make_image(3, rows=256, cols=256)
    portrait = portray_image(image, CHAIN, bands=BANDS)
    decibels = 10 * np.log10(image.astype(np.float64))
    assert portrait.pixels == 256 * 256
    for band, values in zip(BANDS, decibels, strict=True):
        assert portrait.figures["level", band] == pytest.approx(np.median(values), abs=1e-3)
        spread = np.percentile(values, 90) - np.percentile(values, 10)
        assert portrait.figures["width", band] == pytest.approx(spread, abs=1e-3)
        assert portrait.figures["flat", band] == pytest.approx(1 / 256**2)
    assert portrait.figures["ratio", "vv/vh"] == pytest.approx(np.median(decibels[0] - decibels[1]), abs=1e-3)
    reference = frame_statistics(image, CHAIN)
    np.testing.assert_allclose(portrait.histogram, reference.histogram, atol=3)  # pixels on a bin's edge
    for band, looks in zip(BANDS, reference.log_enl, strict=True):
        assert portrait.figures["looks", band] == pytest.approx(looks, abs=1e-6)


def test_clipped_and_saturated_pixels_are_counted() -> None:
    image = make_image(4)
    image[0, :32] = 10.0  # a quarter, above the clip limit of 5 dB
    image[1, :, :16] = 1e-6  # an eighth, below that of -36 dB
    figures = portray_image(image, CHAIN, bands=BANDS).figures
    assert figures["bright", "vv"] == pytest.approx(0.25)
    assert figures["flat", "vv"] == pytest.approx(0.25)
    assert figures["dark", "vh"] == pytest.approx(0.125, abs=1e-3)
    assert figures["dark", "vv"] == 0


@pytest.mark.parametrize(("rows", "cols"), [(100_000, 64), (64, 100_000), (100_000, 640), (20_000, 20_000)])
def test_long_strips_take_no_more_patches_than_squares(rows: int, cols: int) -> None:
    sampler = PatchSampler(rows=rows, cols=cols)
    sampler.take(0, np.ones((1, 1, cols), np.uint8))
    assert 40 <= len(sampler.patches) <= 100


@pytest.mark.parametrize("shape", [(300, 300), (64, 5000), (5000, 64), (1000, 700), (2500, 2500), (70, 1)])
def test_rows_give_the_same_patches_in_any_pieces(shape: tuple[int, int]) -> None:
    image = np.arange(2 * shape[0] * shape[1], dtype=np.float32).reshape(2, *shape)
    whole, pieces = (PatchSampler(rows=shape[0], cols=shape[1]) for _ in range(2))
    whole.take(0, image)
    for row in range(0, shape[0], 23):
        pieces.take(row, image[:, row : row + 23])
    assert 1 <= len(whole.patches) <= 100
    for one, other in zip(whole.patches, pieces.patches, strict=True):
        np.testing.assert_array_equal(one, other)
        row, col = divmod(int(one[0, 0, 0]), shape[1])
        np.testing.assert_array_equal(one, image[:, row : row + one.shape[1], col : col + one.shape[2]])


def test_patches_do_not_overlap_and_reach_all_corners() -> None:
    seen = np.zeros((1, 1000, 700), np.float32)
    image = np.arange(seen.size, dtype=np.float32).reshape(seen.shape)
    sampler = PatchSampler(rows=1000, cols=700)
    sampler.take(0, image)
    for patch in sampler.patches:
        row, col = divmod(int(patch[0, 0, 0]), 700)
        seen[:, row : row + 64, col : col + 64] += 1
    assert seen.max() == 1
    assert seen[0, 0, 0] == seen[0, -1, -1] == seen[0, 0, -1] == seen[0, -1, 0] == 1


def test_what_is_sampled_is_kept_apart_from_the_source() -> None:
    sampler = PatchSampler(rows=64, cols=64)
    rows = np.ones((1, 64, 64), np.float32)
    sampler.take(0, rows)
    rows[:] = 7
    assert float(sampler.patches[0].max()) == 1


@pytest.mark.parametrize(
    "image",
    [
        np.full((2, 1, 1), 0.1, np.float32),
        np.full((2, 7, 300), 0.1, np.float32),
        np.zeros((2, 50, 50), np.float32),
        np.full((2, 50, 50), np.nan, np.float32),
        np.full((2, 64, 64), 0.1, np.float32),
        np.full((2, 9, 9), np.inf, np.float32),
        np.full((2, 9, 9), 5, np.uint16),
    ],
    ids=["pixel", "strip", "no-data", "nan", "constant", "infinite", "integers"],
)
@pytest.mark.parametrize("speckle", ["none", "lee"])
def test_strange_images_do_not_raise(image: np.ndarray, speckle: str) -> None:
    chain = dataclasses.replace(CHAIN, speckle=speckle)
    portrait = portray_image(image, chain, bands=BANDS)
    valid = np.isfinite(image[0]) & (image[0] > 0)
    assert portrait.pixels <= valid.sum() < 2 * portrait.pixels or portrait.pixels == valid.sum() == 0
    assert all(np.isfinite(value) for value in portrait.figures.values())
    assert portrait.bands == (list(BANDS) if valid.any() else [])


def test_wrong_units_are_refused_as_the_network_refuses_them() -> None:
    with pytest.raises(RadiometryError, match="negative values.*probably in dB"):
        portray_image(make_image(1, units="sigma0_db"), CHAIN, bands=BANDS)


def test_shares_leave_out_what_is_no_class() -> None:
    counts = np.zeros(256, np.int64)
    assert class_shares(counts, ("water", "soil")) == {}
    counts[[0, 1, 255]] = 30, 10, 1000
    assert class_shares(counts, ("water", "soil")) == {("share", "water"): 0.75, ("share", "soil"): 0.25}
