"""The core of both GeoTIFF writers: rows in from top to bottom, a verified file out or none at all."""

from __future__ import annotations

import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.env import get_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from hfd_edge.errors import StorageError
from hfd_edge.files import atomic_path

Array = NDArray[Any]

# rasterio hands some of GDAL's errors on as they are; their base class has no public name.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)

BLOCK_PX = 256
LARGEST_CACHE = 256 << 20
_OVERVIEW_PX = 512


class GeoTiff:
    """A GeoTIFF that appears under its name once it is whole."""

    def __init__(
        self, path: Path, profile: dict[str, Any], describe: Callable[[Any], None], *, overviews: bool
    ) -> None:
        """Describe the file.

        Args:
            path: File to write; an existing one is replaced.
            profile: Creation options for rasterio; see `geotiff_profile`.
            describe: Called with the open data set before the first row; sets georeference and tags.
            overviews: Build overviews where a side is longer than 512 pixels.
        """
        self.path = path
        self._profile = profile
        self._describe = describe
        self._overviews = overviews
        self._levels: list[int] = []
        self._rows, self._cols = profile["height"], profile["width"]
        self._dtype = np.dtype(profile["dtype"])
        self._context: AbstractContextManager[None] | None = None
        self._dataset: Any = None
        # Rows wait here until they fill blocks: GDAL would compress a block again at every visit.
        self._waiting: list[Array] = []
        self._written = self._taken = 0
        self._checksum = 0

    def open(self) -> None:
        """Make the file under a temporary name. Raises StorageError."""
        self._context = self._session()
        self._context.__enter__()

    def close(self, *error: Any) -> bool | None:
        """Finish, verify and rename the file, or remove it if there was an error (as `__exit__` gets it)."""
        if self._context is None:
            raise RuntimeError(f"{self.path} was not opened: use the writer in a with statement")
        return self._context.__exit__(*error)

    def write_rows(self, row0: int, values: Array) -> None:
        """Take the next rows (bands, n, cols). Raises ValueError, StorageError."""
        expected = (self._profile["count"], values.shape[1] if values.ndim == 3 else -1, self._cols)
        if values.shape != expected or values.dtype != self._dtype:
            raise ValueError(
                f"rows for {self.path} are {values.dtype} {values.shape}, expected {self._dtype} "
                f"({expected[0]}, rows, {expected[2]})"
            )
        if row0 != self._taken or row0 + values.shape[1] > self._rows:
            raise ValueError(
                f"rows {row0} to {row0 + values.shape[1]} of {self.path} do not follow row {self._taken} "
                f"of {self._rows}"
            )
        self._waiting.append(values.copy())
        self._taken += values.shape[1]
        if self._taken - self._written >= BLOCK_PX:
            self._flush(until=self._taken - self._taken % BLOCK_PX)

    @contextmanager
    def _session(self) -> Iterator[None]:
        with (
            atomic_path(self.path) as temporary,
            rasterio.Env(GDAL_PAM_ENABLED=False),
            cache_limit(LARGEST_CACHE),
        ):
            try:
                with quiet():
                    self._dataset = rasterio.open(temporary, "w", **self._profile)
                with self._dataset:
                    with quiet():
                        self._describe(self._dataset)
                    yield
                    if self._taken != self._rows:
                        raise ValueError(f"{self._taken} of {self._rows} rows of {self.path} were written")
                    self._flush(until=self._rows)
                if self._overviews:
                    self._build_overviews(temporary)
                self._verify(temporary)
            except GDAL_ERRORS as error:
                raise self._failed(cause(error)) from error

    def _flush(self, *, until: int) -> None:
        values = np.concatenate(self._waiting, axis=1)
        while self._written < until:
            count = min(BLOCK_PX, until - self._written)
            block, values = np.ascontiguousarray(values[:, :count]), values[:, count:]
            self._dataset.write(block, window=Window(0, self._written, self._cols, count))
            self._checksum = zlib.crc32(block.data, self._checksum)
            self._written += count
        self._waiting = [values.copy()]

    def _build_overviews(self, path: Path) -> None:
        while max(self._rows, self._cols) > _OVERVIEW_PX * 2 ** len(self._levels):
            self._levels.append(2 ** (len(self._levels) + 1))
        if self._levels:
            with (
                rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK_PX),
                quiet(),
                rasterio.open(path, "r+") as dataset,
            ):
                dataset.build_overviews(self._levels, Resampling.nearest)

    def _verify(self, path: Path) -> None:
        """Read everything back; a full disk may show only now."""
        with quiet(), rasterio.open(path) as dataset:
            # The same groups of rows as in `_flush`: the checksum runs over the bands of one group first.
            checksum = 0
            for block in _block_rows(dataset):
                checksum = zlib.crc32(np.ascontiguousarray(block).data, checksum)
            # Their number alone: rasterio tells the factors by the widths, which say nothing in one column.
            whole = checksum == self._checksum and len(dataset.overviews(1)) == len(self._levels)
            # A block that could not be written has no size; reading it gives no-data, not an error.
            whole = whole and all(
                dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", 1, index) is not None
                for index, level in enumerate(self._levels)
                for row in range(-(-self._rows // level // BLOCK_PX))
                for col in range(-(-self._cols // level // BLOCK_PX))
            )
        if not whole:
            raise self._failed("it reads back different from what was written")
        for index in range(len(self._levels)):
            with quiet(), rasterio.open(path, overview_level=index) as dataset:
                for _ in _block_rows(dataset):
                    pass

    def _failed(self, reason: str) -> StorageError:
        free = shutil.disk_usage(self.path.parent).free / 1e6
        return StorageError(
            f"Could not write {self.path}: {reason}. The disk has {free:.0f} MB free: make room, or choose "
            "an --out on another disk; nothing was half written."
        )


def geotiff_profile(*, bands: int, rows: int, cols: int, dtype: str) -> dict[str, Any]:
    """Give the creation options that all our GeoTIFFs share."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": bands,
        "height": rows,
        "width": cols,
        "dtype": dtype,
        "compress": "deflate",
        "bigtiff": "if_safer",  # compressed size is not known beforehand; 4 GB is the limit without
    }
    if max(rows, cols) > BLOCK_PX:
        profile |= {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
    return profile


@contextmanager
def cache_limit(size: int) -> Iterator[None]:
    """Keep GDAL's block cache below so many bytes; a lower limit that is in force stays.

    GDAL's own default is a share of the machine's memory: gigabytes on a large one.
    """
    with rasterio.Env():
        size = min(size, get_gdal_config("GDAL_CACHEMAX"))
    with rasterio.Env(GDAL_CACHEMAX=size):
        yield


def _block_rows(dataset: Any) -> Iterator[Array]:
    """Read a data set from top to bottom, as many rows at a time as a block has."""
    for row in range(0, dataset.height, BLOCK_PX):
        yield dataset.read(window=Window(0, row, dataset.width, min(BLOCK_PX, dataset.height - row)))


def cause(error: BaseException) -> str:
    """GDAL's own words: rasterio often says only "see previous exception"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().rstrip(".") or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Open files without a georeference in silence: they are as welcome as others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
