"""Means, gains and their intervals over seeds and tiles, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hfd_edge.comparison.ablation import Line, markdown, result_rows, summarise
from hfd_edge.comparison.bootstrap import drop_interval, gain_interval
from hfd_edge.metrics import Confusion
from hfd_edge.report.ablation import plot_ablation, write_table

CLASSES = ("dry", "flood")


def run(
    method: str, seed: int, *, error: float, tiles: int = 20, drop: int = 0, **keys: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run that has `error` of the pixels wrong, on tiles whose truth does not depend on it."""
    whole, counts = Confusion(CLASSES), {}
    noise = np.random.default_rng((seed, int(1000 * error)))
    for index in range(drop, tiles):
        truth = np.random.default_rng(index).integers(0, 2, 1000).astype(np.uint8)
        tile = Confusion(CLASSES)
        tile.add(truth, np.where(noise.random(1000) < error, 1 - truth, truth).astype(np.uint8))
        whole.counts += tile.counts
        counts[f"t{index:02d}"] = tile.counts.tolist()
    row = {"split": "s", "method": method, "teacher": None, "hfam": True, "variant": "", "seed": seed}
    return {**row, "miou": whole.miou, "iou": whole.iou, "parameters": 3_000_000, **keys}, counts


def test_seeds_are_gathered_and_compared_seed_by_seed() -> None:
    rows = [run("sar_only", seed, error=0.2) for seed in (0, 1, 2)]
    rows += [run("hfdm", seed, error=0.15, teacher="eo") for seed in (1, 0)]
    rows += [run("baseline:Unet", 7, error=0.25, hfam=None)]
    reference, hfdm, unet = summarise(rows)
    assert (reference.gain, reference.seeds) == (None, (0, 1, 2))
    assert reference.mean == pytest.approx(np.mean([row["miou"] for row, _ in rows[:3]]))
    assert reference.spread == pytest.approx(np.std([row["miou"] for row, _ in rows[:3]], ddof=1))
    assert (hfdm.seeds, hfdm.paired) == ((0, 1), (0, 1))
    expected = 100 * np.mean(
        [rows[4][0]["miou"] - rows[0][0]["miou"], rows[3][0]["miou"] - rows[1][0]["miou"]]
    )
    assert hfdm.gain == pytest.approx(expected)
    assert hfdm.low is not None and hfdm.high is not None
    assert 0 < hfdm.low < hfdm.gain < hfdm.high
    assert (unet.gain, unet.low, unet.spread) == (None, None, None)  # no seed to pair


def test_the_reference_is_the_plain_sar_only_row_of_its_split() -> None:
    rows = [
        run("sar_only", 0, error=0.3, variant="lee"),
        run("sar_only", 0, error=0.3, hfam=False),
        run("sar_only", 0, error=0.2),
        run("sar_only", 0, error=0.1, split="other"),
    ]
    lee, unaligned, plain, other = summarise(rows)
    assert lee.gain is not None and lee.gain < 0
    assert unaligned.gain == lee.gain
    assert plain.gain is None
    assert other.gain is None


def test_other_tiles_are_no_pairs() -> None:
    _, teacher = summarise(
        [run("sar_only", 0, error=0.2), run("teacher", 0, error=0.1, teacher="eo", drop=3)]
    )
    assert (teacher.gain, teacher.low, teacher.high, teacher.paired) == (None, None, None, ())


def fold(method: str, seed: int, scheme: str, *, error: float, **keys: Any) -> Any:
    """A run of one of two folds: the tiles before t08, or the others."""
    span = {"first": {"tiles": 8}, "second": {"drop": 8}}[scheme]
    return run(method, seed, error=error, scheme=scheme, folds=2, **span, **keys)


