from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma, gamma

from hfd_edge.errors import RadiometryError
from hfd_edge.sar import (
    amplitude_cu2,
    amplitude_to_intensity,
    check_units,
    complex_to_intensity,
    db_bias,
    db_to_intensity,
    dn_to_sigma0,
    enl,
    intensity_to_db,
    to_intensity,
    valid_mask,
)


def test_decibels_go_there_and_back():
    db = np.array([-50.0, -12.5, 0.0, 30.0])
    assert db_to_intensity([-10.0, 0.0, 20.0]) == pytest.approx([0.1, 1.0, 100.0], rel=1e-14)
    assert intensity_to_db(db_to_intensity(db)) == pytest.approx(db, abs=1e-12)


def test_decibels_in_single_precision_stay_single_and_within_1e_5_db():
    db = np.linspace(-60, 40, 1001, dtype=np.float32)
    back = intensity_to_db(db_to_intensity(db))
    assert back.dtype == np.float32
    assert np.abs(back - db).max() < 1e-5


def test_power_that_is_not_positive_has_no_decibels():
    assert np.isnan(intensity_to_db([0.0, -1.0, np.nan, -np.inf])).all()
    assert db_to_intensity(-np.inf) == 0
    assert np.isnan(db_to_intensity(np.nan))


def test_integers_become_floating_point():
    assert intensity_to_db(np.array([1, 10], np.uint8)).dtype == np.float32
    assert amplitude_to_intensity(np.array([60000], np.uint16))[0] == 3.6e9


def test_sigma0_from_constant_and_from_look_up_table():
    dn = np.array([[0, 10], [20, 30]], np.uint16)
    assert dn_to_sigma0(dn, calibration=10.0) == pytest.approx(np.array([[0, 1], [4, 9]]))
    table = np.array([10.0, 20.0])
    assert dn_to_sigma0(dn, calibration=table)[1] == pytest.approx([4.0, 2.25])


def test_sigma0_refuses_calibration_that_is_not_positive():
    with pytest.raises(RadiometryError, match=r"Calibration holds 0\.0, but every value must be positive"):
        dn_to_sigma0(np.ones(2), calibration=np.array([1.0, 0.0]))


def test_complex_intensity_is_squared_magnitude():
    assert complex_to_intensity(np.array([3 + 4j], np.complex64))[0] == 25
    assert complex_to_intensity(np.array([3 + 4j], np.complex64)).dtype == np.float32
    with pytest.raises(RadiometryError, match="Samples are float64, but complex ones were expected"):
        complex_to_intensity(np.ones(3))


@pytest.mark.parametrize(
    ("units", "dtype", "stored", "expected"),
    [
        ("dn", np.uint16, [0, 2, 9], [np.nan, 4, np.nan]),
        ("amplitude", np.float32, [0, 2, 9], [np.nan, 4, np.nan]),
        ("complex", np.complex64, [0, 2j, 9], [np.nan, 4, np.nan]),
        ("intensity", np.float32, [0, 4, 9], [np.nan, 4, np.nan]),
        ("sigma0_db", np.float32, [0, 10, 9], [1, 10, np.nan]),
    ],
)
def test_every_unit_becomes_intensity_with_nan_where_invalid(units, dtype, stored, expected):
    image = np.array(stored, dtype).reshape(1, 1, 3)
    original = image.copy()
    result = to_intensity(image, units=units, nodata=9)
    np.testing.assert_allclose(result[0, 0], expected, rtol=1e-6)
    assert result.dtype == np.float32
    assert np.array_equal(image, original), "the input was changed"


def test_intensity_of_doubles_stays_double_and_is_a_copy():
    image = np.full((1, 2, 2), 0.5)
    result = to_intensity(image, units="intensity", nodata=None)
    assert result.dtype == np.float64
    assert not np.shares_memory(result, image)


def test_stretched_pixels_have_no_intensity():
    with pytest.raises(RadiometryError, match='declared as "stretched" cannot be turned into intensity'):
        to_intensity(np.ones((1, 2, 2), np.uint8), units="stretched", nodata=None)


@pytest.mark.parametrize(
    ("units", "valid"),
    [
        ("intensity", [False, True, False, False, False, True]),
        ("amplitude", [False, True, False, False, False, True]),
        ("sigma0_db", [True, True, False, False, False, True]),
        ("stretched", [True, True, False, False, False, True]),
    ],
)
def test_zero_is_no_data_for_linear_units_only(units, valid):
    image = np.array([0, 1, np.nan, np.inf, -99, 2], np.float32).reshape(1, 1, 6)
    assert valid_mask(image, units=units, nodata=-99.0)[0].tolist() == valid


def test_pixel_is_valid_only_where_every_band_is():
    image = np.ones((2, 1, 3), np.float32)
    image[0, 0, 0] = image[1, 0, 2] = np.nan
    mask = valid_mask(image, units="intensity", nodata=None)
    assert mask.tolist() == [[False, True, False]]
    assert np.isnan(to_intensity(image, units="intensity", nodata=None)).sum() == 4


