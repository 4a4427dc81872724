"""The accuracy gate on a network that INT8 with plain maxima destroys."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import gate as room
from hfd_edge.deploy.calibration import collect
from hfd_edge.deploy.gate import Bound, Verdict, gate, one_only_harm
from hfd_edge.deploy.precision import place, ranges
from hfd_edge.deploy.qdq import int8_model, layers, quantized_tensors
from hfd_edge.deploy.quantize import quantize
from hfd_edge.deploy.record import read_record
from hfd_edge.deploy.scoring import Bench, Drop
from hfd_edge.deploy.tiles import calibration_tiles
from hfd_edge.errors import DatasetError, ExportError

from . import hostile
from .conftest import PREPROCESSING, TILE

Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def pairs(root: Path) -> PairFolder:
    return PairFolder.open(hostile.write_data(root / "data"))


@pytest.fixture(scope="module")
def spoilt(root: Path) -> Bundle:
    network = hostile.trained()
    hostile.spoil(network)
    return hostile.write_bundle(root / "spoilt.hfd", network)


@pytest.fixture
def own(spoilt: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that the test may write to."""
    return Bundle.create(tmp_path / "own.hfd", spoilt.manifest, {"model.fp32.onnx": spoilt.model("fp32")})


@pytest.fixture(scope="module")
def bench(spoilt: Bundle, pairs: PairFolder) -> Bench:
    return Bench(spoilt, pairs)


@pytest.fixture(scope="module")
def maxima(spoilt: Bundle, pairs: PairFolder) -> tuple[object, dict[str, float]]:
    """The placed model, and ranges by plain maxima."""
    tiles = calibration_tiles(pairs, PREPROCESSING, tile_px=TILE, count=4)
    placed = place(spoilt.model("fp32"), next(iter(tiles)))
    return placed, ranges(collect(spoilt.model("fp32"), quantized_tensors(placed), tiles), "max")


def test_plain_maxima_destroy_it_and_the_bound_brings_it_back(own: Bundle, pairs: PairFolder) -> None:
    plain = quantize(own, pairs, method="max", tiles=4)
    bench = Bench(plain, pairs)
    assert bench.reference.miou > 0.97
    before = {}
    for precision in ("int8", "int8_fp16"):
        before[precision] = bench.drop(plain.model(precision)).miou_points
        assert before[precision] > 5

    gated = quantize(plain, pairs, method="max", tiles=4, max_drop=0.5)
    record = read_record(gated)
    reasons = {item.node: item.reason for item in record.kept if "gate" in item.reason}
    assert set(reasons) == set(hostile.VICTIMS)
    assert set(record.quantized_nodes) == {"stem", "down", "first", "widen", "last"}
    for precision in ("int8", "int8_fp16"):
        drop = bench.drop(gated.model(precision))
        assert drop.miou_points <= 0.5
        assert drop.worst_class_points <= 1.5
        figures = gated.manifest.metrics[precision]["gate"]
        assert figures["after"]["miou_points"] == pytest.approx(drop.miou_points)
        assert figures["before"]["miou_points"] == pytest.approx(before[precision])
        assert (figures["kept_layers"], figures["layers"], figures["tiles"]) == (2, 7, 8)
    alone = one_only_harm(place(gated.model("fp32"), bench.tile(0)), record.amax, bench)
    assert reasons["fuse"] == f"accuracy gate: alone it costs {alone['fuse']:.2f} points"


def test_fewer_layers_would_not_do(maxima: tuple[object, dict[str, float]], bench: Bench) -> None:
    placed, amax = maxima
    bound = Bound(miou_points=0.5)
    verdict = gate(placed, amax, bench, bound=bound)
    assert set(verdict.keep) == set(hostile.VICTIMS)
    assert verdict.keep[0] == "fuse"  # the worse one first
    assert verdict.before.miou_points > 5 >= 0.5 >= verdict.after.miou_points
    for count in range(len(verdict.keep)):
        for keep in combinations(layers(placed), count):
            assert not bound.holds(bench.drop(int8_model(placed, amax, keep=keep))), keep


def test_a_misleading_ranking_costs_time_not_layers(
    maxima: tuple[object, dict[str, float]], bench: Bench
) -> None:
    placed, amax = maxima
    names = layers(placed)
    # The victims come first and last but one, with innocent layers between them.
    order = ["fuse", *(name for name in names if name not in hostile.VICTIMS), "second"]
    order[-2:] = order[-1], order[-2]
    harm = {name: float(len(order) - rank) for rank, name in enumerate(order)}
    verdict = gate(placed, amax, bench, bound=Bound(), harm=harm)
    assert set(verdict.keep) == set(hostile.VICTIMS)
    assert verdict.harm == {name: harm[name] for name in verdict.keep}


def test_a_bound_that_holds_at_once_keeps_nothing(
    maxima: tuple[object, dict[str, float]], bench: Bench
) -> None:
    seen: list[str] = []
    verdict = gate(
        *maxima,
        bench,
        bound=Bound(miou_points=100, class_points=100),
        progress=lambda done, total, text: seen.append(text),
    )
    assert verdict.keep == () and verdict.harm == {}
    assert verdict.after == verdict.before
    assert verdict.runs == 2
    assert set(seen) == {"accuracy gate: 0 of 7 layers kept in high precision"}


