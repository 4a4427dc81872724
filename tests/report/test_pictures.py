from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.report.pictures import (
    AGREE,
    BROKEN,
    CORRECTED,
    MOVED,
    WRONG,
    difference_picture,
    eo_picture,
    flip_picture,
    label_picture,
    png_bytes,
    sar_picture,
    shrink_labels,
    shrink_values,
    tile_pictures,
)

PALETTE = ((10, 20, 30), (200, 100, 50))
HATCH = {26, 66}


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in picture.reshape(3, -1).T.tolist()}


def is_hatched(picture: np.ndarray, where: np.ndarray) -> bool:
    inside = picture[:, where]
    return set(np.unique(inside).tolist()) <= HATCH and bool((inside[0] == inside[1]).all())


def test_two_bands_are_vv_vh_and_their_difference() -> None:
    vv = np.linspace(-20, 0, 64, dtype=np.float32).reshape(8, 8)
    vh = np.full((8, 8), -20, np.float32)
    picture = sar_picture(np.stack([vv, vh]), percentiles=(0, 100))
    assert picture.shape == (3, 8, 8)
    assert picture.dtype == np.uint8
    assert picture[0, 0, 0] == 0
    assert picture[0, -1, -1] == 255
    assert (picture[1] == 128).all(), "a constant channel is mid-grey"
    np.testing.assert_array_equal(picture[2], picture[0])  # VV - VH rises with VV when VH is constant


def test_one_band_is_grey_and_three_are_rgb() -> None:
    values = np.random.default_rng(0).normal(-10, 3, (4, 9, 7))
    grey = sar_picture(values[:1])
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()
    colour = sar_picture(values)
    np.testing.assert_array_equal(colour[1], sar_picture(values[1:2])[0])


def test_stretch_ignores_outliers_and_no_data() -> None:
    values = np.linspace(0, 100, 10_000).reshape(1, 100, 100)
    values[0, 0, 0] = 1e9
    values[0, :, 60:] = np.nan
    picture = sar_picture(values, percentiles=(2, 98))
    assert 100 < np.median(picture[0, :, :60]) < 155
    assert is_hatched(picture, np.isnan(values[0]))


def test_a_pixel_invalid_in_one_band_is_hatched() -> None:
    values = np.random.default_rng(1).normal(size=(2, 12, 12))
    values[1, 2:5, 3:9] = np.inf
    picture = sar_picture(values)
    assert is_hatched(picture, ~np.isfinite(values[1]))
    assert not is_hatched(picture, np.isfinite(values[1]))


def test_all_no_data_and_one_pixel() -> None:
    nothing = np.full((2, 16, 16), np.nan, np.float32)
    assert is_hatched(sar_picture(nothing), np.ones((16, 16), bool))
    assert colours(sar_picture(np.zeros((1, 1, 1)))) == {(128, 128, 128)}


def test_integers_and_strided_arrays() -> None:
    stored = np.arange(2 * 20 * 20, dtype=np.uint8).reshape(2, 20, 20)
    np.testing.assert_array_equal(
        sar_picture(stored[:, ::2, ::-1]), sar_picture(stored[:, ::2, ::-1].copy().astype(np.float32))
    )


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.zeros((0, 4, 4)), np.zeros((2, 0, 4))])
def test_sar_needs_bands_rows_cols(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"SAR values must be \(bands, rows, cols\), but the shape is"):
        sar_picture(values)


def test_complex_values_are_refused() -> None:
    with pytest.raises(ValueError, match="SAR values are complex; show their dB"):
        sar_picture(np.zeros((1, 2, 2), np.complex64))


def test_eo_is_brightened_alike_in_all_bands() -> None:
    values = np.zeros((3, 20, 20), np.float32)
    values[0], values[1] = 0.4, 0.2
    picture = eo_picture(values)
    assert colours(picture) == {(255, 128, 0)}, "the brightest is white, and the hue is kept"


def test_eo_values_outside_the_range_are_clipped() -> None:
    values = np.linspace(0, 1, 300, dtype=np.float32).reshape(3, 10, 10)
    values[0, 0, 0], values[2, 9, 9] = -1, 50
    picture = eo_picture(values)
    assert picture[0, 0, 0] == 0
    assert picture[2, 9, 9] == 255


