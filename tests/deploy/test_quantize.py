"""FP16 and INT8 in a bundle, with the calibration record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import quantize as room
from hfd_edge.deploy.precision import Agreement
from hfd_edge.deploy.quantize import RECORD, quantize
from hfd_edge.deploy.tiles import calibration_tiles
from hfd_edge.errors import BundleError, DatasetError, ExportError, StorageError
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import PREPROCESSING, TILE

Snapshot = Callable[[Path], dict[str, bytes]]


def test_quantize(bundle: Bundle, folder: PairFolder, mini_onnx: Path) -> None:
    seen: list[str] = []
    made = quantize(bundle, folder, tiles=6, progress=lambda done, total, text: seen.append(text))
    assert made.precisions == ("fp32", "fp16", "int8")
    assert set(seen) == {"reading calibration tiles", "calibrating"}
    Bundle.open(bundle.path).verify()

    record = json.loads(made.file(RECORD).read_text())
    _, sources = calibration_tiles(folder, PREPROCESSING, tile_px=TILE, count=6)
    assert record["method"] == "entropy"
    assert [tile["sha256"] for tile in record["tiles"]] == [source.sha256 for source in sources]
    assert record["onnx_sha256"] == hashlib.sha256(mini_onnx.read_bytes()).hexdigest()
    assert record["data_sha256"] == folder.sha256
    assert record["high_precision"] == "fp32"
    assert {"align.flow_head", "align/GridSample", "classifier"} <= set(record["high_precision_nodes"])
    assert record["quantized_node_count"] == len(record["quantized_nodes"]) >= 4
    assert len(record["amax"]) >= 4
    assert all(value > 0 for value in record["amax"].values())

    for name, least in (("fp16", 0.99), ("int8", 0.9)):
        scores = made.manifest.metrics[name]
        assert least < scores["label_agreement_with_fp32"] <= 1
        assert scores["compared_tiles"] <= 8


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


def test_quantizing_again_replaces(bundle: Bundle, folder: PairFolder) -> None:
    first = quantize(bundle, folder, method="entropy", tiles=2)
    hashes = dict(first.manifest.files)
    second = quantize(first, folder, method="max", tiles=4)
    assert json.loads(second.file(RECORD).read_text())["method"] == "max"
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
    with pytest.raises(ExportError, match="choose one of entropy, max, mse and at least 1 tile"):
        quantize(bundle, folder, **options)  # type: ignore[arg-type]


def test_a_changed_model(bundle: Bundle, folder: PairFolder) -> None:
    with (bundle.path / "model.fp32.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        quantize(bundle, folder)


def test_an_fp16_model_that_is_far_off_is_refused(
    bundle: Bundle, folder: PairFolder, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bundle.path)
    monkeypatch.setattr(room, "agreement", lambda *_: Agreement(labels=0.5, logits=0.4))
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
    made = quantize(bundle, folder, method="max", tiles=5)
    record = json.loads(made.file(RECORD).read_text())
    largest = 0.0
    for tile in record["tiles"]:
        (pair,) = (pair for pair in folder.pairs("train") if pair.name == tile["name"])
        pixels, _ = PREPROCESSING(folder.load_sar(pair))
        window = pixels[:, tile["row"] : tile["row"] + TILE, tile["col"] : tile["col"] + TILE]
        largest = max(largest, float(np.abs(window).max()))
    assert record["split"] == "train"
    assert record["amax"]["sar"] == pytest.approx(largest)
