from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.errors import RadiometryError
from hfd_edge.sar import fast, speckle

FLOOR = 1e-6


def relative_error(result: np.ndarray, reference: np.ndarray) -> float:
    """Largest error relative to the reference; no-data must be the same pixels."""
    assert np.array_equal(np.isnan(result), np.isnan(reference))
    known = ~np.isnan(reference) & (reference > 0)
    if not known.any():
        return 0.0
    return float(np.max(np.abs(result[known] / reference[known] - 1)))


def check(image: np.ndarray, name: str, *, window_px: int = 7, looks: float = 4.0) -> None:
    """Against the float64 reference on the same float32 pixels, by the project's rule for fast paths."""
    options = {"filter": name, "window_px": window_px, "looks": looks}
    image = np.asarray(image, np.float32)
    reference = speckle.despeckle(image, **options)
    plain = relative_error(speckle.despeckle(image, **options, dtype=np.float32), reference)
    result = fast.despeckle(image, **options)
    assert result.dtype == np.float32
    if name == "refined_lee":
        plain = 0.0  # single precision picks another half window at near-ties, and is no yardstick there
    assert relative_error(result, reference) <= 4 * plain + FLOOR


def scene(rows: int, cols: int, *, bands: int = 2, looks: float = 4.0, seed: int = 0) -> np.ndarray:
    """Water, land and bright points: 50 dB of range under speckle."""
    rng = np.random.default_rng(seed)
    truth = np.where(np.arange(cols) < cols // 2, 0.002, 0.2) * np.ones((bands, rows, 1))
    truth[rng.random(truth.shape) < 0.002] = 200.0
    return (truth * rng.gamma(looks, 1 / looks, truth.shape)).astype(np.float32)


@pytest.mark.parametrize("name", speckle.FILTERS)
class TestAgainstReference:
    def test_speckle(self, name):
        check(scene(61, 75), name)

    def test_no_data(self, name):
        image = scene(61, 75, seed=1)
        image[0, 20:40, 5:30] = np.nan
        image[1, ::6, ::4] = np.inf
        image[1, 50:, 60:] = np.nan
        check(image, name)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (1, 9, 1), (3, 2, 5), (1, 7, 6)])
    def test_odd_shapes(self, name, shape):
        check(np.random.default_rng(0).gamma(1.0, 1.0, shape), name, looks=1.0)

    def test_bright_targets_do_not_disturb_dark_water(self, name):
        image = scene(64, 64, bands=1)
        image[0, ::16, ::16] *= 1e6
        check(image, name)

    def test_many_looks(self, name):
        check(scene(64, 64, bands=1, looks=400.0), name, looks=400.0)

    def test_constant_and_zero(self, name):
        check(np.full((1, 20, 20), 0.3), name)
        assert np.array_equal(
            fast.despeckle(np.zeros((1, 9, 9)), filter=name, window_px=7, looks=1.0), np.zeros((1, 9, 9))
        )
        image = scene(30, 30)
        image[:, :15] = 0.0
        check(image, name)

    def test_all_no_data(self, name):
        image = np.full((2, 9, 9), np.nan, np.float32)
        assert np.isnan(fast.despeckle(image, filter=name, window_px=7, looks=1.0)).all()

    def test_blocks_do_not_show(self, name, monkeypatch):
        image = scene(70, 83, bands=1)
        image[0, 30:40, 30:50] = np.nan
        whole = fast.despeckle(image, filter=name, window_px=7, looks=4.0)
        monkeypatch.setattr(fast, "_BLOCK_PX", (16, 13))
        blocks = fast.despeckle(image, filter=name, window_px=7, looks=4.0)
        assert np.array_equal(whole, blocks, equal_nan=True), "results depend on the blocks"

    @pytest.mark.parametrize("looks", [4.4, 30.0, 100.0])
    def test_no_data_elsewhere_in_the_block_does_not_show(self, name, looks):
        image = scene(70, 83, bands=1)
        options = {"filter": name, "window_px": 7, "looks": looks}
        whole = fast.despeckle(image, **options)
        image[0, 0, 0] = np.nan
        beside = fast.despeckle(image, **options)
        assert np.array_equal(whole[:, 10:, 10:], beside[:, 10:, 10:]), "the rest of the block counts"

    def test_layout_and_type_of_the_input_do_not_matter(self, name):
        stored = np.random.default_rng(2).integers(1, 5000, (24, 36, 2), np.uint16)
        view = np.moveaxis(stored, -1, 0)[:, ::-1, ::2]
        before = view.copy()
        result = fast.despeckle(view, filter=name, window_px=7, looks=1.0)
        straight = np.ascontiguousarray(view).astype(np.float64)
        assert np.array_equal(result, fast.despeckle(straight, filter=name, window_px=7, looks=1.0))
        assert np.array_equal(view, before), "the input was changed"


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0, 64.0, 65.0, 400.0])
@pytest.mark.parametrize("bright", [1.0, 1e6])
@pytest.mark.parametrize("name", ["boxcar", "lee", "kuan"])
def test_single_precision_sums_keep_five_digits(name, bright, looks):
    image = scene(96, 96, bands=1, looks=looks)
    image[0, ::16, ::16] *= bright
    image[0, 40:44, 50:60] = np.nan
    options = {"filter": name, "window_px": 7, "looks": looks}
    assert relative_error(fast.despeckle(image, **options), speckle.despeckle(image, **options)) < 1e-5


def test_power_whose_square_leaves_single_precision_stays_finite():
    for power in (1e-30, 1e25):
        image = scene(20, 20, bands=1) * np.float32(power)
        for name in ("boxcar", "lee", "kuan"):
            result = fast.despeckle(image, filter=name, window_px=7, looks=4.0)
            assert np.isfinite(result).all()
            assert image.min() <= result.min() <= result.max() <= image.max()


@pytest.mark.parametrize("window_px", [3, 5, 9, 11])
@pytest.mark.parametrize("name", ["boxcar", "lee", "kuan", "frost", "gamma_map"])
def test_every_window_of_a_recipe(name, window_px):
    image = scene(40, 41, bands=1)
    image[0, 10:14, 10:14] = np.nan
    check(image, name, window_px=window_px)


def test_real_image_where_integers_make_exact_ties(shared_data: Path):
    path = shared_data / "geo_edge_cases" / "sar" / "s1_grd_gcps_only_uint16.tif"
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[300:400, 600:720].astype(np.float32)
    for name in ("lee", "kuan", "frost", "gamma_map"):
        check((stored**2)[None], name, looks=4.4)


def test_power_beyond_single_precision_is_no_data():
    image = np.full((1, 9, 9), 2.0)
    image[0, 4, 4] = 1e300
    result = fast.despeckle(image, filter="boxcar", window_px=3, looks=1.0)
    assert np.isnan(result[0, 4, 4])
    assert np.array_equal(np.delete(result.ravel(), 40), np.full(80, 2.0, np.float32))


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.full((1, 4, 4), -3.0), {}, "probably in dB"),
        (np.ones((4, 4)), {}, r"\(bands, rows, cols\)"),
        (np.ones((1, 4, 4)), {"filter": "none"}, 'There is no speckle filter "none"'),
        (np.ones((1, 4, 4)), {"window_px": 8}, "window_px is 8, but must be odd"),
    ],
)
def test_bad_input_is_refused_like_the_reference_does(image, options, message):
    with pytest.raises(RadiometryError, match=message):
        fast.despeckle(image, **{"filter": "lee", "window_px": 7, "looks": 1.0, **options})
