"""PNG and TIFF come back as they were stored, and every damaged file is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio

from hfd_edge.errors import RasterError, StorageError
from hfd_edge.raster.georeference import Georeference
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.raster.scene import SceneReader


def make_png(path: Path, *, depth: int, color_type: int, lines: list[bytes], extra: bytes = b"") -> None:
    """Write a PNG by hand, for the kinds that OpenCV does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    width = len(lines[0]) * 8 // depth
    header = struct.pack(">IIBBBBB", width, len(lines), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 700), (3, 511, 517), (2, 40, 300), (5, 20, 9)])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64", "complex64", ">f4"]
)
def test_tiff_round_trip(tmp_path: Path, shape: tuple[int, int, int], dtype: str) -> None:
    array = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    write_image(tmp_path / "a.tif", array)
    found = read_image(tmp_path / "a.tif")
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(found, array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_round_trip(tmp_path: Path, bands: int, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (bands, 13, 7)).astype(dtype)
    write_image(tmp_path / "a.png", array)
    found = read_image(tmp_path / "a.png")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    with rasterio.open(tmp_path / "a.png") as dataset:  # another reader agrees on the order of bands
        assert np.array_equal(dataset.read(), array)


def test_two_axes_are_one_band_and_views_are_fine(tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8).reshape(6, 10)[::2, ::-3]
    for name in ("a.png", "a.tif"):
        write_image(tmp_path / name, labels)
        assert np.array_equal(read_image(tmp_path / name), labels[np.newaxis])


def test_nan_and_nodata_survive(tmp_path: Path) -> None:
    array = np.array([[[1.5, np.nan], [-99.0, np.inf]]], np.float32)
    write_image(tmp_path / "a.tif", array, nodata=-99.0)
    assert np.array_equal(read_image(tmp_path / "a.tif"), array, equal_nan=True)
    with SceneReader(tmp_path / "a.tif") as scene:
        assert scene.nodata == -99.0


def test_georeference_of_a_tile(tmp_path: Path) -> None:
    place = Georeference(crs=rasterio.crs.CRS.from_epsg(32631).to_wkt(), transform=(10, 0, 5e5, 0, -10, 4e6))
    write_image(tmp_path / "a.tif", np.zeros((1, 4, 5), np.float32), georeference=place)
    with SceneReader(tmp_path / "a.tif") as scene:
        assert scene.georeference == place


def test_palette_png_gives_label_ids(tmp_path: Path) -> None:
    palette = bytes([10, 20, 30, 40, 50, 60, 70, 80, 90])
    chunk = struct.pack(">I", 9) + b"PLTE" + palette + struct.pack(">I", zlib.crc32(b"PLTE" + palette))
    make_png(tmp_path / "a.png", depth=8, color_type=3, lines=[b"\0\1\2", b"\2\1\0"], extra=chunk)
    assert read_image(tmp_path / "a.png").tolist() == [[[0, 1, 2], [2, 1, 0]]]


def test_one_bit_png_gives_zero_and_one(tmp_path: Path) -> None:
    make_png(tmp_path / "a.png", depth=1, color_type=0, lines=[b"\xa0", b"\x05"])
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 1]]]


def test_content_not_name_decides_the_format(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (1, 9, 9)).astype(np.uint8)
    write_image(tmp_path / "a.png", array)
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    write_image(path, np.random.default_rng(0).integers(0, 255, (1, 600, 300)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RasterError, match=rf"{name} .*truncated"):
        read_image(path)


def test_damaged_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, np.random.default_rng(0).integers(0, 255, (1, 60, 30)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RasterError, match=r"a\.png is damaged \(wrong checksum in chunk IDAT\)"):
        read_image(path)


def test_missing_folder_and_text(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match=r"There is no file .*absent\.png"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(RasterError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(RasterError, match=r"a\.png cannot be read as a raster: .*expected GeoTIFF or PNG"):
        read_image(tmp_path / "a.png")


def test_refuses_what_a_format_cannot_hold(tmp_path: Path) -> None:
    square = np.zeros((1, 4, 4), np.float32)
    with pytest.raises(RasterError, match=r"PNG holds uint8 or uint16 .* this is float32"):
        write_image(tmp_path / "a.png", square)
    with pytest.raises(RasterError, match=r"1, 3 or 4 bands, this is uint8 in 2"):
        write_image(tmp_path / "a.png", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(RasterError, match="PNG keeps neither georeference nor no-data"):
        write_image(tmp_path / "a.png", square.astype(np.uint8), nodata=0)
    with pytest.raises(RasterError, match="GeoTIFF cannot hold bool"):
        write_image(tmp_path / "a.tif", square.astype(bool))
    with pytest.raises(RasterError, match=r"'\.bmp' is neither \.png nor \.tif"):
        write_image(tmp_path / "a.bmp", square)
    with pytest.raises(RasterError, match=r"the array is \(1, 0, 4\)"):
        write_image(tmp_path / "a.tif", square[:, :0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, name: str, full_disk: Any) -> None:
    path = tmp_path / name
    write_image(path, np.zeros((1, 4, 4), np.uint8))
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (1, 400, 400)).astype(np.uint8)
    error = rf"Could not write .*{name}.*nothing was half written"
    with pytest.raises(StorageError, match=error), full_disk(20_000):
        write_image(path, noise)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_a_16_bit_png_of_opencv(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    cv2.imwrite(str(tmp_path / "a.png"), array)
    assert np.array_equal(read_image(tmp_path / "a.png"), array[np.newaxis])
