"""Images and scenes of any size: tiled equals whole, scene equals call, failures leave nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rasterio

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, BundleError, RadiometryError, RasterError, StorageError
from hfd_edge.raster.image import write_image
from hfd_edge.raster.logits import labels_from_logits
from hfd_edge.raster.scene import Gcp, Georeference, MaskWriter, SceneReader, SceneWriter
from hfd_edge.runtime import scene as scene_module
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.segmenter import Segmenter

Make = Callable[..., np.ndarray]
MakeBundle = Callable[..., Bundle]
SIZES = [(1, 1), (3, 700), (511, 517), (1024, 1024), (129, 31)]


def predict_whole(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    """Run the network once on the whole image, without any tiles; small images are padded to a tile."""
    manifest = bundle.manifest
    rows, cols = image.shape[1:]
    pixels, valid = manifest.preprocessing(image)
    padding = [(0, max(-side % 32, manifest.tile_px - side)) for side in (rows, cols)]
    pixels = np.pad(pixels, ((0, 0), *padding), mode="symmetric")
    session = onnxruntime.InferenceSession(str(bundle.model("fp32")), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"sar": pixels[np.newaxis]})
    labels = labels_from_logits(logits[0], stride=manifest.stride, rows=rows, cols=cols)
    labels[~valid] = manifest.nodata_label
    return labels


def read_mask(path: Path) -> np.ndarray:
    with SceneReader(path) as mask:
        return mask.read(0, mask.rows)[0]


@pytest.mark.parametrize("head", ["quarter", "full"])
@pytest.mark.parametrize("size", SIZES)
def test_tiled_equals_whole_and_scene_equals_call(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make, size: tuple[int, int], head: str
) -> None:
    bundle, image = make_bundle(head=head), make_image(*size)
    write_image(tmp_path / "s.tif", image)
    with Segmenter(bundle) as segment:
        labels = segment(image)
        report = segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
    assert labels.shape == size
    assert labels.dtype == np.uint8
    assert (labels == predict_whole(bundle, image)).mean() >= 0.995
    assert np.array_equal(read_mask(tmp_path / "m.tif"), labels)
    assert (report.rows, report.cols, report.megapixels) == (*size, size[0] * size[1] / 1e6)
    assert report.tiles >= 1
    if min(size) > 100:
        assert len(np.unique(labels)) == 5  # four classes and no-data: the comparison means something


@pytest.mark.parametrize("overlap_px", [0, 32, 64])
def test_more_overlap_is_closer_to_the_whole(
    make_bundle: MakeBundle, make_image: Make, overlap_px: int
) -> None:
    bundle, image = make_bundle(), make_image(400, 300)
    with Segmenter(bundle, overlap_px=overlap_px) as segment:
        share = (segment(image) == predict_whole(bundle, image)).mean()
    # The margin of the 64 pixels of overlap, 24, is more than half the receptive field of 39.
    least = {0: 0.9, 32: 0.97, 64: 0.9999}[overlap_px]
    assert share >= least
    assert overlap_px == 64 or share < 1


def test_call_does_not_depend_on_memory_layout_or_chunks(
    make_bundle: MakeBundle, make_image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(300, 200)
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(image, 0, -1)), -1, 0)
    assert not strided.flags.c_contiguous
    with Segmenter(make_bundle()) as segment:
        labels = segment(image)
        assert np.array_equal(segment(strided), labels)
        # Rows are read and preprocessed one by one; the speckle filter still sees its neighbours.
        monkeypatch.setattr(scene_module, "_CHUNK_VALUES", 1)
        assert np.array_equal(segment(image), labels)


def test_batches_give_the_same_labels(
    make_bundle: MakeBundle, make_image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(300, 340)
    image[:, :130, 70:210] = 0  # leaves a tile out, so that batches are not runs of neighbours
    with Segmenter(make_bundle()) as segment:
        one_by_one = segment(image)
        monkeypatch.setattr(OnnxRuntimeBackend, "batch", 3)
        assert (segment(image) == one_by_one).mean() > 0.9999


def test_no_data_is_a_label_not_a_number(make_bundle: MakeBundle, make_image: Make) -> None:
    image = make_image(200, 300)
    with Segmenter(make_bundle()) as segment:
        labels = segment(image)
        assert (labels[20:55, 30:50] == 255).all()
        assert (labels[-10:, -7:] == 255).all()  # NaN in one band is enough
        assert (labels == 255).sum() == 35 * 20 + 10 * 7
        assert (segment(np.zeros((2, 40, 50), np.float32)) == 255).all()
        assert (segment(np.full((2, 1, 1), np.nan, np.float32)) == 255).all()


def test_tiles_without_data_are_not_run(tmp_path: Path, make_bundle: MakeBundle, make_image: Make) -> None:
    image = make_image(400, 400, hole=False)
    image[:, :, 200:] = 0
    bundle = make_bundle()
    write_image(tmp_path / "s.tif", image)
    with Segmenter(bundle) as segment:
        report = segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
    labels = read_mask(tmp_path / "m.tif")
    assert (labels[:, 200:] == 255).all()
    assert (labels == predict_whole(bundle, image)).mean() >= 0.995
    # Tiles start at 0, 64, ... 288 in both directions; those from 256 on hold no data.
    assert (report.tiles, report.skipped_tiles) == (6 * 4, 6 * 2)


def test_padding_below_the_scene_is_not_data(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make
) -> None:
    image = make_image(225, 100, hole=False)
    image[:, 128:] = 0  # the second tile sees 97 rows without data, and 31 beyond the scene
    write_image(tmp_path / "s.tif", image)
    with Segmenter(make_bundle(), overlap_px=0) as segment:
        report = segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
    assert (report.tiles, report.skipped_tiles) == (1, 1)


@pytest.mark.parametrize(
    "place",
    [
        Georeference(crs=rasterio.crs.CRS.from_epsg(32631).to_wkt(), transform=(10, 0, 5e5, 0, -10, 4e6)),
        Georeference(
            gcps=(Gcp(0, 0, 5, 45), Gcp(0, 90, 6, 45), Gcp(80, 0, 5, 44)),
            gcps_crs=rasterio.crs.CRS.from_epsg(4326).to_wkt(),
        ),
        None,
    ],
    ids=["crs+transform", "gcps", "none"],
)
def test_scene_keeps_its_georeference(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make, place: Georeference | None
) -> None:
    write_image(tmp_path / "s.tif", make_image(80, 90), georeference=place)
    with Segmenter(make_bundle()) as segment:
        segment.scene(str(tmp_path / "s.tif"), str(tmp_path / "m.tif"))
    with SceneReader(tmp_path / "m.tif") as mask:
        assert mask.georeference == (place or Georeference())
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.tags(1)["CLASS_3"] == "city"
        assert mask.colormap(1)[3] == (200, 0, 0, 255)
        assert mask.nodata == 255


def test_real_scene_with_gcps_only(tmp_path: Path, make_bundle: MakeBundle, shared_data: Path) -> None:
    source = shared_data / "geo_edge_cases/sar/s1_grd_gcps_only_uint16.tif"
    with Segmenter(make_bundle(bands=("vv",), units="dn", nodata=None)) as segment:
        report = segment.scene(source, tmp_path / "m.tif")
        with SceneReader(source) as scene:
            image, place = scene.read(0, scene.rows), scene.georeference
        assert np.array_equal(read_mask(tmp_path / "m.tif"), segment(image))
    assert (report.rows, report.cols) == (837, 1280)
    with SceneReader(tmp_path / "m.tif") as mask:
        assert mask.georeference == place
        assert len(place.gcps) == 210
    assert ((read_mask(tmp_path / "m.tif") == 255) == (image[0] == 0)).all()


def test_real_db_scene_of_odd_size(tmp_path: Path, make_bundle: MakeBundle, shared_data: Path) -> None:
    source = shared_data / "geo_edge_cases/sar/s1_vv_db_utm_nodata-99_float32.tif"
    with SceneReader(source) as scene:
        image, crs = scene.read(0, scene.rows), scene.georeference.crs
    masks = []
    for nodata in (-99.0, None):  # declared by the manifest, or by the file alone
        bundle = make_bundle(name=f"{nodata}.hfd", bands=("vv",), units="sigma0_db", nodata=nodata)
        with Segmenter(bundle) as segment:
            segment.scene(source, tmp_path / "m.tif")
            masks.append(read_mask(tmp_path / "m.tif"))
            if nodata is not None:
                assert np.array_equal(masks[0], segment(image))
    assert np.array_equal(masks[0], masks[1])
    assert ((masks[0] == 255) == (image[0] == -99)).all()
    with SceneReader(tmp_path / "m.tif") as mask:
        assert mask.georeference.crs == crs
    linear = make_bundle(bands=("vv",))
    with (
        Segmenter(linear) as segment,
        pytest.raises(RadiometryError, match=r"s1_vv_db_utm.*db_to_intensity"),
    ):
        segment.scene(source, tmp_path / "other.tif")
    assert not (tmp_path / "other.tif").exists()


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_no_data_declared_by_the_file(tmp_path: Path, make_bundle: MakeBundle, dtype: str) -> None:
    image = np.random.default_rng(0).integers(50, 400, (1, 70, 80)).astype(dtype)
    image[:, 10:20, 5:9] = 32000
    write_image(tmp_path / "s.tif", image, nodata=32000)
    with Segmenter(make_bundle(bands=("vv",), units="dn", nodata=0.0)) as segment:
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        known = segment(np.where(image == 32000, 0, image))
    assert np.array_equal(read_mask(tmp_path / "m.tif"), known)
    assert (read_mask(tmp_path / "m.tif") == 255).sum() == 40


def test_png_scene_and_stretched_units(tmp_path: Path, make_bundle: MakeBundle) -> None:
    image = np.random.default_rng(0).integers(0, 255, (1, 150, 200)).astype(np.uint8)
    write_image(tmp_path / "s.png", image)
    with Segmenter(make_bundle(bands=("vv",), units="stretched", nodata=None, speckle="none")) as segment:
        segment.scene(tmp_path / "s.png", tmp_path / "m.tif")
        assert np.array_equal(read_mask(tmp_path / "m.tif"), segment(image))


def test_order_of_bands_matters_and_is_kept(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make
) -> None:
    image = make_image(150, 140)
    image[1] *= 0.05
    write_image(tmp_path / "s.tif", image)
    write_image(tmp_path / "swapped.tif", image[::-1])
    with Segmenter(make_bundle()) as segment:
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        segment.scene(tmp_path / "swapped.tif", tmp_path / "n.tif")
        expected, swapped = segment(image), segment(image[::-1])
    assert np.array_equal(read_mask(tmp_path / "m.tif"), expected)
    assert np.array_equal(read_mask(tmp_path / "n.tif"), swapped)
    assert (expected != swapped).mean() > 0.05


def test_complex_scene(tmp_path: Path, make_bundle: MakeBundle) -> None:
    rng = np.random.default_rng(0)
    image = (rng.normal(size=(1, 70, 80)) + 1j * rng.normal(size=(1, 70, 80))).astype(np.complex64)
    image[:, :5] = 0
    write_image(tmp_path / "s.tif", image)
    with Segmenter(make_bundle(bands=("hh",), units="complex", nodata=None)) as segment:
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        assert np.array_equal(read_mask(tmp_path / "m.tif"), segment(image))
    assert (read_mask(tmp_path / "m.tif")[:5] == 255).all()


def test_progress_counts_tiles(tmp_path: Path, make_bundle: MakeBundle, make_image: Make) -> None:
    calls: list[tuple[float, float, str]] = []
    write_image(tmp_path / "s.tif", make_image(300, 200))
    with Segmenter(make_bundle()) as segment:
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif", progress=lambda *call: calls.append(call))
    # One by one: a row of tiles of a wide scene takes a CPU most of a minute.
    assert [call[:2] for call in calls] == [(done, 12) for done in range(13)]
    assert all("s.tif" in call[2] for call in calls)


class Stop(Exception):
    """Raised by a test's progress."""


