"""Polygons into label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize


def fill_polygons(
    polygons: Sequence[Sequence[NDArray[Any]]], *, rows: int, cols: int, value: int = 1
) -> NDArray[np.uint8]:
    """Draw polygons into a map of zeros; a pixel belongs to a polygon that covers its centre.

    Args:
        polygons: Rings of each, the outline first and then its holes; points (n, 2) as x (column) and y (row)
            in pixels, (0, 0) at the upper left corner of the first pixel. They may reach outside the map.
        rows: Height of the map.
        cols: Width of the map.
        value: Label of what is covered.
    Returns:
        (rows, cols).
    """
    shapes = [
        ({"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]}, value) for rings in polygons
    ]
    if not shapes:
        return np.zeros((rows, cols), np.uint8)
    return np.asarray(rasterize(shapes, out_shape=(rows, cols), fill=0, dtype="uint8"))
