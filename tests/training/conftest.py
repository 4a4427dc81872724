"""A tiny simulated data folder and a recipe that trains on it in a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import write_dataset


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 6 / 2 / 2 simulated pairs of 80 pixels, which is no multiple of 32."""
    root = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(root, train=6, val=2, test=2, size_px=80, seed=1)
    return root


@pytest.fixture
def folder(pairs: Path) -> PairFolder:
    return PairFolder.open(pairs)


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Builder of tiny recipes: recipe(distill={...}, training={...}, ...)."""

    def build(**sections: dict[str, Any]) -> Recipe:
        base: dict[str, dict[str, Any]] = {
            "network": {"encoder": "resnet10t", "channels": 16, "init": "random"},
            "training": {
                "epochs": 2,
                "batch": 4,
                "crop_px": 64,
                "learning_rate": 2e-3,
                "checkpoint_every": 1,
            },
        }
        for name, values in sections.items():
            base[name] = {**base.get(name, {}), **values}
        return Recipe.model_validate(base)

    return build
