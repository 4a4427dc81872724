"""The page, the tables and the CSV of a benchmark with known figures."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest

from hfd_edge.bench.diff import compare_benches
from hfd_edge.bench.result import BenchFile, Machine, Power
from hfd_edge.errors import MissingExtraError, StorageError
from hfd_edge.report.bench import print_diff, print_tables, render, write_csv

from ..benches import (
    make_bench,
    make_full_bench,
    make_power,
    make_record,
    make_scenario,
    make_spread,
    make_stages,
)


def page(content: BenchFile, path: Path) -> tuple[str, str]:
    """The page's HTML and its text."""
    render(content, path)
    html = path.read_text("utf-8")
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", html[html.index("<body>") :], flags=re.DOTALL)
    return html, " ".join(body.split())


@pytest.fixture
def full() -> BenchFile:
    return make_full_bench()


def test_nothing_comes_from_elsewhere_and_nothing_runs(full: BenchFile, tmp_path: Path) -> None:
    html, _ = page(full, tmp_path / "b.html")
    assert "default-src 'none'" in html
    assert not re.search(r"<script|<link[^>]+href=\"(?!data:)|https?://|@import|url\(|\son\w+=", html)
    assert html.count("<svg") == html.count("</svg>") > 30
    for tag in ("svg", "figure", "section", "table", "ul", "div"):
        assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag
    assert "nan" not in re.findall(r'[xy12wh]+="([^"]+)"', html)


def test_doubts_stand_before_the_figures(full: BenchFile, tmp_path: Path) -> None:
    html, text = page(full, tmp_path / "b.html")
    doubts = text.index("Some figures on this page cannot be trusted")
    assert doubts < text.index("Fastest: INT8 openvino")
    assert "FP16 onnxruntime, tile: throttled: the clock fell to 812 MHz of 1300" in text
    assert "INT8+FP16 onnxruntime: wrong output: 61.20 %" in text
    assert re.search(r'class="name"[^>]*>FP16 onnxruntime, not valid<', html), "in the chart of accuracy too"
    assert "Not timed INT8+FP16 onnxruntime, see above." in text
    assert html.count('<span class="loss">not valid</span>') >= 5, "beside every figure of such a variant"
    assert "cannot be trusted" not in page(make_bench(), tmp_path / "b.html")[1]


def test_the_fastest_that_can_be_trusted_is_named(tmp_path: Path) -> None:
    fast = make_record("int8", scenarios=(make_scenario(20.0, invalid=("noisy: 14 %.",)),))
    text = page(make_bench(make_record(), fast), tmp_path / "b.html")[1]
    assert "Fastest: FP32 100 ms" in text
    both = (*fast.scenarios, make_scenario(25.0, kind="stream", rate_hz=8.0, dropped=0))
    text = page(make_bench(make_record("int8", scenarios=both)), tmp_path / "b.html")[1]
    assert "Some figures on this page cannot be trusted" in text
    assert "Fastest: INT8 25.0 ms median of a stream" in text
    text = page(make_bench(fast), tmp_path / "b.html")[1]
    assert "No figure on this page can be trusted" in text
    assert "Fastest" not in text


def test_figures_are_there_with_their_units(full: BenchFile, tmp_path: Path) -> None:
    _, text = page(full, tmp_path / "b.html")
    for said in (
        "Fastest: INT8 openvino 30.0 ms median of a tile of 512 px",
        "Throughput 7.71 Mpx/s of a scene, file to file; 4.73 J a megapixel",
        "Cold start 0.67 s import 0.28, load 0.11, first mask 0.12 s",
        "Peak memory 412 MB of the whole process, tile",
        "Test CPU, 2 cores; onnxruntime and openvino; 2 threads; clocks governor performance",
        "hfd-edge 0.1.0, onnxruntime 1.32.0",
        "Made 2025-01-02 03:04:05 UTC",
        "8 frames a second were offered",
        "67.1 megapixels, read, segmented and written.",
        "INT8+FP16 onnxruntime not valid 69.05 3.9 2 512, overlap 64 4 61.20 98.0",
        "Power 4.00 to 14.3 W; temperature 41.0 to 53.0 °C; clock 1260 to 1300 MHz.",
        "A new process, from its start to its first mask. Median of 5 processes.",
    ):
        assert said in text, said


def test_a_stage_begins_where_it_was_seen_to_begin(tmp_path: Path) -> None:
    def infer(**changes: object) -> tuple[float, str]:
        html, text = page(make_bench(make_record(scenarios=(make_scenario(**changes),))), tmp_path / "b.html")
        (found,) = re.findall(r'<rect class="infer" x="([\d.]+)"', html.split('id="cold"')[0])
        return float(found), text

    seen, text = infer()
    assert "Medians of start and length." in text
    guessed, text = infer(stages=make_stages(100.0, starts=False))
    assert guessed == seen, "one after the other, the same as was seen"
    assert "Median lengths, drawn one after the other." in text
    overlapping, text = infer(stages=make_stages(110.0, starts=False))
    assert overlapping < seen
    assert "The stages ran at the same time" in text