def test_no_data_value_that_the_type_cannot_hold_marks_nothing():
    assert valid_mask(np.ones((1, 1, 1), np.uint8), units="dn", nodata=-99.5).all()
    assert valid_mask(np.ones((1, 1, 1), np.float32), units="intensity", nodata=-1.7976931348623157e308).all()


@pytest.mark.parametrize("units", ["dn", "amplitude", "intensity"])
def test_negative_linear_values_are_probably_decibels(units):
    image = np.full((1, 2, 2), -12.25, np.float32)
    with pytest.raises(RadiometryError, match=r"lowest -12\.25.*probably in dB.*db_to_intensity"):
        check_units(image, units=units, bands=1)


def test_no_data_value_does_not_count_as_negative():
    image = np.array([[[-9999.0, 0.1, np.nan]]])
    check_units(image, units="intensity", bands=1, nodata=-9999.0)
    check_units(np.full((1, 2, 2), np.nan), units="intensity", bands=1)
    with pytest.raises(RadiometryError, match="lowest -9999"):
        check_units(image, units="intensity", bands=1)


def test_decibels_that_high_are_probably_linear():
    image = np.array([[[730.0, -20.0]]], np.float32)
    with pytest.raises(RadiometryError, match="values up to 730, but decibels stay below 100"):
        check_units(image, units="sigma0_db", bands=1)
    check_units(image, units="sigma0_db", bands=1, nodata=730.0)


@pytest.mark.parametrize(
    ("image", "units", "message"),
    [
        (np.ones((4, 4)), "intensity", r"shape \(4, 4\), but \(bands, rows, cols\) was expected"),
        (np.ones((3, 4, 4)), "intensity", "has 3 bands .* but 2 were expected"),
        (np.ones((2, 0, 4)), "intensity", "holds no pixels"),
        (np.ones((2, 4, 4)), "complex", 'float64, but units "complex" were declared'),
        (np.ones((2, 4, 4), np.complex64), "amplitude", 'complex64, but units "amplitude" were declared'),
        (np.ones((2, 4, 4), bool), "stretched", "Image is bool, but integer, floating-point or complex"),
    ],
)
def test_pixels_of_the_wrong_form_are_refused(image, units, message):
    with pytest.raises(RadiometryError, match=message):
        check_units(image, units=units, bands=2)


@pytest.mark.parametrize("looks", [1.0, 4.0, 20.0])
def test_enl_of_speckle_is_its_looks(looks):
    speckled = np.random.default_rng(3).gamma(looks, 0.02 / looks, (400, 400))
    assert enl(speckled) == pytest.approx(looks, rel=0.03)


def test_enl_leaves_out_what_is_not_finite():
    assert enl([1.0, 3.0, np.nan, np.inf]) == pytest.approx(4.0 / 2.0)
    assert enl(np.full(5, 7.0)) == math.inf
    with pytest.raises(RadiometryError, match="at least 2 valid pixels, but there are 1"):
        enl([1.0, np.nan])


@pytest.mark.parametrize("looks", [0.5, 1.0, 2.5, 4.4, 31.9])
def test_amplitude_variation_matches_the_gamma_function(looks):
    exact = looks * gamma(looks) ** 2 / gamma(looks + 0.5) ** 2 - 1
    assert amplitude_cu2(looks) == pytest.approx(exact, rel=1e-11)


def test_amplitude_variation_of_many_looks():
    assert amplitude_cu2(1.0) == pytest.approx(4 / math.pi - 1)
    assert amplitude_cu2(32.0) == pytest.approx(amplitude_cu2(31.999999), rel=1e-6)
    assert amplitude_cu2(1e9) == pytest.approx(0.25e-9, rel=1e-8)


@pytest.mark.parametrize("looks", [0.3, 1.0, 4.0, 9.99, 10.0, 250.0])
def test_bias_of_decibels_matches_digamma(looks):
    assert db_bias(looks) == pytest.approx(10 / math.log(10) * (digamma(looks) - math.log(looks)), rel=1e-9)


def test_bias_of_decibels_is_what_speckle_shows():
    assert db_bias(1.0) == pytest.approx(-2.507, abs=5e-4)
    assert db_bias(4.0) == pytest.approx(-0.565, abs=5e-4)
    speckled = np.random.default_rng(1).gamma(4.0, 0.25, 500_000)
    assert intensity_to_db(speckled).mean() == pytest.approx(db_bias(4.0), abs=0.01)


@pytest.mark.parametrize("looks", [0.0, -1.0, math.nan, math.inf])
def test_looks_must_be_positive(looks):
    for function in (db_bias, amplitude_cu2):
        with pytest.raises(RadiometryError, match="looks is .* but must be positive and finite"):
            function(looks)
