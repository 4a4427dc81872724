"""speckle.cu against the float64 definition of every filter, and against itself on other cuts of an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.errors import BackendError
from hfd_edge.gpu import find_gpu
from hfd_edge.raster.image import read_image
from hfd_edge.runtime import kernels as kernel_sources
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import MAX_BANDS, SPECKLE_ARGS, Plane, Speckle
from hfd_edge.sar import FILTERS, Preprocessing, radiometry

from .speckle_reference import Gpu, check, expected, make_chain, scene, stored_as

pytestmark = pytest.mark.gpu

BOX_FILTERS = ("boxcar", "lee", "kuan", "gamma_map")
NEGATIVE_LINEAR, BEYOND_MAX_DB = 1, 2


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    if find_gpu() is None:
        pytest.skip("no GPU, and HFD_EDGE_SOFTCUDA=1 is not set")
    made = Gpu()
    yield made
    made.device.close()


STORED = [
    ("uint8", "amplitude"),
    ("uint8", "sigma0_db"),
    ("uint16", "dn"),
    ("uint16", "intensity"),
    ("float32", "intensity"),
    ("float32", "amplitude"),
    ("float32", "sigma0_db"),
    ("complex64", "complex"),
]


# Refined Lee has one window.
FILTERS_AND_WINDOWS = [
    ("refined_lee", 7),
    *((name, window_px) for name in (*BOX_FILTERS, "frost") for window_px in (3, 5, 7, 9, 11)),
]


class TestAgainstReference:
    @pytest.mark.parametrize(("name", "window_px"), [("none", 7), *FILTERS_AND_WINDOWS])
    @pytest.mark.parametrize(("dtype", "units"), STORED)
    def test_every_type_filter_and_window(self, gpu, dtype, units, name, window_px):
        chain = make_chain(units=units, speckle=name, window_px=window_px, nodata=3.0)
        image = stored_as(scene(45, 72), dtype, units)
        image[0, 20:30, 5:30] = 0
        image[1, ::6, ::4] = 0 if image.dtype.kind == "u" else np.nan
        image[1, 40:, 60:] = 3
        aligned = check(gpu, chain, image)
        assert np.array_equal(gpu.speckle(chain, image, gap=1)[0], aligned)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_stretched_pixels_keep_their_values_and_their_zeros(self, gpu, dtype):
        image = np.random.default_rng(1).integers(0, 256, (2, 19, 75)).astype(dtype)
        image[1, :4] = 7
        check(gpu, make_chain(units="stretched", speckle="none", nodata=7.0), image)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 5), (32, 64), (33, 65), (2, 200), (97, 3)])
    @pytest.mark.parametrize(("name", "window_px"), [("none", 7), *FILTERS_AND_WINDOWS])
    def test_odd_shapes(self, gpu, name, window_px, shape):
        check(gpu, make_chain(speckle=name, window_px=window_px), scene(*shape))

    @pytest.mark.parametrize("bands", [1, 3, 4, 5, 8])
    @pytest.mark.parametrize("name", ["lee", "refined_lee"])
    def test_bands_that_need_smaller_tiles(self, gpu, name, bands):
        image = scene(35, 66, bands=bands)
        image[-1, 4:9, 7:11] = np.nan
        check(gpu, make_chain(bands, speckle=name), image)

    @pytest.mark.parametrize(("name", "window_px"), FILTERS_AND_WINDOWS)
    def test_bright_targets_beside_dark_water(self, gpu, name, window_px):
        image = scene(40, 64, bands=1)
        image[0, ::16, ::16] = 1e6
        # Frost's weights are exp(-2 Ci^2 d), with Ci^2 up to 121 here: float32 NumPy is off by 3e-5.
        tolerance = 4 * 3e-5 if name == "frost" else 1e-5
        check(gpu, make_chain(1, speckle=name, window_px=window_px), image, tolerance=tolerance)

    @pytest.mark.parametrize("name", FILTERS)
    def test_constant_image_is_a_fixed_point(self, gpu, name):
        pixels = check(gpu, make_chain(1, speckle=name), np.full((1, 20, 20), 0.3, np.float32))
        assert np.ptp(pixels) <= 2e-6

    def test_first_of_equal_edges(self, gpu):
        """A texture whose 3 x 3 means are exactly 1, or 2 around one bright pixel: ties everywhere."""
        image = np.tile(np.array([0.5, 1.0, 1.5], np.float32), (1, 15, 5))
        image[0, 7, 7] += 9
        chain = make_chain(1, speckle="refined_lee")
        pixels, _, _ = gpu.speckle(chain, image)
        np.testing.assert_allclose(pixels, expected(chain, image)[0], atol=1e-5)

    @pytest.mark.parametrize("name", [*BOX_FILTERS, "frost"])
    def test_many_looks(self, gpu, name):
        check(gpu, make_chain(1, speckle=name, looks=400.0), scene(40, 64, bands=1, looks=400.0))

    def test_largest_size_of_the_acceptance_test(self, gpu):
        image = stored_as(scene(1031, 517, bands=1), "uint8", "amplitude")
        check(gpu, make_chain(1, units="amplitude"), image, half=True)

    def test_clip(self, gpu):
        chain = make_chain(1, clip=((-20.0, -10.0),), mean=(-15.0,), std=(5.0,))
        pixels = check(gpu, chain, scene(33, 40, bands=1))
        assert pixels.min() == -1 and pixels.max() == 1

    @pytest.mark.parametrize(
        ("files", "units", "nodata"),
        [
            ("geo_edge_cases/sar/*uint16.tif", "dn", 0.0),
            ("geo_edge_cases/sar/*nodata-99*.tif", "sigma0_db", -99.0),
            ("kompsat5_water/sar/*.tif", "dn", None),
            ("volkov_s1s2_pairs_unlabelled/sar/*.tif", "amplitude", None),
            ("terramind_s1s2_lulc/sar/*.tif", "sigma0_db", None),
        ],
    )
    @pytest.mark.parametrize("name", ["none", *FILTERS])
    def test_real_images(self, gpu, shared_data: Path, files, units, nodata, name):
        image = read_image(min(shared_data.glob(files)))[:, 90:170, 60:170]
        check(gpu, make_chain(len(image), units=units, speckle=name, nodata=nodata), image)


class TestNoData:
    @pytest.mark.parametrize("name", ["none", *FILTERS])
    @pytest.mark.parametrize("band", [0, 1, 2])
    def test_a_pixel_is_valid_in_every_band_or_in_none(self, gpu, name, band):
        image = scene(20, 40, bands=3)
        image[band, 3, 4:9] = [np.nan, np.inf, -np.inf, 0.0, 5.0]
        _, valid, _ = gpu.speckle(make_chain(3, nodata=5.0, speckle=name), image)
        assert np.argwhere(~valid).tolist() == [[3, col] for col in range(4, 9)]
        check(gpu, make_chain(3, nodata=5.0, speckle=name), image)

    @pytest.mark.parametrize("name", ["none", *FILTERS])
    def test_nothing_valid(self, gpu, name):
        pixels, valid, _ = gpu.speckle(make_chain(speckle=name), np.zeros((2, 11, 70), np.float32))
        assert not pixels.any() and not valid.any()

    @pytest.mark.parametrize("nodata", [0.5, 300.0, -1.0, 1e-50, 1e50])
    def test_nodata_that_no_stored_value_can_equal(self, gpu, nodata):
        image = np.arange(256, dtype=np.uint8).reshape(1, 4, 64)
        check(gpu, make_chain(1, units="stretched", speckle="none", nodata=nodata), image)

    @pytest.mark.parametrize("name", ["none", "lee"])
    def test_power_beyond_single_precision(self, gpu, name):
        image = np.full((1, 9, 9), 0.3, np.float32)
        image[0, 0, :2] = [1e-30, 1e30]
        pixels, valid, _ = gpu.speckle(make_chain(1, units="amplitude", speckle=name), image)
        assert np.isfinite(pixels).all() and np.argwhere(~valid).tolist() == [[0, 0], [0, 1]]


class TestFaults:
    @pytest.mark.parametrize("name", ["none", "lee", "refined_lee"])
    @pytest.mark.parametrize(
        ("units", "value", "dtype", "bits"),
        [
            ("intensity", -1e-3, "float32", NEGATIVE_LINEAR),
            ("amplitude", -2.0, "float32", NEGATIVE_LINEAR),
            ("sigma0_db", 100.5, "float32", BEYOND_MAX_DB),
            ("sigma0_db", 101, "uint8", BEYOND_MAX_DB),
            ("sigma0_db", -200.0, "float32", 0),
            ("sigma0_db", 100.0, "float32", 0),
            ("sigma0_db", np.inf, "float32", 0),
            ("intensity", -np.inf, "float32", 0),
            ("complex", -1.0, "complex64", 0),
        ],
    )
    def test_one_pixel_is_enough(self, gpu, name, units, value, dtype, bits):
        image = np.full((2, 40, 70), 2, dtype)
        image[1, 39, 69] = value
        assert gpu.speckle(make_chain(units=units, speckle=name), image)[2] == bits
        nodata = gpu.speckle(make_chain(units=units, speckle=name, nodata=float(value)), image)[2]
        assert nodata == 0, "the no-data value may be anything"

    def test_bits_of_earlier_frames_stay(self, gpu):
        image = np.full((2, 5, 5), -1, np.float32)
        assert gpu.speckle(make_chain(), image, faults=2)[2] == 3
        assert gpu.speckle(make_chain(), -image, faults=2)[2] == 2

    def test_kernel_and_reference_refuse_the_same(self, gpu):
        for value in (-1.0, 1.0):
            image = np.full((2, 5, 5), value, np.float32)
            try:
                radiometry.check_units(image, units="intensity", bands=2)
                refused = False
            except radiometry.RadiometryError:
                refused = True
            assert refused == bool(gpu.speckle(make_chain(), image)[2])


@pytest.mark.parametrize("name", ["none", *FILTERS])
class TestCutsDoNotShow:
    """Bit for bit: a pixel depends on its window alone."""

    def chain_and_image(self, name):
        image = scene(101, 150)
        image[:, 20:24, 10:20] = 0.0
        image[1, 60:, 100:] = np.nan
        return make_chain(speckle=name, looks=2.0), image

    def test_rows_of_a_block(self, gpu, name):
        chain, image = self.chain_and_image(name)
        whole, whole_valid, _ = gpu.speckle(chain, image)
        for rows in ((0, 1), (7, 50), (40, 101)):
            pixels, valid, _ = gpu.speckle(chain, image, rows=rows)
            assert np.array_equal(pixels, whole[:, slice(*rows)])
            assert np.array_equal(valid, whole_valid[slice(*rows)])

    def test_strips_with_halo(self, gpu, name):
        chain, image = self.chain_and_image(name)
        whole, _, _ = gpu.speckle(chain, image)
        for top in range(0, 101, 37):
            first, stop = max(top - chain.halo_px, 0), min(top + 37, 101)
            strip = np.ascontiguousarray(image[:, first : stop + chain.halo_px])
            pixels, _, _ = gpu.speckle(chain, strip, rows=(top - first, stop - first))
            assert np.array_equal(pixels, whole[:, top:stop])

    def test_columns(self, gpu, name):
        """Tiles begin elsewhere, rows are no longer aligned, and no-data falls into other tiles."""
        chain, image = self.chain_and_image(name)
        whole, _, _ = gpu.speckle(chain, image)
        pixels, _, _ = gpu.speckle(chain, np.ascontiguousarray(image[:, :, 13:]))
        assert np.array_equal(pixels[..., chain.halo_px :], whole[..., 13 + chain.halo_px :])

    def test_memory_layout(self, gpu, name):
        chain, image = self.chain_and_image(name)
        whole, whole_valid, _ = gpu.speckle(chain, image)
        for offset, gap in ((1, 0), (0, 2), (1, 5)):  # 150 + 2 columns are aligned, the others are not
            pixels, valid, _ = gpu.speckle(chain, image, offset=offset, gap=gap)
            assert np.array_equal(pixels, whole) and np.array_equal(valid, whole_valid)

    def test_half_precision_is_the_rounded_result(self, gpu, name):
        chain, image = self.chain_and_image(name)
        single, valid, _ = gpu.speckle(chain, image)
        for gap in (0, 2):
            half, half_valid, _ = gpu.speckle(chain, image, half=True, gap=gap)
            assert np.array_equal(half, single.astype(np.float16)) and np.array_equal(valid, half_valid)


class TestHalfPrecision:
    @pytest.mark.parametrize("name", ["none", *FILTERS])
    def test_against_reference(self, gpu, name):
        check(gpu, make_chain(speckle=name), scene(40, 67), half=True)

    def test_conversions_are_numpys_for_every_half(self, gpu, tmp_path, monkeypatch):
        """All halves both ways, the floats halfway between two of them, and those just beside."""
        text = (Path(__file__).parent / "kernels" / "half.cu").read_text()
        text = text.replace(
            "common.cuh", str(kernel_sources.SOURCES / "common.cuh")
        )  # no copy: it is counted
        (tmp_path / "half.cu").write_text(text)
        monkeypatch.setattr(kernel_sources, "SOURCES", tmp_path)
        halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        known = np.sort(halves[np.isfinite(halves)].astype(np.float32))
        middle = (known + np.append(known[1:], np.float32(65536))) / 2
        floats = np.concatenate([known, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
        extreme = [np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-30, -0.0, 65519.996, 3.4e38, 1e-45]
        floats = np.concatenate([floats, np.array(extreme, np.float32)]).astype(np.float32)
        to_half, to_float = self.convert(gpu, floats, halves)
        with np.errstate(over="ignore"):
            wanted = floats.astype(np.float16)
        np.testing.assert_array_equal(to_half, wanted)
        assert np.array_equal(np.signbit(to_half), np.signbit(wanted) & ~np.isnan(wanted))
        np.testing.assert_array_equal(to_float, halves.astype(np.float32))

    @staticmethod
    def convert(gpu: Gpu, floats: np.ndarray, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = [gpu._buffer(array, 0) for array in (floats, halves)]
        outputs = [gpu.device.buffer(2 * floats.size), gpu.device.buffer(4 * halves.size)]
        names = ("floats", "halves", "to_half", "to_float")
        dtype = np.dtype([*((name, "<u8") for name in names), ("counts", "<i4", (2,))], align=True)
        args = np.zeros((), dtype)
        for name, buffer in zip(names, (*inputs, *outputs), strict=True):
            args[name] = buffer.address
        args["counts"] = floats.size, halves.size
        function = Kernels(gpu.device).function("half", "convert_halves")
        function(gpu.stream, grid=(-(-floats.size // 256),), block=(256,), args=args[()])
        to_half = gpu._array(outputs[0], floats.shape, np.float16, 0)
        return to_half, gpu._array(outputs[1], halves.shape, np.float32, 0)


class TestTraffic:
    """Acceptance: at window 7 at most 1.35 times one read and one write of each pixel."""

    @pytest.mark.parametrize("half", [False, True])
    @pytest.mark.parametrize("bands", [1, 2, 4])
    @pytest.mark.parametrize(
        ("dtype", "units"),
        [("uint8", "amplitude"), ("uint16", "dn"), ("float32", "intensity"), ("complex64", "complex")],
    )
    def test_bytes_of_a_frame(self, gpu, softcuda, dtype, units, bands, half):
        image = stored_as(np.full((bands, 128, 256), 0.1), dtype, units)
        softcuda.reset()
        gpu.speckle(make_chain(bands, units=units), image, half=half)
        counted = softcuda.counters("speckle_7")
        pixels = 128 * 256
        written = pixels * (bands * (2 if half else 4) + 1)
        assert counted.launches == 1
        assert counted.store_bytes == written
        assert counted.load_bytes + counted.store_bytes <= 1.35 * (image.nbytes + written)

    def test_no_data_costs_nothing_more(self, gpu, softcuda):
        image = scene(64, 128)
        image[:, :32] = 0.0
        softcuda.reset()
        gpu.speckle(make_chain(speckle="none"), image)
        counted = softcuda.counters("speckle_none")
        assert counted.load_bytes == image.nbytes and counted.store_bytes == image.nbytes + 64 * 128
        assert counted.loads == image.nbytes / 16, "aligned rows are read four pixels at a time"


class TestRefused:
    def launch(self, gpu: Gpu, chain: Preprocessing, **changes: Any) -> None:
        call: dict[str, Any] = {"dtype": np.dtype(np.float32), "shape": (2, 8, 8), "rows": (0, 8), **changes}
        plane = Plane(0, 8, 64)
        made = Speckle(gpu.kernels, gpu.device.limits, chain, half=False)
        made(gpu.stream, plane, out=plane, valid=plane, faults=0, **call)

    def test_types(self, gpu):
        with pytest.raises(
            BackendError, match=r'int16 pixels, but takes uint8, uint16 or float32 for units "int'
        ):
            self.launch(gpu, make_chain(), dtype=np.dtype(np.int16))
        with pytest.raises(BackendError, match="complex64 pixels, but takes uint8"):
            self.launch(gpu, make_chain(), dtype=np.dtype(np.complex64))
        with pytest.raises(BackendError, match=r"float32 pixels, but takes complex64.*numpy\.astype"):
            self.launch(gpu, make_chain(units="complex"))

    @pytest.mark.parametrize(
        "changes", [{"shape": (3, 8, 8)}, {"rows": (0, 9)}, {"rows": (4, 4)}, {"rows": (-1, 2)}]
    )
    def test_shapes(self, gpu, changes):
        with pytest.raises(BackendError, match=r"at least one row inside a block of 2 bands"):
            self.launch(gpu, make_chain(), **changes)

    def test_window(self, gpu):
        with pytest.raises(
            BackendError, match=r"13 pixels wide, but the GPU kernels take \(3, 5, 7, 9, 11\)"
        ):
            self.launch(gpu, make_chain(window_px=13))

    @pytest.mark.parametrize("name", ["none", "lee"])
    def test_bands(self, gpu, name):
        with pytest.raises(BackendError, match=rf"{MAX_BANDS + 1} bands.*onnxruntime backend"):
            self.launch(gpu, make_chain(MAX_BANDS + 1, speckle=name))

    def test_shared_memory(self, gpu):
        limits = dataclasses.replace(gpu.device.limits, shared_bytes=8000)
        with pytest.raises(
            BackendError,
            match=r"the 4 bands of .* for filter lee with window 7 at least 14080 bytes, but .* has 8000",
        ):
            Speckle(gpu.kernels, limits, make_chain(4), half=False)

    def test_grid(self, gpu):
        limits = dataclasses.replace(gpu.device.limits, max_grid=(1, 1, 1))
        made = Speckle(gpu.kernels, limits, make_chain(), half=False)
        with pytest.raises(BackendError, match=r"at most \(1, 1, 1\) blocks in one launch, but \(1, 2\)"):
            plane = Plane(0, 64, 6400)
            made(
                gpu.stream, plane, dtype=np.dtype(np.float32), shape=(2, 64, 64), rows=(0, 64), out=plane,
                valid=plane, faults=0,
            )  # fmt: skip


def test_argument_struct_has_the_size_of_the_kernel(softcuda, gpu):
    """The driver refuses a parameter buffer of another size than the kernel's struct."""
    longer = np.dtype([*SPECKLE_ARGS.descr, ("more", "<u8")])
    function = gpu.kernels.function("speckle", "speckle_none")
    with softcuda.expect_faults("argument"), pytest.raises(BackendError, match="invalid argument"):
        function(gpu.stream, grid=(1,), block=(32,), args=np.zeros((), longer)[()])


@pytest.mark.hardware
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(1031, 517), (2048, 4096)])
@pytest.mark.parametrize("name", ["none", *FILTERS])
@pytest.mark.parametrize(("dtype", "units"), STORED)
def test_large_images(gpu, dtype, units, name, shape, half):
    image = stored_as(scene(*shape), dtype, units)
    image[0, 200:300, 50:300] = 0
    chain = make_chain(units=units, speckle=name)
    check(gpu, chain, image[:, :600, :600].copy(), half=half)
    whole, _, _ = gpu.speckle(chain, image, half=half)
    part, _, _ = gpu.speckle(chain, image, half=half, rows=(101, 377))
    assert np.array_equal(part, whole[:, 101:377])
