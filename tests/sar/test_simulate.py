"""The simulated radar against theory, and scenes against what they promise."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hfd_edge.errors import RadiometryError
from hfd_edge.sar.landscape import CLASSES, WATER
from hfd_edge.sar.radiometry import check_units, db_bias, enl, valid_mask
from hfd_edge.sar.simulate import (
    NODATA_LABEL,
    PALETTE,
    SAR_INPUT,
    SIGMA0_DB,
    SceneRenderer,
    lay_over,
    observe,
    simulate_scene,
)


@pytest.mark.parametrize("looks", [1.0, 4.0, 4.4, 16.0])
def test_speckle_has_the_mean_looks_and_db_bias_of_theory(looks: float) -> None:
    sigma0 = np.full((2, 400, 400), 0.08, np.float32)
    seen = observe(sigma0, looks=looks, nesz_db=-np.inf, rng=np.random.default_rng(1))
    pixels = sigma0.size
    assert seen.dtype == np.float32
    # five standard errors of each estimate
    assert float(seen.mean(dtype=np.float64)) == pytest.approx(0.08, rel=5 / np.sqrt(looks * pixels))
    assert enl(seen) == pytest.approx(looks, rel=5 * np.sqrt(2 * (1 + 1 / looks) / pixels) + 0.005)
    decibels = 10 * np.log10(seen.astype(np.float64))
    expected = 10 * np.log10(0.08) + db_bias(looks)
    assert float(decibels.mean()) == pytest.approx(expected, abs=5 * 5.6 / np.sqrt(pixels))


def test_speckle_is_independent_between_pixels_and_bands() -> None:
    seen = observe(np.ones((2, 300, 300)), looks=4.0, rng=np.random.default_rng(2)).astype(np.float64)
    limit = 5 / 300
    assert abs(np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1]) < limit
    assert abs(np.corrcoef(seen[0, :, 1:].ravel(), seen[0, :, :-1].ravel())[0, 1]) < limit
    assert abs(np.corrcoef(seen[0, 1:].ravel(), seen[0, :-1].ravel())[0, 1]) < limit


def test_thermal_noise_adds_power_and_is_the_floor() -> None:
    dark = observe(np.zeros((1, 300, 300)), looks=4.0, nesz_db=-24.0, rng=np.random.default_rng(3))
    assert float(dark.mean()) == pytest.approx(10**-2.4, rel=5 / np.sqrt(4 * 90_000))
    lit = observe(np.full((1, 300, 300), 10**-2.4), looks=4.0, nesz_db=-24.0, rng=np.random.default_rng(3))
    assert float(lit.mean() / dark.mean()) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("looks", [0.0, -1.0, float("nan"), float("inf")])
def test_looks_must_be_positive(looks: float) -> None:
    with pytest.raises(RadiometryError, match=r"looks is .*must be positive and finite; 1 is single-look"):
        simulate_scene(rows=8, cols=8, seed=0, looks=looks)
    with pytest.raises(RadiometryError, match="must be positive"):
        observe(np.ones(3), looks=looks, rng=np.random.default_rng(0))


def test_building_is_laid_over_toward_near_range_and_casts_shadow() -> None:
    sigma0 = np.full((1, 3, 40), 0.1)
    sigma0[:, 1, 20:30] = 1.0
    height = np.zeros((3, 40))
    height[1, 20:30] = 2.0
    seen = lay_over(sigma0, height, incidence_deg=45.0)
    line = seen[0, 1]
    np.testing.assert_allclose(seen[0, [0, 2]], 0.1, rtol=1e-6, err_msg="open ground is untouched")
    np.testing.assert_allclose(line[:18], 0.1, rtol=1e-6)
    np.testing.assert_allclose(line[20:28], 1.0, rtol=1e-6, err_msg="roof, two pixels nearer")
    assert line[18] == pytest.approx(0.1 + 1.0 + 0.75), "ground + roof + wall"
    assert line[19] == pytest.approx(0.1 + 1.0 + 0.75 + 6.0), "ground + roof + wall + corner"
    np.testing.assert_array_equal(line[28:32], 0, err_msg="far part of the footprint and shadow")
    np.testing.assert_allclose(line[32:], 0.1, rtol=1e-6)


def test_layover_loses_what_leaves_the_image_and_ignores_memory_order() -> None:
    rng = np.random.default_rng(0)
    sigma0 = rng.random((20, 33, 2)).astype(np.float32)
    height = np.where(rng.random((20, 33)) < 0.3, 3.0, 0.0)
    height[:, 0] = 3.0
    strided = np.moveaxis(sigma0, -1, 0)
    before = strided.copy()
    seen = lay_over(strided, height, incidence_deg=38.0)
    np.testing.assert_array_equal(strided, before, err_msg="input unchanged")
    np.testing.assert_array_equal(seen, lay_over(before, height, incidence_deg=38.0))
    assert np.isfinite(seen).all()


def test_flat_land_is_seen_as_it_is() -> None:
    sigma0 = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(lay_over(sigma0, np.zeros((5, 7)), incidence_deg=38.0), sigma0)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 40), (37, 1), (61, 83), (300, 70)])
def test_scenes_of_any_size(rows: int, cols: int) -> None:
    scene = simulate_scene(rows=rows, cols=cols, seed=4)
    assert scene.sar.shape == (2, rows, cols) and scene.sar.dtype == np.float32
    assert scene.eo.shape == (3, rows, cols) and scene.eo.dtype == np.uint8
    assert scene.label.shape == (rows, cols) and scene.label.dtype == np.uint8
    for array in (scene.sar, scene.eo, scene.label):
        assert array.flags.c_contiguous


def test_nodata_border_is_zero_in_sar_unknown_in_label_and_seen_by_eo() -> None:
    borders = 0
    for seed in range(24):
        scene = simulate_scene(rows=64, cols=64, seed=seed)
        unknown = scene.label == NODATA_LABEL
        np.testing.assert_array_equal(scene.sar == 0, np.stack([unknown] * 2))
        assert not np.isnan(scene.sar).any() and (scene.sar >= 0).all()
        assert scene.label[~unknown].max() < len(CLASSES)
        check_units(scene.sar, units=SAR_INPUT.units, bands=len(SAR_INPUT.bands))
        valid = valid_mask(scene.sar, units=SAR_INPUT.units, nodata=SAR_INPUT.nodata)
        np.testing.assert_array_equal(valid, ~unknown)
        if unknown.any():
            borders += 1
            assert unknown.mean() < 0.5
            assert scene.eo[:, unknown].std() > 0
    assert 2 <= borders <= 14
    assert not (simulate_scene(rows=64, cols=64, seed=3, nodata=False).label == NODATA_LABEL).any()


def test_equal_seeds_give_equal_pixels_and_others_do_not() -> None:
    first, same, other = (simulate_scene(rows=70, cols=50, seed=seed) for seed in (9, 9, 10))
    for name in ("sar", "eo", "label"):
        np.testing.assert_array_equal(getattr(first, name), getattr(same, name))
    assert (first.sar != other.sar).mean() > 0.5
    assert (first.eo != other.eo).mean() > 0.5


def test_blocks_join_into_the_scene_and_match_the_radar_only_ones() -> None:
    renderer = SceneRenderer(rows=520, cols=90, seed=6)
    whole = simulate_scene(rows=520, cols=90, seed=6)
    firsts = []
    for row0, sar, label in renderer.radar_blocks():
        firsts.append(row0)
        np.testing.assert_array_equal(sar, whole.sar[:, row0 : row0 + sar.shape[1]])
        np.testing.assert_array_equal(label, whole.label[row0 : row0 + label.shape[0]])
    assert firsts == [0, 256, 512]


def test_water_of_a_rendered_scene_is_homogeneous_to_the_radar() -> None:
    """Open water has one sigma0 per scene, so its ENL is the number of looks, noise included."""
    for seed in range(40):
        scene = simulate_scene(rows=200, cols=200, seed=seed, looks=3.0, nodata=False)
        inner = cv2.erode((scene.label == WATER).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        if inner.sum() > 4000:
            vv, vh = (enl(band[inner]) for band in scene.sar)
            assert vv == pytest.approx(3.0, rel=0.12)
            assert vh == pytest.approx(3.0, rel=0.12)
            assert 10 * np.log10(scene.sar[0][inner].mean()) < -13
            return
    pytest.fail("no scene with a lake among 40 seeds")


def test_mean_backscatter_per_class_is_that_of_the_table() -> None:
    """Over many scenes, plus noise floor; buildings are displaced, so they are left out."""
    sums, counts = np.zeros((2, len(CLASSES))), np.zeros(len(CLASSES))
    for seed in range(30):
        scene = simulate_scene(rows=128, cols=128, seed=seed, nodata=False)
        counts += np.bincount(scene.label.ravel(), minlength=len(CLASSES))
        for band in range(2):
            sums[band] += np.bincount(scene.label.ravel(), scene.sar[band].ravel(), minlength=len(CLASSES))
    mean_db = 10 * np.log10(sums / counts)
    for label, name in enumerate(CLASSES):
        if name in ("crop", "grass", "forest"):  # roads and water lie beside tall things and vary with wind
            for band in range(2):
                expected = 10 * np.log10(10 ** (SIGMA0_DB[name][band] / 10) + 10**-2.4)
                assert mean_db[band, label] == pytest.approx(expected, abs=1.3), (name, band)
    assert mean_db[0, WATER] < mean_db[0].min() + 3


def test_light_separates_classes_better_than_radar() -> None:
    """What distillation lives on: a Gaussian per class is right far more often on EO than on SAR."""

    def pixels(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scene = simulate_scene(rows=192, cols=192, seed=seed, nodata=False)
        sar = np.stack([10 * np.log10(cv2.blur(band, (7, 7))).ravel() for band in scene.sar], axis=1)
        return sar, scene.eo.reshape(3, -1).T.astype(np.float64), scene.label.ravel()

    train = [np.concatenate(part) for part in zip(*map(pixels, range(100, 110)), strict=True)]
    test = [np.concatenate(part) for part in zip(*map(pixels, range(200, 208)), strict=True)]
    sar, eo = (_balanced_accuracy(train[i], train[2], test[i], test[2]) for i in (0, 1))
    assert eo > 0.7
    assert 0.35 < sar < eo - 0.15


def _balanced_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    scores = []
    for label in range(len(CLASSES)):
        own = train[train_labels == label]
        offset = test - own.mean(axis=0)
        spread = np.cov(own.T)
        distance = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(spread), offset)
        scores.append(-0.5 * distance - 0.5 * np.log(np.linalg.det(spread)))
    guess = np.argmax(scores, axis=0)
    return float(np.mean([(guess[test_labels == label] == label).mean() for label in range(len(CLASSES))]))


def test_constants_fit_together() -> None:
    assert tuple(SIGMA0_DB) == CLASSES
    assert len(PALETTE) == len(CLASSES) == len(set(PALETTE))
    assert SAR_INPUT.units == "intensity" and SAR_INPUT.nodata == 0.0
    assert all(vh < vv for vv, vh in SIGMA0_DB.values())


@pytest.mark.parametrize(("rows", "cols", "seed"), [(0, 5, 0), (5, 0, 0), (5, 5, -1)])
def test_sizes_and_seeds_out_of_range(rows: int, cols: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1, 1 and 0"):
        simulate_scene(rows=rows, cols=cols, seed=seed)
