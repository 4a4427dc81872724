"""Commands on a real bundle, run and data folder: what they print, and what they say of bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from hfd_edge.cli import app
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.raster.scene import SceneReader

runner = CliRunner()


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail with exit code 1 and one line; give the line."""
    status, out, err = call(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1, (out, err)
    assert len(lines) == 1
    assert out == ""
    return lines[0]


@pytest.fixture
def bundle(demo: Any, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(demo.bundle, tmp_path / "copy.hfd"))


@pytest.fixture
def pairs(demo: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo.pairs, tmp_path / "pairs"))


@pytest.fixture
def scene(demo: Any) -> Path:
    return Path(demo.out / "data" / "scene.tif")


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- the commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_evaluate_bundle(demo: Any, precision: str, tmp_path: Path) -> None:
    picture = tmp_path / "tiles.png"
    options = ("--data", demo.pairs, "--precision", precision, "--pictures", picture, "--json")
    status, out, _ = call("evaluate", demo.bundle, *options)
    scores = json.loads(out)
    assert status == 0
    assert scores["miou"] == pytest.approx(demo.summary["miou"][precision])
    assert set(scores) >= {"miou", "iou", "accuracy", "pixels", "tiles", "backend", "precision"}
    assert (scores["backend"], scores["precision"]) == ("onnxruntime", precision)
    assert cv2.imread(str(picture)).shape[1] > 500


def test_pictures_name_the_precision_that_auto_chose(demo: Any, tmp_path: Path) -> None:
    picture = tmp_path / "tiles.png"
    options = ("--data", demo.pairs, "--precision", "auto", "--pictures", picture, "--json")
    status, out, _ = call("evaluate", demo.bundle, *options)
    assert (status, json.loads(out)["precision"]) == (0, "fp32")
    assert picture.is_file()


def test_evaluate_run(demo: Any) -> None:
    _, out, _ = call("evaluate", demo.out / "runs" / "sar_only", "--data", demo.pairs, "--json")
    assert json.loads(out)["miou"] == pytest.approx(demo.summary["miou"]["sar_only"])


def test_bundle_and_run_agree(demo: Any) -> None:
    """ONNX Runtime on the bundle and torch on the weights score alike."""
    _, out, _ = call("evaluate", demo.out / "runs" / "student", "--data", demo.pairs, "--json")
    assert json.loads(out)["miou"] == pytest.approx(demo.summary["miou"]["fp32"], abs=2e-3)


def test_predict_one_and_several(demo: Any, scene: Path, tmp_path: Path) -> None:
    status, out, _ = call("predict", demo.bundle, scene, "--out", tmp_path / "mask.tif", "--json")
    assert status == 0
    assert json.loads(out)["scenes"][0]["megapixels"] == pytest.approx(0.09)
    other = shutil.copy(scene, tmp_path / "other.tif")
    status, out, _ = call("predict", demo.bundle, scene, other, "--out", tmp_path / "masks")
    assert status == 0
    assert "onnxruntime" in out
    for name in ("scene.tif", "other.tif"):
        with SceneReader(tmp_path / "masks" / name) as mask:
            assert np.array_equal(mask.read(0, 300), read_image(tmp_path / "mask.tif"))


def test_predict_does_not_overwrite_unasked(demo: Any, scene: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.tif"
    mask.write_text("precious")
    assert "--overwrite" in refused("predict", demo.bundle, scene, "--out", mask)
    assert mask.read_text() == "precious"
    assert call("predict", demo.bundle, scene, "--out", mask, "--overwrite")[0] == 0


def test_inspect_everything(demo: Any) -> None:
    _, out, _ = call("inspect", demo.bundle, "--json")
    found = json.loads(out)
    assert set(found["precisions"]) == {"fp32", "fp16", "int8", "int8_fp16"}
    assert found["verified"] is True
    _, out, _ = call("inspect", demo.out / "runs" / "teacher", "--json")
    assert json.loads(out)["kind"] == "teacher"
    _, out, _ = call("inspect", first(demo.bundle / "engines", "*-int8.engine"), "--json")
    assert json.loads(out)["precision"] == "int8"


def test_export_with_full_head(demo: Any, tmp_path: Path) -> None:
    out = tmp_path / "full.hfd"
    assert call("export", demo.out / "runs" / "student", "--out", out, "--head", "full", "--tile", 96)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["head"], manifest["tile_px"]) == ("full", 96)
    assert "multiple of 32" in refused(
        "export", demo.out / "runs" / "student", "--out", tmp_path / "x.hfd", "--tile", 100
    )


def test_data_check_lists_every_fault(pairs: Path) -> None:
    assert call("data", "check", pairs)[0] == 0
    halve(first(pairs, "train/eo/*"))
    halve(first(pairs, "test/sar/*"))
    status, out, _ = call("data", "check", pairs, "--json")
    assert status == 1
    assert len(json.loads(out)["faults"]) == 2


# --- bad input ------------------------------------------------------------------------------------------


def test_decibels_where_linear_is_declared(demo: Any, scene: Path, tmp_path: Path) -> None:
    linear = read_image(scene)
    write_image(tmp_path / "db.tif", 10 * np.log10(np.maximum(linear, 1e-4)))
    line = refused("predict", demo.bundle, tmp_path / "db.tif", "--out", tmp_path / "mask.tif")
    assert "db.tif" in line
    assert "db_to_intensity" in line
    assert not (tmp_path / "mask.tif").exists()


def test_wrong_band_count(demo: Any, scene: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "one.tif", read_image(scene)[:1])
    line = refused("predict", demo.bundle, tmp_path / "one.tif", "--out", tmp_path / "mask.tif")
    assert "one.tif" in line
    assert "vv" in line
    assert not (tmp_path / "mask.tif").exists()


