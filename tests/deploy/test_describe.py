"""Bundles that are exported with data know what their training images look like."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy import describe
from hfd_edge.deploy import export as room
from hfd_edge.deploy.describe import describe_training
from hfd_edge.errors import DatasetError
from hfd_edge.raster.image import read_image

from .conftest import CLASSES, PREPROCESSING
from .test_export import make_run


@pytest.fixture
def many(data: Path, tmp_path: Path) -> PairFolder:
    """The data folder with 15 training pairs; two have no label."""
    root = Path(shutil.copytree(data, tmp_path / "many"))
    for index in range(5, 15):
        for kind, suffix in (("sar", "tif"), ("label", "png")):
            if (kind, index) not in (("label", 5), ("label", 6)):
                source = root / "train" / kind / f"tile_{index % 5}.{suffix}"
                shutil.copy(source, source.with_name(f"tile_{index}.{suffix}"))
    return PairFolder.open(root)


def test_the_training_split_is_described(many: PairFolder) -> None:
    found = describe_training(many, PREPROCESSING)
    assert found is not None
    assert found.images == 15
    figures = {figure.key: figure for figure in found.figures}
    labels = [read_image(pair.label) for pair in many.pairs("train") if pair.label is not None]
    assert len(labels) == 13
    share = figures["share", CLASSES[0]]
    assert share.median == pytest.approx(np.median([np.mean(label == 0) for label in labels]), abs=1e-4)
    assert {of for kind, of in figures if kind == "level"} == set(many.config.sar.bands)


def test_large_splits_are_thinned_out(many: PairFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "_MOST_IMAGES", 10)
    found = describe_training(many, PREPROCESSING)
    assert found is not None and found.images == 8


def test_too_few_pairs_or_no_such_split(folder: PairFolder, many: PairFolder) -> None:
    assert describe_training(folder, PREPROCESSING) is None
    assert describe_training(many, PREPROCESSING, split="test") is None


def test_damaged_pairs_are_named(many: PairFolder) -> None:
    broken = many.pairs("train")[3].sar
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DatasetError, match=broken.name):
        describe_training(many, PREPROCESSING)


def test_export_writes_it_into_the_manifest(
    many: PairFolder, tmp_path: Path, mini_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is exported does not matter here, and takes half a minute.
    monkeypatch.setattr(room, "export_network", lambda network, path, **shape: shutil.copy(mini_onnx, path))
    monkeypatch.setattr(room, "check_parity", lambda network, path, **shape: 0.0)
    steps: list[tuple[float, float]] = []
    bundle = room.export_run(
        make_run(tmp_path / "student", many),
        tmp_path / "b.hfd",
        folder=many,
        progress=lambda done, total, text: steps.append((done, total)),
    )
    assert bundle.manifest.training is not None
    assert bundle.manifest.training == describe_training(many, PREPROCESSING)
    assert steps == [(done, 5) for done in range(6)]
