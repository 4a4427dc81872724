"""Whole images in and out: PNG and TIFF tiles of data folders, and golden tiles of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.errors import RasterError
from hfd_edge.files import write_bytes
from hfd_edge.raster.georeference import Georeference
from hfd_edge.raster.png import inspect_png, is_png
from hfd_edge.raster.scene import SceneReader, SceneWriter

Array = NDArray[Any]

_TIFF_TYPES = {
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64", "complex128",
}  # fmt: skip


def read_image(path: Path | str) -> Array:
    """Read a PNG or TIFF as it is stored.

    Samples are never scaled or converted: palette images give their indices, images of fewer than 8 bits
    give 0, 1, ... (both are common for labels).

    Args:
        path: File; its content, not its name, decides the format.
    Returns:
        Pixels (bands, rows, cols); colour bands in the order red, green, blue, alpha.
    Raises:
        RasterError: there is no such file, or it is truncated, damaged or not an image.
    """
    path = Path(path)
    if path.is_file() and is_png(path):
        info = inspect_png(path)
        # OpenCV is several times faster on small tiles, but it expands palettes and small depths.
        if info.color_type in (0, 2, 6) and info.bit_depth >= 8 and not info.transparent:
            return _read_png(path)
    with SceneReader(path) as scene:
        return scene.read(0, scene.rows)


def read_sar(path: Path | str, *, nodata: float | None) -> Array:
    """Read a SAR image as `read_image` does, with `SceneReader.read_sar`'s view of no-data.

    Training and runtime both read through it, so a tag in a GeoTIFF means the same to both.
    """
    path = Path(path)
    if path.is_file() and is_png(path):
        return read_image(path)
    with SceneReader(path) as scene:
        return scene.read_sar(0, scene.rows, nodata=nodata)


def georeference_of(path: Path | str) -> Georeference:
    """Where an image lies; empty for PNG. Raises RasterError: there is no such file, or it is damaged."""
    path = Path(path)
    if path.is_file() and is_png(path):
        return Georeference()
    with SceneReader(path) as scene:
        return scene.georeference


def write_image(
    path: Path | str,
    array: Array,
    *,
    georeference: Georeference | None = None,
    nodata: float | None = None,
) -> None:
    """Write an image whole or not at all; an existing one is replaced.

    Args:
        path: File ending in .png (uint8 or uint16; 1, 3 or 4 bands) or .tif (deflated GeoTIFF).
        array: Pixels (bands, rows, cols), or (rows, cols) for one band; TIFF takes integers up to 32
            bits, floats and complex values. Colour bands in the order red, green, blue, alpha.
        georeference: Where the image lies; GeoTIFF only.
        nodata: Value to declare as no-data; GeoTIFF only.
    Raises:
        RasterError: the format cannot hold this array.
        StorageError: the disk is full, or the folder cannot be written.
    """
    path, array = Path(path), np.asarray(array)
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.ndim != 3 or 0 in array.shape:
        raise RasterError(
            f"Cannot write {path}: the array is {array.shape}, expected (bands, rows, cols), none empty."
        )
    suffix = path.suffix.lower()
    if suffix == ".png":
        if georeference is not None or nodata is not None:
            raise RasterError(
                f"Cannot write {path}: PNG keeps neither georeference nor no-data. Write a .tif instead."
            )
        write_bytes(path, _encode_png(path, array))
    elif suffix in {".tif", ".tiff"}:
        _write_tiff(path, array, georeference, nodata)
    else:
        raise RasterError(f"Cannot write {path}: {suffix or 'no ending'!r} is neither .png nor .tif.")


def _read_png(path: Path) -> Array:
    # imdecode rather than imread: imread cannot open every path on every platform.
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise RasterError(f"{path} cannot be decoded as PNG. Copy or download it again.")
    if image.ndim == 2:
        return image[np.newaxis]
    order = [2, 1, 0, 3][: image.shape[2]]  # OpenCV keeps blue first
    return np.ascontiguousarray(np.moveaxis(image, 2, 0)[order])


def _encode_png(path: Path, array: Array) -> bytes:
    bands = len(array)
    if array.dtype not in (np.uint8, np.uint16) or bands not in (1, 3, 4):
        raise RasterError(
            f"Cannot write {path}: PNG holds uint8 or uint16 in 1, 3 or 4 bands, this is {array.dtype} in "
            f"{bands}. Write a .tif instead."
        )
    order = [0] if bands == 1 else [2, 1, 0, 3][:bands]
    ok, content = cv2.imencode(".png", np.ascontiguousarray(np.moveaxis(array[order], 0, 2)))
    if not ok:
        raise RasterError(f"Cannot write {path}: OpenCV could not encode {array.dtype} {array.shape} as PNG.")
    return content.tobytes()


def _write_tiff(path: Path, array: Array, georeference: Georeference | None, nodata: float | None) -> None:
    if array.dtype.name not in _TIFF_TYPES:
        raise RasterError(
            f"Cannot write {path}: GeoTIFF cannot hold {array.dtype}. Convert the array to one of "
            f"{', '.join(sorted(_TIFF_TYPES))}."
        )
    bands, rows, cols = array.shape
    with SceneWriter(
        path,
        bands=bands,
        rows=rows,
        cols=cols,
        dtype=array.dtype.newbyteorder("="),
        georeference=georeference,
        nodata=nodata,
    ) as writer:
        writer.write_rows(0, array.astype(array.dtype.newbyteorder("="), copy=False))
