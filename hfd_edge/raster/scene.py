"""Reading and writing rasters of any size by windows of rows; the only place that opens GDAL data sets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import DTypeLike, NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from hfd_edge.errors import RasterError
from hfd_edge.raster.georeference import Gcp, Georeference, read_georeference, write_georeference
from hfd_edge.raster.geotiff import (
    BLOCK_PX,
    GDAL_ERRORS,
    LARGEST_CACHE,
    GeoTiff,
    cache_limit,
    cause,
    geotiff_profile,
    quiet,
)
from hfd_edge.raster.png import inspect_png, is_png

__all__ = ["Gcp", "Georeference", "MaskWriter", "SceneReader", "SceneWriter"]

Array = NDArray[Any]

_SMALLEST_CACHE = 32 << 20


class SceneReader:
    """A raster file opened for reading by windows; use it in a `with` statement.

    While the `with` block runs, GDAL's block cache is limited to what sequential reading needs.

    Attributes:
        path: The file.
        bands: Number of bands.
        rows: Height, pixels.
        cols: Width, pixels.
        dtype: NumPy type that `read` gives.
        nodata: Value that the file itself declares as no-data, or None.
        georeference: Where the scene lies.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a scene.

        Raises:
            RasterError: there is no such file, it is not a raster, or a PNG is truncated.
        """
        self.path = Path(path)
        self._dataset = _open_for_reading(self.path)
        self.bands: int = self._dataset.count
        self.rows: int = self._dataset.height
        self.cols: int = self._dataset.width
        # complex_int16 (single-look complex products) has no NumPy type; GDAL converts it when reading.
        self.dtype = np.result_type(*(name.replace("_int16", "64") for name in self._dataset.dtypes))
        self.nodata: float | None = self._dataset.nodata
        self.georeference = read_georeference(self._dataset)
        self._environment = ExitStack()

    @classmethod
    def open(cls, path: Path | str) -> SceneReader:
        """Open a scene: the constructor under the name that `Bundle.open` has. Raises RasterError."""
        return cls(path)

    def read(self, row0: int, row1: int, col0: int = 0, col1: int | None = None) -> Array:
        """Read a window of all bands.

        Args:
            row0: First row.
            row1: Row after the last one.
            col0: First column.
            col1: Column after the last one; None reads to the end of the row.
        Returns:
            Stored values (bands, row1 - row0, col1 - col0).
        Raises:
            RasterError: the file is truncated or damaged there.
            ValueError: the window is not inside the scene.
        """
        col1 = self.cols if col1 is None else col1
        if not (0 <= row0 < row1 <= self.rows and 0 <= col0 < col1 <= self.cols):
            raise ValueError(
                f"rows {row0} to {row1}, columns {col0} to {col1} are not inside {self.path} "
                f"({self.rows} x {self.cols})"
            )
        try:
            window = Window(col0, row0, col1 - col0, row1 - row0)
            if len(set(self._dataset.dtypes)) == 1:
                return self._dataset.read(window=window)
            # A VRT may stack files of different types, which rasterio does not read in one call.
            bands = [self._dataset.read(index, window=window) for index in self._dataset.indexes]
            return np.stack(bands).astype(self.dtype, copy=False)
        except GDAL_ERRORS as error:
            raise RasterError(
                f"{self.path} cannot be read at rows {row0} to {row1 - 1} of {self.rows}: "
                f"{cause(error)}. The file is probably truncated or damaged: copy or download it again."
            ) from error

    def close(self) -> None:
        """Close the file; reading is over."""
        self._dataset.close()

    def __enter__(self) -> SceneReader:
        height = max(shape[0] for shape in self._dataset.block_shapes)
        block_row = height * self.cols * self.bands * self.dtype.itemsize
        cache = min(max(block_row * 3 // 2, _SMALLEST_CACHE), LARGEST_CACHE)
        self._environment.enter_context(cache_limit(cache))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._environment.close()

    def read_sar(self, row0: int, row1: int, *, nodata: float | None) -> Array:
        """Read rows; no-data that the file itself declares becomes NaN where it is another value.

        Args:
            row0: First row.
            row1: Row after the last.
            nodata: What is called no-data already; it stays as it is.
        Returns:
            Stored values (bands, row1 - row0, cols); integers become floats where NaN is needed.
        Raises:
            RasterError: the file is truncated or damaged there.
        """
        values = self.read(row0, row1)
        declared = self.nodata
        if declared is None or np.isnan(declared) or declared == nodata:
            return values
        if np.issubdtype(values.dtype, np.integer):
            values = values.astype(np.result_type(values.dtype, np.float32))
        values[values == values.dtype.type(declared)] = np.nan
        return values


class SceneWriter:
    """A GeoTIFF written from top to bottom; use it in a `with` statement.

    The file appears under its name when the block ends without an exception, and is read back once
    before that: GDAL reports some failed writes only to its log. Otherwise nothing is left behind.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        bands: int,
        rows: int,
        cols: int,
        dtype: DTypeLike,
        georeference: Georeference | None = None,
        nodata: float | None = None,
    ) -> None:
        """Describe the file; it is made on entering the `with` block.

        Args:
            path: File to write; an existing one is replaced.
            bands: Number of bands.
            rows: Height, pixels.
            cols: Width, pixels.
            dtype: Any integer of 8, 16 or 32 bits, float or complex type.
            georeference: Where the scene lies; None for nowhere.
            nodata: Value to declare as no-data.
        """
        kind = np.dtype(dtype)
        # Horizontal differences make slowly varying values deflate better; 3 is the form for floats.
        predictor = {"f": 3, "i": 2, "u": 2}.get(kind.kind, 1)
        profile = geotiff_profile(bands=bands, rows=rows, cols=cols, dtype=kind.name) | {
            "predictor": predictor,
            "nodata": nodata,
            "interleave": "band",
        }
        self._file = GeoTiff(Path(path), profile, _describe_scene(georeference), overviews=False)

    def write_rows(self, row0: int, values: Array) -> None:
        """Write the next rows.

        Args:
            row0: First row; it must follow the last one written.
            values: Pixels (bands, n, cols).
        Raises:
            ValueError: the rows are out of order or do not fit.
            StorageError: the disk is full.
        """
        self._file.write_rows(row0, values)

    def __enter__(self) -> SceneWriter:
        self._file.open()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._file.close(*error)