def test_folds_are_scored_together() -> None:
    rows = [fold("sar_only", seed, one, error=0.2) for seed in (0, 1) for one in ("first", "second")]
    # Folds that differ much: the mean of their scores is not the score of all tiles.
    rows += [fold("hfdm", 0, one, error=error) for one, error in (("first", 0.0), ("second", 0.15))]
    rows += [fold("hfdm", 1, "first", error=0.0)]
    reference, hfdm = summarise(rows)
    assert (reference.seeds, hfdm.seeds, hfdm.paired) == ((0, 1), (0,), (0,))
    whole = Confusion(CLASSES)
    whole.counts += sum(np.asarray(count) for _, counts in rows[4:6] for count in counts.values())
    assert hfdm.miou == (pytest.approx(whole.miou),) and hfdm.iou == pytest.approx(whole.iou)
    assert whole.miou != pytest.approx(np.mean([row["miou"] for row, _ in rows[4:6]]), abs=1e-3)
    assert hfdm.gain == pytest.approx(100 * (whole.miou - reference.miou[0]))
    counts = [{name: count for _, own in rows[at : at + 2] for name, count in own.items()} for at in (0, 4)]
    sides = [[[np.asarray(one[name], np.int64) for name in sorted(one)]] for one in counts]
    assert (hfdm.low, hfdm.high) == pytest.approx(gain_interval(*sides))
    found = result_rows([row for row, _ in rows], (reference, hfdm))
    assert [row["split_miou"] for row in found[4:]] == [hfdm.miou[0], hfdm.miou[0], None]
    assert all(row["gain_points"] == hfdm.gain and row["gain_seeds"] == [0] for row in found[4:])


def test_a_class_that_no_fold_has_has_no_score() -> None:
    rows = [fold("sar_only", 0, one, error=0.2) for one in ("first", "second")]
    for row, counts in rows:
        row["iou"] = {**row["iou"], "ice": None}
        counts.update(
            {
                name: np.pad(np.array(count), ((0, 1), (0, 1)))[:, [0, 1, 3, 2]]
                for name, count in counts.items()
            }
        )
    (line,) = summarise(rows)
    assert line.iou["ice"] is None and set(line.iou) == {*CLASSES, "ice"}
    assert line.miou[0] == pytest.approx(np.mean([line.iou[name] for name in CLASSES]))


def test_a_fold_alone_is_a_row_without_a_line(tmp_path: Path) -> None:
    rows = [fold("sar_only", 0, "first", error=0.2)]
    assert summarise(rows) == ()
    (row,) = result_rows([row for row, _ in rows], ())
    assert (row["split_miou"], row["gain_points"], row["gain_seeds"]) == (None, None, [])
    text = write_table((), tmp_path / "t.json", title="T", missing=3)
    assert "**3 runs of the plan are not finished yet" in text and "seeds that lack a fold" in text
    assert (tmp_path / "t.md").read_text() == text and not (tmp_path / "t.png").exists()


def test_a_teacher_that_leaves_out_tiles_of_a_fold_is_not_compared() -> None:
    rows = [fold("sar_only", 0, one, error=0.2) for one in ("first", "second")]
    rows += [fold("teacher", 0, one, error=0.1, teacher="eo") for one in ("first", "second")]
    del rows[2][1]["t03"]
    _, teacher = summarise(rows)
    assert teacher.seeds == (0,) and (teacher.gain, teacher.low) == (None, None)


def test_the_picture_finds_the_reference_among_rows_without_gain(tmp_path: Path) -> None:
    lines = summarise(
        [
            run("sar_only", 5, error=0.3, hfam=False),  # no seed to pair with
            run("sar_only", 0, error=0.2),
            run("hfdm", 0, error=0.1, teacher="eo"),
        ]
    )
    assert [line.is_reference for line in lines] == [False, True, False]
    plot_ablation(lines, tmp_path / "p.png", title="Ablation")


