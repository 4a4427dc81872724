"""Where on Earth a scene lies: CRS and transform, ground control points, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC

Transform = tuple[float, float, float, float, float, float]
SAME_GRID_PX = 0.1
"""Grids that differ by less are one: coordinates rounded to decimetres do, misregistered images do not."""


class Gcp(NamedTuple):
    """A ground control point: where a pixel (fractional row, col) lies, in the GCPs' CRS."""

    row: float
    col: float
    x: float
    y: float
    z: float = 0.0


@dataclass(frozen=True)
class Georeference:
    """The georeference of a scene; everything None or empty when it has none.

    Attributes:
        crs: Coordinate reference system of `transform`, as WKT.
        transform: (a, b, c, d, e, f) with x = a col + b row + c and y = d col + e row + f, in units of
            the CRS; pixel corners, as GDAL counts them.
        gcps: Ground control points; Sentinel-1 GRD scenes carry these instead of a transform.
        gcps_crs: Coordinate reference system of `gcps`, as WKT.
        rpcs: Rational polynomial coefficients as (GDAL key, text) pairs.
    """

    crs: str | None = None
    transform: Transform | None = None
    gcps: tuple[Gcp, ...] = ()
    gcps_crs: str | None = None
    rpcs: tuple[tuple[str, str], ...] = ()


def read_georeference(dataset: Any) -> Georeference:
    """Collect the georeference of an open rasterio dataset."""
    points, gcps_crs = dataset.gcps
    transform = dataset.transform
    return Georeference(
        crs=dataset.crs.to_wkt() if dataset.crs else None,
        # Without a georeference GDAL reports the identity.
        transform=None if transform == Affine.identity() else tuple(transform)[:6],
        gcps=tuple(Gcp(point.row, point.col, point.x, point.y, point.z or 0.0) for point in points),
        gcps_crs=gcps_crs.to_wkt() if points and gcps_crs else None,
        rpcs=tuple(sorted(dataset.rpcs.to_gdal().items())) if dataset.rpcs else (),
    )


def grid_difference(first: Georeference, second: Georeference, *, rows: int, cols: int) -> str | None:
    """Say how the pixel grids of two images of one size differ on the ground.

    Args:
        first: Its pixels are the unit of the distance.
        second: The other one.
        rows: Height of both, pixels.
        cols: Width of both, pixels.
    Returns:
        The difference in words; None when corners agree within `SAME_GRID_PX`, or when one of them has no
        CRS or transform and nothing can be said.
    """
    if first.crs and second.crs:
        one, other = CRS.from_wkt(first.crs), CRS.from_wkt(second.crs)
        if one != other:
            return f"CRS {other.to_string()[:60]} instead of {one.to_string()[:60]}"
    if first.transform is None or second.transform is None:
        return None
    a, b, _, d, e, _ = first.transform
    if not (area := a * e - b * d):
        return None
    worst = 0.0
    for col, row in ((0, 0), (cols, 0), (0, rows), (cols, rows)):
        x0, y0 = _place(first.transform, col, row)
        x1, y1 = _place(second.transform, col, row)
        x, y = x1 - x0, y1 - y0
        worst = max(worst, abs(e * x - b * y) / abs(area), abs(a * y - d * x) / abs(area))
    return f"corners up to {worst:.3g} pixels away" if worst > SAME_GRID_PX else None


def _place(transform: Transform, col: float, row: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return a * col + b * row + c, d * col + e * row + f


def write_georeference(dataset: Any, georeference: Georeference) -> None:
    """Give a rasterio dataset that is open for writing this georeference."""
    if georeference.gcps:
        points = [
            GroundControlPoint(row=point.row, col=point.col, x=point.x, y=point.y, z=point.z)
            for point in georeference.gcps
        ]
        dataset.gcps = (points, CRS.from_wkt(georeference.gcps_crs) if georeference.gcps_crs else CRS())
    else:  # GDAL keeps one or the other in a GeoTIFF
        if georeference.crs is not None:
            dataset.crs = CRS.from_wkt(georeference.crs)
        if georeference.transform is not None:
            dataset.transform = Affine(*georeference.transform)
    if georeference.rpcs:
        dataset.rpcs = RPC.from_gdal(dict(georeference.rpcs))
