"""The check before the timing: a model that computes something else has no latency worth a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bench.result import Golden
from hfd_edge.bundle import Bundle, GoldenTile
from hfd_edge.raster.tiling import mirrored
from hfd_edge.runtime.agreement import Required
from hfd_edge.runtime.selftest_kernels import stored_frame


@dataclass(frozen=True)
class Inputs:
    """What is timed.

    Attributes:
        tile: Stored pixels (bands, tile_px, tile_px).
        golden: Golden tiles of the bundle; may be none.
    """

    tile: NDArray[Any]
    golden: tuple[GoldenTile, ...]


def load_inputs(bundle: Bundle) -> Inputs:
    """Take the first golden tile, gone on as its mirror image or cut; a simulated one where there is none.

    Raises:
        BundleError: a golden tile is missing or was changed.
    """
    side, golden = bundle.manifest.tile_px, tuple(bundle.golden())
    image = golden[0].image if golden else stored_frame(bundle.manifest.preprocessing, side, side)
    return Inputs(grown(image, side), golden)


def grown(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Cut a square (bands, side, side) of an image that goes on as its own mirror image."""
    rows, cols = (np.concatenate((np.arange(size), mirrored(size, side)))[:side] for size in image.shape[1:])
    return np.ascontiguousarray(image[:, rows][:, :, cols])


def check_golden(
    inputs: Inputs, segment: Callable[[NDArray[Any]], NDArray[np.uint8]], *, required: Required, nodata: int
) -> Golden:
    """Compare a variant's labels of the golden tiles with the bundle's, where either has data.

    Args:
        inputs: The tiles.
        segment: Stored pixels to labels.
        required: What is asked of the variant.
        nodata: Label of pixels without data.
    """
    same = seen = 0
    for tile in inputs.golden:
        labels = segment(tile.image)
        valid = (tile.labels != nodata) | (labels != nodata)
        same += int(np.count_nonzero((labels == tile.labels) & valid))
        seen += int(np.count_nonzero(valid))
    return Golden(
        tiles=len(inputs.golden),
        agreement=same / seen if seen else None,
        required=required.share,
    )


def golden_doubt(golden: Golden, required: Required) -> str | None:
    """Say whether the output is wrong; None where it is right or cannot be checked."""
    if golden.agreement is None or golden.agreement >= required.share:
        return None
    return (
        f"wrong output: {golden.agreement:.2%} of the labels of {golden.tiles} golden tiles are right, "
        f"{required.text}. Nothing was timed; hfd-edge selftest says more."
    )
