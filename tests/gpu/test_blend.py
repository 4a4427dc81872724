"""The blend kernel against the blender of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.raster.tiling import LogitsBlender, TilePlan, blend_weights
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch_logits import BLENDED_AT_ONCE, Blend

from .arrays import Arrays

pytestmark = pytest.mark.gpu


class BandOfTiles:
    """Blends rows of tiles of a plan on the device, in two bands that take turns."""

    def __init__(self, device: Device, plan: TilePlan, *, classes: int, stride: int) -> None:
        self.arrays, self.plan, self.stride = Arrays(device), plan, stride
        self.blend = Blend(Kernels(device), device.limits)
        self.size = plan.tile_px // stride
        sizes = {"tile_px": plan.tile_px, "overlap_px": plan.overlap_px, "stride": stride}
        self.rows = blend_weights(plan.row_origins, **sizes)
        self.cols = self.arrays.put(blend_weights(plan.col_origins, **sizes))
        self.shape = (classes, 1 + self.size, plan.padded_cols // stride)
        nbytes = 4 * int(np.prod(self.shape))
        self.bands = [self.arrays.room(nbytes), self.arrays.room(nbytes)]

    def __call__(self, row: int, logits: NDArray[Any], wanted: list[int]) -> NDArray[np.float32]:
        """Add a row of tiles (n, classes, size, size), of which only columns `wanted` are there."""
        origins = self.plan.row_origins
        shift = (origins[row] - origins[row - 1]) // self.stride if row else 0
        address = self.bands[row % 2]
        self.blend(
            self.arrays.stream,
            self.bands[1 - row % 2] if row else None,
            shift,
            self.arrays.put(logits) if len(logits) else 0,
            half=logits.dtype == np.float16,
            classes=self.shape[0],
            size=self.size,
            origins=[self.plan.col_origins[col] // self.stride for col in wanted],
            columns=wanted,
            row_weights_address=self.arrays.put(self.rows[row]),
            col_weights_address=self.cols,
            band_address=address,
            band_cols=self.shape[2],
        )
        return self.arrays.get(address, self.shape, np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("rows", "cols", "tile_px", "overlap_px", "stride"),
    [(150, 310, 64, 32, 4), (70, 100, 32, 0, 1), (40, 30, 64, 32, 4), (200, 64, 128, 64, 4)],
)
def test_equals_the_blender_of_the_cpu(
    device: Device, rows: int, cols: int, tile_px: int, overlap_px: int, stride: int, dtype: Any
) -> None:
    plan = TilePlan(rows, cols, tile_px=tile_px, overlap_px=overlap_px)
    reference = LogitsBlender(plan, classes=3, stride=stride)
    blended = BandOfTiles(device, plan, classes=3, stride=stride)
    rng = np.random.default_rng(rows)
    for row in range(len(plan.row_origins)):
        # Tiles without data are left out, as on the CPU; the second row of tiles has none at all.
        wanted = [col for col in range(len(plan.col_origins)) if row != 1 and (col + row) % 4 != 3]
        logits = rng.normal(size=(len(wanted), 3, blended.size, blended.size)).astype(dtype)
        for col, tile in zip(wanted, logits, strict=True):
            reference.add(col, tile.astype(np.float32))
        found = blended(row, logits, wanted)
        done = reference.finished()
        first = 1 - (done.first < plan.row_origins[row] // stride)
        expected = done.logits
        np.testing.assert_allclose(
            found[:, first : first + expected.shape[1]], expected, rtol=1e-5, atol=1e-6
        )
        reference.advance()


def test_the_discarded_border_is_never_read(device: Device) -> None:
    plan = TilePlan(64, 96, tile_px=64, overlap_px=32)
    blended = BandOfTiles(device, plan, classes=2, stride=4)
    logits = np.ones((2, 2, 16, 16), np.float32)
    logits[0, ..., -3:] = np.nan  # the outer 3/8 of the overlap weigh nothing
    logits[1, ..., :3] = np.nan
    np.testing.assert_allclose(blended(0, logits, [0, 1])[:, 1:], 1, rtol=1e-6)


def test_more_tiles_than_one_launch_takes(device: Device) -> None:
    plan = TilePlan(32, 32 * (BLENDED_AT_ONCE + 5), tile_px=32, overlap_px=0)
    blended = BandOfTiles(device, plan, classes=1, stride=4)
    count = len(plan.col_origins)
    logits = np.random.default_rng(3).normal(size=(count, 1, 8, 8)).astype(np.float32)
    expected = logits[:, 0].transpose(1, 0, 2).reshape(8, -1)
    found = blended(0, logits, list(range(count)))[0]
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6)
    assert not found[0].any()


def test_refuses_tiles_outside_the_band(device: Device) -> None:
    plan = TilePlan(64, 96, tile_px=64, overlap_px=32)
    blended = BandOfTiles(device, plan, classes=2, stride=4)
    logits = np.ones((2, 2, 16, 16), np.float32)
    with pytest.raises(
        BackendError, match=r"2 tiles of 16 x 16 logits at columns \[8, 0\].* band of 24 columns"
    ):
        blended(0, logits, [1, 0])
