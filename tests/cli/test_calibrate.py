"""`hfd-edge calibrate select` on a small bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.cli import app
from hfd_edge.config import DatasetConfig, SarInput, write_toml
from hfd_edge.deploy.selection import SELECTION, load_selection
from hfd_edge.raster.image import write_image
from hfd_edge.sar.preprocessing import Preprocessing

SAR = SarInput(bands=("vv",), units="intensity", looks=4.0)
CLASSES, PALETTE = ("water", "land"), ((0, 0, 255), (0, 128, 0))


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["calibrate", "select", *[str(item) for item in arguments]])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten training images of one tile each."""
    write_toml(
        tmp_path / "data" / "dataset.toml",
        DatasetConfig(name="own", classes=CLASSES, palette=PALETTE, sar=SAR),
    )
    rng = np.random.default_rng(0)
    for index in range(10):
        image = (10 ** (-index / 5) * rng.gamma(4, 0.25, (1, 64, 64))).astype(np.float32)
        write_image(tmp_path / "data" / "train" / "sar" / f"tile_{index}.tif", image)
        label = np.full((1, 64, 64), index % 2, np.uint8)
        write_image(tmp_path / "data" / "train" / "label" / f"tile_{index}.png", label)
    return tmp_path / "data"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    preprocessing = Preprocessing(
        units="intensity",
        looks=4.0,
        nodata=None,
        speckle="none",
        window_px=7,
        clip=((-30.0, 5.0),),
        mean=(-12.0,),
        std=(5.0,),
    )
    manifest = Manifest(
        name="own",
        classes=CLASSES,
        palette=PALETTE,
        sar=SAR,
        preprocessing=preprocessing,
        head="quarter",
        tile_px=64,
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )
    return Bundle.create(tmp_path / "own.hfd", manifest, {"note.txt": b"a bundle"}).path


def test_the_choice_is_reported_and_kept(bundle: Path, data: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plots" / "coverage.png"
    arguments = (bundle, "--data", data, "--tiles", "4", "--seed", "2", "--plot", plot, "--json")
    status, out, _ = call(*arguments)
    assert status == 0
    report = json.loads(out)
    assert {
        name: report[name] for name in ("method", "seed", "split", "tiles", "candidates", "left_out")
    } == {
        "method": "k-centre",
        "seed": 2,
        "split": "train",
        "tiles": 4,
        "candidates": 10,
        "left_out": 0,
    }
    assert set(report["class_share"]) == set(CLASSES)
    assert report["plot"] == str(plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    stored = load_selection(Bundle.open(bundle))
    assert stored is not None
    assert report["radius"] == stored.coverage.radius > 0
    assert len(stored.tiles) == 4
    # The same call again gives the same bytes.
    before = (bundle / SELECTION).read_bytes()
    assert call(*arguments)[0] == 0
    assert (bundle / SELECTION).read_bytes() == before


def test_people_get_a_table(bundle: Path, data: Path) -> None:
    status, out, _ = call(bundle, "--data", data, "--method", "even", "--tiles", "3")
    assert status == 0
    assert "Calibration tiles" in out
    assert "backscatter_distance vv" in out
    assert "None" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "best"), "choose one of k-centre, random, even"),
        (("--split", "val"), "has no split 'val'"),
    ],
)
def test_what_is_wrong_is_one_line(
    bundle: Path, data: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, err = call(bundle, "--data", data, *arguments)
    assert status == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert SELECTION not in Bundle.open(bundle).manifest.files


def test_data_of_another_sensor_is_refused(bundle: Path, data: Path) -> None:
    config = DatasetConfig(
        name="own", classes=CLASSES, palette=PALETTE, sar=SAR.model_copy(update={"looks": 1.0})
    )
    write_toml(data / "dataset.toml", config)
    status, _, err = call(bundle, "--data", data)
    assert status == 1
    assert "but the bundle takes" in err


def test_a_plot_that_cannot_be_written_leaves_the_bundle_alone(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = call(bundle, "--data", data, "--plot", tmp_path / "file" / "x.png")
    assert status == 1
    assert "Could not write" in err
    assert SELECTION not in Bundle.open(bundle).manifest.files


def test_help_teaches() -> None:
    status, out, _ = call("--help")
    assert status == 0
    assert "Example" in out
    assert "--plot" in out
