"""What each layer's INT8 costs: measured, ranked, stored, and told apart from other calibrations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.precision import place
from hfd_edge.deploy.qdq import int8_model, layers
from hfd_edge.deploy.quantize import quantize
from hfd_edge.deploy.record import read_record
from hfd_edge.deploy.scoring import Bench
from hfd_edge.deploy.sensitivity import (
    SENSITIVITY,
    Sensitivity,
    as_rows,
    load_sensitivity,
    measure_sensitivity,
    store_sensitivity,
)
from hfd_edge.errors import ExportError
from hfd_edge.report.sensitivity import plot_sensitivity, show_sensitivity

from . import hostile


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    return PairFolder.open(hostile.write_data(tmp_path_factory.mktemp("pairs") / "data"))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, pairs: PairFolder) -> Bundle:
    network = hostile.trained()
    hostile.spoil(network)
    bundle = hostile.write_bundle(tmp_path_factory.mktemp("made") / "spoilt.hfd", network)
    return quantize(bundle, pairs, method="max", tiles=2)


@pytest.fixture(scope="module")
def found(quantised: Bundle, pairs: PairFolder) -> Sensitivity:
    return measure_sensitivity(quantised, pairs, tiles=4)


def test_layers_are_ranked_by_what_they_cost(found: Sensitivity) -> None:
    names = [effect.layer for effect in found.layers]
    assert names[:2] == ["fuse", "second"]
    assert sorted(names) == sorted(("stem", "down", "first", "second", "widen", "fuse", "last"))
    costs = list(found.harm().values())
    assert costs == sorted(costs, reverse=True)
    assert (found.tiles, found.split, found.reference.tiles) == (4, "val", 4)
    # Freeing one of two culprits does not free the other: the two measures are different things.
    fuse, second = found.layers[:2]
    assert fuse.one_only.miou_points > 5
    assert fuse.leave_one_out.fidelity_points == pytest.approx(second.one_only.fidelity_points, abs=1.0)
    assert found.all_int8.miou_points > 5


def test_figures_are_those_of_the_models(found: Sensitivity, quantised: Bundle, pairs: PairFolder) -> None:
    bench = Bench(quantised, pairs, limit=4)
    placed = place(quantised.model("fp32"), bench.tile(0))
    amax = read_record(quantised).amax
    effect = found.layers[1]
    others = [name for name in layers(placed) if name != effect.layer]
    assert bench.drop(int8_model(placed, amax, keep=others)) == effect.one_only
    assert bench.drop(int8_model(placed, amax, keep=[effect.layer])) == effect.leave_one_out
    assert bench.drop(quantised.model("int8")) == found.all_int8


def test_it_is_stored_and_read_back(
    found: Sensitivity, quantised: Bundle, pairs: PairFolder, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    amax = read_record(quantised).amax
    assert load_sensitivity(quantised, amax) is None
    stored = store_sensitivity(quantised, found)
    assert load_sensitivity(Bundle.open(stored.path), amax) == found
    stored.verify()
    # Of other ranges it says nothing.
    assert load_sensitivity(stored, {**amax, "sar": 1.0}) is None
    # Damage is told.
    damaged = stored.add({SENSITIVITY: b'{"layers": []}'})
    with pytest.raises(ExportError, match=r"sensitivity\.json is damaged .*hfd-edge sensitivity .* --data"):
        load_sensitivity(damaged, amax)


def test_cancelling_leaves_no_file(
    quantised: Bundle, pairs: PairFolder, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot(quantised.path)
    seen: list[tuple[float, float]] = []

    def stop(done: float, total: float, text: str) -> None:
        if text == "measuring layers":
            seen.append((done, total))
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(quantised, pairs, tiles=1, progress=stop)
    assert seen == [(0, 15), (1, 15), (2, 15), (3, 15)]
    assert snapshot(quantised.path) == before


def test_a_bundle_that_was_not_quantised(bundle: Bundle, folder: PairFolder) -> None:
    with pytest.raises(ExportError, match="has no calibration record. Make it with: hfd-edge quantize"):
        measure_sensitivity(bundle, folder)


def test_rows_and_report(found: Sensitivity, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_rows(found)
    assert [row["rank"] for row in rows] == list(range(1, 8))
    assert rows[0]["layer"] == "fuse"
    assert rows[0]["one_only_miou_points"] == found.layers[0].one_only.miou_points
    json.dumps(rows, allow_nan=False)
    show_sensitivity(found)
    printed = capsys.readouterr().out
    assert printed.index("fuse") < printed.index("second") < printed.index("stem")
    plot_sensitivity(found, tmp_path / "s.png", title="a name, no formula: $\\bad{$")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert [item.name for item in tmp_path.iterdir()] == ["s.png"]
