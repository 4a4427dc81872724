"""The tiles kernel against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.raster.tiling import mirrored
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Plane
from hfd_edge.runtime.launch_logits import TILES_AT_ONCE, CutTiles

from .arrays import Arrays

pytestmark = pytest.mark.gpu


def cut(strip: NDArray[Any], origins: list[int], tile_px: int) -> NDArray[Any]:
    """Mirror a strip down and to the right, and cut tiles, as `runtime` does on the CPU."""
    _, rows, cols = strip.shape
    padded = max(origins) + tile_px
    down = np.concatenate((np.arange(rows), mirrored(rows, tile_px)))[:tile_px]
    right = np.concatenate((np.arange(cols), mirrored(cols, padded)))[:padded]
    whole = strip[:, down][:, :, right]
    return np.stack([whole[:, :, origin : origin + tile_px] for origin in origins])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "origins", "first_row", "pad"),
    [
        ((2, 32, 96), [0, 32, 64], 0, 0),
        ((1, 20, 61), [0, 32], 7, 3),  # unaligned rows, mirrored below and right
        ((3, 5, 9), [0], 2, 3),  # mirrored several times
        ((1, 1, 1), [0], 0, 0),
        ((2, 32, 90), [0, 17, 64], 0, 2),  # an origin off the lattice
    ],
)
def test_equals_numpy_bit_for_bit(
    device: Device, shape: tuple[int, int, int], origins: list[int], first_row: int, pad: int, dtype: Any
) -> None:
    arrays = Arrays(device)
    bands, used, cols = shape
    buffer = np.random.default_rng(1).normal(size=(bands, first_row + used, cols)).astype(dtype)
    buffer[0, -1, -1] = np.nan
    out = arrays.room(len(origins) * bands * 32 * 32 * buffer.itemsize)
    CutTiles(Kernels(device), device.limits)(
        arrays.stream,
        arrays.plane(buffer, pad=pad),
        half=dtype == np.float16,
        shape=shape,
        first_row=first_row,
        origins=origins,
        tile_px=32,
        out_address=out,
    )
    found = arrays.get(out, (len(origins), bands, 32, 32), dtype)
    np.testing.assert_array_equal(found, cut(buffer[:, first_row:], origins, 32))


def test_more_tiles_than_one_launch_takes(device: Device) -> None:
    arrays = Arrays(device)
    origins = list(range(0, 4 * (TILES_AT_ONCE + 3), 4))
    strip = np.random.default_rng(2).normal(size=(1, 4, origins[-1] + 1)).astype(np.float32)
    out = arrays.room(len(origins) * 64)
    CutTiles(Kernels(device), device.limits)(
        arrays.stream,
        arrays.plane(strip),
        half=False,
        shape=strip.shape,
        first_row=0,
        origins=origins,
        tile_px=4,
        out_address=out,
    )
    assert np.array_equal(arrays.get(out, (len(origins), 1, 4, 4), np.float32), cut(strip, origins, 4))


@pytest.mark.parametrize(
    ("shape", "tile_px", "address"), [((1, 0, 4), 32, 0), ((1, 4, 4), 30, 0), ((1, 4, 4), 32, 8)]
)
def test_refuses_sizes(device: Device, shape: tuple[int, int, int], tile_px: int, address: int) -> None:
    with pytest.raises(BackendError, match=rf"Tiles of {tile_px} pixels cannot be cut from .* multiple of 4"):
        CutTiles(Kernels(device), device.limits)(
            Arrays(device).stream,
            Plane(0, 4, 16),
            half=False,
            shape=shape,
            first_row=0,
            origins=[0],
            tile_px=tile_px,
            out_address=address,
        )
