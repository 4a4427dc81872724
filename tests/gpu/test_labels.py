"""The labels kernel against the float64 definition and against the CPU's path."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfd_edge.errors import BackendError
from hfd_edge.raster.logits import labels_rows
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Plane
from hfd_edge.runtime.launch_logits import Labels

from ..raster.test_logits import enlarge
from .arrays import GUARD, Arrays

pytestmark = pytest.mark.gpu

NODATA = 255


class Labeller:
    """Runs the kernel on NumPy arrays."""

    def __init__(self, device: Device) -> None:
        self.arrays = Arrays(device)
        self.labels = Labels(Kernels(device), device.limits)

    def __call__(
        self,
        logits: NDArray[Any],
        *,
        stride: int = 4,
        window: tuple[int, int] | None = None,
        first: int = 0,
        cols: int | None = None,
        valid: NDArray[np.uint8] | None = None,
        shift: int = 0,
        pad: int = 0,
        confidence: bool = False,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Label rows `window` of the map; arrays begin after `shift` elements and have `pad` more columns."""
        classes, height, width = logits.shape
        start, stop = window or (first * stride, (first + height) * stride)
        cols = width * stride if cols is None else cols
        shape = (stop - start, cols)
        out = self.arrays.plane(np.full(shape, GUARD, np.uint8), pad=pad, shift=shift)
        scores = self.arrays.plane(np.zeros(shape, np.float32), pad=pad, shift=shift) if confidence else None
        self.labels(
            self.arrays.stream,
            self.arrays.plane(logits, pad=pad, shift=shift),
            half=logits.dtype == np.float16,
            classes=classes,
            height=height,
            width=width,
            stride=stride,
            first=first,
            start=start,
            stop=stop,
            cols=cols,
            valid=None if valid is None else self.arrays.plane(valid, pad=pad, shift=shift),
            nodata_label=NODATA,
            out=out,
            confidence=scores,
        )
        whole = self.arrays.get(out.address - shift, shift + shape[0] * (cols + pad), np.uint8)
        found = whole[shift:].reshape(shape[0], cols + pad)
        assert (whole[:shift] == GUARD).all() and (found[:, cols:] == GUARD).all()
        if scores is None:
            return found[:, :cols], None
        floats = self.arrays.get(scores.address, shape[0] * (cols + pad), np.float32)
        return found[:, :cols], floats.reshape(shape[0], cols + pad)[:, :cols]


@pytest.fixture
def labeller(device: Device) -> Labeller:
    return Labeller(device)


