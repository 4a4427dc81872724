"""A run folder becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfd_edge.bundle import Bundle
from hfd_edge.config import DeployRecipe, EoInput, NetworkRecipe, Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import export as room
from hfd_edge.deploy.export import export_run
from hfd_edge.deploy.graph import load, session
from hfd_edge.deploy.opset import lower_opset
from hfd_edge.errors import CheckpointError, DatasetError, ExportError, StorageError
from hfd_edge.hfdnet.card import model_card
from hfd_edge.hfdnet.network import perturb_flow
from hfd_edge.hfdnet.run import Run, RunInfo
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import PREPROCESSING, TILE

RECIPE = Recipe(
    network=NetworkRecipe(encoder="test_resnet", channels=16, init="random"),
    deploy=DeployRecipe(tile_px=TILE),
)


def make_run(path: Path, folder: PairFolder, *, kind: str = "student", recipe: Recipe = RECIPE) -> Path:
    """A run folder as training leaves it; weights are random, the flow is not zero."""
    eo = {"eo_mean": (0.5,) * 3, "eo_std": (0.2,) * 3} if kind == "teacher" else {}
    dataset = folder.config.model_copy(update={"eo": EoInput()}) if kind == "teacher" else folder.config
    info = RunInfo(
        kind=kind,
        dataset=dataset,
        preprocessing=PREPROCESSING if kind == "student" else None,
        data_sha256=folder.sha256,
        versions={"torch": torch.__version__},
        created="2026-01-01T00:00:00+00:00",
        **eo,
    )
    run = Run.create(path, recipe, info)
    torch.manual_seed(1)
    network = run.untrained_network().eval()
    perturb_flow(network, seed=2)
    run.save_best(network.state_dict())
    run.save_metrics({"miou": 0.5, "best_epoch": 3, "history": []})
    return path


@pytest.fixture(scope="module")
def run(folder: PairFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "student", folder)


@pytest.fixture(scope="module")
def exported(run: Path, folder: PairFolder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_run(run, tmp_path_factory.mktemp("bundles") / "flood.hfd", folder=folder)


def test_the_manifest_describes_the_run(exported: Bundle, run: Path, folder: PairFolder) -> None:
    manifest = Bundle.open(exported.path).manifest
    trained = Run.open(run)
    assert manifest.name == "flood"
    assert manifest.classes == folder.config.classes
    assert manifest.palette == folder.config.palette
    assert manifest.sar == folder.config.sar
    assert manifest.preprocessing == PREPROCESSING
    assert (manifest.head, manifest.tile_px, manifest.stride) == ("quarter", TILE, 4)
    assert manifest.provenance.data_sha256 == folder.sha256
    assert Recipe.model_validate(manifest.provenance.recipe) == trained.recipe
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.provenance.versions)
    assert manifest.metrics["fp32"]["onnx_difference"] < 1e-4
    assert manifest.metrics["fp32"]["training"] == {"miou": 0.5, "best_epoch": 3}
    assert exported.file("README.md").read_text() == model_card(trained)
    exported.verify()


def test_golden_labels_are_what_the_runtime_gives(exported: Bundle) -> None:
    tiles = exported.golden()
    assert [tile.name for tile in tiles] == ["000", "001", "002"]
    with Segmenter(exported, backend="onnxruntime", precision="fp32") as segment:
        for tile in tiles:
            np.testing.assert_array_equal(segment(tile.image), tile.labels)
    assert len(np.unique(tiles[0].labels)) > 1


def test_golden_tiles_keep_no_data(exported: Bundle) -> None:
    tile = exported.golden()[0]
    assert (tile.image == 0).any()
    np.testing.assert_array_equal(tile.labels == 255, (tile.image == 0).any(0))


def test_without_data_there_are_no_golden_tiles(
    run: Path, tmp_path: Path, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exported.model("fp32").read_bytes()
    monkeypatch.setattr(room, "export_network", lambda network, path, **shape: path.write_bytes(model))
    seen: list[tuple[float, float]] = []
    bundle = export_run(
        run, tmp_path / "b.hfd", progress=lambda done, total, text: seen.append((done, total))
    )
    assert bundle.golden() == []
    assert seen[-1] == (3, 3)


def test_a_model_that_differs_from_the_weights_is_not_written(
    run: Path, folder: PairFolder, tmp_path: Path, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_run(tmp_path / "other", folder)
    weights = Run.open(other).network().state_dict()
    weights["classifier.bias"] = weights["classifier.bias"] + 1.0
    Run.open(other).save_best(weights)
    model = exported.model("fp32").read_bytes()
    monkeypatch.setattr(room, "export_network", lambda network, path, **shape: path.write_bytes(model))
    with pytest.raises(ExportError, match="as trained differs from the weights"):
        export_run(other, tmp_path / "b.hfd")
    assert not (tmp_path / "b.hfd").exists()


def test_a_teacher_is_refused(folder: PairFolder, tmp_path: Path) -> None:
    teacher = make_run(tmp_path / "teacher", folder, kind="teacher")
    with pytest.raises(ExportError, match="is a teacher: it takes optical images.*of a student"):
        export_run(teacher, tmp_path / "b.hfd")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run: it has no run\.json"):
        export_run(tmp_path, tmp_path / "b.hfd")
    with pytest.raises(CheckpointError, match="is not a run"):
        export_run(tmp_path / "missing", tmp_path / "b.hfd")


def test_damaged_weights(folder: PairFolder, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", folder)
    weights = run / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"best\.safetensors .*is damaged"):
        export_run(run, tmp_path / "b.hfd")
    assert not (tmp_path / "b.hfd").exists()


def test_an_existing_bundle_is_not_overwritten(run: Path, exported: Bundle) -> None:
    with pytest.raises(StorageError, match="already exists. Choose another --out"):
        export_run(run, exported.path)


@pytest.mark.parametrize("options", [{"tile_px": 0}, {"tile_px": 100}, {"tile_px": -32}, {"head": "half"}])
def test_options_out_of_range(run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=r"multiple of 32.*\"quarter\" or \"full\""):
        export_run(run, tmp_path / "b.hfd", **options)
    assert not (tmp_path / "b.hfd").exists()


def test_data_of_other_classes(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "val").symlink_to(data / "val")
    text = (data / "dataset.toml").read_text()
    for old, new, what in (('"city"', '"town"', "classes"), ("looks = 4.0", "looks = 2.0", "SAR input")):
        assert old in text
        (tmp_path / "dataset.toml").write_text(text.replace(old, new))
        with pytest.raises(DatasetError, match=f"has {what} .*but the run was trained for"):
            export_run(run, tmp_path / "b.hfd", folder=PairFolder.open(tmp_path))


def test_the_same_weights_with_another_warp(run: Path, exported: Bundle, tmp_path: Path) -> None:
    """By default no GridSample, which TensorRT before 8.5 lacks: the same numbers, an opset that it reads."""
    sampled = export_run(run, tmp_path / "sampled.hfd", warp="grid_sample")
    metrics = sampled.manifest.metrics["fp32"]
    assert (exported.manifest.metrics["fp32"]["warp"], metrics["warp"]) == ("gather", "grid_sample")
    assert metrics["onnx_difference"] < 1e-4
    # What trained the weights is still told as it was.
    assert sampled.manifest.provenance.recipe == exported.manifest.provenance.recipe
    model, other = load(exported.model("fp32")), load(sampled.model("fp32"))
    assert "GridSample" in {node.op_type for node in other.graph.node}
    assert "GridSample" not in {node.op_type for node in model.graph.node}
    pixels = np.random.default_rng(0).normal(size=(2, 2, TILE, TILE)).astype(np.float32)
    found = session(lower_opset(model, 13)).run(None, {"sar": pixels})[0]
    expected = session(other).run(None, {"sar": pixels})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.ptp(expected))


def test_an_unknown_warp(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Warp is 'bicubic', expected one of: gather, grid_sample"):
        export_run(run, tmp_path / "b.hfd", warp="bicubic")
    assert not (tmp_path / "b.hfd").exists()


def test_images_smaller_than_the_tile_are_told(
    run: Path, folder: PairFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = folder.load_sar(folder.pairs("val")[0])
    largest = max(image.shape[1:])
    enough = -(-largest // 32) * 32
    room._warn_of_padding(folder, [image], enough)
    assert not caplog.text
    export_run(run, tmp_path / "b.hfd", folder=folder, tile_px=enough + 32)
    assert f"at most {largest} pixels a side, but a tile has {enough + 32}" in caplog.text
    assert f"Export with --tile {enough}," in caplog.text
