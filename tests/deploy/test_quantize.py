"""FP16 and INT8 in a bundle, with the calibration record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import quantize as room
from hfd_edge.deploy.calibration import ranged_tensors
from hfd_edge.deploy.gate import Bound
from hfd_edge.deploy.graph import load, quantizers
from hfd_edge.deploy.precision import Agreement
from hfd_edge.deploy.qdq import layers, quantized_tensors
from hfd_edge.deploy.quantize import QAT_RANGES, quantize
from hfd_edge.deploy.record import read_record
from hfd_edge.deploy.selection import select, store_selection
from hfd_edge.deploy.sensitivity import measure_sensitivity, store_sensitivity
from hfd_edge.deploy.tiles import calibration_tiles
from hfd_edge.errors import BundleError, DatasetError, ExportError, StorageError
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import PREPROCESSING, TILE

Snapshot = Callable[[Path], dict[str, bytes]]


def test_quantize(bundle: Bundle, folder: PairFolder, mini_onnx: Path) -> None:
    seen: list[str] = []
    made = quantize(bundle, folder, tiles=6, progress=lambda done, total, text: seen.append(text))
    assert made.precisions == ("fp32", "fp16", "int8", "int8_fp16")
    assert set(seen) == {"choosing calibration tiles", "calibrating"}
    Bundle.open(bundle.path).verify()

    record = read_record(made)
    tiles = calibration_tiles(folder, PREPROCESSING, tile_px=TILE, count=6)
    assert (record.method, record.selection, record.split) == ("entropy", "even", "train")
    assert (record.requested_tiles, record.tiles) == (6, tiles.sources)
    assert record.onnx_sha256 == hashlib.sha256(mini_onnx.read_bytes()).hexdigest()
    assert record.data_sha256 == folder.sha256
    assert record.input_shape == (2, TILE, TILE)

    for name, least in (("fp16", 0.99), ("int8", 0.9), ("int8_fp16", 0.9)):
        scores = made.manifest.metrics[name]  # type: ignore[index]
        assert least < scores["label_agreement_with_fp32"] <= 1
        assert scores["compared_tiles"] <= 8
        assert "gate" not in scores


def test_the_record_holds_every_range_and_what_the_model_does(
    bundle: Bundle, folder: PairFolder, mini_onnx: Path
) -> None:
    made = quantize(bundle, folder, method="max", tiles=3)
    record = read_record(made)
    assert tuple(record.amax) == ranged_tensors(load(mini_onnx))
    model = load(made.model("int8"))
    assert record.quantized_tensors == quantized_tensors(model)
    assert record.quantized_nodes == layers(model)
    assert {"coarse.0", "merge.0", "align/Resize"} <= set(record.quantized_nodes)
    scales = {name: numpy_helper.to_array(item) for name, item in constants(model).items()}
    for name, scale in quantizers(model)[0].items():
        assert scales[scale] == np.float32(record.amax[name] / 127)
    reasons = {item.node: item.reason.split(":")[0] for item in record.kept}
    expected = {
        "align.flow_head": "flow head",
        "align/Add": "warp grid",
        "align/GridSample": "warp",
        "classifier": "classifier",
    }
    assert expected.items() <= reasons.items()
    assert not set(reasons) & set(record.quantized_nodes)


def constants(model: Any) -> dict[str, Any]:
    return {item.name: item for item in model.graph.initializer}


def test_every_variant_runs_in_the_runtime(bundle: Bundle, folder: PairFolder) -> None:
    made = quantize(bundle, folder, method="max", tiles=3)
    image = folder.load_sar(folder.pairs("val")[0])
    labels = {}
    for precision in made.precisions:
        with Segmenter(made, backend="onnxruntime", precision=precision) as segment:
            labels[precision] = segment(image)
    assert labels["fp32"].shape == image.shape[1:]
    assert (labels["fp16"] == labels["fp32"]).mean() > 0.98
    assert (labels["int8"] == labels["fp32"]).mean() > 0.85
    assert (labels["int8_fp16"] == labels["int8"]).mean() > 0.9


def test_quantizing_again_replaces(bundle: Bundle, folder: PairFolder) -> None:
    first = quantize(bundle, folder, method="entropy", tiles=2)
    hashes = dict(first.manifest.files)
    second = quantize(first, folder, method="max", tiles=4)
    assert read_record(second).method == "max"
    assert second.manifest.files["model.fp16.onnx"] == hashes["model.fp16.onnx"]
    assert second.manifest.files["model.int8.onnx"] != hashes["model.int8.onnx"]
    second.verify()


def test_data_of_another_radiometry(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(data / "train")
    text = (data / "dataset.toml").read_text().replace("looks = 4.0", "looks = 1.0")
    (tmp_path / "dataset.toml").write_text(text)
    with pytest.raises(DatasetError, match=r"declares SAR input .*looks=1\.0.*but the bundle takes"):
        quantize(bundle, PairFolder.open(tmp_path))


@pytest.mark.parametrize("options", [{"method": "minmax"}, {"tiles": 0}])
def test_options_out_of_range(bundle: Bundle, folder: PairFolder, options: dict[str, object]) -> None:
    with pytest.raises(ExportError, match="choose one of entropy, max, mse, percentile and at least 1"):
        quantize(bundle, folder, **options)  # type: ignore[arg-type]


def test_two_bounds_are_one_too_many(bundle: Bundle, folder: PairFolder) -> None:
    with pytest.raises(ExportError, match=r"max_drop 0\.5 and the bound 1 mIoU points .* Give one of them"):
        quantize(bundle, folder, bound=Bound(miou_points=1), max_drop=0.5)


def test_a_changed_model(bundle: Bundle, folder: PairFolder) -> None:
    with (bundle.path / "model.fp32.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        quantize(bundle, folder)


def test_an_fp16_model_that_is_far_off_is_refused(
    bundle: Bundle, folder: PairFolder, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bundle.path)
    far = Agreement(labels=0.5, logits=0.4)
    monkeypatch.setattr(room, "agreement", lambda _, variants, __: dict.fromkeys(variants, far))
    with pytest.raises(ExportError, match=r"FP16 model differs from FP32 by 0\.400.*labels agree on 50\.0%"):
        quantize(bundle, folder, tiles=2)
    assert snapshot(bundle.path) == before


def test_a_full_disk_leaves_the_bundle_as_it_was(
    bundle: Bundle, folder: PairFolder, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bundle.path)
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.suffix == ".json":
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Free some space"):
        quantize(bundle, folder, tiles=2)
    monkeypatch.undo()
    assert snapshot(bundle.path) == before


def test_a_full_temporary_folder(
    bundle: Bundle, folder: PairFolder, snapshot: Snapshot, full_disk: Any
) -> None:
    before = snapshot(bundle.path)
    with pytest.raises(StorageError, match=r"Could not write .*model\.fp32\.onnx"), full_disk(20_000):
        quantize(bundle, folder, tiles=2)
    assert snapshot(bundle.path) == before


def test_cancelling_leaves_the_bundle_as_it_was(
    bundle: Bundle, folder: PairFolder, snapshot: Snapshot
) -> None:
    before = snapshot(bundle.path)

    def stop(done: float, total: float, text: str) -> None:
        if text == "calibrating":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(bundle, folder, tiles=2, progress=stop)
    assert snapshot(bundle.path) == before


def test_calibration_uses_the_training_split_only(bundle: Bundle, folder: PairFolder) -> None:
    record = read_record(quantize(bundle, folder, method="max", tiles=5))
    largest = 0.0
    for tile in record.tiles:
        (pair,) = (pair for pair in folder.pairs("train") if pair.name == tile.name)
        pixels, _ = PREPROCESSING(folder.load_sar(pair))
        window = pixels[:, tile.row : tile.row + TILE, tile.col : tile.col + TILE]
        largest = max(largest, float(np.abs(window).max()))
    assert record.split == "train"
    assert record.amax["sar"] == pytest.approx(largest)


def test_a_selection_is_used_unless_tiles_are_asked_for(bundle: Bundle, folder: PairFolder) -> None:
    chosen = select(folder, PREPROCESSING, tile_px=TILE, count=3, method="random", seed=1)
    bundle = store_selection(bundle, chosen)
    record = read_record(quantize(bundle, folder))
    assert (record.selection, record.tiles, record.requested_tiles) == ("random", chosen.tiles, 3)
    record = read_record(quantize(bundle, folder, tiles=2))
    assert (record.selection, record.requested_tiles) == ("even", 2)
    even = select(folder, PREPROCESSING, tile_px=TILE, count=3, method="even")
    record = read_record(quantize(store_selection(bundle, even), folder))
    assert (record.selection, record.tiles, record.requested_tiles) == ("even", even.tiles, 3)


def test_the_gate_refuses_to_score_on_what_calibrated(bundle: Bundle, folder: PairFolder) -> None:
    chosen = select(folder, PREPROCESSING, tile_px=TILE, count=3, split="val")
    bundle = store_selection(bundle, chosen)
    with pytest.raises(
        ExportError, match=r"tiles of .* are of split 'val', which the accuracy gate .* calibrate select"
    ):
        quantize(bundle, folder, max_drop=0.5)
    assert read_record(quantize(bundle, folder)).split == "val"  # nothing is scored, so it may be


def with_learnt(bundle: Bundle, content: object) -> Bundle:
    return bundle.add({QAT_RANGES: json.dumps(content).encode()})


def test_ranges_that_training_learnt_are_used(bundle: Bundle, folder: PairFolder) -> None:
    plain = read_record(quantize(bundle, folder, tiles=2)).amax
    learnt = {"sar": 3.25, "align.flow_coarse:out": 1.5}
    bundle = with_learnt(bundle, {"amax": learnt})
    record = read_record(quantize(bundle, folder, tiles=2))
    assert record.method == "qat"
    assert {name: record.amax[name] for name in learnt} == learnt  # not even shared at a concatenation
    assert record.amax["merge.2/Clip:out"] == plain["merge.2/Clip:out"]
    # A method that is asked for is used.
    record = read_record(quantize(bundle, folder, method="entropy", tiles=2))
    assert (record.method, record.amax) == ("entropy", plain)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1], "is damaged"),
        ({"amax": {"sar": "wide"}}, "is damaged"),
        ({"amax": {"sar": -1.0}}, "gives sar the range -1.0, expected a positive number"),
        ({"amax": {"nothing": 1.0}}, "has a range for nothing, which is no tensor of the FP32 model"),
    ],
)
def test_learnt_ranges_that_do_not_fit(
    bundle: Bundle, folder: PairFolder, content: object, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        quantize(with_learnt(bundle, content), folder, tiles=1)


def test_an_earlier_sensitivity_ranks_the_layers(
    bundle: Bundle, folder: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantize(bundle, folder, tiles=2)
    made = store_sensitivity(made, measure_sensitivity(made, folder, tiles=1))
    seen: list[Any] = []
    monkeypatch.setattr(room, "gate", lambda *_, harm, **__: seen.append(harm) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize(made, folder, tiles=2, max_drop=0.5)
    with pytest.raises(ZeroDivisionError):  # other ranges: what was measured does not count
        quantize(made, folder, tiles=2, method="max", max_drop=0.5)
    made = store_sensitivity(made, measure_sensitivity(made, folder, tiles=1, split="train"))
    with pytest.raises(ZeroDivisionError):  # nor what other tiles than the held-out ones said
        quantize(made, folder, tiles=2, max_drop=0.5)
    assert set(seen[0]) >= {"coarse.0", "merge.0"}
    assert seen[1:] == [None, None]
