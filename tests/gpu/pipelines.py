"""A bundle on the CPU and on the GPU, for tests of pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.runtime.cuda_pipeline import CudaPipeline
from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.segmenter import Segmenter

from ..runtime.conftest import CLASSES, make_manifest, make_onnx
from .network import HostNetwork

TILE = 64
STAGES = {"copy_in", "preprocess", "infer", "postprocess", "copy_out"}


def make_image(rows: int, cols: int, *, bands: int = 2) -> np.ndarray:
    """Make a speckled image with regions, a hole without data, and NaN in one band's corner."""
    rng = np.random.default_rng(rows * 7919 + cols)
    row, col = np.mgrid[:rows, :cols]
    level = -15 + 6 * np.sin(row / 23) * np.cos(col / 31)
    image = 10 ** (level / 10) * rng.gamma(4, 1 / 4, (bands, rows, cols))
    if rows > 40 and cols > 30:
        image[:, 20:35, 10:25] = 0.0
        image[0, -5:, -7:] = np.nan
    return image.astype(np.float32)


@pytest.fixture
def make_small(tmp_path: Path) -> Callable[..., Bundle]:
    """Give a function that makes the small bundle of the CPU's tests, with other options."""

    number = itertools.count()

    def bundle(*, classes: int = len(CLASSES), **changes: Any) -> Bundle:
        manifest = make_manifest(**{"tile_px": TILE} | changes)
        kept = {"classes": CLASSES[:classes], "palette": manifest.palette[:classes]}
        manifest = manifest.model_copy(update=kept)
        model = make_onnx(bands=len(manifest.sar.bands), classes=classes, stride=manifest.stride)
        return Bundle.create(tmp_path / f"{next(number)}.hfd", manifest, {"model.fp32.onnx": model})

    return bundle


class Pair:
    """A bundle on the CPU and on the GPU."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        depth: int = 3,
        overlap_px: int | None = None,
        **options: Any,
    ) -> None:
        self.cpu = Segmenter(bundle, backend="onnxruntime", threads=1, overlap_px=overlap_px)
        self.network = HostNetwork(bundle, device, **options)
        self.gpu = CudaPipeline(self.network, self.cpu.pipeline.tiler, depth=depth)

    def agree(self, image: np.ndarray, given: Any = None, *, least: float = 0.999) -> np.ndarray:
        expected = self.cpu(image)
        found = self.gpu.submit(image if given is None else given).result()
        assert found.shape == expected.shape and found.dtype == np.uint8
        assert ((found == 255) == (expected == 255)).all(), "no-data is somewhere else"
        assert (found == expected).mean() >= least
        return expected


@pytest.fixture
def pair(make_small: Callable[..., Bundle], device: Device) -> Iterator[Callable[..., Pair]]:
    """Give a function that opens a bundle on both; the pipeline is closed at the end, and nothing is left."""
    opened: list[Pair] = []

    def both(*, on: Device = device, changes: dict[str, Any] | None = None, **options: Any) -> Pair:
        opened.append(Pair(make_small(**(changes or {})), on, **options))
        return opened[-1]

    yield both
    for item in opened * 2:
        item.gpu.close()
    if opened:
        assert [held for held in device._living if not held.closed and not isinstance(held, Stream)] == []


class OnDevice:
    """An array in device memory, as other packages show it."""

    def __init__(self, device: Device, image: np.ndarray, *, stream: Stream | None = None, pad: int = 0):
        bands, rows, cols = image.shape
        wide = np.zeros((bands, rows, cols + pad), image.dtype)
        wide[:, :, :cols] = image
        self.buffer = device.buffer(wide.nbytes)
        self.producer = stream or device.stream()
        self.producer.copy_in(self.buffer.address, wide)
        if stream is None:
            self.producer.synchronize()
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": image.shape,
            "typestr": image.dtype.str,
            "data": (self.buffer.address, True),
            "strides": wide.strides if pad else None,
            "stream": None if stream is None else stream.handle,
        }