def test_scene_of_nan_alone(demo: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "nan.tif", np.full((2, 70, 80), np.nan, np.float32))
    line = refused("predict", demo.bundle, tmp_path / "nan.tif", "--out", tmp_path / "mask.tif")
    assert "no valid pixel" in line
    assert not (tmp_path / "mask.tif").exists()


def test_training_tile_of_nan_alone(demo: Any, pairs: Path, tmp_path: Path) -> None:
    tile = first(pairs, "test/sar/*")
    write_image(tile, np.full((2, 64, 64), np.nan, np.float32))
    line = refused("evaluate", demo.bundle, "--data", pairs)
    assert tile.name in line
    assert "no valid pixel" in line


@pytest.mark.parametrize(("kind", "suffix"), [("sar", ".tif"), ("eo", ".png"), ("label", ".png")])
def test_truncated_tile(pairs: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    tile = first(pairs, f"train/{kind}/*")
    assert tile.suffix == suffix
    halve(tile)
    recipe = tmp_path / "r.toml"
    recipe.write_text("[network]\ninit = 'random'\nchannels = 8\n[training]\nepochs = 1\ncrop_px = 32\n")
    which = "student" if kind == "sar" else "teacher"
    extra = ("--set", "distill.method=none") if kind == "sar" else ()
    line = refused("train", which, recipe, "--data", pairs, "--out", tmp_path / "run", *extra)
    assert tile.name in line


def test_truncated_scene(demo: Any, scene: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copy(scene, tmp_path / "cut.tif"))
    halve(cut)
    assert "cut.tif" in refused("predict", demo.bundle, cut, "--out", tmp_path / "mask.tif")
    assert not (tmp_path / "mask.tif").exists()


@pytest.mark.parametrize("pattern", ["model.fp32.onnx", "manifest.json"])
def test_truncated_bundle_file(bundle: Path, scene: Path, tmp_path: Path, pattern: str) -> None:
    halve(bundle / pattern)
    line = refused("predict", bundle, scene, "--out", tmp_path / "mask.tif")
    assert pattern in line
    assert "again" in line


def test_truncated_engine(bundle: Path) -> None:
    engine = first(bundle / "engines", "*.engine")
    halve(engine)
    line = refused("inspect", engine)
    assert engine.name in line
    assert "hfd-edge build" in line or "again" in line


def test_file_changed_after_the_fact(bundle: Path) -> None:
    model = bundle / "model.int8.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    line = refused("inspect", bundle)
    assert "model.int8.onnx was changed after the bundle was made" in line
    assert "re-export" in line


def test_label_out_of_range(demo: Any, pairs: Path) -> None:
    tile = first(pairs, "test/label/*")
    labels = read_image(tile)
    labels[0, 0, 0] = 77
    write_image(tile, labels)
    line = refused("evaluate", demo.bundle, "--data", pairs)
    assert tile.name in line
    assert "77" in line


def test_sizes_that_differ(pairs: Path, tmp_path: Path) -> None:
    tile = first(pairs, "train/eo/*")
    write_image(tile, read_image(tile)[:, :40])
    (tmp_path / "r.toml").write_text("")
    line = refused("train", "teacher", tmp_path / "r.toml", "--data", pairs, "--out", tmp_path / "run")
    assert tile.name in line
    assert "40" in line


def test_misspelt_key_of_a_recipe(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[training]\nepoch = 3\n")
    line = refused("train", "teacher", tmp_path / "r.toml", "--data", demo.pairs, "--out", tmp_path / "run")
    assert "training.epoch" in line


def test_student_without_teacher(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("")
    line = refused("train", "student", tmp_path / "r.toml", "--data", demo.pairs, "--out", tmp_path / "run")
    assert "--teacher" in line or "teacher" in line
    assert "distill.method" in line


def test_evaluate_on_other_classes(demo: Any, pairs: Path) -> None:
    config = pairs / "dataset.toml"
    config.write_text(config.read_text().replace('"water"', '"lake"'))
    assert "lake" in refused("evaluate", demo.bundle, "--data", pairs)


@pytest.mark.parametrize("extra", ["train", "export"])
def test_missing_extra(demo: Any, tmp_path: Path, extra: str) -> None:
    """With the package gone, the command names the extra that brings it."""
    command = {
        "train": ["train", "teacher", str(tmp_path / "r.toml"), "--data", str(demo.pairs), "--out", "o"],
        "export": ["quantize", str(demo.bundle), "--data", str(demo.pairs)],
    }[extra]
    gone = {"train": "lightning_fabric", "export": "onnx"}[extra]
    (tmp_path / "r.toml").write_text("")
    code = f"import sys; sys.modules[{gone!r}] = None; sys.argv = ['hfd-edge', *{command!r}]\n"
    code += "from hfd_edge.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"hfd-edge[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_a_prediction_leaves_nothing(
    demo: Any, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    image = np.random.default_rng(0).gamma(4, 0.02, (2, 3000, 3000)).astype(np.float32)
    write_image(tmp_path / "large.tif", image)
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv = ['hfd-edge', 'predict', {str(demo.bundle)!r}, {str(tmp_path / 'large.tif')!r}, '--out', "
        f"{str(out / 'mask.tif')!r}]\nfrom hfd_edge.cli import main; main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        while not list(out.iterdir()) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert list(out.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_disk_full_while_predicting(demo: Any, scene: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails the write in the middle, as a full disk does."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"sys.argv = ['hfd-edge', 'predict', {str(demo.bundle)!r}, {str(scene)!r}, '--out', "
        f"{str(tmp_path / 'mask.tif')!r}]\nfrom hfd_edge.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: Could not write" in done.stderr
    assert "nothing was half written" in done.stderr
    assert list(tmp_path.iterdir()) == []
