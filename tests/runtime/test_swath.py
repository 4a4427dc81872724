"""A swath in pieces: equal to the whole, as early as it says, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfd_edge
from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.runtime import scene
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.pipeline import CpuPipeline
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.swath import SwathSegmenter

from .conftest import make_manifest, make_onnx
from .test_rows import Network

Make = Callable[..., np.ndarray]
MakeBundle = Callable[..., Bundle]

TILES = [(64, 0), (64, 32), (96, 32), (128, 64)]


@pytest.fixture(scope="module", params=TILES, ids=lambda tile: f"tile {tile[0]} overlap {tile[1]}")
def segment(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segmenter]:
    """The small real network, which sees beyond a tile's neighbours."""
    manifest = make_manifest(tile_px=request.param[0])
    path = tmp_path_factory.mktemp("bundles") / "small.hfd"
    bundle = Bundle.create(path, manifest, {"model.fp32.onnx": make_onnx(bands=2, classes=4)})
    with Segmenter(bundle, threads=1, overlap_px=request.param[1]) as opened:
        yield opened


def cheap(bundle: Bundle, *, overlap_px: int) -> Segmenter:
    """A segmenter whose network costs nothing."""
    segment = Segmenter(bundle, threads=1, overlap_px=overlap_px)
    segment.pipeline.close()
    tiler = segment.pipeline.tiler
    segment.pipeline = CpuPipeline(Network(tiler), tiler, spare_cores=False)
    return segment


def in_pieces(segment: Segmenter, image: np.ndarray, pushes: list[int]) -> np.ndarray:
    """Push an image in pieces, always in the same buffer as a processor would."""
    masks, row, buffer = [], 0, np.empty((2, max(pushes), image.shape[2]), image.dtype)
    with SwathSegmenter(segment, cols=image.shape[2]) as swath:
        for count in pushes:
            buffer[:, :count] = image[:, row : row + count]
            masks += list(swath.push(buffer[:, :count]))
            buffer[:] = np.nan
            row += count
            assert swath.received == row
            assert swath.finished == sum(len(mask) for mask in masks)
        masks += list(swath.finish())
        assert swath.finished == row
    return np.concatenate(masks)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 170), min_size=1, max_size=9).filter(any), st.integers(1, 150), st.data())
