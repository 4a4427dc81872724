"""Sheets: pictures side by side with captions and a legend, as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hfd_edge.files import write_bytes
from hfd_edge.report.pictures import PREDICTIONS, Palette, TilePictures, png_bytes

Array = NDArray[Any]

_INK, _MUTED, _PAPER, _LINE = (28, 32, 36), (104, 112, 120), (255, 255, 255), (206, 211, 216)
_MARGIN_PX, _GAP_PX = 20, 10
_TITLE_PX, _TEXT_PX = 17, 14
_CAPTION_BAND_PX, _TITLE_BAND_PX, _LEGEND_ROW_PX = 24, 32, 26


def comparison(
    rows: Sequence[Mapping[str, Array | None]],
    *,
    classes: Sequence[str],
    palette: Palette,
    titles: Sequence[str] = (),
    cell_px: int = 256,
) -> Array:
    """Set pictures in a grid, one row for each mapping, each under its caption, over a class legend.

    Args:
        rows: Pictures, uint8 RGB (3, rows, cols), by caption; None shows an empty frame, "not built".
        classes: Class names for the legend; empty for no legend.
        palette: One RGB colour per class.
        titles: One heading per row, or none at all.
        cell_px: Side of the square that each picture is fitted into.
    Returns:
        RGB uint8 (3, rows, cols) on white.
    Raises:
        ValueError: there are no pictures, or a picture is not uint8 (3, rows, cols).
    """
    if not rows or not any(rows):
        raise ValueError("a comparison needs at least one row with at least one picture")
    if titles and len(titles) != len(rows):
        raise ValueError(f"a comparison of {len(rows)} rows has {len(titles)} titles")
    columns = max(len(row) for row in rows)
    width = 2 * _MARGIN_PX + columns * cell_px + (columns - 1) * _GAP_PX
    title_band = _TITLE_BAND_PX if titles else 0
    bands = [_row(row, width, cell_px) for row in rows]
    parts = [_blank(_MARGIN_PX // 2, width)]
    for position, band in enumerate(bands):
        if titles:
            parts.append(_blank(title_band, width))
            _write(parts[-1], titles[position], (_MARGIN_PX, 23), size=_TITLE_PX, bold=True)
        parts += [band, _blank(_GAP_PX, width)]
    if classes:
        parts.append(_legend(classes, palette, width))
    parts.append(_blank(_MARGIN_PX - _GAP_PX // 2, width))
    return np.ascontiguousarray(np.moveaxis(np.concatenate(parts), -1, 0))


def predictions_sheet(
    tiles: Sequence[TilePictures], *, classes: Sequence[str], palette: Palette, cell_px: int = 256
) -> Array:
    """Show tiles as rows: SAR, EO and truth where there are any, then each variant's prediction.

    A variant that no tile has is left out; one that only some tiles have is shown as not built there.

    Returns:
        RGB uint8 (3, rows, cols).
    Raises:
        ValueError: there are no tiles.
    """
    variants = [key for key in PREDICTIONS if any(tile.predictions.get(key) is not None for tile in tiles)]
    has_eo = any(tile.eo is not None for tile in tiles)
    has_truth = any(tile.truth is not None for tile in tiles)
    rows = []
    for tile in tiles:
        row: dict[str, Array | None] = {"SAR": tile.sar}
        row |= {"EO": tile.eo} if has_eo else {}
        row |= {"Truth": tile.truth} if has_truth else {}
        for key in variants:
            share = f" ({tile.accuracy[key]:.1%} right)" if key in tile.accuracy else ""
            row[PREDICTIONS[key] + share] = tile.predictions.get(key)
        rows.append(row)
    names = [tile.name for tile in tiles]
    return comparison(rows, classes=classes, palette=palette, titles=names, cell_px=cell_px)


def write_predictions(
    tiles: Sequence[TilePictures], path: Path, *, classes: Sequence[str], palette: Palette, cell_px: int = 256
) -> None:
    """Write `predictions_sheet` as PNG, whole or not at all. Raises ValueError, StorageError."""
    write_bytes(path, png_bytes(predictions_sheet(tiles, classes=classes, palette=palette, cell_px=cell_px)))


# Below here canvases are (rows, cols, 3), as OpenCV draws on them; `comparison` turns the result round.


def _row(row: Mapping[str, Array | None], width: int, cell_px: int) -> Array:
    cells = {caption: _cell(picture, cell_px) for caption, picture in row.items()}
    height = max((len(cell) for cell in cells.values()), default=0)
    canvas = _blank(_CAPTION_BAND_PX + height, width)
    for position, (caption, cell) in enumerate(cells.items()):
        left = _MARGIN_PX + position * (cell_px + _GAP_PX)
        _write(canvas, _shorten(caption, cell_px, size=_TEXT_PX), (left, 16), size=_TEXT_PX)
        top = _CAPTION_BAND_PX
        canvas[top : top + len(cell), left : left + cell.shape[1]] = cell
    return canvas


def _cell(picture: Array | None, cell_px: int) -> Array:
    if picture is None:
        frame = _blank(cell_px, cell_px)
        cv2.rectangle(frame, (0, 0), (cell_px - 1, cell_px - 1), _LINE, 1)
        text = "not built"
        left = max(0, (cell_px - _width(text, size=_TEXT_PX)) // 2)
        _write(frame, text, (left, cell_px // 2 + 5), size=_TEXT_PX, colour=_MUTED)
        return frame
    if picture.dtype != np.uint8 or picture.ndim != 3 or len(picture) != 3 or not picture.size:
        raise ValueError(f"a picture is uint8 (3, rows, cols), but this is {picture.dtype} {picture.shape}")
    rows, cols = picture.shape[1:]
    scale = cell_px / max(rows, cols)
    size = (max(1, round(cols * scale)), max(1, round(rows * scale)))
    # Enlarged pixels stay pixels: smoothing would invent detail and colours that no class has.
    method = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    return cv2.resize(np.ascontiguousarray(np.moveaxis(picture, 0, -1)), size, interpolation=method)


def _legend(classes: Sequence[str], palette: Palette, width: int) -> Array:
    places, left, line = [], _MARGIN_PX, 0
    for name in classes:
        shown = _shorten(name, width - 2 * _MARGIN_PX - 22, size=_TEXT_PX)
        needed = 22 + _width(shown, size=_TEXT_PX)
        if left > _MARGIN_PX and left + needed > width - _MARGIN_PX:
            left, line = _MARGIN_PX, line + 1
        places.append((shown, left, line))
        left += needed + 20
    canvas = _blank(_LEGEND_ROW_PX * (line + 1), width)
    for (shown, left, line), colour in zip(places, palette, strict=True):
        top = line * _LEGEND_ROW_PX + 6
        rgb = tuple(int(part) for part in colour)
        cv2.rectangle(canvas, (left, top), (left + 14, top + 14), rgb, cv2.FILLED)
        cv2.rectangle(canvas, (left, top), (left + 14, top + 14), _LINE, 1)
        _write(canvas, shown, (left + 22, top + 12), size=_TEXT_PX)
    return canvas


def _blank(rows: int, cols: int) -> Array:
    return np.full((rows, cols, 3), _PAPER, np.uint8)


def _shorten(text: str, width: int, *, size: int) -> str:
    if _width(text, size=size) <= width:
        return text
    while text and _width(text + "...", size=size) > width:
        text = text[:-1]
    return text + "..."


# OpenCV 5 brings an antialiased sans font; OpenCV 4 has stroke fonts of ASCII only. Both are accepted
# by the base install, so text is drawn with what there is.


def _write(
    canvas: Array,
    text: str,
    at: tuple[int, int],
    *,
    size: int,
    bold: bool = False,
    colour: tuple[int, int, int] = _INK,
) -> None:
    if hasattr(cv2, "FontFace"):
        cv2.putText(canvas, text, at, colour, cv2.FontFace("sans"), size, 700 if bold else 400)
    else:
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size / 30, colour, 1 + bold, cv2.LINE_AA)


def _width(text: str, *, size: int) -> int:
    if hasattr(cv2, "FontFace"):
        return int(cv2.getTextSize((1, 1), text, (0, 0), cv2.FontFace("sans"), size, 400)[2])
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, 1)[0][0])
