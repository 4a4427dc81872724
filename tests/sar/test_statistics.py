"""What a frame looks like, against known truth."""

from __future__ import annotations

import numpy as np
import pytest

from hfd_edge.config import Units
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.statistics import BINS, block_log_enl, frame_statistics


def chain(units: Units = "intensity", *, bands: int = 2, speckle: str = "none") -> Preprocessing:
    """Clip limits of which 64 bins are 20 dB, or 80 grey levels."""
    decibels = units != "stretched"
    return Preprocessing(
        units=units,
        looks=4.0,
        nodata=0.0,
        speckle=speckle,
        window_px=5,
        clip=((-30.0, 10.0) if decibels else (0.0, 160.0),) * bands,
        mean=(-12.0 if decibels else 80.0,) * bands,
        std=(5.0 if decibels else 30.0,) * bands,
    )


def speckled(rows: int, cols: int, *, bands: int = 2, looks: float = 4.0, db: float = -10.0) -> np.ndarray:
    """Homogeneous intensity with speckle."""
    rng = np.random.default_rng(rows * 1009 + cols)
    return (10 ** (db / 10) * rng.gamma(looks, 1 / looks, (bands, rows, cols))).astype(np.float32)


def test_looks_and_level_of_a_homogeneous_frame() -> None:
    found = frame_statistics(speckled(256, 256, looks=4.0), chain())
    assert found.valid == 256 * 256
    assert found.log_enl == pytest.approx([np.log10(4)] * 2, abs=0.05)
    # Mean of decibels lies 0.565 dB below the decibels of the mean for four looks.
    assert found.mean == pytest.approx([-10.565] * 2, abs=0.05)
    assert found.histogram.sum(1).tolist() == [256 * 256] * 2


def test_the_looks_are_those_before_the_filter() -> None:
    image = speckled(64, 64, looks=4.0)
    raw, filtered = frame_statistics(image, chain()), frame_statistics(image, chain(speckle="lee"))
    assert filtered.log_enl == raw.log_enl
    assert filtered.variance[0] < raw.variance[0] / 3


def test_clipped_values_count_in_the_outer_bins() -> None:
    image = np.full((1, 8, 8), 10**-1, np.float32)
    image[0, 0], image[0, 1] = 1e-9, 1e9
    found = frame_statistics(image, chain(bands=1))
    expected = np.zeros(BINS, np.int64)
    expected[[0, 64, -1]] = 8, 48, 8
    assert np.array_equal(found.histogram[0], expected)
    assert found.mean[0] == pytest.approx((8 * -30 + 8 * 10 + 48 * -10) / 64)


def test_no_data_is_left_out() -> None:
    image = speckled(32, 48)
    image[1, :, 20:] = np.nan
    whole, left = frame_statistics(image, chain()), frame_statistics(image[:, :, :20], chain())
    assert whole.valid == 32 * 20
    assert whole.mean == pytest.approx(left.mean)
    assert whole.log_enl == pytest.approx(left.log_enl)  # columns 16 to 23 have no whole block


def test_nothing_valid() -> None:
    found = frame_statistics(np.zeros((2, 16, 16), np.float32), chain())
    assert found.valid == 0 and not found.histogram.any()
    assert np.isnan([found.mean, found.variance, found.log_enl]).all()


def test_one_pixel() -> None:
    found = frame_statistics(np.full((1, 1, 1), 0.1, np.float32), chain(bands=1))
    assert (found.valid, found.mean[0]) == (1, pytest.approx(-10))
    assert np.isnan(found.variance[0]) and np.isnan(found.log_enl[0])


def test_a_stretched_product_keeps_its_values() -> None:
    image = np.random.default_rng(1).integers(1, 160, (1, 64, 64)).astype(np.uint8)
    found = frame_statistics(image, chain("stretched", bands=1))
    assert found.mean[0] == pytest.approx(image.mean(), rel=1e-6)
    assert found.variance[0] == pytest.approx(image.var(ddof=1), rel=1e-6)
    assert found.log_enl[0] == pytest.approx(block_log_enl(image.astype(np.float64))[0])


def test_constant_blocks_have_no_looks() -> None:
    power = speckled(16, 8, bands=1)
    power[0, :8] = 0.3
    assert block_log_enl(power)[0] == block_log_enl(power[:, 8:])[0]
    assert np.isnan(block_log_enl(power[:, :8])[0])
