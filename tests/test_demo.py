"""The whole road on tiny simulated data, through the same code as `hfd-edge demo`."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.config import Recipe
from hfd_edge.demo import run_demo
from hfd_edge.errors import StorageError
from hfd_edge.files import sha256
from hfd_edge.raster.scene import SceneReader
from hfd_edge.runtime.segmenter import Segmenter


def test_summary_has_every_figure(demo: Any) -> None:
    assert json.loads((demo.out / "summary.json").read_text()) == demo.summary
    assert set(demo.summary["miou"]) == {"teacher", "sar_only", "fp32", "fp16", "int8"}
    assert all(0 <= value <= 1 for value in demo.summary["miou"].values())
    assert [row["precision"] for row in demo.summary["engines"]] == ["fp16", "int8"]
    assert all(row["bytes"] > 10_000 and row["seconds"] > 0 for row in demo.summary["engines"])
    assert demo.summary["scene"]["megapixels"] == pytest.approx(0.09)


def test_bundle_is_whole(demo: Any) -> None:
    bundle = Bundle.open(demo.bundle)
    bundle.verify()
    assert set(bundle.precisions) == {"fp32", "fp16", "int8", "int8_fp16"}
    assert bundle.golden()


def test_scene_mask_lies_on_the_scene(demo: Any) -> None:
    with (
        SceneReader(demo.out / "data" / "scene.tif") as scene,
        SceneReader(demo.out / "scene_mask.tif") as mask,
    ):
        assert (mask.rows, mask.cols, mask.bands) == (300, 300, 1)
        assert mask.georeference == scene.georeference


def test_report_is_self_contained(demo: Any) -> None:
    sources: list[str] = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(value or "" for name, value in attrs if name == "src")

    Links().feed((demo.out / "report.html").read_text("utf-8"))
    assert len(sources) >= 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_second_run_does_nothing_again(demo: Any) -> None:
    made_once = [
        demo.out / "scene_mask.tif",
        demo.out / "data" / "scene.tif",
        demo.bundle,
        *(path for path in demo.bundle.rglob("*") if path.is_file()),
    ]
    weights = demo.out / "runs" / "student" / "best.safetensors"
    before = [path.stat().st_mtime_ns for path in made_once], sha256(weights)
    assert run_demo(demo.out, recipe=demo.recipe, size=demo.size) == demo.summary
    assert ([path.stat().st_mtime_ns for path in made_once], sha256(weights)) == before


def test_other_recipe_is_refused(demo: Any) -> None:
    with pytest.raises(StorageError, match="another recipe or size.*--fresh"):
        run_demo(demo.out, recipe=Recipe(), size=demo.size)


def test_folder_of_something_else_is_refused_and_kept(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="not a demo's"):
        run_demo(tmp_path, recipe=demo.recipe, size=demo.size, fresh=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_golden_tiles_are_what_the_runtime_gives(demo: Any) -> None:
    bundle = Bundle.open(demo.bundle)
    with Segmenter(bundle, precision="fp32") as segment:
        for tile in bundle.golden():
            assert (segment(tile.image) == tile.labels).all(), tile.name
