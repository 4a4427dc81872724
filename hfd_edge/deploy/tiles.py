"""Real tiles of a data folder, as the network and the self-test see them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.deploy.record import CalibrationTile
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]
_TRIES = 4
_CHOOSE_AGAIN = "choose tiles again with: hfd-edge calibrate select BUNDLE --data DIR"


class TileSet(Protocol):
    """Standardised tiles, each (bands, tile_px, tile_px), that can be read again and again.

    `Tiles` is one, and so is an array (count, bands, tile_px, tile_px).
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.float32]]: ...


@dataclass(frozen=True)
class Tiles:
    """Tiles of a split, cut and standardised as they are read: memory is that of one image.

    Iterating raises DatasetError when a file is unreadable, or when a tile is not what its hash says:
    what was chosen is what calibrates, or nothing is.

    Attributes:
        sources: Where the tiles come from, in the order in which they are read.
        folder: Data folder.
        split: Split of it that `sources` names pairs of.
        preprocessing: The bundle's.
        tile_px: Side of the tiles; smaller images are padded.
    """

    sources: tuple[CalibrationTile, ...]
    folder: PairFolder
    split: str
    preprocessing: Preprocessing
    tile_px: int

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.sources)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Read the tiles in order, each (bands, tile_px, tile_px)."""
        pairs = {pair.name: pair for pair in self.folder.pairs(self.split)}
        name, pixels = None, np.empty((0, 0, 0), np.float32)
        for source in self.sources:
            if source.name not in pairs:
                raise DatasetError(
                    f"{self.folder.root} has no pair '{source.name}' in split '{self.split}', of which a "
                    f"calibration tile was chosen. Put it back, or {_CHOOSE_AGAIN}."
                )
            if source.name != name:  # neighbours in `sources` often share an image
                name, pixels = source.name, self.preprocessing(self.folder.load_sar(pairs[source.name]))[0]
            yield self._checked(pixels, source, where=pairs[source.name].sar)

    def _checked(
        self, pixels: NDArray[np.float32], source: CalibrationTile, *, where: Path
    ) -> NDArray[np.float32]:
        inside = source.row < pixels.shape[1] and source.col < pixels.shape[2]
        tile = cut(pixels, row=source.row, col=source.col, tile_px=self.tile_px) if inside else None
        if tile is None or tile_sha256(tile) != source.sha256:
            raise DatasetError(
                f"The calibration tile at row {source.row}, column {source.col} of {where} has changed: "
                f"its pixels no longer have the SHA-256 {source.sha256[:12]}... under which it was chosen. "
                f"Bring the file and the preprocessing back, or {_CHOOSE_AGAIN}. (Logarithms may differ in "
                "the last bit between kinds of processors; then choose on the machine that calibrates.)"
            )
        return tile


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


def cut(pixels: NDArray[np.float32], *, row: int, col: int, tile_px: int) -> NDArray[np.float32]:
    """Cut a window and pad what is missing at the bottom and the right.

    Args:
        pixels: Standardised pixels of a whole image (bands, rows, cols).
        row: First row of the window.
        col: First column of the window.
        tile_px: Side of the window.
    Returns:
        (bands, tile_px, tile_px), contiguous.
    Raises:
        ValueError: the window lies outside the image.
    """
    window = pixels[:, row : row + tile_px, col : col + tile_px]
    return np.ascontiguousarray(pad_to_tile(window, tile_px=tile_px))


def tile_sha256(tile: NDArray[np.float32]) -> str:
    """Hash a tile's pixels as they are in memory, row by row; hex."""
    return hashlib.sha256(np.ascontiguousarray(tile).data).hexdigest()


def calibration_tiles(
    folder: PairFolder,
    preprocessing: Preprocessing,
    *,
    tile_px: int,
    count: int,
    split: str = "train",
    progress: Progress = silent,
) -> Tiles:
    """Choose tiles from pairs spread evenly over a split; the same ones every time.

    Args:
        folder: Data folder.
        preprocessing: The bundle's.
        tile_px: Side of the tiles; smaller images are padded.
        count: Tiles wanted. Images as small as a tile give one each, larger ones several if needed.
        split: Split to take them from.
        progress: Told of every tile.
    Returns:
        At most `count` tiles, read again from disk whenever they are iterated.
    Raises:
        DatasetError: the split is missing or a file of it is unreadable.
    """
    rng = np.random.default_rng(0)
    sources: list[CalibrationTile] = []
    for done, pair in enumerate(_spread(folder.pairs(split), count)):
        pixels, valid = preprocessing(folder.load_sar(pair))
        row, col = _place(valid, tile_px, rng)
        tile = cut(pixels, row=row, col=col, tile_px=tile_px)
        source = CalibrationTile(name=pair.name, row=row, col=col, sha256=tile_sha256(tile))
        if source not in sources:
            sources.append(source)
        progress(done + 1, count, "choosing calibration tiles")
    return Tiles(tuple(sources), folder, split, preprocessing, tile_px)


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
