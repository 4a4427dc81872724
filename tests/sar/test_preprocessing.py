from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from hfd_edge.errors import RadiometryError
from hfd_edge.sar import FILTERS, Preprocessing, intensity_to_db, preprocessing, signal_values, speckle

BASE = Preprocessing(
    units="intensity",
    looks=4.0,
    nodata=0.0,
    speckle="lee",
    window_px=7,
    clip=((-25.0, 0.0), (-32.0, -5.0)),
    mean=(-11.0, -18.0),
    std=(4.5, 4.25),
)
STRETCHED = Preprocessing(
    units="stretched", looks=1.0, nodata=None, speckle="none", window_px=7, clip=((10.0, 200.0),),
    mean=(90.0,), std=(30.0,),
)  # fmt: skip


def make(**changes: object) -> Preprocessing:
    return dataclasses.replace(BASE, **changes)


def sigma0(rows: int = 40, cols: int = 50, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4.0, 0.01, (2, rows, cols)).astype(np.float32)


def test_chain_is_despeckle_decibels_clip_standardise():
    image = sigma0()
    image[:, :5] = 0.0
    pixels, valid = BASE(image)
    masked = np.where(image > 0, image, np.nan)
    db = intensity_to_db(speckle.lee(masked, window_px=7, looks=4.0))
    assert not valid[:5].any() and valid[5:].all()
    assert (pixels[:, :5] == 0).all()
    for band, (low, high) in enumerate(BASE.clip):
        expected = (np.clip(db[band, 5:], low, high) - BASE.mean[band]) / BASE.std[band]
        np.testing.assert_allclose(pixels[band, 5:], expected, atol=2e-6)
    assert pixels.dtype == np.float32 and valid.dtype == bool


def test_values_stop_before_clipping():
    image = np.stack([np.full((9, 9), 100.0), np.full((9, 9), 1e-9)]).astype(np.float32)
    assert BASE.values(image)[:, 4, 4] == pytest.approx([20.0, -90.0], abs=1e-4)
    pixels, _ = BASE(image)
    assert pixels[:, 4, 4] == pytest.approx([11.0 / 4.5, -14.0 / 4.25])


@pytest.mark.parametrize(
    ("units", "stored"),
    [
        ("intensity", np.array([0.04, 0.0, 0.25, 0.09], np.float32)),
        ("amplitude", np.array([0.2, 0.0, 0.5, 0.3], np.float64)),
        ("dn", np.array([2, 0, 5, 3], np.uint16)),
        ("complex", np.array([0.2j, 0.0, 0.3 + 0.4j, 0.3], np.complex64)),
        ("sigma0_db", np.array([-13.9794, np.nan, -6.0206, -10.4576], np.float32)),
    ],
)
@pytest.mark.parametrize("name", ["none", "boxcar"])
def test_every_unit_ends_in_the_same_decibels(units, stored, name):
    image = np.tile(stored[:, None], (1, 3))[None]
    options = {"looks": 1.0, "nodata": None, "speckle": name, "window_px": 3}
    values = signal_values(image, units=units, **options)[0]
    power = np.array([0.04, np.nan, 0.25, 0.09])
    if name == "boxcar":
        power = np.array([0.04, np.nan, 0.17, 0.09 + 0.16 / 3])  # rows 2 and 3 average 2 and 3 valid rows
    expected = 10 * np.log10(power) + (20 if units == "dn" else 0)
    np.testing.assert_allclose(values, np.tile(expected[:, None], (1, 3)), atol=2e-4)


def test_stretched_pixels_keep_their_values_and_their_zeros():
    image = np.array([[[0, 90, 255]]], np.uint8)
    assert STRETCHED.values(image)[0, 0].tolist() == [0.0, 90.0, 255.0]
    pixels, valid = STRETCHED(image)
    assert valid.all()
    assert pixels[0, 0] == pytest.approx([-80 / 30, 0.0, 110 / 30])


def test_signal_values_are_the_values_of_the_fitted_chain():
    image = sigma0()
    image[0, 3, 3] = np.nan
    values = signal_values(image, units="intensity", looks=4.0, nodata=0.0, speckle="lee", window_px=7)
    assert np.array_equal(values, BASE.values(image), equal_nan=True)
    assert np.isnan(values[:, 3, 3]).all(), "a pixel is valid in every band or in none"


@pytest.mark.parametrize("name", ["none", *FILTERS])
def test_strips_with_halo_equal_the_whole_bit_for_bit(name):
    chain = make(speckle=name)
    image = sigma0(61, 37)
    image[:, 20:24, 10:20] = 0.0
    whole, whole_valid = chain(image)
    for top in range(0, 61, 10):
        first, last = max(top - chain.halo_px, 0), min(top + 10 + chain.halo_px, 61)
        pixels, valid = chain(image[:, first:last])
        rows = slice(top - first, top - first + min(10, 61 - top))
        assert np.array_equal(pixels[:, rows], whole[:, top : top + 10])
        assert np.array_equal(valid[rows], whole_valid[top : top + 10])


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_do_not_show(threads, monkeypatch):
    image = sigma0(130, 40)
    image[:, 60:70, :9] = np.nan
    before = cv2.getNumThreads()
    whole, whole_values = BASE(image), BASE.values(image)
    monkeypatch.setattr(preprocessing, "_BLOCK_PX", (7, 11))
    try:
        cv2.setNumThreads(threads)
        pixels, valid = BASE(image)
        values = BASE.values(image)
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(pixels, whole[0]) and np.array_equal(valid, whole[1])
    assert np.array_equal(values, whole_values, equal_nan=True)