def test_a_swath_equals_the_whole(
    segment: Segmenter, pushes: list[int], cols: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(sum(pushes) * 1000 + cols)
    image = rng.gamma(4, 0.02, (2, sum(pushes), cols)).astype(np.float32)
    image[:, rng.integers(sum(pushes)) :, : cols // 2] *= 8
    hole = data.draw(st.integers(0, sum(pushes)))
    image[:, hole : hole + 70] = 0  # sometimes a row of tiles without data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "_CHUNK_VALUES", data.draw(st.sampled_from([1, 3000, 1 << 22])))
        labels = in_pieces(segment, image, pushes)
    assert np.array_equal(labels, segment(image))


def test_lines_one_by_one_equal_a_scene(segment: Segmenter, make_image: Make) -> None:
    image = make_image(330, 70)
    labels = in_pieces(segment, image, [1] * 330)
    assert len(np.unique(labels)) == 5  # all classes and no-data
    assert np.array_equal(labels, segment(image))


def test_shorter_than_a_tile_and_empty_pushes(segment: Segmenter, make_image: Make) -> None:
    for rows in (1, 20, 31):
        image = make_image(rows, 45)
        assert np.array_equal(in_pieces(segment, image, [rows, 0, 0]), segment(image))


@pytest.mark.parametrize(
    ("tile_px", "overlap_px", "speckle", "latency"),
    [
        # tile + (tile - overlap) - 31 + 2 up to an overlap of 128 ...
        (96, 32, "lee", 131),
        (128, 64, "lee", 163),
        (128, 0, "none", 227),
        (256, 128, "lee", 355),
        # ... and the whole overlap counts beyond.
        (512, 256, "lee", 803),
        # One row of tiles and the halo of the filter, where that is more.
        (64, 32, "lee", 68),
        (32, 0, "lee", 36),
        (32, 0, "none", 35),
    ],
)
@pytest.mark.parametrize("lines", [1, 17])
def test_rows_are_out_when_it_says_and_not_earlier(
    make_bundle: MakeBundle, tile_px: int, overlap_px: int, speckle: str, latency: int, lines: int
) -> None:
    image = np.random.default_rng(0).gamma(4, 0.1, (2, 3 * tile_px + 100, 9)).astype(np.float32)
    waited = 0
    with cheap(make_bundle(tile_px=tile_px, speckle=speckle), overlap_px=overlap_px) as segment:
        swath = SwathSegmenter(segment, cols=9)
        assert swath.latency_rows == latency
        for start in range(0, image.shape[1], lines):
            before = swath.finished
            for mask in swath.push(image[:, start : start + lines]):
                assert mask.shape[1] == 9
            # Rows up to this one have had `latency` rows since, counting themselves.
            assert swath.finished > swath.received - latency
            if swath.finished > before:
                waited = max(waited, swath.received - before)
    if lines == 1:
        assert waited == latency  # of the row that waited longest: the promise could not be shorter


def test_memory_does_not_grow_with_the_lines(make_bundle: MakeBundle) -> None:
    lines = np.random.default_rng(0).gamma(4, 0.1, (2, 50, 100)).astype(np.float32)

    def peak(pushes: int) -> int:
        with SwathSegmenter(segment, cols=100) as swath:
            list(swath.push(lines))
            tracemalloc.start()
            for _ in range(pushes):
                list(swath.push(lines))
            list(swath.finish())
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    with cheap(make_bundle(tile_px=64), overlap_px=32) as segment:
        peak(40)  # whatever is imported and cached once
        short, long = peak(40), peak(400)
    assert long < 1.02 * short + 4096, f"{long} bytes for 20000 lines, {short} for 2000"


def test_a_large_push_holds_one_row_of_tiles(make_bundle: MakeBundle) -> None:
    """Rows are prepared as the tiles take them, not all at once."""
    image = np.full((2, 6000, 64), 0.05, np.float32)
    with cheap(make_bundle(tile_px=64), overlap_px=32) as segment, SwathSegmenter(segment, cols=64) as swath:
        list(swath.push(image[:, :300]))
        tracemalloc.start()
        masks = list(swath.push(image))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert sum(mask.nbytes for mask in masks) > 5900 * 64
    assert most < 6000 * 64 + 700_000  # the mask, and a strip with its temporaries: the image has 3 MB


def test_what_does_not_fit_is_refused_and_the_swath_goes_on(
    make_bundle: MakeBundle, make_image: Make
) -> None:
    image = make_image(100, 40)
    with Segmenter(make_bundle(tile_px=64), threads=1) as segment:
        swath = SwathSegmenter(segment, cols=40)
        masks = list(swath.push(image[:, :50]))
        with pytest.raises(RadiometryError, match="The push has 1 band, but bundle 'small' expects 2: vv"):
            swath.push(image[:1, 50:])
        with pytest.raises(RadiometryError, match=r"rows are 39 columns wide, but the swath is 40\. Start"):
            swath.push(image[:, 50:, 1:])
        with pytest.raises(RadiometryError, match=r"rows are \(2, 40\), expected \(bands, rows, cols\)"):
            swath.push(image[:, 50])
        with pytest.raises(RadiometryError, match=r"rows are float64, but the swath began with float32\. C"):
            swath.push(image[:, 50:].astype(np.float64))
        masks += [*swath.push(image[:, 50:]), *swath.finish()]
        assert np.array_equal(np.concatenate(masks), segment(image))


def test_after_the_end(make_bundle: MakeBundle, make_image: Make) -> None:
    image = make_image(40, 40)
    with Segmenter(make_bundle(tile_px=64), threads=1) as segment:
        swath = SwathSegmenter(segment, cols=40)
        swath.push(image)
        swath.finish()
        for call in (lambda: swath.push(image), swath.finish):
            with pytest.raises(BackendError, match=r"The swath was finished\. Start another SwathSegmenter"):
                call()
        with SwathSegmenter(segment, cols=40) as left:
            left.push(image)
        left.close()
        with pytest.raises(BackendError, match="The swath was closed"):
            left.push(image)
        with pytest.raises(RadiometryError, match=r"ended before its first row\. Push rows before finish"):
            SwathSegmenter(segment, cols=40).finish()
        with pytest.raises(RadiometryError, match="0 columns wide, expected 1 or more"):
            SwathSegmenter(segment, cols=0)
        assert segment(image).shape == (40, 40)


def test_bad_pixels_end_the_swath(make_bundle: MakeBundle, make_image: Make) -> None:
    image = make_image(300, 70, hole=False)
    with Segmenter(make_bundle(tile_px=64), threads=1) as segment:
        with SwathSegmenter(segment, cols=70) as swath:
            out = list(swath.push(image[:, :200]))
            assert len(out) > 2
            with pytest.raises(RadiometryError, match=r"^The swath: .*db_to_intensity"):
                swath.push(-image)
            with pytest.raises(BackendError, match=r"The swath failed\. Start another"):
                swath.push(image)
        assert segment(image).shape == (300, 70)


def test_a_failing_network_ends_the_swath(
    make_bundle: MakeBundle, make_image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> np.ndarray:
        raise BackendError("out of memory")

    with Segmenter(make_bundle(tile_px=64), threads=1) as segment:
        swath = SwathSegmenter(segment, cols=70)
        monkeypatch.setattr(OnnxRuntimeBackend, "run", fail)
        with pytest.raises(BackendError, match="out of memory"):
            swath.push(make_image(300, 70))
        with pytest.raises(BackendError, match="The swath failed"):
            swath.finish()


def test_the_segmenter_serves_two_swaths_and_calls_between(segment: Segmenter, make_image: Make) -> None:
    images = [make_image(260, 60), make_image(260, 90)]
    expected = [segment(image) for image in images]
    swaths = [SwathSegmenter(segment, cols=image.shape[2]) for image in images]
    masks: list[list[np.ndarray]] = [[], []]
    for row in range(0, 260, 26):
        for image, swath, mask in zip(images, swaths, masks, strict=True):
            mask += swath.push(image[:, row : row + 26])
            assert np.array_equal(segment(images[0][:, :50]), segment(images[0][:, :50]))
    for swath, mask, labels in zip(swaths, masks, expected, strict=True):
        mask += swath.finish()
        assert np.array_equal(np.concatenate(mask), labels)


def test_is_a_front_door(tmp_path: Path) -> None:
    assert hfd_edge.SwathSegmenter is SwathSegmenter
    assert "SwathSegmenter" in hfd_edge.__all__
