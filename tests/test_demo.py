"""The whole road on tiny simulated data, through the same code as `hfd-edge demo`."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.config import Recipe
from hfd_edge.demo import DemoSize, run_demo
from hfd_edge.errors import StorageError
from hfd_edge.files import sha256
from hfd_edge.raster.scene import SceneReader

RECIPE = Recipe.model_validate(
    {
        "network": {"preset": "s", "channels": 16, "init": "random"},
        "training": {"epochs": 2, "batch": 4, "crop_px": 64},
        "preprocessing": {"speckle": "lee"},
        "deploy": {"tile_px": 64},
    }
)
SIZE = DemoSize(train=8, val=2, test=3, tile_px=64, scene_px=300, calibration_tiles=4)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, run_demo(out, recipe=RECIPE, size=SIZE)


def test_summary_has_every_figure(demo: tuple[Path, dict[str, Any]]) -> None:
    out, summary = demo
    assert json.loads((out / "summary.json").read_text()) == summary
    assert set(summary["miou"]) == {"teacher", "sar_only", "fp32", "fp16", "int8"}
    assert all(0 <= value <= 1 for value in summary["miou"].values())
    assert [row["precision"] for row in summary["engines"]] == ["fp16", "int8"]
    assert all(row["bytes"] > 10_000 and row["seconds"] > 0 for row in summary["engines"])
    assert summary["scene"]["megapixels"] == pytest.approx(0.09)


def test_bundle_is_whole(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    bundle = Bundle.open(summary["bundle"])
    bundle.verify()
    assert set(bundle.precisions) == {"fp32", "fp16", "int8"}
    assert bundle.golden()


def test_scene_mask_lies_on_the_scene(demo: tuple[Path, dict[str, Any]]) -> None:
    out, _ = demo
    with SceneReader(out / "data" / "scene.tif") as scene, SceneReader(out / "scene_mask.tif") as mask:
        assert (mask.rows, mask.cols, mask.bands) == (300, 300, 1)
        assert mask.georeference == scene.georeference


def test_report_is_self_contained(demo: tuple[Path, dict[str, Any]]) -> None:
    out, _ = demo
    sources: list[str] = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(value or "" for name, value in attrs if name == "src")

    Links().feed((out / "report.html").read_text("utf-8"))
    assert len(sources) >= 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_second_run_does_nothing_again(demo: tuple[Path, dict[str, Any]]) -> None:
    out, summary = demo
    made_once = [out / "scene_mask.tif", out / "demo.hfd", *out.glob("demo.hfd/*"), out / "data" / "scene.tif"]
    weights = out / "runs" / "student" / "best.safetensors"
    before = [path.stat().st_mtime_ns for path in made_once], sha256(weights)
    assert run_demo(out, recipe=RECIPE, size=SIZE) == summary
    assert ([path.stat().st_mtime_ns for path in made_once], sha256(weights)) == before


def test_other_recipe_is_refused(demo: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(StorageError, match="another recipe or size.*--fresh"):
        run_demo(demo[0], recipe=Recipe(), size=SIZE)


def test_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="not a demo's"):
        run_demo(tmp_path, recipe=RECIPE, size=SIZE, fresh=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"
