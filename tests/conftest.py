"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Small problems: more threads cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Demo:
    """A finished demo on tiny data; tests read it and leave it as it is."""

    out: Path
    recipe: Any
    size: Any
    summary: dict[str, Any]

    @property
    def pairs(self) -> Path:
        return self.out / "data" / "pairs"

    @property
    def bundle(self) -> Path:
        return Path(self.summary["bundle"])


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real EO/SAR data beside the repository; the licences forbid shipping it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real SAR data are not beside the repository (../shared/data)")
    return folder


@contextmanager
def _files_end_at(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so writing beyond the limit fails with EFBIG, as ENOSPC would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        # Before the test ends: pytest's own output may go to a file that is longer already.
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A disk that is full, without needing one: inside the block, files cannot grow beyond so many bytes."""
    return _files_end_at


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The whole road once, through the code of `hfd-edge demo`; half a minute, for all tests together."""
    from hfd_edge.config import Recipe
    from hfd_edge.demo import DemoSize, run_demo

    recipe = Recipe.model_validate(
        {
            "network": {"preset": "s", "channels": 16, "init": "random"},
            "training": {"epochs": 2, "batch": 4, "crop_px": 64},
            "preprocessing": {"speckle": "lee"},
            "deploy": {"tile_px": 64},
        }
    )
    size = DemoSize(train=8, val=2, test=3, tile_px=64, scene_px=300, calibration_tiles=4)
    out = tmp_path_factory.mktemp("demo") / "run"
    return Demo(out, recipe, size, run_demo(out, recipe=recipe, size=size))
