from __future__ import annotations

import base64
import dataclasses
import itertools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfd_edge.errors import MissingExtraError, StorageError
from hfd_edge.report.html import DemoReport, render

VOID = {"meta", "link", "img", "br", "hr", "input"}
DATA_PNG = "data:image/png;base64,"


class Page(HTMLParser):
    """Checks nesting while it reads, and keeps what tests ask about."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == [], f"unclosed {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(report: DemoReport, tmp_path: Path) -> Page:
    render(report, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text("utf-8"))


def decoded(source: str | None) -> np.ndarray:
    assert source is not None
    assert source.startswith(DATA_PNG)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(source[len(DATA_PNG) :]), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_the_page_is_self_contained(report: DemoReport, tmp_path: Path) -> None:
    page = page_of(report, tmp_path)
    content = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import|<script|\bsrcset=|javascript:|\son\w+=", content)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith("data:"), f"<{tag} {name}={target}>"
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.all("meta"))


def test_every_picture_is_embedded_whole_and_described(report: DemoReport, tmp_path: Path) -> None:
    images = page_of(report, tmp_path).all("img")
    # SAR, EO, truth, errors, three predictions; scene and mask; curves.
    assert len(images) == 7 + 2 + 1
    for image in images:
        pixels = decoded(image["src"])
        assert image["alt"]
        if "width" in image:
            assert pixels.shape[:2] == (int(str(image["height"])), int(str(image["width"])))
    sar = next(image for image in images if image["alt"] == "SAR image of tile_0007")
    np.testing.assert_array_equal(np.moveaxis(decoded(sar["src"])[..., ::-1], -1, 0), report.tiles[0].sar)


def test_a_variant_that_the_demo_never_makes_is_not_called_missing(
    report: DemoReport, tmp_path: Path
) -> None:
    """Of the four variants that the demo shows, the tile lacks INT8; INT8+FP16 is none of them."""
    page = page_of(report, tmp_path)
    missing = [str(div.get("aria-label")) for div in page.all("div") if div.get("class") == "placeholder"]
    assert missing == ["Labels of tile_0007 predicted by INT8: not built"]


def test_structure(report: DemoReport, tmp_path: Path) -> None:
    page = page_of(report, tmp_path)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels)), levels
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    named = {
        attributes["aria-labelledby"] for attributes in page.all("section") if "aria-labelledby" in attributes
    }
    assert named <= ids
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_the_numbers_are_there(report: DemoReport, tmp_path: Path) -> None:
    text = page_of(report, tmp_path).text
    for number in ("87.1", "74.2", "78.4", "77.8", "83.4", "73.4"):
        assert number in text
    for phrase in (
        "A run on three classes",
        "a test machine",
        "12 min 05 s",
        "+4.2 points",
        "−0.6 points",
        "Distillation gained 4.2 mIoU points",
        "INT8 costs 0.6 points against FP32, within the limit of 1.0.",
        "16.8 megapixels in 12 s: 1.4 Mpx/s.",
        "rtx-turing-plus FP16 8.7 MB 21 s",
        "runs/demo/student.hfd",
        "99.8 % right",
        "A bundle with three models.",
        "No engine was run on a GPU.",
        "hfd-edge predict runs/demo/student.hfd SCENE.tif --out mask.tif",
        "Eight simulated tiles.",
        "2025-01-02 03:04 UTC",
        "16 x 16 pixels",
        "reconstructed from the paper’s description",
    ):
        assert phrase in text, phrase


def test_bars_are_as_long_as_the_numbers(report: DemoReport, tmp_path: Path) -> None:
    page = page_of(report, tmp_path)
    teacher = [rect["width"] for rect in page.all("rect") if rect["class"] == "teacher"]
    assert teacher == ["87.10%", "92.10%", "82.10%"]  # the mean, water, field; forest is not in the split
    spoken = [str(div.get("aria-label")) for div in page.all("div") if div.get("role") == "img"]
    assert any(text.startswith("IoU of water: Teacher 92.1, SAR only 79.2, FP32 83.4") for text in spoken)


def test_a_class_that_no_tile_has_is_not_called_unbuilt(report: DemoReport, tmp_path: Path) -> None:
    content = page_of(dataclasses.replace(report, tiles=()), tmp_path).text
    assert "forest – – – – –" in content
    assert "not built" not in content


def test_losses_are_said_to_be_losses(report: DemoReport, tmp_path: Path) -> None:
    miou = {"teacher": 0.8, "sar_only": 0.75, "fp32": 0.72, "fp16": 0.72, "int8": 0.70}
    page = page_of(dataclasses.replace(report, summary={**report.summary, "miou": miou}), tmp_path)
    assert "Distillation lost 3.0 mIoU points" in page.text
    assert "INT8 costs 2.0 points against FP32, outside the limit of 1.0." in page.text
    assert [div["class"] for div in page.all("div") if str(div.get("class")).startswith("figure")] == [
        "figure plain",
        "figure bad",
        "figure bad",
        "figure plain",
    ]


def test_no_change_has_no_sign(report: DemoReport, tmp_path: Path) -> None:
    miou = {"sar_only": 0.75, "fp32": 0.75, "int8": 0.7499}
    text = page_of(dataclasses.replace(report, summary={**report.summary, "miou": miou}), tmp_path).text
    assert "Distillation made no difference" in text
    assert "INT8 makes no difference to FP32" in text
    assert "+0.0" not in text
    assert "−0.0" not in text


def test_what_was_not_built_is_said(report: DemoReport, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        report,
        summary={"miou": {"fp32": 0.784, "int8": None}, "engines": [], "scene": None},
        iou={"fp32": report.iou["fp32"]},
        scene=None,
        curves={},
        tiles=report.tiles,
    )
    page = page_of(bare, tmp_path)
    assert "Scene: not built." in page.text
    assert "Engines: not built." in page.text
    assert "FP32 student 78.4 % mIoU" in page.text
    assert "mIoU not built not built 78.4 not built not built" in page.text
    assert "water not built not built 83.4 not built not built" in page.text
    labels = [str(div.get("aria-label")) for div in page.all("div")]
    assert "Labels of tile_0007 predicted by INT8: not built" in labels
    assert "Training" not in page.text


def test_an_empty_report_is_still_a_page(tmp_path: Path) -> None:
    empty = DemoReport(
        title="Nothing", machine="", seconds=0, classes=("a",), palette=((0, 0, 0),), summary={}, iou={}
    )
    page = page_of(empty, tmp_path)
    assert page.text.count("not built") >= 8
    assert page.all("img") == []


def test_names_are_text_and_never_markup(report: DemoReport, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    page = page_of(
        dataclasses.replace(
            report,
            title=evil,
            machine=evil,
            classes=(evil, "field", "forest"),
            tiles=[dataclasses.replace(report.tiles[0], name=evil)],
            curves={evil: report.curves["Distilled student"]},
            built=[evil],
            not_verified=[evil],
            commands={evil: evil},
            data=evil,
        ),
        tmp_path,
    )
    assert page.all("script") == []
    assert page.text.count("<script>alert('x')</script>\"&") >= 10
    assert any(image["alt"] == f"SAR image of {evil}" for image in page.all("img"))


def test_legend_has_every_class_in_its_colour(report: DemoReport, tmp_path: Path) -> None:
    page = page_of(report, tmp_path)
    swatches = [str(mark.get("style")) for mark in page.all("i")]
    assert {"background:#2660a8", "background:#d6be5c", "background:#2c7a42"} <= set(swatches)


def test_follows_dark_mode_narrow_screens_and_print(report: DemoReport, tmp_path: Path) -> None:
    render(report, tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text("utf-8")
    for rule in ("@media (prefers-color-scheme: dark)", "@media (max-width: 40rem)", "@media print"):
        assert rule in content
    assert content.count("{") == content.count("}")


def test_palette_must_fit(report: DemoReport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="palette has 2 colours for 3 classes"):
        render(dataclasses.replace(report, palette=report.palette[:2]), tmp_path / "report.html")


def test_a_failed_report_leaves_the_last_one(report: DemoReport, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("the last one")
    broken = dataclasses.replace(report.tiles[0], sar=np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="a picture is uint8"):
        render(dataclasses.replace(report, tiles=[broken]), path)
    with pytest.raises(StorageError, match="Could not write"):
        render(report, path / "below" / "report.html")
    assert path.read_text() == "the last one"


def test_missing_jinja2_names_the_extra(
    report: DemoReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"Writing the HTML report needs .*hfd-edge\[report\]"):
        render(report, tmp_path / "report.html")