def test_the_class_bound_counts_too(maxima: tuple[object, dict[str, float]], bench: Bench) -> None:
    verdict = gate(*maxima, bench, bound=Bound(miou_points=100, class_points=1.5))
    assert "fuse" in verdict.keep
    assert verdict.after.worst_class_points <= 1.5


def test_what_cannot_be_reached_says_what_can(
    own: Bundle, pairs: PairFolder, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(own.path)
    real = Drop.between

    def worse(reference: object, score: object) -> Drop:
        drop = real(reference, score)  # type: ignore[arg-type]
        return Drop(drop.miou_points + 0.7, "land", 2.0, 0.0, drop.fidelity_points, drop.flipped)

    monkeypatch.setattr(Drop, "between", worse)
    with pytest.raises(
        ExportError,
        match=r"does not stay within 0\.5 mIoU points and 1\.5 points per class of FP32\. With all 7 layers "
        r"in INT8 it loses 8\d\.\d+ mIoU points \(2\.00 for land\); the best found keeps 6 of them in high "
        r"precision and loses 0\.\d+ .*--max-drop.*--qat.*fp16",
    ):
        quantize(own, pairs, method="max", tiles=2, max_drop=0.5)
    assert snapshot(own.path) == before


def test_a_negative_bound() -> None:
    with pytest.raises(ExportError, match="allows a drop of -1 points mIoU and 1.5 .* expected 0 or more"):
        Bound(miou_points=-1)
    with pytest.raises(ExportError, match="expected 0 or more"):
        Bound(class_points=float("nan"))


def test_the_gate_needs_labels(own: Bundle, pairs: PairFolder, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "val").mkdir(parents=True)
    (bare / "dataset.toml").write_bytes((pairs.root / "dataset.toml").read_bytes())
    (bare / "train").symlink_to(pairs.root / "train")
    (bare / "val" / "sar").symlink_to(pairs.root / "val" / "sar")
    with pytest.raises(DatasetError, match="Split 'val' .* has no label files, so nothing can be scored"):
        quantize(own, PairFolder.open(bare), max_drop=0.5)
    assert json.loads((own.path / "manifest.json").read_text())["precisions"].keys() == {"fp32"}


class Made:
    """Stands in for models and bench: a drop for every choice of layers and of what the others compute in."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, drops: Callable[[frozenset[str], str], float]
    ) -> None:
        self.drops, self.class_points = drops, 0.0
        monkeypatch.setattr(room, "layers", lambda placed: placed)
        monkeypatch.setattr(
            room, "int8_model", lambda placed, amax, *, keep, rest="fp32": (frozenset(keep), rest)
        )

    def __len__(self) -> int:
        return 4

    def drop(self, model: tuple[frozenset[str], str], **_: object) -> Drop:
        return Drop(self.drops(*model), "land", self.class_points, 0.0, 0.0, 0.0)

    def decide(self, names: str) -> Verdict:
        harm = {name: float(-rank) for rank, name in enumerate(names)}
        return gate(tuple(names), {}, self, bound=Bound(), harm=harm)  # type: ignore[arg-type]


def test_both_int8_models_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What FP16 needs in addition must not take the model with FP32 out of its bound."""

    def drops(keep: frozenset[str], rest: str) -> float:
        passing = {"fp32": ({"a"}, {"a", "b", "c"}), "fp16": ({"a", "b"}, {"a", "b", "c"})}
        return 0.1 if keep in passing[rest] else 3.0

    verdict = Made(monkeypatch, drops).decide("abcd")
    assert set(verdict.keep) == {"a", "b", "c"}
    assert (verdict.after.miou_points, verdict.after_fp16.miou_points) == (0.1, 0.1)


def test_layers_that_fp16_does_not_need_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lambda keep, rest: 0.1 if rest == "fp32" or "c" in keep else 3.0)
    verdict = made.decide("abcdef")
    assert verdict.keep == ("c",)
    # INT8 with FP32 would have passed at once.
    assert (verdict.before.miou_points, verdict.before_fp16.miou_points) == (0.1, 3.0)


def test_a_class_that_loses_too_much_is_told_with_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lambda keep, _: 0.3 - len(keep) / 100)
    made.class_points = 9.0
    with pytest.raises(
        ExportError, match=r"loses 0\.\d\d \(9\.00 for land\)\. Allow that with --max-class-drop,"
    ):
        made.decide("abcd")


def test_fp16_alone_out_of_bounds_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lambda keep, rest: 0.1 if rest == "fp32" else 2.0 - len(keep) / 10)
    with pytest.raises(
        ExportError,
        match=r"all 4 layers in INT8 it loses 2\.00 .*keeps 3 of them .* loses 1\.70 .* with --max-drop, cal",
    ):
        made.decide("abcd")