def test_a_dark_eo_image_stays_dark() -> None:
    assert colours(eo_picture(np.zeros((3, 4, 4)))) == {(0, 0, 0)}
    assert colours(eo_picture(np.full((3, 4, 4), 0.02))) == {(51, 51, 51)}


def test_eo_grey_extra_bands_and_no_data() -> None:
    grey = np.full((1, 2, 2), 0.2)
    grey[0, 0, 0] = 0.1
    assert colours(eo_picture(grey)) == {(128, 128, 128), (255, 255, 255)}
    values = np.full((5, 4, 4), 0.4)
    values[3] = np.nan  # a band that is not shown still says where there is no data
    assert is_hatched(eo_picture(values), np.ones((4, 4), bool))


def test_labels_take_their_colours() -> None:
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    picture = label_picture(labels, PALETTE)
    assert tuple(picture[:, 0, 0]) == PALETTE[0]
    assert tuple(picture[:, 0, 1]) == PALETTE[1]
    assert is_hatched(picture, labels == 255)
    assert is_hatched(label_picture(np.full((9, 9), 7, np.int64), PALETTE, void=7), np.ones((9, 9), bool))


@pytest.mark.parametrize("strange", [2, -1])
def test_labels_outside_the_palette_are_named(strange: int) -> None:
    labels = np.array([[0, 255, strange]], np.int16)
    with pytest.raises(
        ValueError, match=f"labels hold id {strange}, but there are 2 colours and void is 255"
    ):
        label_picture(labels, PALETTE)


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2)), np.zeros((1, 2, 2), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_labels_must_be_a_map_of_integers(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a label map must be integers"):
        label_picture(labels, PALETTE)


def test_differences_are_red() -> None:
    first = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
    second = np.array([[0, 2, 2], [1, 255, 1]], np.int32)
    picture = difference_picture(first, second)
    assert [tuple(picture[:, 0, col]) for col in range(3)] == [AGREE, WRONG, AGREE]
    assert tuple(picture[:, 1, 2]) == WRONG
    assert is_hatched(picture[:, 1:, :2], np.ones((1, 2), bool))


def test_differences_need_one_shape() -> None:
    with pytest.raises(ValueError, match=r"label maps \(2, 2\) and \(2, 3\) differ in shape"):
        difference_picture(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


def test_shrink_values_averages_valid_pixels() -> None:
    values = np.arange(64, dtype=np.float64).reshape(1, 8, 8)
    values[0, 0, 0] = np.nan  # one of four in its block
    values[0, 4:6, 4:6] = np.nan  # a whole block
    shrunk = shrink_values(values, side_px=4)
    assert shrunk.shape == (1, 4, 4)
    assert shrunk[0, 0, 0] == pytest.approx((1 + 8 + 9) / 3, rel=1e-6)
    assert shrunk[0, 1, 1] == pytest.approx(np.mean([18, 19, 26, 27]), rel=1e-6)
    assert np.isnan(shrunk[0, 2, 2])
    assert np.isnan(shrunk).sum() == 1


def test_shrinking_keeps_the_shape_of_long_scenes() -> None:
    assert shrink_values(np.zeros((2, 1000, 3)), side_px=50).shape == (2, 50, 1)
    assert shrink_labels(np.zeros((3, 1000), np.uint8), side_px=50).shape == (1, 50)


def test_small_arrays_are_not_enlarged() -> None:
    values, labels = np.zeros((1, 4, 5)), np.zeros((4, 5), np.uint8)
    assert shrink_values(values, side_px=100) is values
    assert shrink_labels(labels, side_px=5) is labels


def test_a_side_below_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="side_px is 0, but must be at least 1"):
        shrink_labels(np.zeros((4, 4), np.uint8), side_px=0)


def test_shrunk_labels_are_never_mixed_and_never_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "mask.dat"
    mask = np.memmap(path, np.uint8, "w+", shape=(20_000, 10_000))  # sparse: 200 MB that take no space
    mask[10_000:, :] = 5
    shrunk = shrink_labels(np.memmap(path, np.uint8, "r", shape=(20_000, 10_000)), side_px=100)
    assert shrunk.shape == (100, 50)
    assert set(np.unique(shrunk).tolist()) == {0, 5}
    assert (shrunk[:50] == 0).all()
    assert not isinstance(shrunk, np.memmap)


def test_png_keeps_every_pixel_and_the_order_of_colours() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (3, 11, 6)).astype(np.uint8)
    decoded = cv2.imdecode(np.frombuffer(png_bytes(picture), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(np.moveaxis(decoded[..., ::-1], -1, 0), picture)


@pytest.mark.parametrize(
    "picture", [np.zeros((3, 4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((3, 0, 4), np.uint8)]
)
def test_png_refuses_what_is_no_picture(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a picture is uint8 \(3, rows, cols\), but this is"):
        png_bytes(picture)


def test_flips_say_who_is_right() -> None:
    reference = np.array([[0, 0, 1, 2, 0, 255, 0, 255]], np.uint8)
    variant = np.array([[0, 1, 0, 1, 1, 255, 255, 255]], np.uint8)
    truth = np.array([[1, 0, 0, 0, 255, 0, 0, 255]], np.uint8)
    picture = flip_picture(variant, reference, truth)
    colours = [tuple(int(part) for part in picture[:, 0, column]) for column in range(8)]
    # Both wrong alike; broken; corrected; another error; unknown truth; no data; lost to no data; no data.
    assert colours[:5] == [AGREE, BROKEN, CORRECTED, MOVED, MOVED]
    assert colours[6] == BROKEN
    for column in (5, 7):
        assert len(set(colours[column])) == 1
        assert colours[column] not in (AGREE, BROKEN, CORRECTED, MOVED)
    with pytest.raises(ValueError, match=r"label maps \(1, 8\), \(1, 8\) and \(1, 7\) differ in shape"):
        flip_picture(variant, reference, truth[:, :7])


def test_tile_pictures_score_what_was_built() -> None:
    truth = np.array([[0, 1, 1, 255]], np.uint8)
    tile = tile_pictures(
        "t",
        sar=np.zeros((1, 1, 4)),
        eo=None,
        truth=truth,
        predictions={"sar_only": np.array([[0, 0, 0, 0]]), "int8": np.array([[0, 1, 255, 0]]), "fp16": None},
        palette=PALETTE,
    )
    assert tile.eo is None
    assert tile.accuracy == {"sar_only": pytest.approx(1 / 3), "int8": pytest.approx(2 / 3)}
    assert list(tile.predictions) == ["sar_only", "fp32", "fp16", "int8", "int8_fp16"]
    assert tile.predictions["fp32"] is None
    assert tile.predictions["fp16"] is None
    assert tile.errors_of == "int8"
    np.testing.assert_array_equal(
        tile.errors, difference_picture(np.array([[0, 1, 255, 0]]), truth.astype(np.int64))
    )


def test_tile_without_truth_has_no_errors() -> None:
    labels = np.zeros((2, 2), np.uint8)
    tile = tile_pictures(
        "t", sar=np.zeros((1, 2, 2)), eo=None, truth=None, predictions={"fp32": labels}, palette=PALETTE
    )
    assert (tile.truth, tile.errors, tile.errors_of, dict(tile.accuracy)) == (None, None, None, {})


def test_tile_whose_truth_is_all_void_has_no_accuracy() -> None:
    void = np.full((2, 2), 255, np.uint8)
    tile = tile_pictures(
        "t",
        sar=np.zeros((1, 2, 2)),
        eo=None,
        truth=void,
        predictions={"fp32": np.zeros((2, 2), np.uint8)},
        palette=PALETTE,
    )
    assert dict(tile.accuracy) == {}


def test_unknown_variants_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown variants \['int4'\]; expected some of"):
        tile_pictures(
            "t",
            sar=np.zeros((1, 2, 2)),
            eo=None,
            truth=None,
            predictions={"int4": np.zeros((2, 2), np.uint8)},
            palette=PALETTE,
        )
