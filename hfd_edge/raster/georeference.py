"""Where on Earth a scene lies: CRS and transform, ground control points, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC


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
    transform: tuple[float, float, float, float, float, float] | None = None
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