def test_few_runs_are_told_rather_than_drawn(tmp_path: Path) -> None:
    scene = make_scenario(kind="scene", runs=3, latency=make_spread([900.0, 910.0, 905.0]), stages=())
    html, text = page(make_bench(make_record(scenarios=(scene,))), tmp_path / "b.html")
    assert "The runs, in their order FP32: 900, 910, 905 ms" in text
    assert "How often a run took how long" not in text
    assert 'class="p50"' not in html


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    record = make_record(miou=None, cold_start=None, scenarios=(make_scenario(memory={}, stages=()),))
    refused = "FP16 on npu: the driver is missing <now>."
    html, text = page(make_bench(record, not_run=(refused,)), tmp_path / "b.html")
    for said in (
        "Cold start not measured",
        "Peak memory not measured",
        "Cold start Not measured.",
        "Peak memory Not measured.",
        "n/a: no power sensor could be read on this machine.",
        "energy n/a",
        "so there is no chart of accuracy",
        "FP32 n/a 14.2",
    ):
        assert said in text, said
    assert "the driver is missing &lt;now&gt;." in html
    assert "Where the time of one run goes" not in text


def test_other_sensors_are_drawn_where_power_is_missing(tmp_path: Path) -> None:
    samples = tuple(one.model_copy(update={"power_w": None}) for one in make_power().samples)
    record = make_record(scenarios=(make_scenario(power=Power(samples=samples)),))
    html, text = page(make_bench(record), tmp_path / "b.html")
    assert "n/a: no power sensor" in text
    assert "FP32, tile: temperature" in text
    assert 'class="trace temperature"' in html
    assert 'class="base"' not in html


def test_the_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Could not write"):
        render(make_bench(), tmp_path / "file" / "b.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"hfd-edge\[report\]"):
        render(make_bench(), tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_csv_has_a_row_for_each_record_and_scenario(full: BenchFile, tmp_path: Path) -> None:
    write_csv(full, tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    timed = sum(len(record.scenarios) or 1 for record in full.records)
    assert len(rows) == timed == 20
    first = rows[0]
    assert (first["backend"], first["precision"], first["scenario"]) == ("onnxruntime", "fp32", "tile")
    assert float(first["latency_p50_ms"]) == full.records[0].scenarios[0].latency.p50_ms
    assert float(first["stage_infer_mean_ms"]) == pytest.approx(0.95 * 107)
    assert first["stage_read_mean_ms"] == first["device_peak_mb"] == ""
    assert (first["valid"], float(first["cold_start_total_s"]), first["peak_w"]) == ("True", 0.53, "14.6")
    hot = next(row for row in rows if "throttled" in row["invalid"])
    assert (hot["valid"], hot["precision"]) == ("False", "fp16")
    wrong = next(row for row in rows if "wrong output" in row["invalid"])
    assert (wrong["valid"], wrong["scenario"], wrong["latency_p50_ms"]) == ("False", "", "")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_tables(full: BenchFile, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(full)
    said = lines(capsys)
    assert said[0].startswith("not valid: FP16 onnxruntime, tile: throttled")
    assert said[2].startswith("flood.hfd; Test CPU, 2 cores; onnxruntime and openvino; 2 threads; clocks")
    assert any(line.startswith("INT8 openvino tile 30") and line.endswith("412 200 yes") for line in said)
    assert any(line.startswith("FP16 onnxruntime tile 122.1") and line.endswith("200 no") for line in said)
    assert "variant of read preprocess infer postprocess write" in said
    assert "INT8 openvino tile ina3221 VDD_IN 12.4 14.6 4.1 4.73" in said
    assert "FP32 onnxruntime 0.53 0.28 0.11 0.12" in said


def test_tables_without_power_and_without_figures(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(slug="orin", text="Orin", cores=6, power_mode="15W")
    print_tables(make_bench(make_record(threads=1), machine=machine))
    said = lines(capsys)
    assert said[0] == "flood.hfd; Orin; onnxruntime; 1 thread; power mode 15W"
    assert "Power: n/a, no sensor could be read here." in said
    print_tables(make_bench(make_record(scenarios=(), cold_start=None, invalid=("wrong output.",))))
    said = lines(capsys)
    assert said[0] == "not valid: FP32: wrong output."
    assert "nothing was timed" in said


def test_a_comparison_ends_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    slow = make_bench(make_record(scenarios=(make_scenario(112.0, seed=1, runs=60),)), commit=None)
    print_diff(compare_benches(make_bench(make_record(), make_record("int8")), slow, tolerance=0.05))
    said = lines(capsys)
    assert said[0].startswith("commit: c0ffee")
    assert "only in the old one: onnxruntime int8 tile, onnxruntime int8 cold start" in said
    table = [line for line in said if line.startswith("onnxruntime fp32")]
    assert re.match(
        r"onnxruntime fp32 tile \S+ p50 100 112 ms \+12\.0 % \+1\d\.\d % to \+1\d\.\d % regr", table[1]
    )
    assert table[2].endswith("- cannot tell"), "worst first, then what is open"
    assert said[-2] == "FAILED at a tolerance of 5 %: regression 2, cannot tell 1, same 2"
    assert "measure both sides with more --runs" in said[-1]
    print_diff(compare_benches(make_bench(), make_bench(), tolerance=0.05))
    assert lines(capsys)[-1] == "passed at a tolerance of 5 %: same 5"


def test_memory_that_variants_share_is_said_to_be(tmp_path: Path) -> None:
    shared = "which holds the libraries of all variants"
    assert shared not in page(make_bench(), tmp_path / "b.html")[1]
    assert shared in page(make_bench(make_record(cold_start=None)), tmp_path / "b.html")[1]
