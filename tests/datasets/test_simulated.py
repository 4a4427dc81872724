"""Simulated data on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.check import check_folder
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import dataset_config, write_dataset, write_scene
from hfd_edge.datasets.statistics import eo_statistics, fit_preprocessing
from hfd_edge.errors import StorageError
from hfd_edge.raster.scene import SceneReader
from hfd_edge.sar.simulate import CLASSES, SceneRenderer


def _write(out: Path, *, train: int = 3, seed: int = 5, looks: float = 4.0) -> PairFolder:
    write_dataset(out, train=train, val=1, test=1, size_px=48, seed=seed, looks=looks)
    return PairFolder.open(out)


def test_folder_is_complete_and_without_fault(tmp_path: Path) -> None:
    folder = _write(tmp_path / "sim", looks=3.0)
    assert folder.config == dataset_config(looks=3.0)
    assert folder.config.sar.looks == 3.0 and folder.config.sar.bands == ("vv", "vh")
    assert folder.config.classes == CLASSES
    assert [len(folder.pairs(split)) for split in ("train", "val", "test")] == [3, 1, 1]
    assert check_folder(folder).of("fault") == ()
    for pair in folder.pairs("train"):
        assert folder.load_sar(pair).shape == (2, 48, 48)
        assert folder.load_eo(pair).shape == (3, 48, 48)
        assert folder.load_label(pair).shape == (48, 48)
    fit = fit_preprocessing(folder)
    assert -18 < fit.mean[0] < -8 and -25 < fit.mean[1] < -14
    mean, std = eo_statistics(folder)
    assert all(0.05 < value < 0.8 for value in mean) and all(0.01 < value < 0.5 for value in std)


def test_equal_seeds_give_equal_files_and_longer_splits_start_alike(tmp_path: Path) -> None:
    first, same, longer, other = (
        _write(tmp_path / name, **options)  # type: ignore[arg-type]
        for name, options in (("a", {}), ("b", {}), ("c", {"train": 4}), ("d", {"seed": 6}))
    )
    assert first.sha256 == same.sha256
    assert first.sha256 != other.sha256
    for kept, again in zip(first.pairs("train"), longer.pairs("train"), strict=False):
        np.testing.assert_array_equal(first.load_sar(kept), longer.load_sar(again))
    pixels = [first.load_sar(pair) for split in first.splits for pair in first.pairs(split)]
    assert all((pixels[0] != image).any() for image in pixels[1:]), "every tile is a scene of its own"


def test_existing_folder_is_left_alone_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="already exists"):
        _write(tmp_path)

    def stop(done: float, total: float, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "sim", train=3, val=1, test=1, size_px=32, seed=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (511, 517), (300, 64)])
def test_scene_and_truth_share_a_georeference(tmp_path: Path, rows: int, cols: int) -> None:
    path = tmp_path / "scene.tif"
    reports: list[tuple[float, float, str]] = []
    truth = write_scene(path, rows=rows, cols=cols, seed=3, progress=lambda *report: reports.append(report))
    assert truth == tmp_path / "scene.label.tif"
    with SceneReader(path) as scene, SceneReader(truth) as label:
        assert (scene.bands, scene.rows, scene.cols) == (2, rows, cols)
        assert (label.bands, label.rows, label.cols) == (1, rows, cols)
        assert scene.dtype == np.float32 and scene.nodata == 0 and label.nodata == 255
        assert scene.georeference == label.georeference
        assert scene.georeference.crs is not None and "32631" in scene.georeference.crs
        assert scene.georeference.transform == (10.0, 0.0, 600_000.0, 0.0, -10.0, 5_400_000.0)
        sar, labels = scene.read(0, rows), label.read(0, rows)[0]
    for row0, part, part_labels in SceneRenderer(rows=rows, cols=cols, seed=3).radar_blocks():
        np.testing.assert_array_equal(sar[:, row0 : row0 + part.shape[1]], part)
        np.testing.assert_array_equal(labels[row0 : row0 + part.shape[1]], part_labels)
    assert reports[-1][0] == reports[-1][1] == pytest.approx(rows * cols / 1e6)


def test_stopped_scene_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: float, total: float, text: str) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scene(tmp_path / "scene.tif", rows=600, cols=64, seed=0, progress=stop)
    assert list(tmp_path.iterdir()) == []
