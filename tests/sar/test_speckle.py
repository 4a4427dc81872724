from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.errors import RadiometryError
from hfd_edge.sar import enl, speckle

GOLDEN = Path(__file__).parent / "golden"
ADAPTIVE = ("lee", "kuan", "gamma_map")


def speckled(rows: int, cols: int, *, seed: int = 0, looks: float = 4.0, bands: int = 1) -> np.ndarray:
    """Two halves 10 dB apart with a bright point, under speckle."""
    rng = np.random.default_rng(seed)
    truth = np.where(np.arange(cols) < cols // 2, 0.02, 0.2) * np.ones((bands, rows, 1))
    truth[:, rows // 2, cols // 3] = 30.0
    return truth * rng.gamma(looks, 1 / looks, truth.shape)


def run(name: str, intensity: np.ndarray, *, window_px: int = 7, looks: float = 4.0) -> np.ndarray:
    return speckle.despeckle(intensity, filter=name, window_px=window_px, looks=looks)


def window_of(band: np.ndarray, row: int, col: int, offsets: list[tuple[int, int]]) -> np.ndarray:
    """Valid pixels at the offsets, borders replicated, one at a time."""
    rows, cols = band.shape
    pixels = [band[min(max(row + r, 0), rows - 1), min(max(col + c, 0), cols - 1)] for r, c in offsets]
    return np.array([pixel for pixel in pixels if not math.isnan(pixel)])


def square(radius: int, row: int = 0, col: int = 0) -> list[tuple[int, int]]:
    side = range(-radius, radius + 1)
    return [(row + r, col + c) for r in side for c in side]


def by_hand(name: str, band: np.ndarray, row: int, col: int, radius: int, looks: float) -> float:
    """The formulas of one pixel, written out for scalars."""
    pixel, offsets = band[row, col], square(radius)
    window = window_of(band, row, col, offsets)
    mean = window.mean()
    variance = window.var(ddof=1) if len(window) > 1 else 0.0
    ci, cu = math.sqrt(variance) / mean, math.sqrt(1 / looks)
    if name == "boxcar" or variance == 0:
        return mean
    if name == "frost":
        weights = total = 0.0
        for offset in offsets:
            for value in window_of(band, row, col, [offset]):
                weight = math.exp(-2.0 * ci**2 * math.sqrt(offset[0] ** 2 + offset[1] ** 2))
                weights, total = weights + weight, total + weight * value
        return total / weights
    if ci <= cu:
        return mean
    if name == "gamma_map":
        if ci >= math.sqrt(2) * cu:
            return pixel
        alpha = (1 + cu**2) / (ci**2 - cu**2)
        b = alpha - looks - 1
        return (b * mean + math.sqrt(mean**2 * b**2 + 4 * alpha * looks * mean * pixel)) / (2 * alpha)
    weight = 1 - cu**2 / ci**2
    return mean + (weight / (1 + cu**2) if name == "kuan" else weight) * (pixel - mean)


def refined_lee_by_hand(band: np.ndarray, row: int, col: int) -> float:
    windows = {(i, j): window_of(band, row, col, square(1, 2 * i, 2 * j)) for i, j in square(1)}
    means = {key: window.mean() if len(window) else None for key, window in windows.items()}
    centre = means[0, 0]
    m = {key: centre if mean is None else mean for key, mean in means.items()}
    edges = [  # sub-windows of the first side, its middle, and which offsets lie on it
        ([(-1, -1), (0, -1), (1, -1)], (0, -1), lambda r, c: -c),
        ([(-1, -1), (-1, 0), (-1, 1)], (-1, 0), lambda r, c: -r),
        ([(-1, -1), (-1, 0), (0, -1)], (-1, -1), lambda r, c: -r - c),
        ([(-1, 1), (-1, 0), (0, 1)], (-1, 1), lambda r, c: c - r),
    ]
    gradients = [abs(sum(m[r, c] - m[-r, -c] for r, c in one)) for one, _, _ in edges]
    _, first, inside = edges[gradients.index(max(gradients))]
    second = (-first[0], -first[1])
    distance = {k: math.inf if means[k] is None else abs(means[k] - centre) for k in (first, second)}
    sign = -1 if distance[second] < distance[first] else 1
    half = window_of(band, row, col, [(r, c) for r, c in square(3) if sign * inside(r, c) >= 0])
    ratios = sorted(w.var(ddof=1) / w.mean() ** 2 for w in windows.values() if len(w) > 1)[:5]
    cu2 = sum(ratios) / len(ratios) if ratios else 0.0
    mean = half.mean()
    ci2 = half.var(ddof=1) / mean**2 if len(half) > 1 else 0.0
    weight = (1 - cu2 / ci2) / (1 + cu2) if ci2 > cu2 else 0.0
    return mean + weight * (band[row, col] - mean)


@pytest.fixture(params=["complete", "with no-data"])
def scene(request: pytest.FixtureRequest) -> np.ndarray:
    image = speckled(14, 17, seed=5)
    if request.param == "with no-data":
        image[:, 3:8, 9:15] = np.nan
        image[:, ::5, ::3] = np.nan
        image[0, 5, 12] = 0.1  # alone among no-data: only pixels far from it are valid
        image[:, 10:, :2] = np.nan
        image[0, 13, 0] = 0.3
    return image


@pytest.mark.parametrize("window_px", [3, 7])
@pytest.mark.parametrize("name", ["boxcar", "lee", "kuan", "frost", "gamma_map"])
def test_filter_is_its_formula_pixel_by_pixel(name, window_px, scene):
    result = run(name, scene, window_px=window_px)[0]
    for row, col in np.ndindex(result.shape):
        if math.isnan(scene[0, row, col]):
            assert math.isnan(result[row, col])
        else:
            expected = by_hand(name, scene[0], row, col, window_px // 2, 4.0)
            assert result[row, col] == pytest.approx(expected, rel=1e-12), (row, col)


def test_refined_lee_is_its_rules_pixel_by_pixel(scene):
    result = speckle.refined_lee(scene)[0]
    for row, col in np.ndindex(result.shape):
        if math.isnan(scene[0, row, col]):
            assert math.isnan(result[row, col])
        else:
            expected = refined_lee_by_hand(scene[0], row, col)
            assert result[row, col] == pytest.approx(expected, rel=1e-9), (row, col)


@pytest.mark.parametrize("name", ["lee", "kuan", "frost", "gamma_map"])
def test_filter_agrees_with_orfeo_toolbox(name):
    """Outputs made by benchmarks/speckle_otb.py --golden; OTB computes in double and stores float32."""
    image = cv2.imread(str(GOLDEN / "speckled.tif"), cv2.IMREAD_UNCHANGED)
    otb = cv2.imread(str(GOLDEN / f"otb_{name}.tif"), cv2.IMREAD_UNCHANGED)
    ours = run(name, image[None])[0]
    assert np.abs(ours / otb - 1).max() < 2e-7
    assert np.abs(image / otb - 1).max() > 0.5, "the golden image was not filtered"


@pytest.mark.parametrize("name", speckle.FILTERS)
def test_constant_image_is_a_fixed_point(name):
    image = np.full((2, 9, 11), 0.137)
    assert run(name, image) == pytest.approx(image, rel=1e-14)


@pytest.mark.parametrize("name", speckle.FILTERS)
def test_filter_scales_with_its_input(name):
    image = speckled(20, 22, seed=2)
    assert run(name, image * 2.0**-40) == pytest.approx(run(name, image) * 2.0**-40, rel=1e-12)


@pytest.mark.parametrize("name", speckle.FILTERS)
def test_mean_of_pure_speckle_is_kept(name):
    image = np.random.default_rng(8).gamma(4.0, 0.25, (1, 150, 150))
    bias = run(name, image).mean() / image.mean() - 1
    # Gamma-MAP gives the mode of a skewed distribution, which lies below its mean.
    assert abs(bias) < (0.02 if name == "gamma_map" else 0.01)


def test_boxcar_multiplies_looks_by_the_window():
    image = np.random.default_rng(4).gamma(2.0, 0.5, (1, 300, 300))
    independent = run("boxcar", image, window_px=5)[0, 2::5, 2::5]
    assert enl(independent) == pytest.approx(50.0, rel=0.1)


@pytest.mark.parametrize("name", ["lee", "kuan", "frost", "gamma_map", "refined_lee"])
def test_looks_rise_without_blurring_a_point_target(name):
    image = speckled(120, 120, seed=6)
    result = run(name, image)
    assert enl(result[0, 20:50, 5:30]) > 3 * enl(image[0, 20:50, 5:30])
    assert result[0, 60, 40] > 0.5 * image[0, 60, 40]
    assert run("boxcar", image)[0, 60, 40] < 0.1 * image[0, 60, 40]


def test_refined_lee_does_not_average_across_an_edge():
    image = np.where(np.arange(30) < 15, 0.02, 2.0) * np.random.default_rng(0).gamma(
        16.0, 1 / 16, (1, 30, 30)
    )
    dark = image[0, :, 14].mean()
    assert speckle.refined_lee(image)[0, 3:-3, 14].mean() == pytest.approx(dark, rel=0.1)
    assert run("boxcar", image)[0, 3:-3, 14].mean() > 20 * dark


@pytest.mark.parametrize("name", speckle.FILTERS)
def test_no_data_does_not_leak_into_its_neighbours(name):
    image = np.full((1, 12, 12), 0.5)
    image[0, 4:7, 4:7] = np.nan
    image[0, 0, 0] = np.inf
    result = run(name, image)
    assert np.array_equal(np.isnan(result), ~np.isfinite(image))
    assert result[np.isfinite(image)] == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize("name", speckle.FILTERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (2, 8, 1), (3, 2, 3)])
def test_images_smaller_than_the_window(name, shape):
    image = np.random.default_rng(1).gamma(1.0, 1.0, shape)
    result = run(name, image)
    assert result.shape == shape
    assert np.isfinite(result).all()
    assert result.min() >= image.min() * (1 - 1e-12) and result.max() <= image.max() * (1 + 1e-12)


@pytest.mark.parametrize("name", speckle.FILTERS)
def test_all_no_data_and_all_zero(name):
    assert np.isnan(run(name, np.full((1, 5, 5), np.nan))).all()
    assert np.array_equal(run(name, np.zeros((1, 5, 5))), np.zeros((1, 5, 5)))


@pytest.mark.parametrize("name", speckle.FILTERS)
def test_layout_and_type_of_the_input_do_not_matter(name):
    image = np.random.default_rng(2).integers(1, 5000, (24, 18, 2), np.uint16)
    result = run(name, np.moveaxis(image, -1, 0)[:, ::2])
    assert result.dtype == np.float64
    assert np.array_equal(
        result, run(name, np.ascontiguousarray(np.moveaxis(image, -1, 0)[:, ::2]).astype(float))
    )


def test_named_functions_are_the_filters():
    image = speckled(12, 12)
    for name in ADAPTIVE:
        direct = getattr(speckle, name)(image, window_px=5, looks=3.0)
        assert np.array_equal(direct, run(name, image, window_px=5, looks=3.0))
    assert np.array_equal(speckle.boxcar(image, window_px=5), run("boxcar", image, window_px=5))
    assert np.array_equal(speckle.frost(image, window_px=5), run("frost", image, window_px=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "median"}, 'no speckle filter "median". Choose one of boxcar, lee'),
        ({"window_px": 4}, "window_px is 4, but must be odd and at least 3"),
        ({"window_px": 1}, "window_px is 1, but must be odd"),
        ({"looks": 0.0}, r"looks is 0\.0, but must be positive"),
        ({"filter": "refined_lee", "window_px": 5}, "window_px is 5, but refined_lee is defined on 7 x 7"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(RadiometryError, match=message):
        speckle.despeckle(np.ones((1, 4, 4)), **{"filter": "lee", "window_px": 7, "looks": 1.0, **options})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((1, 4, 4), -11.5), r"negative values \(lowest -11\.5\).*probably in dB"),
        (np.ones((4, 4)), r"shape \(4, 4\), but \(bands, rows, cols\)"),
        (np.ones((1, 0, 4)), "at least one pixel was expected"),
        (np.ones((1, 4, 4), np.complex64), "Intensity is complex64.*complex_to_intensity"),
    ],
)
def test_what_is_not_intensity_is_refused(image, message):
    with pytest.raises(RadiometryError, match=message):
        run("lee", image)
