"""The CPU pipeline, and several segmenters at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError, StorageError
from hfd_edge.raster.image import write_image
from hfd_edge.runtime.pipeline import CpuPipeline
from hfd_edge.runtime.rows import CpuRows
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.swath import SwathSegmenter

Make = Callable[..., np.ndarray]
MakeBundle = Callable[..., Bundle]


class DeviceImage:
    """What an array in GPU memory shows of itself."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (0x7F0000000000, False), "version": 3, "strides": None,
        }  # fmt: skip

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise AssertionError("device memory was read on the host")


def test_device_memory_needs_a_gpu_backend(make_bundle: MakeBundle) -> None:
    with Segmenter(make_bundle(), threads=1) as segment:
        message = r"in GPU memory, but backend onnxruntime reads host memory\. Copy it .* GPU backend"
        with pytest.raises(BackendError, match=message):
            segment(DeviceImage(2, 40, 40))  # type: ignore[arg-type]
        # Its shape is checked before anything else, wherever it is.
        with pytest.raises(RadiometryError, match="The image has 3 bands, but bundle 'small' expects 2"):
            segment(DeviceImage(3, 40, 40))  # type: ignore[arg-type]
        with pytest.raises(RadiometryError, match=r"The image is \(40, 40\), expected"):
            segment(DeviceImage(40, 40))  # type: ignore[arg-type]


def test_a_submitted_image_may_change(make_bundle: MakeBundle, make_image: Make) -> None:
    image = make_image(150, 90)
    with Segmenter(make_bundle(), threads=1) as segment:
        expected = segment(image)
        pending = segment.submit(image)
        image[:] = np.nan
        assert np.array_equal(pending.result(), expected)
        assert set(pending.stages_ms) == {"preprocess", "infer", "postprocess"}
        assert all(spent > 0 for spent in pending.stages_ms.values())
        segment.submit(np.ones((2, 5, 5))).discard()
        assert segment.depth == 1
        assert isinstance(segment.pipeline, CpuPipeline)


def test_a_list_is_an_image(make_bundle: MakeBundle) -> None:
    with Segmenter(make_bundle(), threads=1) as segment:
        assert segment([[[0.1]], [[0.2]]]).shape == (1, 1)  # type: ignore[arg-type]


def test_a_mask_that_cannot_be_made_leaves_no_engine(
    tmp_path: Path, make_bundle: MakeBundle, make_image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU an engine of rows holds hundreds of megabytes."""
    opened: list[CpuRows] = []
    make_rows = CpuPipeline.rows

    def rows(pipeline: CpuPipeline, *, cols: int) -> CpuRows:
        opened.append(engine := make_rows(pipeline, cols=cols))
        monkeypatch.setattr(engine, "close", lambda: opened.remove(engine))
        return engine

    monkeypatch.setattr(CpuPipeline, "rows", rows)
    write_image(tmp_path / "s.tif", make_image(70, 80))
    with Segmenter(make_bundle(), threads=1) as segment:
        with pytest.raises(StorageError):
            segment.scene(tmp_path / "s.tif", tmp_path / "s.tif" / "m.tif")
        assert opened == []
        segment.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        assert opened == []


def work(segment: Segmenter, image: np.ndarray, start: threading.Barrier) -> list[np.ndarray]:
    """Segment one image in every way there is, several times, beside another thread."""
    results = []
    start.wait(30)
    for _ in range(3):
        results.append(segment(image))
        results += list(segment.stream([image, image]))
        with SwathSegmenter(segment, cols=image.shape[2]) as swath:
            rows = [
                mask for row in range(0, image.shape[1], 40) for mask in swath.push(image[:, row : row + 40])
            ]
            results.append(np.concatenate([*rows, *swath.finish()]))
    return results


@pytest.mark.parametrize("shared", [False, True], ids=["a segmenter each", "one segmenter"])
def test_two_threads_do_not_disturb_each_other(
    make_bundle: MakeBundle, make_image: Make, shared: bool
) -> None:
    other = {} if shared else {"tile_px": 64, "speckle": "none"}
    images = [make_image(170, 150), make_image(190, 130)]
    start = threading.Barrier(2)
    with (
        Segmenter(make_bundle(), threads=1) as first,
        Segmenter(make_bundle(name="other.hfd", **other), threads=1) as second,
    ):
        segmenters = [first, first if shared else second]
        expected = [segment(image) for segment, image in zip(segmenters, images, strict=True)]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(work, segmenters, images, [start] * 2))
    for labels, of_thread in zip(expected, results, strict=True):
        assert len(of_thread) == 12
        assert all(np.array_equal(result, labels) for result in of_thread)


def test_beside_torch(make_bundle: MakeBundle, make_image: Make) -> None:
    """PyTorch's threads and its OpenMP in the same process change no label, nor the other way round."""
    torch = pytest.importorskip("torch", reason="torch is not installed; a device has none")
    weights, image = torch.randn(8, 2, 3, 3), make_image(170, 150)
    pixels = torch.rand(1, 2, 64, 64)
    stop = threading.Event()

    def convolve() -> list[object]:
        outputs = []
        while not stop.is_set():
            outputs.append(torch.nn.functional.conv2d(pixels, weights))
        return outputs

    with Segmenter(make_bundle(), threads=2) as segment, ThreadPoolExecutor(1) as pool:
        expected, alone = segment(image), torch.nn.functional.conv2d(pixels, weights)
        beside = pool.submit(convolve)
        masks = list(segment.stream([image] * 5))
        stop.set()
        outputs = beside.result(30)
    assert outputs
    assert all(torch.equal(output, alone) for output in outputs)
    assert all(np.array_equal(mask, expected) for mask in masks)