def test_stopping_leaves_nothing(tmp_path: Path, make_bundle: MakeBundle, make_image: Make) -> None:
    def stop(done: float, total: float, text: str) -> None:
        if done > total / 2:
            raise Stop

    write_image(tmp_path / "s.tif", make_image(300, 200))
    with Segmenter(make_bundle()) as segment, pytest.raises(Stop):
        segment.scene(tmp_path / "s.tif", tmp_path / "out" / "m.tif", progress=stop)
    assert not list((tmp_path / "out").iterdir())


def test_refuses_to_replace_the_scene(tmp_path: Path, make_bundle: MakeBundle, make_image: Make) -> None:
    write_image(tmp_path / "s.tif", make_image(70, 80))
    (tmp_path / "link.tif").symlink_to(tmp_path / "s.tif")
    before = (tmp_path / "s.tif").read_bytes()
    with Segmenter(make_bundle()) as segment:
        for name in ("s.tif", "link.tif"):
            with pytest.raises(StorageError, match=r"is the scene itself.*another destination"):
                segment.scene(tmp_path / "s.tif", tmp_path / name)
        with pytest.raises(StorageError, match="is a folder"):
            segment.scene(tmp_path / "s.tif", tmp_path)
        with pytest.raises(RasterError, match=r"ends in \.tif"):
            segment.scene(tmp_path / "s.tif", tmp_path / "m.png")
    assert (tmp_path / "s.tif").read_bytes() == before


