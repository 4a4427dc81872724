"""The page and the tables of a comparison with known numbers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.comparison import Comparison, Disagreement, EngineRow, NotRun, Row
from hfd_edge.comparison.result import TileFlips
from hfd_edge.errors import StorageError
from hfd_edge.report.comparison import print_tables, render
from hfd_edge.report.disagreement import DisagreementPictures

PALETTE = ((200, 180, 140), (30, 100, 200))


def make_row(precision: str, *, drop: float = 0.0, backend: str = "onnxruntime", **changes: object) -> Row:
    first = precision == "fp32"
    miou = 0.6993 - drop / 100
    row = Row(
        precision=precision,
        backend=backend,
        miou=miou,
        iou={"dry": miou + 0.19, "flood": miou - 0.19, "ice": None},
        boundary_miou=0.2164,
        boundary_iou={"dry": 0.21, "flood": 0.22, "ice": None},
        accuracy=0.9021,
        drop_points=drop,
        drop_low_points=None if first else drop - 0.3,
        drop_high_points=None if first else drop + 0.4,
        worst_class=None if first else "flood",
        worst_class_drop_points=None if first else drop + 0.25,
        boundary_drop_points=0.0,
        flipped=0.0 if first else 0.008,
        broken=0.0 if first else 0.0036,
        corrected=0.0 if first else 0.0044,
        bytes={"fp32": 14_216_233, "fp16": 7_199_261, "int8": 4_680_793, "int8_fp16": 3_900_000}[precision],
        latency_ms=97.2,
        latency_p90_ms=101.0,
        most_flipped=() if first else (TileFlips("H_0340", 0.0543),),
    )
    return dataclasses.replace(row, **changes)


@pytest.fixture
def comparison() -> Comparison:
    engine = EngineRow(
        name="desktop-rtx-int8",
        target="desktop-rtx",
        precision="int8",
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        compute_capabilities=(75, 86),
        bytes=18_984_524,
        weights_bytes=3_615_752,
        activation_bytes=None,
        current=True,
        not_run="needs backend tensorrt_rtx; here: onnxruntime",
    )
    return Comparison(
        bundle="runs/flood.hfd",
        name="flood",
        data="data/ombria",
        split="test",
        scheme="spatial",
        tiles=80,
        pixels=5_224_278,
        boundary_px=3,
        tile_px=512,
        threads=2,
        latency_runs=20,
        reference="onnxruntime",
        rows=(
            make_row("fp32"),
            make_row("fp16", drop=-0.01, flipped=0.00001, latency_ms=99.0),
            make_row("int8", drop=0.82, latency_ms=199.4),
        ),
        not_run=(),
        engines=(
            engine,
            dataclasses.replace(engine, name="old-fp16", precision="fp16", current=False),
            EngineRow(name="bare", bytes=1_000_000, not_run="bare.engine has no sidecar. Build again."),
        ),
        versions={"hfd-edge": "0.1.0", "onnxruntime": "1.32.0"},
    )


@pytest.fixture
def picture() -> DisagreementPictures:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (3, 12, 14)).astype(np.uint8) for _ in range(6)]
    found = Disagreement("H_0340", "int8", "onnxruntime", 0.0543)
    return DisagreementPictures(found, "rows 0 to 11, columns 0 to 13 of 99 x 99", *pictures)


PALETTE_3 = (*PALETTE, (240, 240, 255))


def page(comparison: Comparison, path: Path, **options: object) -> tuple[str, str]:
    """The page's HTML, and its words alone."""
    render(comparison, path, palette=PALETTE_3, **options)  # type: ignore[arg-type]
    html = path.read_text("utf-8")
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return html, " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_numbers_and_words(comparison: Comparison, tmp_path: Path) -> None:
    _, text = page(comparison, tmp_path / "c.html", machine="a test machine", created="2026-01-02 03:04 UTC")
    for phrase in (
        "flood: variants side by side",
        "data/ombria, split test, scheme spatial: 80 tiles, 5.2 million labelled pixels",
        "a test machine",
        "hfd-edge 0.1.0, onnxruntime 1.32.0",
        "2026-01-02 03:04 UTC",
        "INT8: mIoU against FP32 −0.82 points worst class flood: −1.07",
        "0.80 % 0.36 % from right to wrong, 0.44 % from wrong to right",
        "4.7 MB FP32 has 14.2 MB",
        "199 ms a tile; FP32 takes 97 ms",
        "INT8 loses 0.82 mIoU points against FP32, more than the limit of 0.5 (−1.22 to −0.52 with other",
        "FP16 gains 0.01 mIoU points on FP32 (−0.39 to +0.31 with other tiles like these), and labels",
        "and labels <0.01 % of the pixels differently",
        "it takes 2.05 times as long on this CPU",
        "FP32 69.93 – 21.64 90.21 – 14.2 97 101",
        "INT8 69.11 −0.82 21.64 90.21 0.80 4.7 199 101",
        "ice – – –",
        "flood 50.93 50.94 +0.01 50.11 −0.82",
        "desktop-rtx-int8 tensorrt_rtx 1.7.1.116 19.0 3.6 – Not run here: needs backend tensorrt_rtx",
        "GPUs: sm_75, sm_86.",
        "Out of date: built from another fp16 model.",
        "512 x 512 pixels with 2 CPU threads, from up to 20 runs",
        "bare – 1.0 – – Not run here: bare.engine has no sidecar. Build again. GPUs: –.",
        "What these numbers do not say",
    ):
        assert phrase in text.replace("&lt;", "<"), phrase


