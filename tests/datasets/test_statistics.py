"""Streaming statistics against NumPy on everything at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.statistics import Histogram, eo_statistics, fit_preprocessing
from hfd_edge.errors import DatasetError, RadiometryError
from hfd_edge.raster.image import write_image

MakeFolder = Callable[..., Path]


def test_preprocessing_of_intensity(make_folder: MakeFolder) -> None:
    root = make_folder(rows=90, cols=71)
    holes = np.random.default_rng(5).gamma(4.0, 0.02, (2, 90, 71)).astype(np.float32)
    holes[:, :30] = 0.0
    holes[0, 40] = np.nan
    write_image(root / "train" / "sar" / "b.tif", holes)
    folder = PairFolder.open(root)
    fit = fit_preprocessing(folder, clip_percentile=1.0)
    stack = [folder.load_sar(pair) for pair in folder.pairs("train")]
    valid = [(np.isfinite(image) & (image > 0)).all(axis=0) for image in stack]
    for band in range(2):
        db = np.concatenate(
            [
                10 * np.log10(image[band][mask].astype(np.float64))
                for image, mask in zip(stack, valid, strict=True)
            ]
        )
        low, high = np.percentile(db, [1, 99])
        assert fit.clip[band] == pytest.approx((low, high), abs=0.05)
        clipped = np.clip(db, *fit.clip[band])
        assert fit.mean[band] == pytest.approx(clipped.mean(), abs=0.002)
        assert fit.std[band] == pytest.approx(clipped.std(), rel=0.002)
    assert (fit.units, fit.looks, fit.nodata, fit.speckle) == ("intensity", 4.0, 0.0, "none")
    pixels, mask = fit(stack[0])
    assert mask.all()
    assert abs(float(pixels.mean())) < 0.1 and 0.9 < float(pixels.std()) < 1.1


def test_speckle_filter_is_part_of_the_statistics(make_folder: MakeFolder) -> None:
    folder = PairFolder.open(make_folder(rows=60, cols=60))
    plain = fit_preprocessing(folder)
    filtered = fit_preprocessing(folder, speckle="boxcar", window_px=5)
    assert filtered.std[0] < 0.5 * plain.std[0]
    assert (filtered.speckle, filtered.window_px) == ("boxcar", 5)


def test_stretched_percentiles_are_exact(make_folder: MakeFolder) -> None:
    root = make_folder(bands=("sar",), units="stretched", nodata=None)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 200, (1, 24, 17), dtype=np.uint8) for _ in range(2)]
    for name, image in zip(("a.1", "b"), images, strict=True):
        (root / "train" / "sar" / f"{name}.tif").unlink()
        write_image(root / "train" / "sar" / f"{name}.png", image)
    fit = fit_preprocessing(PairFolder.open(root), clip_percentile=0.0)
    values = np.concatenate([image.ravel() for image in images]).astype(np.float64)
    assert fit.clip == ((values.min(), values.max()),)
    assert fit.mean[0] == pytest.approx(values.mean(), rel=1e-12)
    assert fit.std[0] == pytest.approx(values.std(), rel=1e-12)


def test_band_that_cannot_be_standardised(make_folder: MakeFolder) -> None:
    root = make_folder()
    for name in ("a.1", "b"):
        write_image(root / "train" / "sar" / f"{name}.tif", np.full((2, 24, 17), 0.1, np.float32))
    with pytest.raises(
        DatasetError, match=r"SAR band 'vv' of split 'train'.*816 valid pixels hold a single value"
    ):
        fit_preprocessing(PairFolder.open(root))


def test_filter_that_does_not_fit_the_units(make_folder: MakeFolder) -> None:
    root = make_folder(units="stretched")
    with pytest.raises(RadiometryError, match="stretched"):
        fit_preprocessing(PairFolder.open(root), speckle="lee")


def test_eo_statistics(make_folder: MakeFolder) -> None:
    root = make_folder()
    folder = PairFolder.open(root)
    stack = np.concatenate([folder.load_eo(pair).reshape(3, -1) for pair in folder.pairs("train")], axis=1)
    mean, std = eo_statistics(folder)
    assert mean == pytest.approx(stack.mean(axis=1, dtype=np.float64))
    assert std == pytest.approx(stack.std(axis=1, dtype=np.float64))
    (root / "train" / "eo" / "b.png").unlink()
    assert eo_statistics(PairFolder.open(root))[0] != mean


def test_eo_statistics_without_eo_or_of_a_flat_band(make_folder: MakeFolder) -> None:
    root = make_folder()
    write_image(root / "val" / "eo" / "c.png", np.full((3, 24, 17), 40, np.uint8))
    with pytest.raises(DatasetError, match="EO band 'red' of split 'val'.*holds a single value"):
        eo_statistics(PairFolder.open(root), split="val")
    (root / "val" / "eo" / "c.png").unlink()
    with pytest.raises(DatasetError, match="Split 'val' of .* has no EO image, which a teacher needs"):
        eo_statistics(PairFolder.open(root), split="val")


def test_histogram_widens_without_losing_anything() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.normal(0, 1, 1000), rng.normal(-4000, 100, 500), np.array([70_000.0, np.nan, np.inf])]
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    values = np.concatenate(parts)
    values = values[np.isfinite(values)].astype(np.float32)
    assert histogram.count == values.size
    assert histogram.width == 4.0
    mean, std = histogram.clipped_moments(-np.inf, np.inf)
    assert mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)
    assert std == pytest.approx(values.std(dtype=np.float64), rel=1e-3)
    assert histogram.percentile(0) == pytest.approx(values.min(), abs=4)
    assert histogram.percentile(100) == 70_000
    assert histogram.percentile(50) == pytest.approx(np.median(values), abs=4)


def test_histogram_of_nothing() -> None:
    histogram = Histogram()
    histogram.add(np.full((3, 4), np.nan))
    assert histogram.count == 0
