"""Small data folders, made anew for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.config import DatasetConfig, SarInput, write_toml
from hfd_edge.raster.image import write_image

MakeFolder = Callable[..., Path]


def _images(rng: np.random.Generator, rows: int, cols: int) -> dict[str, np.ndarray]:
    return {
        "sar": rng.gamma(4.0, 0.02, (2, rows, cols)).astype(np.float32),
        "eo": rng.integers(0, 256, (3, rows, cols), dtype=np.uint8),
        "label": rng.choice(np.array([0, 1, 2, 255], np.uint8), (rows, cols)),
    }


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Make a folder of three classes and two SAR bands; `layout` is "splits" or "pool"."""

    def make(*, layout: str = "splits", rows: int = 24, cols: int = 17, **sar: Any) -> Path:
        root = tmp_path / "data"
        rng = np.random.default_rng(0)
        names = {"train": ("a.1", "b"), "val": ("c",), "test": ("d",)}
        for split, own in names.items():
            base = root / split if layout == "splits" else root
            for name in own:
                for kind, image in _images(rng, rows, cols).items():
                    suffix = ".tif" if kind == "sar" else ".png"
                    write_image(base / kind / f"{name}{suffix}", image)
        if layout == "pool":
            for scheme, order in (("event", ("train", "val", "test")), ("spatial", ("test", "val", "train"))):
                for split, source in zip(order, names, strict=True):
                    path = root / "splits" / scheme / f"{split}.txt"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # with a suffix in one scheme, without in the other: both are written by hand
                    ending = ".png" if scheme == "event" else ""
                    path.write_text("".join(f"{name}{ending}\n" for name in reversed(names[source])))
        write_toml(
            root / "dataset.toml",
            DatasetConfig(
                name="small",
                classes=("water", "land", "town"),
                palette=((0, 0, 255), (0, 255, 0), (255, 0, 0)),
                sar=SarInput(
                    **{"bands": ("vv", "vh"), "units": "intensity", "looks": 4.0, "nodata": 0.0, **sar}
                ),
            ),
        )
        return root

    return make