def test_truncated_scene_leaves_nothing(tmp_path: Path, make_bundle: MakeBundle, make_image: Make) -> None:
    write_image(tmp_path / "s.tif", make_image(600, 500))
    content = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(content[: len(content) * 2 // 3])
    with (
        Segmenter(make_bundle()) as segment,
        pytest.raises(
            RasterError, match=r"s\.tif cannot be read at rows \d+ to \d+ of 600.*download it again"
        ),
    ):
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "s.tif"]


def test_full_disk_leaves_nothing(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make, full_disk: Any
) -> None:
    write_image(tmp_path / "s.tif", make_image(600, 500))
    error = r"Could not write .*m\.tif"
    with Segmenter(make_bundle()) as segment, pytest.raises(StorageError, match=error), full_disk(8_000):
        segment.scene(tmp_path / "s.tif", tmp_path / "out" / "m.tif")
    assert not list((tmp_path / "out").iterdir())


def test_wrong_bands_name_the_file_and_the_fix(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make
) -> None:
    write_image(tmp_path / "s.tif", make_image(70, 80)[:1])
    with Segmenter(make_bundle()) as segment:
        message = r"s\.tif has 1 band, but bundle 'small' expects 2: vv, vh\. Put exactly these bands"
        with pytest.raises(RasterError, match=message):
            segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        with pytest.raises(RadiometryError, match="The image has 3 bands, but bundle 'small' expects 2"):
            segment(np.ones((3, 5, 5), np.float32))
        with pytest.raises(RadiometryError, match=r"The image is \(5, 5\), expected \(bands, rows, cols\)"):
            segment(np.ones((5, 5), np.float32))
        with pytest.raises(RadiometryError, match=r"\(2, 0, 5\)"):
            segment(np.ones((2, 0, 5), np.float32))
    assert not (tmp_path / "m.tif").exists()


def test_decibels_for_linear_name_the_file_and_the_fix(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make
) -> None:
    decibels = 10 * np.log10(make_image(70, 80, hole=False))
    write_image(tmp_path / "s.tif", decibels)
    with Segmenter(make_bundle()) as segment:
        with pytest.raises(RadiometryError, match=r"s\.tif: .*db_to_intensity"):
            segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        with pytest.raises(RadiometryError, match=r"The image: .*db_to_intensity"):
            segment(decibels)
    assert not (tmp_path / "m.tif").exists()


def test_missing_scene(tmp_path: Path, make_bundle: MakeBundle) -> None:
    with Segmenter(make_bundle()) as segment, pytest.raises(RasterError, match="There is no file"):
        segment.scene(tmp_path / "absent.tif", tmp_path / "m.tif")


def test_after_close(make_bundle: MakeBundle, make_image: Make) -> None:
    segment = Segmenter(make_bundle())
    segment.close()
    segment.close()
    with pytest.raises(BackendError, match=r"model\.fp32\.onnx was closed"):
        segment(make_image(40, 40))


def test_reports_what_auto_chose(make_bundle: MakeBundle) -> None:
    precisions = {"int8": "model.int8.onnx", "fp32": "model.fp32.onnx"}
    with Segmenter(make_bundle(precisions=precisions)) as segment:
        assert (segment.backend, segment.precision, segment.overlap_px) == ("onnxruntime", "fp32", 64)
    bundle = make_bundle(name="int8.hfd", precisions={"int8": "model.int8.onnx"})
    with Segmenter(bundle, threads=1) as segment:
        assert segment.precision == "int8"
    with pytest.raises(BundleError, match="has no fp16 model"):
        Segmenter(bundle, precision="fp16")


@pytest.mark.parametrize("overlap_px", [-32, 33, 96])
def test_impossible_overlap(make_bundle: MakeBundle, overlap_px: int) -> None:
    with pytest.raises(BackendError, match=rf"overlap_px is {overlap_px}, .* half the bundle's tile \(64\)"):
        Segmenter(make_bundle(), overlap_px=overlap_px)


def test_mask_of_a_scene_larger_than_one_block(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make
) -> None:
    """Rows come from a striped file and finish at other heights than the blocks that they are written in."""
    image = make_image(700, 90)
    with SceneWriter(tmp_path / "s.tif", bands=2, rows=700, cols=90, dtype="float32") as writer:
        writer.write_rows(0, image)
    with Segmenter(make_bundle(tile_px=64)) as segment:
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        labels = segment(image)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert np.array_equal(mask.read(1), labels)
        assert mask.overviews(1) == [2]


def test_mask_writer_is_what_the_scene_uses(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make
) -> None:
    """A mask that already exists is replaced by the new one only when that is whole."""
    with MaskWriter(
        tmp_path / "m.tif", rows=1, cols=1, palette=((0, 0, 0),) * 2, classes=("a", "b")
    ) as writer:
        writer.write_rows(0, np.ones((1, 1), np.uint8))
    write_image(tmp_path / "bad.tif", -make_image(70, 80))
    write_image(tmp_path / "good.tif", make_image(70, 80))
    with Segmenter(make_bundle()) as segment:
        with pytest.raises(RadiometryError):
            segment.scene(tmp_path / "bad.tif", tmp_path / "m.tif")
        assert read_mask(tmp_path / "m.tif").tolist() == [[1]]
        segment.scene(tmp_path / "good.tif", tmp_path / "m.tif")
    assert read_mask(tmp_path / "m.tif").shape == (70, 80)


@pytest.mark.parametrize(("threads", "aside"), [(None, False), (2, False), (1, True)])
def test_scenes_are_read_ahead_only_where_the_network_leaves_cores(
    threads: int | None,
    aside: bool,
    tmp_path: Path,
    make_bundle: MakeBundle,
    make_image: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hfd_edge.runtime.pipeline.allowed_cores", lambda: frozenset((0, 1)))
    read, readers = SceneReader.read, set()

    def spy(self: SceneReader, *window: int) -> np.ndarray:
        readers.add(threading.current_thread() is threading.main_thread())
        return read(self, *window)

    monkeypatch.setattr(SceneReader, "read", spy)
    write_image(tmp_path / "s.tif", make_image(300, 150))
    with Segmenter(make_bundle(), backend="onnxruntime", threads=threads) as segment:
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
    assert readers == {not aside}