def test_the_interval_of_one_seed_is_that_of_the_tiles() -> None:
    (_, here), (_, there) = run("a", 0, error=0.2), run("b", 0, error=0.15)
    first, second = ([np.array(tile) for tile in side.values()] for side in (here, there))
    low, high = gain_interval([first], [second]) or (0.0, 0.0)
    drop = drop_interval(first, second) or (0.0, 0.0)
    assert (low, high) == pytest.approx((-drop[1], -drop[0]))
    # One seed up, one down: seeds are drawn, too, so the gain may have either sign.
    low, high = gain_interval([first, second], [second, first]) or (0.0, 0.0)
    assert low < -3 and high > 3
    assert gain_interval([first[:4]], [second[:4]]) is None
    for one, other in (([], []), ([first], [second, second]), ([first], [second[:9]])):
        with pytest.raises(ValueError, match="need the same seeds, at least one, and the same tiles"):
            gain_interval(one, other)


def test_rows_carry_the_gain_of_their_configuration() -> None:
    rows = [run("sar_only", seed, error=0.2) for seed in (0, 1)]
    rows += [run("cwd", seed, error=0.1, teacher="eo") for seed in (0, 1)]
    lines = summarise(rows)
    complete = result_rows([row for row, _ in rows], lines)
    assert [row["gain_seeds"] for row in complete] == [[], [], [0, 1], [0, 1]]
    assert complete[3]["gain_points"] == lines[1].gain
    assert complete[0]["gain_points"] is None


def test_the_table_reads_well() -> None:
    lines = summarise(
        [
            *(run("sar_only", seed, error=0.2) for seed in (0, 1)),
            *(run("hfdm", seed, error=0.1, teacher="eo+sar", hfam=False, variant="pool") for seed in (0, 1)),
            run("teacher", 0, error=0.1, teacher="eo", tiles=4, split="other"),
        ]
    )
    text = markdown(lines, title="Ablation", missing=2)
    assert "**2 runs of the plan are not finished yet" in text
    assert "| method | teacher sees | HFAM | variant | seeds | mIoU % | IoU % dry | IoU % flood |" in text
    row = next(line for line in text.splitlines() if line.startswith("| hfdm"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["hfdm", "eo+sar", "off", "pool", "0, 1"]
    assert cells[5] == f"{100 * lines[1].mean:.2f} ± {100 * (lines[1].spread or 0):.2f}"
    assert cells[8] == f"{lines[1].gain:+.2f} [{lines[1].low:+.2f}, {lines[1].high:+.2f}]"
    assert cells[9] == "3.00"
    assert text.count("## Split") == 2
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_picture_grows_with_the_rows(tmp_path: Path) -> None:
    rows = [run("sar_only", 0, error=0.2), run("hfdm", 0, error=0.1, teacher="eo")]
    plot_ablation(summarise(rows), tmp_path / "few.png", title="Ablation $x_1$")
    rows += [run(f"baseline:{index}", 0, error=0.2, hfam=None) for index in range(9)]
    rows += [run("teacher", 1, error=0.1, split="other", teacher="eo")]
    plot_ablation(summarise(rows), tmp_path / "many.png", title="Ablation")
    few, many = (cv2.imread(str(tmp_path / name)) for name in ("few.png", "many.png"))
    assert few.shape[1] == many.shape[1]
    assert many.shape[0] > 2 * few.shape[0]
    with pytest.raises(ValueError, match="finish at least one run"):
        plot_ablation([], tmp_path / "none.png", title="")


def test_labels_say_what_was_changed() -> None:
    fixed: dict[str, Any] = {"split": "s", "seeds": (0,), "miou": (0.5,), "iou": {}, "parameters": 1}
    line = Line(method="hfdm", teacher="eo+sar", hfam=False, variant="pool", **fixed)
    assert line.label == "hfdm by eo+sar without HFAM [pool]"
    assert Line(method="teacher", teacher="eo", hfam=True, variant="", **fixed).label == "teacher (eo)"
    assert Line(method="baseline:Unet", teacher=None, hfam=None, variant="", **fixed).label == "baseline:Unet"
