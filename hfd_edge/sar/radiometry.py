"""What SAR pixel values mean: units, validity, looks.

Everything downstream of here works on linear power (intensity) or decibels. No-data is a mask, never a
number: NaN, the declared no-data value and zero power are invalid.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hfd_edge.config import Units
from hfd_edge.errors import RadiometryError

Array = NDArray[Any]

MAX_DB = 100.0
"""Above this, values are not decibels: even the largest 16-bit amplitude, squared, is 96.3 dB."""

_DB_PER_NEPER = 10.0 / math.log(10.0)
_SQUARED_UNITS = ("dn", "amplitude", "complex")


def db_to_intensity(db: ArrayLike) -> Array:
    """Turn decibels into linear power, 10^(db / 10); any shape. NaN stays NaN, -inf becomes 0."""
    values = _floating(db)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.exp(values * values.dtype.type(1.0 / _DB_PER_NEPER)))


def intensity_to_db(intensity: ArrayLike) -> Array:
    """Turn linear power into decibels, 10 log10(intensity); any shape.

    Returns:
        Decibels, floating point. NaN where the input is NaN, zero or negative: power that is not
        positive has no logarithm, and -inf would poison every mean taken later.
    """
    values = _floating(intensity)
    with np.errstate(divide="ignore", invalid="ignore"):
        # NumPy vectorises log for float32 but not log10 on every platform.
        db = np.asarray(np.log(values))
        db *= db.dtype.type(_DB_PER_NEPER)
        positive = np.asarray(values > 0)
    if not positive.all():
        np.copyto(db, np.nan, where=~positive)
    return db


def dn_to_sigma0(dn: ArrayLike, *, calibration: ArrayLike) -> Array:
    """Calibrate digital numbers, sigma0 = dn^2 / calibration^2.

    Args:
        dn: Digital numbers proportional to amplitude; any shape. NaN stays NaN.
        calibration: Positive constant or look-up table, broadcast against `dn`. Sentinel-1: the
            interpolated `sigmaNought` vector of the annotation (`betaNought` and `gamma` give beta0 and
            gamma0). ALOS PALSAR with calibration factor CF in dB: 10^(-CF / 20).
    Returns:
        sigma0, linear power, floating point, shape of `dn`.
    Raises:
        RadiometryError: a calibration value is not positive.
    Source: ESA, Sentinel-1 product specification (radiometric calibration); Shimada et al. (2009).
    """
    scale = _floating(calibration)
    if not np.all(scale > 0):
        raise RadiometryError(
            f"Calibration holds {float(np.min(scale))}, but every value must be positive. "
            "Pass the sigmaNought look-up table, interpolated to the pixels, or one constant."
        )
    return np.asarray((_floating(dn) / scale) ** 2)


def amplitude_to_intensity(amplitude: ArrayLike) -> Array:
    """Turn amplitude (or digital numbers proportional to it) into linear power; any shape, NaN stays NaN."""
    return np.asarray(np.square(_floating(amplitude)))


def complex_to_intensity(signal: ArrayLike) -> Array:
    """Turn single-look complex samples into linear power, |z|^2; any shape.

    Raises:
        RadiometryError: the samples are real.
    """
    values = np.asarray(signal)
    if not np.iscomplexobj(values):
        raise RadiometryError(
            f"Samples are {values.dtype}, but complex ones were expected. "
            'Declare units = "amplitude" or "intensity" for detected products.'
        )
    return np.asarray(np.square(values.real) + np.square(values.imag))


def to_intensity(image: Array, *, units: Units, nodata: float | None) -> Array:
    """Bring stored pixels of any units to linear power.

    Args:
        image: Stored pixels (bands, rows, cols) in `units`; see `check_units` for what is refused.
        units: What the pixels are; not "stretched", which has no radiometry left.
        nodata: Stored value that marks no-data, if there is one.
    Returns:
        Linear power (bands, rows, cols), float64 for double-precision input, else float32. NaN in all
        bands where `valid_mask` is False or the power leaves the range of the type.
    Raises:
        RadiometryError: `units` is "stretched", or "complex" for real samples.
    """
    if units == "stretched":
        raise RadiometryError(
            'Pixels declared as "stretched" cannot be turned into intensity: the stretch is not undone. '
            'Use them without a speckle filter (speckle = "none").'
        )
    with np.errstate(over="ignore", invalid="ignore"):
        if units == "complex":
            intensity = complex_to_intensity(image)
        elif units in _SQUARED_UNITS:
            intensity = amplitude_to_intensity(image)
        elif units == "sigma0_db":
            intensity = db_to_intensity(image)
        else:
            intensity = np.array(_floating(image))
    valid = valid_mask(image, units=units, nodata=nodata)
    if units != "intensity":
        valid &= valid_mask(intensity, units="intensity", nodata=None)  # over- and underflow
    if not valid.all():
        np.copyto(intensity, np.nan, where=~valid)
    return intensity


def valid_mask(image: Array, *, units: Units, nodata: float | None) -> NDArray[np.bool_]:
    """Say which pixels hold a measurement in every band.

    Zero power is no measurement: processors fill the area outside the swath with it, and it has no
    logarithm. So zero is invalid for digital numbers, amplitude, complex and intensity, declared or not;
    for decibels and stretched products zero is a value like any other.

    Args:
        image: Stored pixels (bands, rows, cols).
        units: What the pixels are.
        nodata: Stored value that marks no-data, if there is one.
    Returns:
        (rows, cols): True where every band is finite, not `nodata`, and not zero power.
    """
    valid = np.ones(image.shape[1:], bool)
    for band in image:
        _keep_valid(valid, band, units=units, nodata=nodata)
    return valid


def check_units(image: Array, *, units: Units, bands: int, nodata: float | None = None) -> None:
    """Refuse pixels that cannot be what they are declared to be.

    Args:
        image: Stored pixels, expected as (bands, rows, cols).
        units: Declared units.
        bands: Number of bands expected.
        nodata: Stored value that marks no-data; such pixels may hold any value.
    Raises:
        RadiometryError: wrong number of axes or bands, no pixels, complex or real samples against the
            declaration, negative linear values (probably decibels), or decibels beyond `MAX_DB`
            (probably linear).
    """
    if image.ndim != 3:
        raise RadiometryError(
            f"Image has shape {image.shape}, but (bands, rows, cols) was expected. "
            "Add the band axis with image[None], or move it first with numpy.moveaxis(image, -1, 0)."
        )
    if image.shape[0] != bands:
        raise RadiometryError(
            f"Image has {image.shape[0]} bands (shape {image.shape}), but {bands} were expected. "
            "Select the bands in the order that the data set or bundle names."
        )
    if image.size == 0:
        raise RadiometryError(f"Image has shape {image.shape}, which holds no pixels.")
    _check_kind(image, units)
    if image.dtype.kind == "u" and units != "sigma0_db":
        return
    if units in ("dn", "amplitude", "intensity"):
        _check_positive(image, units, nodata)
    elif units == "sigma0_db":
        _check_db(image, nodata)


def enl(intensity: ArrayLike) -> float:
    """Estimate the equivalent number of looks of a homogeneous area, mean^2 / variance.

    Args:
        intensity: Linear power of an area with one backscatter; any shape. Non-finite values are left out.
    Returns:
        Looks; infinity for a constant area. The variance is the unbiased one (n - 1).
    Raises:
        RadiometryError: fewer than two finite values.
    """
    values = np.asarray(intensity, np.float64)
    values = values[np.isfinite(values)]
    if values.size < 2:
        raise RadiometryError(
            f"ENL needs at least 2 valid pixels, but there are {values.size}. Choose a larger area."
        )
    variance = float(values.var(ddof=1))
    return float(values.mean()) ** 2 / variance if variance > 0 else math.inf


def amplitude_cu2(looks: float) -> float:
    """Squared coefficient of variation of speckled amplitude, L Gamma(L)^2 / Gamma(L + 1/2)^2 - 1.

    Intensity has 1 / L. Single-look amplitude has 4 / pi - 1 = 0.273.

    Raises:
        RadiometryError: looks is not positive and finite.
    """
    check_looks(looks)
    if looks < 32:
        log_ratio = math.log(looks) + 2.0 * (math.lgamma(looks) - math.lgamma(looks + 0.5))
    else:
        # lgamma's own rounding would swallow the result (about 1 / 4L), so take the asymptotic series
        # of Gamma(L + 1/2) / (sqrt(L) Gamma(L)).
        x = 1.0 / looks
        log_ratio = -2.0 * math.log1p(x * (-1 / 8 + x * (1 / 128 + x * (5 / 1024 - x * 21 / 32768))))
    return math.expm1(log_ratio)


def db_bias(looks: float) -> float:
    """Mean of speckled decibels minus decibels of the mean, (10 / ln 10) (psi(L) - ln L).

    Filtering before the logarithm removes it; averaging decibels does not. -2.507 dB for one look.

    Raises:
        RadiometryError: looks is not positive and finite.
    """
    check_looks(looks)
    return _DB_PER_NEPER * _digamma_minus_log(looks)


def _digamma_minus_log(x: float) -> float:
    """psi(x) - ln x: recurrence up to 10, then the asymptotic series (Abramowitz & Stegun 6.3.5, 6.3.18)."""
    shifted, recurrence = x, 0.0
    while shifted < 10.0:
        recurrence -= 1.0 / shifted
        shifted += 1.0
    y = 1.0 / (shifted * shifted)
    tail = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    return recurrence - 0.5 / shifted - tail + math.log(shifted / x)


def _floating(values: ArrayLike) -> Array:
    """Floating-point view or copy: float32 where that holds the type's values, else float64."""
    array = np.asarray(values)
    return np.asarray(array, np.result_type(array.dtype, np.float32))


