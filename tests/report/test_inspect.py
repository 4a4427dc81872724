"""The page of a data folder: complete, self-contained, and true to the numbers."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.inspect import inspect_folder
from hfd_edge.datasets.registration import Misregistration
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.report.inspect import _shift_text, print_inspection, write_inspection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    root = tmp_path_factory.mktemp("data") / "sim & <more>"
    write_dataset(root, train=3, val=2, test=1, size_px=128, seed=1)
    (root / "test" / "label" / "scene_0000.png").unlink()
    return PairFolder.open(root)


def test_page(folder: PairFolder, tmp_path: Path) -> None:
    found = inspect_folder(folder)
    page = write_inspection(folder, found, tmp_path, samples=2)
    text = page.read_text("utf-8")
    sources: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(value or "" for name, value in attrs if name in ("src", "href"))
            assert tag != "script"

    Reader().feed(text)
    assert all(one.startswith("data:") for one in sources), "nothing is loaded from elsewhere"
    assert "sim &amp; &lt;more&gt;" in text and "<more>" not in text
    # charts: classes, two SAR and three EO bands, shifts if any; samples: SAR, EO and label of five pairs
    pngs = sorted(path.name for path in tmp_path.glob("*.png"))
    assert set(pngs) >= {
        "classes.png",
        "sar-vv.png",
        "sar-vh.png",
        "eo-red.png",
        "eo-green.png",
        "eo-blue.png",
    }
    assert text.count("data:image/png") == len(pngs) + 3 * 4 + 2
    share = f"{100 * found.splits['train'].classes['crop']:.1f}"
    assert f"<td>{share}</td>" in text
    assert "have no label" in text, "what data check finds stands in the page"


def test_page_of_a_part_says_that_nothing_was_checked(folder: PairFolder, tmp_path: Path) -> None:
    text = write_inspection(folder, inspect_folder(folder, "val", tiles=1), tmp_path).read_text("utf-8")
    assert "Not checked: only some of the pairs were read" in text and "train" not in text


def test_words_for_shifts() -> None:
    assert _shift_text("val", Misregistration(30, (), -1.24, 0.5, 0.31)) == (
        "val: EO lies 1.2 px to the left of SAR and 0.5 below (median of 0 of 30 windows, spread 0.3)."
    )
    assert "no estimate" in _shift_text("val", Misregistration(30, ()))


def test_print(folder: PairFolder, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_folder(folder), folder.config)
    said = capsys.readouterr().out
    assert "Share of labelled pixels, %" in said and "SAR vv" in said and "warning: " in said


def test_command(folder: PairFolder, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["data", "inspect", str(folder.root), "--json", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["page"] == str(tmp_path / "out" / "inspect.html")
    assert set(found["splits"]) == {"train", "val", "test"}
    assert sum(found["splits"]["train"]["classes"].values()) == pytest.approx(1)
    assert found["findings"][0]["level"] == "warning"
    done = CliRunner().invoke(app, ["data", "inspect", str(folder.root), "--split", "val", "--tiles", "1"])
    assert done.exit_code == 0 and "crop" in done.stdout
    done = CliRunner().invoke(app, ["data", "convert", "--help"], env={"COLUMNS": "200"})
    assert "Sen1Floods11" in done.stdout and "CC BY-SA 4.0" in done.stdout
