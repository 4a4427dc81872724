"""Tile plans cover every pixel once, and blending gives back a map that was cut into tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfd_edge.raster.logits import labels_from_logits, labels_rows
from hfd_edge.raster.tiling import LogitsBlender, TilePlan, blend_weights, default_overlap, mirrored

LENGTHS = st.integers(1, 900)
TILES = st.sampled_from([(32, 0), (64, 0), (64, 32), (128, 32), (128, 64), (256, 64), (512, 128)])


@settings(max_examples=100, deadline=None)
@given(LENGTHS, LENGTHS, TILES)
def test_plan_covers_the_raster_on_the_lattice(rows: int, cols: int, tile: tuple[int, int]) -> None:
    plan = TilePlan(rows, cols, tile_px=tile[0], overlap_px=tile[1])
    for origins, length, padded in (
        (plan.row_origins, rows, plan.padded_rows),
        (plan.col_origins, cols, plan.padded_cols),
    ):
        assert all(origin % 32 == 0 for origin in origins)
        assert origins[0] == 0
        steps = np.diff(origins)
        assert (steps > 0).all()
        assert (steps <= plan.tile_px - plan.overlap_px).all()
        assert length <= padded < max(length + 32, plan.tile_px + 1)
        assert origins[-1] < length
    assert plan.tiles == len(plan.row_origins) * len(plan.col_origins)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, TILES, st.sampled_from([1, 4]))
def test_a_row_of_tiles_is_described_by_its_neighbours_alone(
    rows: int, tile: tuple[int, int], stride: int
) -> None:
    plan = TilePlan(rows, 1, tile_px=tile[0], overlap_px=tile[1])
    weights = blend_weights(plan.row_origins, tile_px=tile[0], overlap_px=tile[1], stride=stride)
    described = [plan.tile_row(index, stride=stride) for index in range(plan.tile_rows)]
    assert tuple(row.origin for row in described) == plan.row_origins
    assert np.array_equal([row.weights for row in described], weights)  # bit for bit
    assert [row.following for row in described] == [*plan.row_origins[1:], plan.padded_rows]
    assert [row.shift for row in described] == [0, *np.diff(plan.row_origins)]
    assert [row.stop for row in described] == [*(row.start for row in described[1:]), rows]
    assert all(row.used == min(tile[0], rows - row.origin) for row in described)
    for row in described:
        finished = row.finished(stride)  # the band's row 0 is the logits row above the origin
        assert row.first == row.origin // stride - 1 + finished.start
        assert (row.first + finished.stop - finished.start) * stride == row.following


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(0, 700), TILES, st.sampled_from([1, 4]))
def test_settled_rows_of_tiles_stay_when_the_raster_grows(
    rows: int, growth: int, tile: tuple[int, int], stride: int
) -> None:
    plan = TilePlan(rows, 1, tile_px=tile[0], overlap_px=tile[1])
    grown = TilePlan(rows + growth, 1, tile_px=tile[0], overlap_px=tile[1])
    assert plan.settled < plan.tile_rows
    for index in range(plan.settled):
        before, after = (some.tile_row(index, stride=stride) for some in (plan, grown))
        assert np.array_equal(before.weights, after.weights)
        assert (before.origin, before.following, before.stop) == (after.origin, after.following, after.stop)
        assert before.used == after.used == tile[0]


@pytest.mark.parametrize("tile", [(32, 0), (64, 0), (64, 32), (128, 64), (256, 64), (512, 128), (512, 256)])
def test_no_row_of_tiles_is_settled_later_than_it_must(tile: tuple[int, int]) -> None:
    origin = 3 * (tile[0] - tile[1])
    rows = origin + TilePlan(1, 1, tile_px=tile[0], overlap_px=tile[1]).settling_px
    plans = {end: TilePlan(end, 1, tile_px=tile[0], overlap_px=tile[1]) for end in (rows - 1, rows)}
    assert [plan.settled for plan in plans.values()] == [3, 4]
    # With one row less this row of tiles would be the last, or the last would count where this one does. The
    # lattice of logits may hide that from the weights, a lattice of pixels from the rows that are decided.
    early, settled = ([plan.tile_row(3, stride=stride) for stride in (1, 4)] for plan in plans.values())
    assert any(
        one.stop != other.stop or not np.array_equal(one.weights, other.weights)
        for one, other in zip(early, settled, strict=True)
    )


@settings(max_examples=100, deadline=None)
@given(LENGTHS, TILES, st.sampled_from([1, 4]))
def test_weights_sum_to_one_and_discard_contaminated_borders(
    length: int, tile: tuple[int, int], stride: int
) -> None:
    tile_px, overlap_px = tile
    plan = TilePlan(length, 1, tile_px=tile_px, overlap_px=overlap_px)
    weights = blend_weights(plan.row_origins, tile_px=tile_px, overlap_px=overlap_px, stride=stride)
    total = np.zeros(plan.padded_rows // stride)
    for origin, weight in zip(plan.row_origins, weights, strict=True):
        total[origin // stride : (origin + tile_px) // stride] += weight
    assert np.allclose(total, 1, atol=1e-6)
    assert (weights >= 0).all()
    margin = 3 * overlap_px // 8 // stride
    if margin and len(weights) > 1:
        assert not weights[1:, :margin].any()
        assert not weights[:-1, -margin:].any()
    assert weights[0, 0] > 0.99  # the scene's own border counts
    assert weights[-1, -1] > 0.99


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), TILES, st.sampled_from([1, 4]))
def test_blending_gives_back_the_map(rows: int, cols: int, tile: tuple[int, int], stride: int) -> None:
    plan = TilePlan(rows, cols, tile_px=tile[0], overlap_px=tile[1])
    size = plan.tile_px // stride
    rng = np.random.default_rng(rows * 1000 + cols)
    whole = rng.normal(size=(3, plan.padded_rows // stride, plan.padded_cols // stride)).astype(np.float32)
    blender = LogitsBlender(plan, classes=3, stride=stride)
    expected_start, labels = 0, []
    for row in plan.row_origins:
        for index, col in enumerate(plan.col_origins):
            top, left = row // stride, col // stride
            blender.add(index, whole[:, top : top + size, left : left + size])
        done = blender.finished()
        assert np.allclose(done.logits, whole[:, done.first : done.first + done.logits.shape[1]], atol=1e-5)
        assert done.start == expected_start
        expected_start = done.stop
        window = {"first": done.first, "start": done.start, "stop": done.stop}
        labels.append(labels_rows(done.logits, stride=stride, cols=cols, **window))
        blender.advance()
    assert expected_start == rows
    expected = labels_from_logits(whole, stride=stride, rows=rows, cols=cols)
    assert (np.concatenate(labels) == expected).mean() > 0.999


def test_borders_of_tiles_do_not_reach_the_result() -> None:
    plan = TilePlan(256, 256, tile_px=128, overlap_px=64)
    blender = LogitsBlender(plan, classes=1, stride=4)
    for tile_row in range(len(plan.row_origins)):
        for tile_col in range(len(plan.col_origins)):
            logits = np.zeros((1, 32, 32), np.float32)
            # 24 of the 64 pixels of overlap are discarded: 6 logits, at borders that have a neighbour.
            if tile_row:
                logits[:, :6] = 1e6
            if tile_col:
                logits[:, :, :6] = 1e6
            if tile_col < len(plan.col_origins) - 1:
                logits[:, :, -6:] = 1e6
            if tile_row < len(plan.row_origins) - 1:
                logits[:, -6:] = 1e6
            blender.add(tile_col, logits)
        assert not blender.finished().logits.any()
        blender.advance()


def test_a_tile_left_out_changes_no_label_beside_it() -> None:
    plan = TilePlan(64, 160, tile_px=64, overlap_px=32)
    whole = np.random.default_rng(0).normal(size=(4, 16, 40)).astype(np.float32)
    labels = []
    for left_out in ((), (1,)):
        blender = LogitsBlender(plan, classes=4, stride=4)
        for index, col in enumerate(plan.col_origins):
            if index not in left_out:
                blender.add(index, whole[:, :, col // 4 : col // 4 + 16])
        labels.append(labels_rows(blender.finished().logits, stride=4, start=0, stop=64, cols=160))
    outside = np.r_[0:32, 96:160]  # columns that the tile at 32 does not touch
    assert np.array_equal(labels[0][:, outside], labels[1][:, outside])


@pytest.mark.parametrize(
    ("tile_px", "overlap_px"), [(32, 0), (64, 32), (96, 32), (128, 64), (512, 256), (1024, 256)]
)
def test_default_overlap_is_allowed(tile_px: int, overlap_px: int) -> None:
    assert default_overlap(tile_px) == overlap_px
    TilePlan(1, 1, tile_px=tile_px, overlap_px=overlap_px)


def test_refuses_impossible_plans() -> None:
    with pytest.raises(ValueError, match="0 x 5 pixels cannot be tiled"):
        TilePlan(0, 5, tile_px=64, overlap_px=0)
    with pytest.raises(ValueError, match="tile_px is 100, expected a multiple of 32"):
        TilePlan(5, 5, tile_px=100, overlap_px=0)
    with pytest.raises(ValueError, match=r"overlap_px is 64, .* half the tile \(32\)"):
        TilePlan(5, 5, tile_px=64, overlap_px=64)
    blender = LogitsBlender(TilePlan(5, 5, tile_px=64, overlap_px=0), classes=2, stride=4)
    with pytest.raises(ValueError, match=r"\(2, 8, 8\), expected \(2, 16, 16\)"):
        blender.add(0, np.zeros((2, 8, 8), np.float32))


@pytest.mark.parametrize(("size", "padded"), [(1, 5), (3, 3), (5, 7), (5, 32), (30, 64)])
def test_mirrored_is_symmetric_padding(size: int, padded: int) -> None:
    values = np.arange(size)
    expected = np.pad(values, (0, padded - size), mode="symmetric")
    assert np.array_equal(np.concatenate((values, values[mirrored(size, padded)])), expected)
