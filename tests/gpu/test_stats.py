"""The statistics kernels against the float64 definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfd_edge.config import Units
from hfd_edge.errors import BackendError
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Plane
from hfd_edge.runtime.launch_stats import LOOKS_BINS, STEPS, Stats
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.statistics import FrameStatistics, frame_statistics

from ..sar.test_statistics import chain, speckled
from .arrays import Arrays

pytestmark = pytest.mark.gpu


def described(
    device: Device,
    image: NDArray[Any],
    preprocessing: Preprocessing,
    *,
    half: bool = False,
    shift: int = 0,
    parts: tuple[int, ...] = (0,),
) -> FrameStatistics:
    """Statistics from the kernels; the frame comes in parts that start at these rows.

    Rows are aligned to four pixels unless `shift` moves them.
    """
    arrays = Arrays(device)
    pad = -image.shape[2] % 4
    stats = Stats(Kernels(device), device.limits, preprocessing, half=half)
    pixels, valid = preprocessing(image)
    counters = arrays.room(stats.nbytes)
    stats.reset(arrays.stream, counters)
    dtype = np.float16 if half else np.float32
    for start, stop in zip(parts, (*parts[1:], image.shape[1]), strict=True):
        rows = slice(start, stop)
        stats(
            arrays.stream,
            arrays.plane(image[:, rows], pad=pad, shift=shift),
            dtype=image.dtype,
            shape=image[:, rows].shape,
            pixels=arrays.plane(pixels[:, rows].astype(dtype), pad=pad, shift=shift),
            valid=arrays.plane(valid[rows].astype(np.uint8), pad=pad, shift=shift),
            counters=counters,
        )
    return stats.read(arrays.get(counters, stats.nbytes, np.uint8))


def assert_close(
    found: FrameStatistics, expected: FrameStatistics, preprocessing: Preprocessing, *, half: bool = False
) -> None:
    """Within the quantisation that the kernel states, and that of the network's input."""
    assert found.valid == expected.valid
    # A value that lies on the edge of a bin may be counted on its other side.
    moved = np.abs(np.cumsum(found.histogram - expected.histogram, axis=1)).max()
    assert moved <= (0.02 if half else 0.001) * max(expected.valid, 1000)
    low, high = preprocessing.clip[0]
    tolerance = 4e-4 * preprocessing.std[0] if half else (high - low) / STEPS
    np.testing.assert_allclose(found.mean, expected.mean, atol=tolerance)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=2e-3 if half else 1e-4, atol=1e-6)
    np.testing.assert_allclose(found.log_enl, expected.log_enl, atol=4 / LOOKS_BINS)


def stored(units: Units, dtype: Any) -> NDArray[Any]:
    """A frame of 40 x 83 pixels of two bands, with no-data, as a product of these units stores it."""
    power = speckled(40, 83)
    power[:, :, 30:] *= 30
    if units == "complex":
        image = np.sqrt(power) * np.exp(1j * np.linspace(0, 6, 83))
    elif units in ("dn", "amplitude"):
        image = np.sqrt(power) * 100
    elif units == "sigma0_db":
        image = 10 * np.log10(power)
    else:
        image = power * (20 if units == "stretched" else 1)
    image = image.astype(dtype)
    image[0, 3:9, 60:70] = 0
    if image.dtype.kind == "f":
        image[1, 33, 2] = np.nan
    return image


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("units", "dtype"),
    [
        ("intensity", np.float32),
        ("dn", np.uint16),
        ("amplitude", np.float32),
        ("stretched", np.uint8),
        ("complex", np.complex64),
        ("sigma0_db", np.float32),
    ],
)
def test_equals_the_float64_definition(
    device: Device, units: Units, dtype: Any, shift: int, half: bool
) -> None:
    image, preprocessing = stored(units, dtype), chain(units)
    if units in ("dn", "amplitude"):
        preprocessing = replace(preprocessing, clip=((10.0, 50.0),) * 2, mean=(28.0, 28.0))
    found = described(device, image, preprocessing, half=half, shift=shift)
    assert_close(found, frame_statistics(image, preprocessing), preprocessing, half=half)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (9, 8), (16, 259), (64, 7)])
def test_any_size(device: Device, shape: tuple[int, int]) -> None:
    image = speckled(*shape)
    found = described(device, image, chain())
    assert_close(found, frame_statistics(image, chain()), chain())


def test_parts_add_up_to_the_whole(device: Device) -> None:
    image = stored("intensity", np.float32)
    whole, parts = described(device, image, chain()), described(device, image, chain(), parts=(0, 8, 24))
    assert np.array_equal(parts.histogram, whole.histogram)
    assert (parts.mean, parts.variance, parts.log_enl) == (whole.mean, whole.variance, whole.log_enl)


def test_nothing_valid_and_nothing_varying(device: Device) -> None:
    empty = described(device, np.zeros((2, 16, 16), np.float32), chain())
    assert empty.valid == 0 and np.isnan([empty.mean, empty.variance, empty.log_enl]).all()
    constant = described(device, np.full((2, 16, 16), 0.3, np.float32), chain())
    assert constant.variance == (0, 0) and np.isnan(constant.log_enl).all()


def test_refuses_other_types_and_shapes(device: Device) -> None:
    stats = Stats(Kernels(device), device.limits, chain(), half=False)
    plane, stream = Plane(0, 8, 64), device.stream()
    where: dict[str, Any] = {"pixels": plane, "valid": plane, "counters": 0}
    with pytest.raises(BackendError, match='given float64 pixels for units "intensity", but takes'):
        stats(stream, plane, dtype=np.dtype(np.float64), shape=(2, 8, 8), **where)
    with pytest.raises(BackendError, match=r"The frame is \(1, 8, 8\), expected 2 bands"):
        stats(stream, plane, dtype=np.dtype(np.float32), shape=(1, 8, 8), **where)
    with pytest.raises(BackendError, match="There are 17 bands, but the GPU kernels take 16 at most"):
        Stats(Kernels(device), device.limits, chain(bands=17), half=False)