def random_logits(shape: tuple[int, int, int], dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def assert_near_best(found: NDArray[np.uint8], logits: NDArray[Any], stride: int) -> None:
    """Every label's score is the largest one, but for what float32 cannot tell apart."""
    scores = enlarge(logits, stride)[:, : found.shape[0], : found.shape[1]]
    chosen = np.take_along_axis(scores, found[np.newaxis].astype(np.intp), axis=0)[0]
    assert (scores.max(0) - chosen).max() <= 1e-6 * np.abs(scores).max()
    assert (found == scores.argmax(0)).mean() >= 0.999


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(
    "shape",
    [(1, 2, 3), (2, 1, 1), (2, 40, 70), (3, 1, 30), (5, 37, 66), (12, 20, 9), (100, 3, 40), (255, 2, 5)],
)
def test_equals_the_float64_definition(
    labeller: Labeller, shape: tuple[int, int, int], stride: int, dtype: Any
) -> None:
    logits = random_logits(shape, dtype)
    found, _ = labeller(logits, stride=stride)
    assert_near_best(found, logits, stride)


@pytest.mark.hardware
@pytest.mark.parametrize("shape", [(2, 512, 700), (19, 256, 500)])
def test_equals_the_float64_definition_on_large_maps(labeller: Labeller, shape: tuple[int, int, int]) -> None:
    logits = random_logits(shape)
    found, _ = labeller(logits)
    assert_near_best(found, logits, 4)


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_first_of_equals_wins_as_on_the_cpu(labeller: Labeller, classes: int, stride: int) -> None:
    # Small integers interpolate without rounding, so even ties must be decided alike.
    logits = np.random.default_rng(classes).integers(0, 3, (classes, 19, 70)).astype(np.float32)
    rows = (0, 19 * stride)
    expected = labels_rows(logits, stride=stride, start=rows[0], stop=rows[1], cols=70 * stride)
    found, _ = labeller(logits, stride=stride)
    assert np.array_equal(found, expected)
    assert not labeller(np.ones_like(logits), stride=stride)[0].any()


@pytest.mark.parametrize("stride", [1, 4])
def test_any_window_of_rows_equals_the_whole(labeller: Labeller, stride: int) -> None:
    logits = random_logits((3, 40, 20))
    whole, _ = labeller(logits, stride=stride)
    rng = np.random.default_rng(5)
    for _ in range(12):
        start, stop = sorted(rng.integers(0, 40 * stride, 2))
        first = max(start // stride - 1, 0)
        band = logits[:, first : -(-stop // stride) + 1]
        cols = int(rng.integers(1, 20 * stride))
        found, _ = labeller(band, stride=stride, window=(int(start), int(stop) + 1), first=first, cols=cols)
        assert np.array_equal(found, whole[start : stop + 1, :cols]), (start, stop, first, cols)


@pytest.mark.parametrize(("shift", "pad"), [(0, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("classes", [2, 5])
def test_no_data_and_confidence(labeller: Labeller, classes: int, stride: int, shift: int, pad: int) -> None:
    # 14 and 62 columns: with 2 more the rows are aligned, but their last group of four is not whole.
    logits = 3 * random_logits((classes, 12, 16))
    scores = enlarge(logits, stride)[:, :, :-2]
    valid = (np.random.default_rng(3).random(scores.shape[1:]) < 0.8).astype(np.uint8)
    found, confidence = labeller(
        logits, stride=stride, cols=scores.shape[2], valid=valid, shift=shift, pad=pad, confidence=True
    )
    assert np.array_equal(found == NODATA, valid == 0)
    assert np.array_equal(found[valid > 0], labeller(logits, stride=stride)[0][:, :-2][valid > 0])
    softmax = np.exp(scores - scores.max(0))
    expected = np.where(valid, (softmax / softmax.sum(0)).max(0), 0)
    np.testing.assert_allclose(confidence, expected, rtol=1e-5, atol=1e-6)


def test_nothing_to_do(labeller: Labeller) -> None:
    logits = random_logits((2, 3, 3))
    arrays = labeller.arrays
    sizes: dict[str, Any] = {"half": False, "classes": 2, "height": 3, "width": 3, "stride": 4, "first": 0}
    guarded = arrays.plane(np.full((4, 4), GUARD, np.uint8))
    where: dict[str, Any] = {"valid": None, "nodata_label": NODATA, "out": guarded}
    labeller.labels(arrays.stream, arrays.plane(logits), **sizes, start=4, stop=4, cols=12, **where)
    assert (arrays.get(guarded.address, 16, np.uint8) == GUARD).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 2}, "Logits have stride 2, but the GPU kernels take 1 or 4."),
        ({"stop": 13}, "Rows 0 to 13 and 12 columns of labels were asked for, but 2 classes of 3 x 3 logits"),
        ({"cols": 13}, "at stride 4 cover 12 x 12. Expected an area inside"),
        ({"first": 1}, "Rows -4 to 8"),
        ({"classes": 256}, "1 to 255 classes"),
    ],
)
def test_refuses_what_would_read_outside(labeller: Labeller, change: dict[str, int], message: str) -> None:
    sizes = {
        "classes": 2,
        "height": 3,
        "width": 3,
        "stride": 4,
        "first": 0,
        "start": 0,
        "stop": 12,
        "cols": 12,
    }
    with pytest.raises(BackendError) as caught:
        labeller.labels(
            labeller.arrays.stream,
            Plane(0, 3, 9),
            half=False,
            valid=None,
            nodata_label=NODATA,
            out=Plane(0, 12),
            **{**sizes, **change},
        )
    assert message in str(caught.value)


@pytest.mark.parametrize("classes", [2, 10])
def test_every_logit_and_label_crosses_the_bus_once(
    labeller: Labeller, softcuda: ModuleType, classes: int
) -> None:
    # A tile of 512 pixels, and a map that ends in the middle of a strip and of a walk.
    for height, width in ((128, 128), (104, 160)):
        softcuda.reset()
        logits = random_logits((classes, height, width))
        labeller(logits)
        counted = softcuda.counters("labels_stride4")
        pixels = 16 * height * width
        minimum = logits.nbytes + pixels
        assert minimum <= counted.load_bytes + counted.store_bytes <= 1.1 * minimum
        assert counted.store_bytes == pixels


def test_more_rows_than_a_grid_has(device: Device) -> None:
    labeller = Labeller(device)
    labeller.labels = Labels(Kernels(device), replace(device.limits, max_grid=(1024, 3, 1)))
    logits = random_logits((3, 11, 9))
    assert_near_best(labeller(logits, stride=1)[0], logits, 1)