class MaskWriter:
    """A label mask as tiled, deflated GeoTIFF with colour table and class names; use it in `with`.

    Class names are tags of band 1, CLASS_<label>. Masks larger than 512 pixels get overviews (2, 4, ...).
    As with `SceneWriter`, the file appears whole or not at all.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        rows: int,
        cols: int,
        palette: tuple[tuple[int, int, int], ...],
        classes: tuple[str, ...],
        georeference: Georeference | None = None,
        nodata_label: int = 255,
    ) -> None:
        """Describe the mask; it is made on entering the `with` block.

        Args:
            path: File to write, .tif or .tiff; an existing one is replaced.
            rows: Height, pixels.
            cols: Width, pixels.
            palette: One RGB colour per class.
            classes: Class names, in label order.
            georeference: That of the scene; None for none.
            nodata_label: Label of pixels without data; transparent in the colour table.
        Raises:
            RasterError: the name ends in something other than .tif or .tiff.
        """
        path = Path(path)
        if path.suffix.lower() not in {".tif", ".tiff"}:
            raise RasterError(
                f"Masks are written as GeoTIFF, but {path.name} ends in {path.suffix or 'nothing'!r}. "
                "Choose a name that ends in .tif"
            )
        profile = geotiff_profile(bands=1, rows=rows, cols=cols, dtype="uint8") | {
            "tiled": True,
            "blockxsize": BLOCK_PX,
            "blockysize": BLOCK_PX,
            "photometric": "palette",
            "nodata": nodata_label,
            # In 0.4 of the time of the usual 6; masks are a seventh larger.
            "zlevel": 5,
        }

        def describe(dataset: Any) -> None:
            _describe_scene(georeference)(dataset)
            colors = {label: (*color, 255) for label, color in enumerate(palette)}
            dataset.write_colormap(1, colors | {nodata_label: (0, 0, 0, 0)})
            dataset.colorinterp = [ColorInterp.palette]
            tags = {f"CLASS_{label}": name for label, name in enumerate(classes)}
            dataset.update_tags(1, **tags, **{f"CLASS_{nodata_label}": "no data"})

        self._file = GeoTiff(path, profile, describe, overviews=True)

    def write_rows(self, row0: int, labels: NDArray[np.uint8]) -> None:
        """Write the next rows.

        Args:
            row0: First row; it must follow the last one written.
            labels: Labels (n, cols).
        Raises:
            ValueError: the rows are out of order or do not fit.
            StorageError: the disk is full.
        """
        self._file.write_rows(row0, labels[np.newaxis])

    def __enter__(self) -> MaskWriter:
        self._file.open()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._file.close(*error)


def _describe_scene(georeference: Georeference | None) -> Callable[[Any], None]:
    def describe(dataset: Any) -> None:
        if georeference is not None:
            write_georeference(dataset, georeference)

    return describe


def _open_for_reading(path: Path) -> Any:
    if path.is_dir():
        raise RasterError(f"{path} is a folder. Name the raster file in it.")
    if not path.exists():
        raise RasterError(f"There is no file {path}. Check the path.")
    try:
        if is_png(path):
            inspect_png(path)
        # The driver keeps the number of threads that it is opened with: they decode blocks side by side.
        with quiet(), rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
            dataset = rasterio.open(path)
    except GDAL_ERRORS as error:
        raise RasterError(
            f"{path} cannot be read as a raster: {cause(error)}. It is truncated, damaged or of another "
            "format; expected GeoTIFF or PNG. Copy or download it again."
        ) from error
    except OSError as error:
        raise RasterError(f"{path} cannot be opened: {error.strerror}. Check who may read it.") from error
    if dataset.count == 0:
        dataset.close()
        raise RasterError(
            f"{path} holds no band of its own, but {len(dataset.subdatasets)} data sets. Convert the one "
            "you need to GeoTIFF first, for example with gdal_translate."
        )
    return dataset