@pytest.mark.parametrize("name", ["none", "lee"])
def test_into_given_memory_equals_the_call(name):
    chain, image = make(speckle=name), sigma0(150, 60)
    image[:, 30:40, 20:30] = 0.0
    pixels, valid = chain(image)
    strip, known = np.full((2, 100, 70), 9.0, np.float32), np.zeros((100, 60), bool)
    chain.into(strip[:, 5:95, :60], known[5:95], image[:, 17:113], above=3)  # rows 20 to 110
    assert np.array_equal(strip[:, 5:95, :60], pixels[:, 20:110])
    assert np.array_equal(known[5:95], valid[20:110])
    strip[:, 5:95, :60] = 9.0
    assert (strip == 9.0).all(), "it wrote beside its place"


@pytest.mark.parametrize("fill", [0.0, np.nan])
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 33, 40)])
def test_image_without_a_valid_pixel_is_legal(fill, shape):
    pixels, valid = BASE(np.full(shape, fill, np.float32))
    assert not pixels.any() and not valid.any()
    assert pixels.shape == shape and valid.shape == shape[1:]


def test_result_is_finite_whatever_the_power():
    image = np.full((2, 4, 4), 0.1)
    image[0, 0, :] = [1e-300, 1e300, np.inf, 5e-324]
    pixels, valid = make(speckle="none")(image)
    assert np.isfinite(pixels).all()
    assert valid[1:].all()
    amplitude = np.full((2, 4, 4), 0.3, np.float32)
    amplitude[0, 0, :2] = [1e-30, 1e30]
    pixels, valid = make(units="amplitude")(amplitude)
    assert np.isfinite(pixels).all()
    assert not valid[0, :2].any() and valid[0, 2:].all()


def test_input_is_left_alone_and_layout_does_not_matter():
    stored = np.moveaxis(sigma0(64, 48), 0, -1).copy()
    view = np.moveaxis(stored, -1, 0)[:, ::2, ::-3]
    before = stored.copy()
    pixels, _ = BASE(view)
    assert np.array_equal(stored, before)
    assert np.array_equal(pixels, BASE(np.ascontiguousarray(view))[0])


@pytest.mark.parametrize("method", ["values", "__call__"])
def test_pixels_in_other_units_are_refused(method):
    with pytest.raises(RadiometryError, match="negative values .*probably in dB"):
        getattr(BASE, method)(np.full((2, 4, 4), -13.0, np.float32))
    with pytest.raises(RadiometryError, match="has 1 bands .* but 2 were expected"):
        getattr(BASE, method)(np.ones((1, 4, 4), np.float32))


def test_signal_values_check_their_input_and_options():
    options = {"units": "intensity", "looks": 1.0, "nodata": None, "speckle": "lee", "window_px": 5}
    with pytest.raises(RadiometryError, match=r"shape \(4, 4\), but \(bands, rows, cols\)"):
        signal_values(np.ones((4, 4)), **options)
    with pytest.raises(RadiometryError, match="no speckle filter"):
        signal_values(np.ones((1, 4, 4)), **{**options, "speckle": "median"})
    with pytest.raises(RadiometryError, match=r"looks is -1\.0"):
        signal_values(np.ones((1, 4, 4)), **{**options, "looks": -1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (1.0,)}, "are for 2, 1 and 2 bands"),
        ({"clip": (), "mean": (), "std": ()}, "are for 0, 0 and 0 bands"),
        ({"std": (4.5, 0.0)}, r"std of band 1 is 0\.0, but must be positive"),
        ({"std": (math.nan, 1.0)}, "std of band 0 is nan"),
        ({"mean": (0.0, math.inf)}, "mean of band 1 is inf, but must be finite"),
        ({"clip": ((-25.0, 0.0), (-5.0, -5.0))}, r"clip of band 1 is \(-5\.0, -5\.0\)"),
        ({"clip": ((-math.inf, 0.0), (-5.0, 5.0))}, "must be finite with low below high"),
        ({"looks": 0.0}, r"looks is 0\.0"),
        ({"speckle": "median"}, 'no speckle filter "median"'),
        ({"window_px": 6}, "window_px is 6, but must be odd"),
        ({"speckle": "refined_lee", "window_px": 9}, "window_px is 9, but refined_lee is defined on 7 x 7"),
        ({"units": "stretched"}, 'speckle is "lee", but a "stretched" product has no speckle'),
    ],
)
def test_values_that_cannot_be_are_refused(changes, message):
    with pytest.raises(RadiometryError, match=message):
        make(**changes)


def test_properties():
    assert (BASE.bands, BASE.halo_px, BASE.logarithmic) == (2, 3, True)
    assert (STRETCHED.bands, STRETCHED.halo_px, STRETCHED.logarithmic) == (1, 0, False)
    assert make(speckle="refined_lee").halo_px == 3
    assert make(window_px=11).halo_px == 5
    assert make(nodata=math.nan).nodata is None, "NaN always is no-data, and would not survive JSON"


def test_preprocessing_survives_json():
    adapter = TypeAdapter(Preprocessing)
    assert adapter.validate_json(adapter.dump_json(BASE)) == BASE
    assert adapter.validate_json(adapter.dump_json(STRETCHED)) == STRETCHED


def test_preprocessing_is_a_pydantic_field_that_checks_itself():
    class Holder(BaseModel):
        preprocessing: Preprocessing

    holder = Holder(preprocessing=BASE)
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    with pytest.raises(ValidationError, match="std of band 1"):
        Holder.model_validate({"preprocessing": {**dataclasses.asdict(BASE), "std": (1.0, -1.0)}})
    with pytest.raises(ValidationError, match="units"):
        Holder.model_validate({"preprocessing": {**dataclasses.asdict(BASE), "units": "watts"}})