def test_self_contained_and_every_picture_said(
    comparison: Comparison, picture: DisagreementPictures, tmp_path: Path
) -> None:
    html, text = page(comparison, tmp_path / "c.html", pictures=[picture])
    assert not re.search(r"https?:|url\(|@import|<script|\bsrcset=|javascript:|\son\w+=", html)
    images = re.findall(r"<img ([^>]+)>", html)
    assert len(images) == 6
    for image in images:
        assert 'src="data:image/png;base64,' in image
        assert re.search(r'alt="[^"]*H_0340', image)
    assert "INT8 labels 5.43 % of this tile differently. Shown: rows 0 to 11" in text
    assert "right with FP32, wrong with the variant" in text
    assert html.count("<section") == html.count("</section>")
    assert "default-src 'none'" in html
    for rule in ("@media (prefers-color-scheme: dark)", "@media (max-width: 40rem)", "@media print"):
        assert rule in html


def test_without_eo(comparison: Comparison, picture: DisagreementPictures, tmp_path: Path) -> None:
    html, text = page(comparison, tmp_path / "c.html", pictures=[dataclasses.replace(picture, eo=None)])
    assert html.count("<img") == 5
    assert "no picture" not in text


def test_chart_draws_every_timed_row(comparison: Comparison, tmp_path: Path) -> None:
    html, _ = page(comparison, tmp_path / "c.html")
    circles = re.findall(r'<circle class="(\w+)"', html)
    assert sorted(circles) == ["fp16", "fp32", "int8"]
    assert "0.5 points below FP32" in html
    assert "INT8, 4.7 MB, 69.11 % mIoU, 199 ms" in html, "for those who cannot see it"


def test_several_backends_are_told_apart(comparison: Comparison, tmp_path: Path) -> None:
    rows = (
        *comparison.rows,
        make_row("int8_fp16", drop=0.1, backend="tensorrt", latency_ms=None, latency_p90_ms=None),
    )
    html, text = page(dataclasses.replace(comparison, rows=rows), tmp_path / "c.html")
    assert "INT8+FP16 tensorrt: mIoU against FP32 −0.10 points" in text
    assert "FP32 onnxruntime 69.93" in text
    assert "INT8+FP16 tensorrt 69.83 −0.10 21.64 90.21 0.80 3.9 – –" in text
    assert "Time on this CPU not measured" in text
    assert html.count("<circle") == 3


def test_no_latency_at_all(comparison: Comparison, tmp_path: Path) -> None:
    rows = tuple(dataclasses.replace(row, latency_ms=None, latency_p90_ms=None) for row in comparison.rows)
    html, text = page(dataclasses.replace(comparison, rows=rows), tmp_path / "c.html")
    assert "no latency to draw" in text
    assert "<svg" not in html
    assert "times as long" not in text


def test_fp32_alone(comparison: Comparison, tmp_path: Path) -> None:
    alone = dataclasses.replace(comparison, rows=comparison.rows[:1], engines=())
    _, text = page(alone, tmp_path / "c.html")
    assert "The bundle holds FP32 alone. Make the other variants with hfd-edge quantize" in text
    assert "There is nothing to compare FP32 with." in text
    assert "Engines" not in text


def test_what_did_not_run_is_said(comparison: Comparison, tmp_path: Path) -> None:
    refused = dataclasses.replace(comparison, not_run=(NotRun("int8", "npu", "it has <no> INT8"),))
    html, text = page(refused, tmp_path / "c.html")
    assert "Not run int8 on npu: it has" in text
    assert "it has &lt;no&gt; INT8" in html, "text, never markup"


def test_a_failed_page_leaves_the_last_one(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "c.html"
    path.write_text("the last one")
    with pytest.raises(ValueError, match="palette has 2 colours for 3 classes"):
        render(comparison, path, palette=PALETTE)
    with pytest.raises(StorageError, match="Could not write"):
        render(comparison, path / "below.html", palette=PALETTE_3)
    assert path.read_text() == "the last one"


def test_tables(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(dataclasses.replace(comparison, not_run=(NotRun("int8", "npu", "no INT8"),)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == (
        "flood on test, 80 tiles, onnxruntime; percent; ms: median of one 512 px tile on the CPU, 2 threads"
    )
    assert "FP32 69.93 - - 21.64 90.21 0 14.22 97.2" in lines
    assert "INT8 69.11 -0.82 −1.22 to −0.52 21.64 90.21 0.8 4.68 199.4" in lines
    assert "flood 50.93 50.94 50.11" in lines
    assert "ice - - -" in lines
    assert "desktop-rtx-int8 18.98 3.62 needs backend tensorrt_rtx; here: onnxruntime" in lines
    assert "int8 npu no INT8" in lines
