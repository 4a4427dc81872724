"""Augmentation keeps SAR, EO and label aligned, and depends on nothing but the generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfd_edge.datasets.augment import Flip, Sample, augment

FLIPS: tuple[Flip, ...] = ("none", "vertical", "both")


def _sample(rows: int, cols: int, *, eo: bool = True) -> Sample:
    """Every pixel carries its own number (from 1) in all images."""
    ids = np.arange(1, rows * cols + 1, dtype=np.float32).reshape(rows, cols)
    return Sample(
        sar=np.stack([ids, ids]),
        eo=np.stack([ids] * 3) if eo else None,
        label=(ids % 251).astype(np.uint8),
    )


def _augment(sample: Sample, seed: int, **options: object) -> Sample:
    defaults = {"crop_px": 16, "flip": "both", "eo_jitter": 0.0, "sar_gain": (0.0, 0.0)}
    return augment(sample, rng=np.random.default_rng(seed), **{**defaults, **options})  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    crop=st.integers(1, 40),
    flip=st.sampled_from(FLIPS),
    seed=st.integers(0, 2**32),
)
def test_images_stay_aligned_and_padding_is_marked(
    rows: int, cols: int, crop: int, flip: Flip, seed: int
) -> None:
    out = _augment(_sample(rows, cols), seed, crop_px=crop, flip=flip)
    assert out.eo is not None
    assert out.sar.shape == (2, crop, crop) and out.eo.shape == (3, crop, crop)
    assert out.label.shape == (crop, crop) and out.label.dtype == np.uint8
    inside = out.sar[0] != 0
    assert inside.sum() == min(rows, crop) * min(cols, crop)
    np.testing.assert_array_equal(out.sar[0], out.sar[1])
    np.testing.assert_array_equal(out.sar[0], out.eo[2])
    np.testing.assert_array_equal(out.label[inside], (out.sar[0][inside] % 251).astype(np.uint8))
    assert (out.label[~inside] == 255).all()
    assert all(array.flags.c_contiguous for array in (out.sar, out.eo, out.label))


def test_every_crop_and_mirror_occurs() -> None:
    sample = _sample(18, 17)
    corners = {tuple(_augment(sample, seed, flip="none").sar[0, 0, [0, 1]]) for seed in range(200)}
    assert len(corners) == 3 * 2
    steps = {
        flip: {
            (float(np.diff(out[:, 0])[0]), float(np.diff(out[0])[0]))
            for out in (_augment(sample, seed, flip=flip).sar[0] for seed in range(60))
        }
        for flip in FLIPS
    }
    assert steps["none"] == {(17, 1)}
    assert steps["vertical"] == {(17, 1), (-17, 1)}, "the range axis is never mirrored"
    assert steps["both"] == {(17, 1), (-17, 1), (17, -1), (-17, -1)}


def test_equal_generators_give_equal_bits_and_input_is_untouched() -> None:
    sample = _sample(30, 30)
    before = sample.sar.copy(), sample.eo.copy(), sample.label.copy()  # type: ignore[union-attr]
    options = {"eo_jitter": 0.3, "sar_gain": (0.2, 0.3)}
    first, second = (_augment(sample, 7, **options) for _ in range(2))
    for name in ("sar", "eo", "label"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for array, kept in zip((sample.sar, sample.eo, sample.label), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_geometry_does_not_depend_on_the_other_options() -> None:
    sample = _sample(40, 40)
    plain = _augment(sample, 11)
    bare = _augment(_sample(40, 40, eo=False), 11, eo_jitter=0.5, sar_gain=(0.4, 0.1))
    assert bare.eo is None
    np.testing.assert_array_equal(plain.label, bare.label)


def test_sar_gain_is_one_draw_scaled_per_band_and_spares_nodata() -> None:
    sample = _sample(16, 16)
    sample.sar[:, :3] = 0
    gains = []
    for seed in range(50):
        out = _augment(sample, seed, flip="none", sar_gain=(0.2, 0.1))
        change = out.sar - sample.sar
        assert (out.sar[:, :3] == 0).all()
        np.testing.assert_allclose(change[0, 3:], change[0, 3, 0], atol=2e-5)
        np.testing.assert_allclose(change[0, 3:], 2 * change[1, 3:], atol=4e-5)
        gains.append(float(change[0, 3, 0]))
    assert -0.2 <= min(gains) < -0.1 and 0.1 < max(gains) <= 0.2


def test_eo_jitter_changes_brightness_and_contrast_within_bounds() -> None:
    rng = np.random.default_rng(0)
    eo = rng.standard_normal((3, 16, 16)).astype(np.float32)
    sample = Sample(sar=np.ones((2, 16, 16), np.float32), eo=eo, label=np.zeros((16, 16), np.uint8))
    shifts, scales = [], []
    for seed in range(50):
        out = _augment(sample, seed, flip="none", eo_jitter=0.2)
        assert out.eo is not None
        shifts.append(float(out.eo.mean() - eo.mean()))
        scales.append(float(out.eo[1].std() / eo[1].std()))
        np.testing.assert_array_equal(out.sar, sample.sar)
    assert max(map(abs, shifts)) <= 0.2 + 1e-5 and max(shifts) - min(shifts) > 0.2
    assert 0.8 - 1e-5 <= min(scales) < 0.95 and 1.05 < max(scales) <= 1.2 + 1e-5


def test_both_dates_are_jittered_alike() -> None:
    rng = np.random.default_rng(0)
    after = rng.standard_normal((2, 16, 16)).astype(np.float32)
    before = after.copy()
    before[:, :8] += 3.0  # a change between the dates, so that their means differ
    eo, label = np.concatenate([after, before]), np.zeros((16, 16), np.uint8)
    sample = Sample(sar=np.ones((2, 16, 16), np.float32), eo=eo, label=label, eo_dates=2)
    out = _augment(sample, 3, flip="none", eo_jitter=0.3)
    alone = _augment(replace(sample, eo=after, eo_dates=1), 3, flip="none", eo_jitter=0.3)
    assert out.eo is not None and out.eo_dates == 2 and not np.allclose(out.eo, eo)
    np.testing.assert_array_equal(out.eo[:2], alone.eo)
    np.testing.assert_array_equal(out.eo[:2, 8:], out.eo[2:, 8:])


def test_teacher_tiles_have_no_sar_band() -> None:
    sample = Sample(
        sar=np.empty((0, 20, 20), np.float32),
        eo=np.ones((3, 20, 20), np.float32),
        label=np.zeros((20, 20), np.uint8),
    )
    assert _augment(sample, 0, sar_gain=()).sar.shape == (0, 16, 16)


def test_faulty_calls() -> None:
    sample = _sample(8, 8)
    with pytest.raises(ValueError, match="sar_gain has 1 values for 2 SAR bands"):
        _augment(sample, 0, sar_gain=(1.0,))
    with pytest.raises(ValueError, match=r"differ in size: \[\(8, 8\), \(8, 9\)\]"):
        _augment(Sample(sar=sample.sar, eo=None, label=np.zeros((8, 9), np.uint8)), 0)
