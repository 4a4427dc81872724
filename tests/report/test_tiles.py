"""Tiles of a data folder as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.config import DatasetConfig, SarInput, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.raster.image import write_image
from hfd_edge.report.tiles import draw_tiles


@pytest.mark.parametrize("ignore_index", [9, 255])
def test_no_data_is_hatched_whatever_its_id(tmp_path: Path, ignore_index: int) -> None:
    """A model's no-data label need not be the id that the data folder has for unknown pixels."""
    write_image(tmp_path / "test/sar/a.tif", np.full((1, 8, 8), 0.1, np.float32))
    write_image(tmp_path / "test/label/a.png", np.zeros((8, 8), np.uint8))
    config = DatasetConfig(
        name="one",
        classes=("land", "water"),
        palette=((90, 60, 30), (0, 0, 255)),
        ignore_index=ignore_index,
        sar=SarInput(bands=("vv",), units="intensity"),
        eo=None,
    )
    write_toml(tmp_path / "dataset.toml", config)
    labels = np.ones((8, 8), np.uint8)
    labels[0] = 255
    (tile,) = draw_tiles(PairFolder.open(tmp_path), {"fp32": lambda sar: labels}, split="test", count=3)
    picture = tile.predictions["fp32"]
    assert picture is not None
    assert (picture[:, 1:] == np.array([0, 0, 255])[:, None, None]).all()
    assert not (picture[:, 0] == np.array([0, 0, 255])[:, None]).all(axis=0).any()
