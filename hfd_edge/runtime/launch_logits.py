"""The kernels between network input and labels as Python calls; see `launch` for what they have in common.

Tiles for the network are cut from rows on the device, their logits blended, and the finished rows labelled.
Each wrapper does what one function of `hfd_edge.raster` does on the CPU, and is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hfd_edge.errors import BackendError
from hfd_edge.runtime.launch import Plane, grid_of

if TYPE_CHECKING:
    from hfd_edge.runtime.device import DeviceLimits, Stream
    from hfd_edge.runtime.kernels import Kernels

_GROUP = 4  # neighbouring pixels or logits of one thread, in all of these kernels
_THREADS = 256

TILES_AT_ONCE = 64
BLENDED_AT_ONCE = 192
"""Origins that travel in the arguments of one launch (TILES of tiles.cu and blend.cu); more take several."""

TILES_ARGS = np.dtype(
    [
        ("pixels", "<u8"),
        ("tiles", "<u8"),
        ("pixels_row", "<i8"),
        ("pixels_band", "<i8"),
        ("bands", "<i4"),
        ("first_row", "<i4"),
        ("used_rows", "<i4"),
        ("cols", "<i4"),
        ("tile_px", "<i4"),
        ("half", "<i4"),
        ("aligned", "<i4"),
        ("origins", "<i4", (TILES_AT_ONCE,)),
    ],
    align=True,
)
"""`TilesArgs` of tiles.cu."""

BLEND_ARGS = np.dtype(
    [
        ("previous", "<u8"),
        ("logits", "<u8"),
        ("row_weights", "<u8"),
        ("col_weights", "<u8"),
        ("band", "<u8"),
        ("shift", "<i4"),
        ("half", "<i4"),
        ("tiles", "<i4"),
        ("classes", "<i4"),
        ("size", "<i4"),
        ("band_cols", "<i4"),
        ("origins", "<i4", (BLENDED_AT_ONCE,)),
        ("columns", "<i4", (BLENDED_AT_ONCE,)),
    ],
    align=True,
)
"""`BlendArgs` of blend.cu."""

LABELS_ARGS = np.dtype(
    [
        ("logits", "<u8"),
        ("valid", "<u8"),
        ("labels", "<u8"),
        ("confidence", "<u8"),
        ("logits_row", "<i8"),
        ("logits_band", "<i8"),
        ("valid_row", "<i8"),
        ("labels_row", "<i8"),
        ("confidence_row", "<i8"),
        ("classes", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("first", "<i4"),
        ("start", "<i4"),
        ("stop", "<i4"),
        ("cols", "<i4"),
        ("nodata_label", "<i4"),
        ("half", "<i4"),
        ("columns", "<i4"),
        ("intervals", "<i4"),
        ("aligned", "<i4"),
    ],
    align=True,
)
"""`LabelsArgs` of labels.cu."""

# A strip of 64 logits reads 66 of each row and a walk of 16 steps 17 rows, which keeps the logits within 1.1
# of one read each. Larger blocks would leave small GPUs idle on one tile.
_STRIPS = (64, 32, 16, 8)
_WALK = 16
_MAX_CLASSES = 255


class CutTiles:
    """Cut tiles from preprocessed rows; they go on as their own mirror image (`raster.tiling.mirrored`)."""

    def __init__(self, kernels: Kernels, limits: DeviceLimits) -> None:
        self._limits = limits
        self._function = kernels.function("tiles", "tiles")

    def __call__(
        self,
        stream: Stream,
        pixels: Plane,
        *,
        half: bool,
        shape: tuple[int, int, int],
        first_row: int,
        origins: Sequence[int],
        tile_px: int,
        out_address: int,
    ) -> None:
        """Enqueue the copies.

        Args:
            stream: Where to enqueue.
            pixels: Network input, float32 or float16.
            half: Whether pixels and tiles are float16.
            shape: Bands, rows from `first_row` on that hold pixels, columns.
            first_row: Row of `pixels` that the tiles start with.
            origins: First column of each tile.
            tile_px: Side of the tiles, a multiple of 4.
            out_address: Gets the tiles (n, bands, tile_px, tile_px); a multiple of 16.
        Raises:
            BackendError: a size does not fit.
        """
        bands, itemsize = shape[0], 2 if half else 4
        if min(shape) < 1 or tile_px < 1 or tile_px % _GROUP or out_address % (_GROUP * itemsize):
            raise BackendError(
                f"Tiles of {tile_px} pixels cannot be cut from {shape} to address {out_address:#x}: expected "
                f"a side that is a multiple of {_GROUP}, an aligned address and at least one pixel."
            )
        args: np.void = np.zeros(1, TILES_ARGS)[0]
        args["pixels"], args["pixels_row"], args["pixels_band"] = (
            pixels.address,
            pixels.row_stride,
            pixels.band_stride,
        )
        args["bands"], args["used_rows"], args["cols"] = shape
        args["first_row"], args["tile_px"], args["half"] = first_row, tile_px, half
        args["aligned"] = pixels.aligned(itemsize) and not any(origin % _GROUP for origin in origins)
        blocks = -(-tile_px * tile_px // _GROUP // _THREADS)
        for start in range(0, len(origins), TILES_AT_ONCE):
            part = origins[start : start + TILES_AT_ONCE]
            args["tiles"] = out_address + start * bands * tile_px * tile_px * itemsize
            args["origins"][: len(part)] = part
            grid = grid_of(self._limits, blocks, bands, len(part))
            self._function(stream, grid=grid, block=(_THREADS,), args=args)


class Blend:
    """Add up the logits of a row of overlapping tiles; `raster.tiling.LogitsBlender` on the device."""

    def __init__(self, kernels: Kernels, limits: DeviceLimits) -> None:
        self._limits = limits
        self._function = kernels.function("blend", "blend")

    def __call__(
        self,
        stream: Stream,
        previous_address: int | None,
        shift: int,
        logits_address: int,
        *,
        half: bool,
        classes: int,
        size: int,
        origins: Sequence[int],
        columns: Sequence[int],
        row_weights_address: int,
        col_weights_address: int,
        band_address: int,
        band_cols: int,
    ) -> None:
        """Enqueue a new band: the one before moved up by `shift` rows, plus the weighted logits.

        Tiles that were left out (no data) are simply not named.

        Args:
            stream: Where to enqueue.
            previous_address: Band of the row of tiles before (classes, 1 + size, band_cols), float32; None
                for the first one. Not `band_address`, unless `shift` is 0.
            shift: Logits rows between the two rows of tiles.
            logits_address: Logits of the tiles (n, classes, size, size).
            half: Whether the logits are float16.
            classes: Number of classes.
            size: Logits along a side of a tile; a multiple of 4.
            origins: First band column of each of the n tiles, rising, multiples of 4.
            columns: Row of the column weights for each of the n tiles, which is its column of tiles.
            row_weights_address: Weights (size) of the row of tiles, float32.
            col_weights_address: Weights (columns of tiles, size), float32.
            band_address: Gets the band (classes, 1 + size, band_cols), float32. Row 0 keeps the last row
                that the tiles before finished.
            band_cols: A multiple of 4.
        Raises:
            BackendError: a size does not fit.
        """
        _check_blend(size, origins, columns, band_cols)
        args: np.void = np.zeros(1, BLEND_ARGS)[0]
        args["previous"], args["shift"] = previous_address or 0, shift
        args["row_weights"], args["col_weights"] = row_weights_address, col_weights_address
        args["classes"], args["size"], args["half"] = classes, size, half
        args["band"], args["band_cols"] = band_address, band_cols
        grid = grid_of(self._limits, -(-band_cols // _GROUP // _THREADS), 1 + size, classes)
        # The first launch also moves the band up, so there is one even without tiles.
        for start in range(0, max(len(origins), 1), BLENDED_AT_ONCE):
            part = slice(start, start + BLENDED_AT_ONCE)
            args["tiles"] = count = len(origins[part])
            args["logits"] = logits_address + start * classes * size * size * (2 if half else 4)
            args["origins"][:count], args["columns"][:count] = origins[part], columns[part]
            self._function(stream, grid=grid, block=(_THREADS,), args=args)
            args["previous"], args["shift"] = band_address, 0


class Labels:
    """Logits to labels at full size; `raster.logits.labels_rows` on the device."""

    def __init__(self, kernels: Kernels, limits: DeviceLimits) -> None:
        self._limits = limits
        self._functions = {
            (stride, confidence): kernels.function("labels", f"labels_stride{stride}{ending}")
            for stride in (1, 4)
            for confidence, ending in ((False, ""), (True, "_confidence"))
        }

    def __call__(
        self,
        stream: Stream,
        logits: Plane,
        *,
        half: bool,
        classes: int,
        height: int,
        width: int,
        stride: int,
        first: int,
        start: int,
        stop: int,
        cols: int,
        valid: Plane | None,
        nodata_label: int,
        out: Plane,
        confidence: Plane | None = None,
    ) -> None:
        """Enqueue the labels of pixel rows `start` to `stop`; nothing for none.

        Args:
            stream: Where to enqueue.
            logits: Scores (classes, height, width), float32 or float16: the rows from `first` on of the whole
                map; see `labels_rows` for the halo that it needs.
            half: Whether the logits are float16.
            classes: 1 to 255.
            height: Logits rows in the band.
            width: Logits columns.
            stride: Pixels per logit along each axis, 1 or 4.
            first: Row of the whole map that the band starts with.
            start: First pixel row, counted in the whole map.
            stop: Pixel row after the last one.
            cols: Pixel columns, at most width * stride.
            valid: uint8, 0 where the label is `nodata_label`; its row 0 is pixel row `start`. None: all are.
            nodata_label: Label of invalid pixels.
            out: Gets the labels, uint8; its row 0 is pixel row `start`.
            confidence: Gets the softmax of each label's score, float32, 0 at invalid pixels; its row 0 is
                pixel row `start`.
        Raises:
            BackendError: the sizes do not fit each other, or the stride is another.
        """
        _check_labels(classes, (height, width), stride, (start - first * stride, stop - first * stride), cols)
        if start == stop or cols == 0:
            return
        args: np.void = np.zeros(1, LABELS_ARGS)[0]
        args["logits"], args["logits_row"], args["logits_band"] = (
            logits.address,
            logits.row_stride,
            logits.band_stride,
        )
        for name, plane in (("valid", valid), ("labels", out), ("confidence", confidence)):
            if plane is not None:
                args[name], args[f"{name}_row"] = plane.address, plane.row_stride
        args["classes"], args["height"], args["width"], args["first"] = classes, height, width, first
        args["start"], args["stop"], args["cols"] = start, stop, cols
        args["nodata_label"], args["half"] = nodata_label, half
        args["aligned"] = (
            out.aligned(1)
            and (valid is None or valid.aligned(1))
            and (confidence is None or confidence.aligned(4))
        )
        self._launch(stream, args, stride)

    def _launch(self, stream: Stream, args: np.void, stride: int) -> None:
        """Choose the geometry."""
        start, stop, cols = (int(args[name]) for name in ("start", "stop", "cols"))
        function = self._functions[stride, bool(args["confidence"])]
        if stride == 1:
            rows = min(
                stop - start, self._limits.max_grid[1]
            )  # a block takes several where these are too few
            grid = grid_of(self._limits, -(-cols // (_GROUP * _THREADS)), rows)
            function(stream, grid=grid, block=(_THREADS,), args=args)
            return
        columns, shared = self._strip(int(args["classes"]))
        intervals = (stop + 1) // 4 - (start + 2) // 4 + 1
        # Of about equal length: a short last walk would read two rows for little.
        steps = -(-intervals // max(1, intervals // _WALK))
        args["columns"], args["intervals"] = columns, steps
        grid = grid_of(self._limits, -(-cols // (_GROUP * columns)), -(-intervals // steps))
        function(stream, grid=grid, block=(max(columns, 32),), args=args, shared_bytes=shared)

    def _strip(self, classes: int) -> tuple[int, int]:
        """Logits columns of a block, and the bytes of the two rows that it keeps in shared memory."""
        planes = 1 if classes == 2 else classes
        for columns in _STRIPS:
            shared = 2 * planes * (columns + 2) * 4
            if shared <= self._limits.shared_bytes:
                break
        return columns, shared


def _check_blend(size: int, origins: Sequence[int], columns: Sequence[int], band_cols: int) -> None:
    inside = all(0 <= origin <= band_cols - size and origin % _GROUP == 0 for origin in origins)
    rising = all(one < other for one, other in pairwise(origins))
    if size % _GROUP or band_cols % _GROUP or len(columns) != len(origins) or not (inside and rising):
        raise BackendError(
            f"{len(origins)} tiles of {size} x {size} logits at columns {list(origins)} with the weights "
            f"{list(columns)} do not fit a band of {band_cols} columns: expected rising multiples of "
            f"{_GROUP} inside the band, and one column of weights for each."
        )


def _check_labels(
    classes: int, shape: tuple[int, int], stride: int, rows: tuple[int, int], cols: int
) -> None:
    """Refuse what would read outside the logits; rows count from the first pixel row of the band."""
    height, width = shape
    if stride not in (1, 4):
        raise BackendError(f"Logits have stride {stride}, but the GPU kernels take 1 or 4.")
    fits = 0 <= rows[0] <= rows[1] <= height * stride and 0 <= cols <= width * stride
    if not (1 <= classes <= _MAX_CLASSES and min(shape) >= 1 and fits):
        raise BackendError(
            f"Rows {rows[0]} to {rows[1]} and {cols} columns of labels were asked for, but {classes} classes "
            f"of {height} x {width} logits at stride {stride} cover {height * stride} x {width * stride}. "
            f"Expected an area inside, and 1 to {_MAX_CLASSES} classes."
        )