def _keep_valid(valid: NDArray[np.bool_], band: Array, *, units: Units, nodata: float | None) -> None:
    if band.dtype.kind in "fc":
        valid &= np.isfinite(band)
    if units in _SQUARED_UNITS:
        valid &= band != 0
    elif units == "intensity":
        valid &= band > 0
    excluded = nodata == 0 and (units in _SQUARED_UNITS or units == "intensity")
    if nodata is not None and not excluded:
        with np.errstate(over="ignore"):  # a float64 no-data value may not fit float32: it never occurs then
            valid &= band != nodata


def _check_kind(image: Array, units: Units) -> None:
    if units == "complex" and image.dtype.kind != "c":
        raise RadiometryError(
            f'Image is {image.dtype}, but units "complex" were declared. '
            'Declare "amplitude", "intensity" or "sigma0_db" for detected products.'
        )
    if units != "complex" and image.dtype.kind == "c":
        raise RadiometryError(
            f'Image is {image.dtype}, but units "{units}" were declared, which are real. '
            'Declare units = "complex", or convert it with hfd_edge.sar.complex_to_intensity.'
        )
    if image.dtype.kind not in "uifc":
        raise RadiometryError(
            f"Image is {image.dtype}, but integer, floating-point or complex pixels were expected."
        )


