"""Real tiles of a data folder, as the network and the self-test see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]
_TRIES = 4


@dataclass(frozen=True)
class CalibrationTile:
    """Where a calibration tile comes from, and the hash of its float32 pixels."""

    name: str
    row: int
    col: int
    sha256: str


def pad_to_tile(pixels: NDArray[np.float32], *, tile_px: int) -> NDArray[np.float32]:
    """Continue an image as its own mirror image up to a whole tile, as the runtime does.

    Args:
        pixels: Standardised pixels (bands, rows, cols), neither side longer than the tile.
        tile_px: Side of the tile.
    Returns:
        (bands, tile_px, tile_px).
    """
    _, rows, cols = pixels.shape
    return np.pad(pixels, ((0, 0), (0, tile_px - rows), (0, tile_px - cols)), mode="symmetric")


def calibration_tiles(
    folder: PairFolder,
    preprocessing: Preprocessing,
    *,
    tile_px: int,
    count: int,
    split: str = "train",
    progress: Progress = silent,
) -> tuple[NDArray[np.float32], tuple[CalibrationTile, ...]]:
    """Cut tiles from pairs spread evenly over a split; the same ones every time.

    Args:
        folder: Data folder.
        preprocessing: The bundle's.
        tile_px: Side of the tiles; smaller images are padded.
        count: Tiles wanted. Images as small as a tile give one each, larger ones several if needed.
        split: Split to take them from.
        progress: Told of every tile.
    Returns:
        Standardised tiles (n, bands, tile_px, tile_px), n <= count, and where they come from.
    Raises:
        DatasetError: the split is missing or a file of it is unreadable.
    """
    pairs = folder.pairs(split)
    rng = np.random.default_rng(0)
    tiles: list[NDArray[np.float32]] = []
    sources: list[CalibrationTile] = []
    for pair in _spread(pairs, count):
        pixels, valid = preprocessing(folder.load_sar(pair))
        row, col = _place(valid, tile_px, rng)
        tile = pad_to_tile(pixels[:, row : row + tile_px, col : col + tile_px], tile_px=tile_px)
        source = CalibrationTile(pair.name, row, col, hashlib.sha256(tile.tobytes()).hexdigest())
        if source not in sources:
            tiles.append(tile)
            sources.append(source)
        progress(len(tiles), count, "reading calibration tiles")
    return np.stack(tiles), tuple(sources)


def golden_images(folder: PairFolder, *, tile_px: int, count: int) -> list[Array]:
    """Stored pixels of a few tiles for the self-test, from the validation split or else the training one.

    Returns:
        Images (bands, rows, cols), at most a tile in size; they may hold no-data.
    Raises:
        DatasetError: there is neither split, or a file is unreadable.
    """
    split = next((name for name in ("val", "train") if name in folder.splits), None)
    if split is None:
        raise DatasetError(
            f"{folder.root} has neither a val nor a train split to take golden tiles from. Add one, or "
            "export without --data."
        )
    images = (folder.load_sar(pair) for pair in _spread(folder.pairs(split), count))
    return [_centre(image, tile_px) for image in images]


def _centre(image: Array, tile_px: int) -> Array:
    # Borders are where no-data is.
    row, col = (max(side - tile_px, 0) // 2 for side in image.shape[1:])
    return np.ascontiguousarray(image[:, row : row + tile_px, col : col + tile_px])


def _spread(pairs: tuple[Pair, ...], count: int) -> list[Pair]:
    """Pairs at equal distances; all of them again and again if there are fewer than `count`."""
    if count <= len(pairs):
        return [pairs[index * len(pairs) // count] for index in range(count)]
    return [pairs[index % len(pairs)] for index in range(count)]


def _place(valid: NDArray[np.bool_], tile_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Origin of a window: of a few random ones that with the most valid pixels."""
    rows, cols = valid.shape
    origins = [
        (int(rng.integers(max(rows - tile_px, 0) + 1)), int(rng.integers(max(cols - tile_px, 0) + 1)))
        for _ in range(_TRIES)
    ]
    return max(origins, key=lambda at: int(valid[at[0] : at[0] + tile_px, at[1] : at[1] + tile_px].sum()))
