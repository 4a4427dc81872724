"""Scenes by windows of rows, masks with everything a GIS expects, and nothing left behind on failure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from hfd_edge.errors import RasterError, StorageError
from hfd_edge.raster.image import write_image
from hfd_edge.raster.scene import Gcp, Georeference, MaskWriter, SceneReader, SceneWriter

PALETTE = ((10, 20, 30), (200, 100, 50))
CLASSES = ("dry", "flood")
UTM = rasterio.crs.CRS.from_epsg(32631).to_wkt()
WGS84 = rasterio.crs.CRS.from_epsg(4326).to_wkt()
GCPS = (Gcp(0, 0, 5.0, 45.0), Gcp(0, 50.5, 6.0, 45.1, 12.5), Gcp(40, 0, 5.1, 44.0), Gcp(40, 50, 6.1, 44.1))


def write_mask(path: Path, labels: np.ndarray, step: int = 100, place: Georeference | None = None) -> None:
    rows, cols = labels.shape
    with MaskWriter(
        path, rows=rows, cols=cols, palette=PALETTE, classes=CLASSES, georeference=place
    ) as writer:
        for row in range(0, rows, step):
            writer.write_rows(row, labels[row : row + step])


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (511, 517), (1024, 1024), (2100, 40)])
@pytest.mark.parametrize("step", [7, 256, 5000])
def test_mask_round_trip(tmp_path: Path, shape: tuple[int, int], step: int) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), shape)
    write_mask(tmp_path / "m.tif", labels, step)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif"]
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert np.array_equal(mask.read(1), labels)
        assert mask.nodata == 255
        assert mask.profile["tiled"]
        assert mask.profile["compress"] == "deflate"
        colors = mask.colormap(1)
        assert [colors[0], colors[1], colors[255][3]] == [(10, 20, 30, 255), (200, 100, 50, 255), 0]
        assert mask.tags(1) == {"CLASS_0": "dry", "CLASS_1": "flood", "CLASS_255": "no data"}
        largest = max(shape)
        expected = [level for level in (2, 4, 8) if largest > 512 * level // 2]
        assert mask.overviews(1) == expected
    for index, level in enumerate(expected):
        with rasterio.open(tmp_path / "m.tif", overview_level=index) as small:
            assert small.shape == tuple(-(-side // level) for side in shape)
            assert set(np.unique(small.read(1))) <= {0, 1, 255}


@pytest.mark.parametrize("shape", [(700, 1), (3000, 3), (1, 3000), (2, 5001)])
def test_overviews_of_a_narrow_mask(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), shape)
    write_mask(tmp_path / "m.tif", labels)
    levels = [level for level in (2, 4, 8, 16) if max(shape) > 512 * level // 2]
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert np.array_equal(mask.read(1), labels)
        assert len(mask.overviews(1)) == len(levels)
    for index, level in enumerate(levels):
        with rasterio.open(tmp_path / "m.tif", overview_level=index) as small:
            assert small.shape == tuple(-(-side // level) for side in shape)


@pytest.mark.parametrize(
    "place",
    [
        Georeference(),
        Georeference(crs=UTM, transform=(10.0, 0.0, 5e5, 0.0, -10.0, 4.9e6)),
        Georeference(transform=(1.0, 0.5, 7.0, -0.5, -1.0, 9.0)),
        Georeference(crs=WGS84, transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
        Georeference(gcps=GCPS, gcps_crs=WGS84),
        Georeference(gcps=GCPS),
    ],
    ids=["none", "crs+transform", "transform", "flipped identity", "gcps", "gcps without crs"],
)
@pytest.mark.filterwarnings("error")
def test_georeference_survives(tmp_path: Path, place: Georeference) -> None:
    write_mask(tmp_path / "m.tif", np.zeros((60, 70), np.uint8), place=place)
    with SceneReader(tmp_path / "m.tif") as mask:
        assert mask.georeference == place


def test_gcps_written_by_rasterio_itself(tmp_path: Path) -> None:
    points = [GroundControlPoint(row=r, col=c, x=5 + c, y=45 - r, z=0) for r in (0, 9) for c in (0, 9)]
    profile = {"driver": "GTiff", "count": 1, "height": 10, "width": 10, "dtype": "uint16"}
    with rasterio.open(tmp_path / "s.tif", "w", **profile) as dataset:
        dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    with SceneReader(tmp_path / "s.tif") as scene:
        place = scene.georeference
    assert place.transform is None
    assert [point[:4] for point in place.gcps] == [(p.row, p.col, p.x, p.y) for p in points]
    write_mask(tmp_path / "m.tif", np.zeros((10, 10), np.uint8), place=place)
    with rasterio.open(tmp_path / "m.tif") as mask:
        found, crs = mask.gcps
        assert crs.to_epsg() == 4326
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


def test_rpcs_survive(tmp_path: Path) -> None:
    coefficients = [1.0] + [0.0] * 19
    rpcs = RPC(
        height_off=10, height_scale=500, lat_off=45, lat_scale=1, line_off=5, line_scale=5, long_off=5,
        long_scale=1, samp_off=5, samp_scale=5, line_num_coeff=coefficients, line_den_coeff=coefficients,
        samp_num_coeff=coefficients, samp_den_coeff=coefficients, err_bias=None, err_rand=None,
    )  # fmt: skip
    place = Georeference(rpcs=tuple(sorted(rpcs.to_gdal().items())))
    write_mask(tmp_path / "m.tif", np.zeros((10, 10), np.uint8), place=place)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.rpcs.line_off == 5
        assert mask.rpcs.height_scale == 500


def test_real_scene_with_gcps_only(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "geo_edge_cases/sar/s1_grd_gcps_only_uint16.tif"
    with SceneReader.open(source) as scene:
        assert (scene.bands, scene.rows, scene.cols, scene.dtype) == (1, 837, 1280, np.uint16)
        place = scene.georeference
        top = scene.read(0, 3)
        part = scene.read(1, 3, 10, 14)
    assert (place.crs, place.transform, len(place.gcps)) == (None, None, 210)
    assert np.array_equal(top[:, 1:, 10:14], part)
    write_mask(tmp_path / "m.tif", np.zeros((837, 1280), np.uint8), place=place)
    with rasterio.open(source) as scene, rasterio.open(tmp_path / "m.tif") as mask:
        assert [p.asdict() | {"id": ""} for p in mask.gcps[0]] == [
            p.asdict() | {"id": ""} for p in scene.gcps[0]
        ]
        assert mask.gcps[1] == scene.gcps[1]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "complex64"])
def test_scene_writer_by_strips(tmp_path: Path, dtype: str) -> None:
    values = (np.random.default_rng(0).normal(size=(2, 700, 300)) * 40).astype(dtype)
    with SceneWriter(tmp_path / "s.tif", bands=2, rows=700, cols=300, dtype=dtype, nodata=0) as writer:
        for row in range(0, 700, 90):
            writer.write_rows(row, values[:, row : row + 90])
    with SceneReader(tmp_path / "s.tif") as scene:
        assert (scene.bands, scene.rows, scene.cols, scene.nodata) == (2, 700, 300, 0)
        assert scene.dtype == values.dtype
        assert np.array_equal(scene.read(123, 456, 7, 299), values[:, 123:456, 7:299])
        with pytest.raises(ValueError, match=r"rows 690 to 701, .* are not inside"):
            scene.read(690, 701)


def test_complex_integers_of_single_look_products(tmp_path: Path) -> None:
    values = np.array([[[3 + 4j, 0], [-5j, 7]]], np.complex64)
    profile = {"driver": "GTiff", "count": 1, "height": 2, "width": 2, "dtype": "complex_int16"}
    with rasterio.open(tmp_path / "s.tif", "w", **profile) as dataset:
        dataset.write(values)
    with SceneReader(tmp_path / "s.tif") as scene:
        assert scene.dtype == np.complex64
        assert np.array_equal(scene.read(0, 2), values)


def test_bands_of_different_types(tmp_path: Path) -> None:
    write_image(tmp_path / "vv.tif", np.array([[0.25, 2.0]], np.float32))
    write_image(tmp_path / "vh.tif", np.array([[700, 3]], np.uint16))
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{name}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band, (name, kind) in enumerate((("vv", "Float32"), ("vh", "UInt16")), start=1)
    )
    (tmp_path / "s.vrt").write_text(f'<VRTDataset rasterXSize="2" rasterYSize="1">{bands}</VRTDataset>')
    with SceneReader(tmp_path / "s.vrt") as scene:
        assert scene.dtype == np.float32
        assert scene.read(0, 1).tolist() == [[[0.25, 2.0]], [[700.0, 3.0]]]


def test_png_is_a_scene(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 40, 30)).astype(np.uint8)
    write_image(tmp_path / "s.png", values)
    with SceneReader(tmp_path / "s.png") as scene:
        assert np.array_equal(scene.read(0, 40), values)
        assert scene.georeference == Georeference()
    content = (tmp_path / "s.png").read_bytes()
    (tmp_path / "s.png").write_bytes(content[:-20])
    with pytest.raises(RasterError, match=r"s\.png is truncated"):
        SceneReader(tmp_path / "s.png")


def test_truncated_tiff_opens_but_does_not_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(1, 1200, 300)).astype(np.float32)
    write_image(tmp_path / "s.tif", noise)
    content = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(content[: len(content) // 2])
    with SceneReader(tmp_path / "s.tif") as scene:
        assert np.array_equal(scene.read(0, 200), noise[:, :200])
        with pytest.raises(
            RasterError, match=r"s\.tif cannot be read at rows 1000 to 1199 of 1200.*truncated"
        ):
            scene.read(1000, 1200)


def test_reading_does_not_grow_gdals_cache_for_good(tmp_path: Path) -> None:
    def cache() -> int:
        with rasterio.Env():
            return rasterio.env.get_gdal_config("GDAL_CACHEMAX")

    write_image(tmp_path / "s.tif", np.zeros((1, 300, 300), np.float32))
    before = cache()
    with SceneReader(tmp_path / "s.tif") as scene:
        assert cache() == 32 << 20
        with ThreadPoolExecutor(1) as pool:  # as a scene is read
            pool.submit(scene.read, 0, 1).result()
            assert pool.submit(cache).result() == 32 << 20
        assert cache() == 32 << 20
    assert cache() == before


class Stop(Exception):
    """Raised by a test in the middle of writing."""


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.tif", np.ones((5, 5), np.uint8))
    before = (tmp_path / "m.tif").read_bytes()
    with (
        pytest.raises(Stop),
        MaskWriter(tmp_path / "m.tif", rows=600, cols=600, palette=PALETTE, classes=CLASSES) as writer,
    ):
        writer.write_rows(0, np.zeros((400, 600), np.uint8))
        raise Stop
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif"]
    assert (tmp_path / "m.tif").read_bytes() == before


@pytest.mark.parametrize(
    "size", [0, 3_000, 8_000, 100_000, 200_000, 265_000, 269_500, 270_000, 300_000, 330_000, 338_000]
)
def test_full_disk_leaves_nothing(tmp_path: Path, size: int, full_disk: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 520), dtype=np.uint8)
    write_mask(tmp_path / "whole.tif", noise)
    assert (tmp_path / "whole.tif").stat().st_size > size
    (tmp_path / "whole.tif").unlink()
    # From 269 kB on the disk fills up while overviews are made, which GDAL does not report.
    error = r"Could not write .*m\.tif.*nothing was half written"
    with pytest.raises(StorageError, match=error), full_disk(size):
        write_mask(tmp_path / "m.tif", noise)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"Could not write .*m\.tif"):
        write_mask(tmp_path / "file" / "m.tif", np.zeros((5, 5), np.uint8))


def test_rows_must_follow_each_other(tmp_path: Path) -> None:
    def writer() -> MaskWriter:
        return MaskWriter(tmp_path / "m.tif", rows=10, cols=10, palette=PALETTE, classes=CLASSES)

    rows = np.zeros((5, 10), np.uint8)
    with pytest.raises(ValueError, match="rows 5 to 10 .* do not follow row 0 of 10"), writer() as mask:
        mask.write_rows(5, rows)
    with pytest.raises(ValueError, match="5 of 10 rows"), writer() as mask:
        mask.write_rows(0, rows)
    with pytest.raises(ValueError, match=r"are int64 \(1, 5, 10\), expected uint8"), writer() as mask:
        mask.write_rows(0, rows.astype(np.int64))
    assert not list(tmp_path.iterdir())


def test_masks_are_tiffs(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match=r"written as GeoTIFF, but m\.png ends in '\.png'"):
        MaskWriter(tmp_path / "m.png", rows=1, cols=1, palette=PALETTE, classes=CLASSES)