def _check_positive(image: Array, units: Units, nodata: float | None) -> None:
    if not np.fmin.reduce(image, axis=None) < 0:
        return
    values = _measured(image, nodata)
    if values.size and (lowest := float(values.min())) < 0:
        raise RadiometryError(
            f"Image holds negative values (lowest {lowest:.6g}), but {units} is never negative: it is "
            "probably in dB. Convert it with hfd_edge.sar.db_to_intensity, or declare "
            'units = "sigma0_db" (and the no-data value, if there is one).'
        )


def _check_db(image: Array, nodata: float | None) -> None:
    if not np.fmax.reduce(image, axis=None) > MAX_DB:
        return
    values = _measured(image, nodata)
    if values.size and (highest := float(values.max())) > MAX_DB:
        raise RadiometryError(
            f"Image holds values up to {highest:.6g}, but decibels stay below {MAX_DB:g}: it is probably "
            'linear. Declare units = "intensity", "amplitude" or "dn" (and the no-data value, if there is '
            "one), or convert it with hfd_edge.sar.intensity_to_db."
        )


def _measured(image: Array, nodata: float | None) -> Array:
    """The finite values that are not no-data, flat; only taken when a check is about to fail."""
    values = image[np.isfinite(image)]
    if nodata is not None:
        with np.errstate(over="ignore"):
            values = values[values != nodata]
    return values


def check_looks(looks: float) -> None:
    """Refuse a number of looks that is not positive and finite. Raises RadiometryError."""
    if not (looks > 0 and math.isfinite(looks)):
        raise RadiometryError(f"looks is {looks}, but must be positive and finite; 1 is single-look.")
