"""The kernels as Python calls: what each takes, and the launch geometry, chosen from the device's limits.

Every kernel takes one struct by value; its NumPy record here has the fields of the C struct, in order, with
C's alignment. A wrapper holds what stays the same from call to call and only fills in addresses and shapes.
All calls are asynchronous on the stream that they are given, and allocate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hfd_edge.errors import BackendError
from hfd_edge.sar.preprocessing import Preprocessing

if TYPE_CHECKING:
    from hfd_edge.runtime.device import DeviceLimits, Stream
    from hfd_edge.runtime.kernels import Kernels


@dataclass(frozen=True)
class Plane:
    """Where an array (bands, rows, cols) or (rows, cols) lies in device memory; its columns are adjacent.

    Attributes:
        address: Of the first element.
        row_stride: From a row to the next, in elements.
        band_stride: From a band to the next, in elements; 0 where there are no bands.
    """

    address: int
    row_stride: int
    band_stride: int = 0

    def aligned(self, itemsize: int, *, elements: int = 4) -> bool:
        """Whether each row of each band begins at a multiple of `elements` elements, for vector access."""
        return (
            self.address % (elements * itemsize) == 0
            and self.row_stride % elements == 0
            and self.band_stride % elements == 0
        )


def grid_of(limits: DeviceLimits, *sizes: int) -> tuple[int, ...]:
    """Check the number of blocks along each axis.

    Raises:
        BackendError: the device takes no grid of that size.
    """
    if any(size > most for size, most in zip(sizes, limits.max_grid, strict=False)):
        raise BackendError(
            f"{limits.name} takes at most {limits.max_grid} blocks in one launch, but {sizes} were asked "
            "for. Cut the image into smaller blocks of rows."
        )
    return sizes


MAX_BANDS = 16
"""Bands that the argument struct of `speckle.cu` has room for."""

SPECKLE_ARGS = np.dtype(
    [
        ("raw", "<u8"),
        ("out", "<u8"),
        ("valid", "<u8"),
        ("faults", "<u8"),
        ("raw_row_stride", "<i8"),
        ("raw_band_stride", "<i8"),
        ("out_row_stride", "<i8"),
        ("out_band_stride", "<i8"),
        ("valid_row_stride", "<i8"),
        ("rows", "<i4"),
        ("cols", "<i4"),
        ("bands", "<i4"),
        ("first_row", "<i4"),
        ("stop_row", "<i4"),
        ("dtype", "<i4"),
        ("units", "<i4"),
        ("filter", "<i4"),
        ("radius", "<i4"),
        ("half_output", "<i4"),
        ("vector_input", "<i4"),
        ("vector_output", "<i4"),
        ("has_nodata", "<i4"),
        ("tile_rows", "<i4"),
        ("nodata", "<f4"),
        ("looks", "<f4"),
        ("low", "<f4", (MAX_BANDS,)),
        ("high", "<f4", (MAX_BANDS,)),
        ("mean", "<f4", (MAX_BANDS,)),
        ("inverse_std", "<f4", (MAX_BANDS,)),
    ],
    align=True,
)
"""`SpeckleArgs` of speckle.cu."""

PIXEL_TYPES = ("uint8", "uint16", "float32", "complex64")
"""Stored pixels that the kernels read, by their number, StoredType in radiometry.cuh."""
UNITS = {"intensity": 0, "dn": 1, "amplitude": 1, "complex": 2, "sigma0_db": 3, "stretched": 4}
_FILTERS = {"boxcar": 0, "lee": 1, "kuan": 2, "gamma_map": 3}
_KERNELS = {"none": "speckle_none", "frost": "speckle_frost", "refined_lee": "speckle_refined_lee"}
_WINDOWS = (3, 5, 7, 9, 11)

# Threads own a column of 8 pixels each (COLUMN_ROWS of speckle.cu). The wide shapes come first: their halo is
# the smallest share of what they read, 1.3 of the pixels at window 7.
_COLUMN_ROWS = 8
_TILE_SHAPES = ((32, 64), (16, 64), (16, 32))
_QUAD = 4


@dataclass(frozen=True)
class _Tile:
    """Output pixels of one block of threads, and the shared memory that they need."""

    rows: int
    cols: int
    block: tuple[int, int]
    shared_bytes: int


class Speckle:
    """`Preprocessing.__call__` on the device: stored pixels to network input in one launch.

    Args:
        kernels: Kernels of the device.
        limits: Of the same device.
        preprocessing: The bundle's.
        half: Whether the network takes float16.
    Raises:
        BackendError: the window is not one of 3, 5, 7, 9 and 11, there are too many bands for the device's
            shared memory, or the kernel cannot be had.
    """

    def __init__(
        self, kernels: Kernels, limits: DeviceLimits, preprocessing: Preprocessing, *, half: bool
    ) -> None:
        self._limits, self._preprocessing, self._half = limits, preprocessing, half
        self._tile = _speckle_tile(limits, preprocessing)
        self._function = kernels.function("speckle", _speckle_name(preprocessing))
        self._fixed = _speckle_constants(preprocessing, half=half)

    def __call__(
        self,
        stream: Stream,
        raw: Plane,
        *,
        dtype: np.dtype,
        shape: tuple[int, int, int],
        rows: tuple[int, int],
        out: Plane,
        valid: Plane,
        faults: int,
    ) -> None:
        """Enqueue the chain for some rows of a block of stored pixels.

        Args:
            stream: Where to enqueue.
            raw: Stored pixels (bands, rows, cols).
            dtype: Of `raw`: uint8, uint16, float32 or complex64.
            shape: Of `raw`. Its own edges replicate, so a strip must bring its halo along.
            rows: First row of `raw` to compute and the row after the last.
            out: Network input, float32 or float16; its row 0 is `rows[0]`. 0 at invalid pixels.
            valid: Which pixels are valid, uint8 0 or 1; its row 0 is `rows[0]`.
            faults: Address of one uint32. Gets bit 1 where a linear value is negative, bit 2 where decibels
                exceed `radiometry.MAX_DB`, as `radiometry.check_units` would find in the rows that are read.
        Raises:
            BackendError: shape, rows or type do not fit.
        """
        bands, height, cols = shape
        args = self._fixed.copy()
        args["dtype"], args["has_nodata"] = self._checked_type(dtype, shape, rows), self._nodata_fits(dtype)
        args["raw"], args["raw_row_stride"], args["raw_band_stride"] = _fields(raw)
        args["out"], args["out_row_stride"], args["out_band_stride"] = _fields(out)
        args["valid"], args["valid_row_stride"], args["faults"] = valid.address, valid.row_stride, faults
        args["rows"], args["cols"], args["bands"] = height, cols, bands
        args["first_row"], args["stop_row"] = rows
        args["vector_input"] = raw.aligned(min(dtype.itemsize, 4), elements=_QUAD)
        args["vector_output"] = out.aligned(2 if self._half else 4) and valid.aligned(1)
        tile = self._tile
        args["tile_rows"] = tile.rows
        grid = grid_of(self._limits, -(-cols // tile.cols), -(-(rows[1] - rows[0]) // tile.rows))
        self._function(stream, grid=grid, block=tile.block, args=args[()], shared_bytes=tile.shared_bytes)

    def _checked_type(self, dtype: np.dtype, shape: tuple[int, int, int], rows: tuple[int, int]) -> int:
        """Number of the type in speckle.cu, after the checks that keep the kernel inside its arrays."""
        chain = self._preprocessing
        if dtype.name not in PIXEL_TYPES or (dtype.name == "complex64") != (chain.units == "complex"):
            wanted = "complex64" if chain.units == "complex" else "uint8, uint16 or float32"
            raise BackendError(
                f'The speckle kernel was given {dtype} pixels, but takes {wanted} for units "{chain.units}". '
                "Convert them with numpy.astype first."
            )
        if shape[0] != chain.bands or min(shape) < 1 or not 0 <= rows[0] < rows[1] <= shape[1]:
            raise BackendError(
                f"The speckle kernel was given rows {rows[0]} to {rows[1]} of an image of shape {shape}, but "
                f"needs at least one row inside a block of {chain.bands} bands."
            )
        return PIXEL_TYPES.index(dtype.name)

    def _nodata_fits(self, dtype: np.dtype) -> bool:
        """Whether a stored pixel can equal the no-data value at all, as NumPy compares the two."""
        if self._preprocessing.nodata is None:
            return False
        nodata = float(self._preprocessing.nodata)
        if dtype.kind == "u":
            return nodata.is_integer() and 0 <= nodata <= np.iinfo(dtype).max
        return bool(np.isfinite(self._fixed["nodata"]))


def _fields(plane: Plane) -> tuple[int, int, int]:
    return plane.address, plane.row_stride, plane.band_stride


def _speckle_name(preprocessing: Preprocessing) -> str:
    name, window_px = preprocessing.speckle, preprocessing.window_px
    if name != "none" and window_px not in _WINDOWS:
        raise BackendError(
            f"The speckle window is {window_px} pixels wide, but the GPU kernels take {_WINDOWS}. "
            "Use one of these in the recipe, or the onnxruntime backend, which takes any."
        )
    return _KERNELS.get(name, f"speckle_{window_px}")


def _speckle_constants(preprocessing: Preprocessing, *, half: bool) -> np.ndarray:
    """The argument struct with everything that is the same for every frame."""
    args = np.zeros((), SPECKLE_ARGS)
    bands = preprocessing.bands
    args["units"] = UNITS[preprocessing.units]
    args["filter"] = _FILTERS.get(preprocessing.speckle, 0)
    args["radius"] = preprocessing.halo_px
    args["half_output"] = half
    with np.errstate(over="ignore"):
        args["nodata"] = 0.0 if preprocessing.nodata is None else preprocessing.nodata
    args["looks"] = preprocessing.looks
    args["low"][:bands], args["high"][:bands] = np.transpose(preprocessing.clip)
    args["mean"][:bands] = preprocessing.mean
    args["inverse_std"][:bands] = 1.0 / np.asarray(preprocessing.std)
    return args


def _speckle_tile(limits: DeviceLimits, preprocessing: Preprocessing) -> _Tile:
    """The largest tile whose pixels of all bands fit into shared memory."""
    bands, needed = preprocessing.bands, 0
    if bands > MAX_BANDS:
        raise BackendError(
            f"The bundle's input has {bands} bands, but the speckle kernel takes {MAX_BANDS} at most. "
            "Use the onnxruntime backend, which takes any number."
        )
    if preprocessing.speckle == "none":
        return _Tile(rows=4, cols=64 * _QUAD, block=(64, 4), shared_bytes=0)
    for rows, cols in _TILE_SHAPES:
        needed = _speckle_shared_bytes(rows, cols, preprocessing)
        if needed <= limits.shared_bytes:
            return _Tile(rows, cols, (cols, rows // _COLUMN_ROWS), needed)
    raise BackendError(
        f"The speckle kernel keeps the {bands} bands of a block of pixels in shared memory, for filter "
        f"{preprocessing.speckle} with window {preprocessing.window_px} at least {needed} bytes, but "
        f"{limits.name} has {limits.shared_bytes}. Use a smaller window in the recipe, or the onnxruntime "
        "backend."
    )


def _speckle_shared_bytes(rows: int, cols: int, preprocessing: Preprocessing) -> int:
    """Bytes that a tile takes in speckle.cu: pixels with halo, in rows of whole quads, for each band."""
    radius = preprocessing.halo_px
    margin = -(-radius // _QUAD) * _QUAD
    pixels = preprocessing.bands * (rows + 2 * radius) * (cols + 2 * margin)
    if preprocessing.speckle == "refined_lee":
        pixels += 2 * (rows + 4) * (cols + 4)  # mean and Ci^2 of the 3 x 3 sub-windows of one band
    return 4 * pixels
