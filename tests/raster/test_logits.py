"""Labels from logits against the float64 definition of half-pixel bilinear enlargement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfd_edge.raster import logits as logits_module
from hfd_edge.raster.logits import labels_from_logits, labels_rows


def enlarge(scores: np.ndarray, stride: int) -> np.ndarray:
    """Bilinear, half-pixel centres, edges clamped: align_corners=False, in float64."""

    def taps(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.clip((np.arange(length * stride) + 0.5) / stride - 0.5, 0, length - 1)
        low = np.floor(position).astype(int)
        return low, np.minimum(low + 1, length - 1), position - low

    scores = scores.astype(np.float64)
    low, high, share = taps(scores.shape[1])
    scores = scores[:, low] * (1 - share)[:, None] + scores[:, high] * share[:, None]
    low, high, share = taps(scores.shape[2])
    return scores[:, :, low] * (1 - share) + scores[:, :, high] * share


def agreement(found: np.ndarray, scores: np.ndarray, stride: int) -> float:
    expected = enlarge(scores, stride).argmax(0)[: found.shape[0], : found.shape[1]]
    return float((found == expected).mean())


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 1, 1), (2, 64, 40), (3, 1, 30), (5, 37, 53), (12, 20, 9)])
def test_equals_the_float64_definition(shape: tuple[int, int, int], stride: int) -> None:
    scores = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = labels_from_logits(scores, stride=stride, rows=shape[1] * stride, cols=shape[2] * stride)
    assert found.dtype == np.uint8
    assert agreement(found, scores, stride) >= 0.9999


def test_many_pixels_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(2).normal(size=(6, 200, 150)).astype(np.float32)
    whole = labels_from_logits(scores, stride=4, rows=800, cols=600)
    assert agreement(whole, scores, 4) >= 0.9999
    monkeypatch.setattr(logits_module, "_CHUNK_PX", 600 * 4 * 3)  # three logits rows at a time
    assert np.array_equal(labels_from_logits(scores, stride=4, rows=800, cols=600), whole)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (29, 33), (32, 30), (31, 36)])
def test_crops_padding(rows: int, cols: int) -> None:
    scores = np.random.default_rng(3).normal(size=(4, 8, 9)).astype(np.float32)
    whole = labels_from_logits(scores, stride=4, rows=32, cols=36)
    assert np.array_equal(labels_from_logits(scores, stride=4, rows=rows, cols=cols), whole[:rows, :cols])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_row_window_equals_the_whole(data: st.DataObject) -> None:
    stride = data.draw(st.sampled_from([1, 2, 4]))
    height = data.draw(st.integers(1, 12))
    classes = data.draw(st.integers(1, 4))
    scores = np.random.default_rng(height).normal(size=(classes, height, 5)).astype(np.float32)
    whole = labels_from_logits(scores, stride=stride, rows=height * stride, cols=5 * stride)
    start = data.draw(st.integers(0, height * stride))
    stop = data.draw(st.integers(start, height * stride))
    first = max(start // stride - 1, 0)
    band = scores[:, first : -(-stop // stride) + 1]
    found = labels_rows(band, stride=stride, first=first, start=start, stop=stop, cols=5 * stride)
    assert np.array_equal(found, whole[start:stop])


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_first_maximum_wins_ties(classes: int) -> None:
    assert not labels_from_logits(np.zeros((classes, 3, 3), np.float32), stride=4, rows=12, cols=12).any()
    scores = np.zeros((classes, 3, 3), np.float32)
    scores[1:] = 1
    assert (labels_from_logits(scores, stride=4, rows=12, cols=12) == 1).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_and_memory_layouts(dtype: type) -> None:
    scores = np.random.default_rng(4).normal(size=(7, 3, 10)).astype(dtype).transpose(1, 2, 0)[:, ::2]
    assert not scores.flags.c_contiguous
    found = labels_from_logits(scores, stride=4, rows=20, cols=28)
    assert agreement(found, scores.astype(np.float32), 4) >= 0.9999


def test_does_not_change_its_input() -> None:
    scores = np.random.default_rng(5).normal(size=(3, 6, 6)).astype(np.float32)
    for stride in (1, 4):
        before = scores.copy()
        labels_from_logits(scores, stride=stride, rows=6, cols=6)
        assert np.array_equal(scores, before)


def test_refuses_what_does_not_fit() -> None:
    scores = np.zeros((2, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"rows 0 to 17 and 16 columns .* cover 16 x 16"):
        labels_from_logits(scores, stride=4, rows=17, cols=16)
    with pytest.raises(ValueError, match="cover 16 x 16 pixels"):
        labels_from_logits(scores, stride=4, rows=16, cols=17)
    with pytest.raises(ValueError, match=r"logits are \(4, 4\)"):
        labels_from_logits(scores[0], stride=4, rows=4, cols=4)
    with pytest.raises(ValueError, match="stride is 0"):
        labels_from_logits(scores, stride=0, rows=4, cols=4)
    with pytest.raises(ValueError, match="rows -8 to 0"):
        labels_rows(scores, stride=4, first=2, start=0, stop=8, cols=16)
