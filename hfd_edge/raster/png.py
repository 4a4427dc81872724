"""What a PNG file says of itself, and whether all of it is there.

GDAL and older OpenCV give black rows, and no error, for a PNG that ends too early. Walking the chunks
and their checksums costs less than decoding and finds every truncated or damaged file.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hfd_edge.errors import RasterError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PngInfo:
    """Header of a PNG.

    Attributes:
        bit_depth: Bits per sample: 1, 2, 4, 8 or 16.
        color_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        transparent: A colour (or palette entry) is declared transparent.
    """

    bit_depth: int
    color_type: int
    transparent: bool


def is_png(path: Path) -> bool:
    """Tell by the first bytes; False for a file that is shorter. Raises OSError if it cannot be read."""
    with open(path, "rb") as stream:
        return stream.read(len(SIGNATURE)) == SIGNATURE


def inspect_png(path: Path) -> PngInfo:
    """Walk all chunks of a PNG, in bounded memory.

    Raises:
        RasterError: the file is not a PNG, ends too early, or a chunk's checksum is wrong.
    """
    with open(path, "rb") as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            raise RasterError(f"{path} is not a PNG file. Check the path and the format.")
        header = None
        transparent = False
        while True:
            name, content = _chunk(stream, path)
            if name == b"IHDR" and len(content) == 13:
                header = content
            transparent |= name == b"tRNS"
            if name == b"IEND":
                break
    if header is None:
        raise _damaged(path, "has no header")
    return PngInfo(bit_depth=header[8], color_type=header[9], transparent=transparent)


def _chunk(stream: BinaryIO, path: Path) -> tuple[bytes, bytes]:
    """Read past one chunk; give its name and the first bytes of its content."""
    head = stream.read(8)
    if len(head) < 8:
        raise _damaged(path, "is truncated")
    length, name = struct.unpack(">I4s", head)
    checksum, first, left = zlib.crc32(name), b"", length
    while left:
        block = stream.read(min(left, _BLOCK))
        if not block:
            raise _damaged(path, "is truncated")
        first = first or block
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    stored = stream.read(4)
    if len(stored) < 4:
        raise _damaged(path, "is truncated")
    if struct.unpack(">I", stored)[0] != checksum:
        raise _damaged(path, f"is damaged (wrong checksum in chunk {name.decode('latin-1')})")
    return name, first


def _damaged(path: Path, fault: str) -> RasterError:
    return RasterError(f"{path} {fault}. Copy or download it again.")
