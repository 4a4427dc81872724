"""Scenes and frames are compared with the training images as they are segmented."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.drift import TrainingStatistics, portray_image, training_statistics
from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.raster.image import write_image
from hfd_edge.runtime.drift import Watch
from hfd_edge.runtime.scene import ArraySink, ArraySource
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import BANDS, MakeBundle, make_manifest

Make = Callable[..., np.ndarray]


@pytest.fixture
def training(make_image: Make) -> TrainingStatistics:
    """Of images of the fixture, which differ by their sizes; `make_image` seeds itself by them."""
    chain = make_manifest().preprocessing
    portraits = (portray_image(make_image(128 + seed, 160 - seed), chain, bands=BANDS) for seed in range(20))
    found = training_statistics(((portrait, {}) for portrait in portraits), chain)
    assert found is not None
    return found


@pytest.fixture
def bundle(make_bundle: MakeBundle, training: TrainingStatistics, tmp_path: Path) -> Bundle:
    plain = make_bundle()
    manifest = plain.manifest.model_copy(update={"training": training})
    return Bundle.create(tmp_path / "trained.hfd", manifest, {"model.fp32.onnx": plain.model("fp32")})


def test_statistics_travel_with_the_bundle(bundle: Bundle, training: TrainingStatistics) -> None:
    assert Bundle.open(bundle.path).manifest.training == training


def test_a_scene_like_the_training_images_and_one_ten_decibels_above(
    tmp_path: Path, bundle: Bundle, make_bundle: MakeBundle, make_image: Make
) -> None:
    image = make_image(300, 410)
    write_image(tmp_path / "s.tif", image)
    write_image(tmp_path / "loud.tif", image * np.float32(10))
    with Segmenter(bundle) as segment, Segmenter(make_bundle(name="plain.hfd")) as plain:
        quiet = segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        loud = segment.scene(tmp_path / "loud.tif", tmp_path / "n.tif")
        assert plain.scene(tmp_path / "s.tif", tmp_path / "p.tif").drift is None
        checked = segment.check(image)
    assert (tmp_path / "m.tif").read_bytes() == (tmp_path / "p.tif").read_bytes()
    assert quiet.drift is not None and loud.drift is not None and checked is not None
    assert quiet.drift.findings == ()
    assert {finding.kind for finding in loud.drift.findings} == {"level"}
    first, second = loud.drift.findings
    assert first.message.startswith("vv lies 10.")
    assert (first.of, second.of) == BANDS
    # The scene goes by in rows, and gives the figures that the image in memory has.
    for name, value in checked.figures.items():
        assert quiet.drift.figures[name] == value
    assert sum(quiet.drift.figures[f"share {name}"] for name in bundle.manifest.classes) == pytest.approx(1)
    json.dumps(dataclasses.asdict(loud), allow_nan=False)


def test_labels_are_counted_whatever_the_rows_they_come_in(bundle: Bundle) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (203, 90), np.uint8)
    labels[:40] = 255
    found = []
    for step in (203, 1, 7, 64):
        sink = ArraySink(rows=203, cols=90)
        source = ArraySource(np.full((2, 203, 90), 0.03, np.float32))
        watch = Watch(bundle.manifest, source, sink)
        watch.source.read(0, 203)
        for row in range(0, 203, step):
            watch.sink.write_rows(row, labels[row : row + step])
        np.testing.assert_array_equal(sink.labels, labels)
        report = watch.report()
        assert report is not None
        found.append([report.figures[f"share {name}"] for name in bundle.manifest.classes])
    some = labels[::8, ::8]
    expected = np.bincount(some[some < 4], minlength=4) / (some < 4).sum()
    np.testing.assert_allclose(found, np.tile(expected, (4, 1)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (40, 40)])
def test_tiny_frames_are_not_judged(bundle: Bundle, make_image: Make, shape: tuple[int, int]) -> None:
    with Segmenter(bundle) as segment:
        report = segment.check(make_image(*shape) * 1000)
        blank = segment.check(np.full((2, *shape), np.nan, np.float32))
    assert report is not None and blank is not None
    assert report.findings == blank.findings == ()
    assert report.unjudged is not None and "valid pixels were sampled" in report.unjudged
    assert blank.pixels == 0


def test_masks_of_frames_tell_class_shares(bundle: Bundle, make_image: Make) -> None:
    image = make_image(130, 140)
    with Segmenter(bundle) as segment:
        mask = segment(image)
        report = segment.check(image, mask=mask)
    assert report is not None
    water = report.figures["share water"]
    assert water == pytest.approx((mask == 0).sum() / (mask < 4).sum())


def test_frames_that_cannot_be_checked(bundle: Bundle, make_image: Make) -> None:
    class OnDevice:
        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            return {"shape": (2, 9, 9)}

    with Segmenter(bundle) as segment:
        with pytest.raises(
            RadiometryError, match="The image has 1 band, but bundle 'small' expects 2: vv, vh"
        ):
            segment.check(make_image(90, 90)[:1])
        with pytest.raises(RadiometryError, match=r"The image is \(90, 90\), expected \(bands, rows, cols\)"):
            segment.check(make_image(90, 90)[0])
        with pytest.raises(RadiometryError, match="negative values.*probably in dB"):
            segment.check(-make_image(90, 90))
        with pytest.raises(BackendError, match="in GPU memory, but drift is looked for on the CPU"):
            segment.check(OnDevice())  # type: ignore[arg-type]


def test_without_statistics_there_is_nothing_to_say(make_bundle: MakeBundle, make_image: Make) -> None:
    with Segmenter(make_bundle()) as segment:
        assert segment.check(make_image(90, 90)) is None
