"""Threshold bundles with golden tiles, for benchmarks that take no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.bench.measure import Run, WarmUp
from hfd_edge.bundle import Bundle
from hfd_edge.raster.image import write_image

__all__ = ["golden_bundle", "hasty"]  # fixtures


@pytest.fixture
def golden_bundle(make_thresholds: Callable[..., Bundle], tmp_path: Path) -> Callable[..., Bundle]:
    """Give a function that makes a bundle with one golden tile, on which FP32 and FP16 are right and INT8 is
    not (thresholds 100 and 120)."""

    def make(**options: Any) -> Bundle:
        image = np.random.default_rng(1).integers(60, 140, (1, 64, 64)).astype(np.uint8)
        write_image(tmp_path / "tile.tif", image)
        write_image(tmp_path / "tile.png", (image > 100).astype(np.uint8))
        files = {
            "golden/000.sar.tif": (tmp_path / "tile.tif").read_bytes(),
            "golden/000.labels.png": (tmp_path / "tile.png").read_bytes(),
        }
        bundle = make_thresholds(**options)
        return bundle.add(files)

    return make


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time for warming up: a busy machine must not decide what the tests of other things see."""

    def once(run: Callable[[], Run], rule: WarmUp) -> tuple[int, None]:
        run()
        return 1, None

    monkeypatch.setattr("hfd_edge.bench.visit.warm_up", once)
