"""Device kits, end to end against a stand-in for trtexec that knows each version's flags."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.kit import make_kit, take_engine
from hfd_edge.deploy.targets import Target, list_targets, load_target
from hfd_edge.engine_record import check_engine
from hfd_edge.errors import EngineError, StorageError

from . import fake_trtexec
from .conftest import BANDS, CLASSES, TILE
from .device_bundle import GOLDEN, make_device_bundle

KITS = [name for name in list_targets() if load_target(name).flavour == "tensorrt"]
GENERATIONS = {
    "nano-jp46": "8.2.1",
    "orin-nx-jp51": "8.5.2",
    "orin-nx-jp60": "8.6.2",
    "orin-nx-jp62": "10.3.0",
    "tensorrt-t4": "10.13.3",
    "thor-jp72-trt11": "11.4.1",
}
"""A target of every dialect of trtexec, with its TensorRT."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, mini_onnx: Path, folder: PairFolder) -> Bundle:
    return make_device_bundle(tmp_path_factory.mktemp("ready"), mini_onnx, folder)


@pytest.fixture(scope="module")
def gathering(tmp_path_factory: pytest.TempPathFactory, gather_onnx: Path, folder: PairFolder) -> Bundle:
    return make_device_bundle(tmp_path_factory.mktemp("gathering"), gather_onnx, folder)


@pytest.fixture
def trtexec(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "trtexec"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_trtexec.__file__} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def on_device(
    kit: Path, trtexec: Path, version: str, *, fault: str = "", script: tuple[str, ...] = ("sh", "build.sh")
) -> subprocess.CompletedProcess[str]:
    """Run a script of a kit as on a device with a TensorRT of this version."""
    path = f"{trtexec.parent}:{os.environ['PATH']}"
    known = {"PATH": path, "FAKE_TENSORRT": version, "FAKE_FAULT": fault, "OMP_NUM_THREADS": "1"}
    return subprocess.run(script, cwd=kit, env=known, capture_output=True, text=True)


def bundle_for(target: Target, ready: Bundle, gathering: Bundle) -> Bundle:
    return ready if target.grid_sample else gathering


@pytest.mark.parametrize("name", KITS)
def test_every_kit_is_whole_and_its_command_is_one_that_its_tensorrt_takes(
    name: str, ready: Bundle, gathering: Bundle, tmp_path: Path
) -> None:
    target = load_target(name)
    kit = make_kit(bundle_for(target, ready, gathering), target, tmp_path / "kit")
    description = json.loads((kit.path / "kit.json").read_text())
    assert kit.command == tuple(description["build"])
    for relpath in description["files"]:
        assert (kit.path / relpath).stat().st_size > 0
    assert {"model.onnx", "build.sh", "verify.py", "README.md"} <= set(description["files"])
    assert len(description["golden"]) == GOLDEN
    assert ("calibration.cache" in description["files"]) == (target.int8 == "cache")
    version = target.tensorrt_version
    assert version is not None
    flags = fake_trtexec.parse(version, list(kit.command))
    fake_trtexec.check_build(version, flags, kit.path)
    run = fake_trtexec.parse(version, description["run"])
    assert ("shapes" in run) == ("optShapes" in flags) == (target.batch.min < target.batch.max)
    subprocess.run(["bash", "-n", "build.sh"], cwd=kit.path, check=True)
    script = (kit.path / "build.sh").read_text()
    assert not re.search("@[A-Z]", script + (kit.path / "README.md").read_text())
    assert all(flag in script for flag in kit.command)


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_device_builds_and_verifies(
    name: str, ready: Bundle, gathering: Bundle, trtexec: Path, tmp_path: Path
) -> None:
    target = load_target(name)
    assert target.tensorrt == GENERATIONS[name]
    bundle = bundle_for(target, ready, gathering)
    kit = make_kit(bundle, target, tmp_path / "kit")
    done = on_device(kit.path, trtexec, GENERATIONS[name])
    assert done.returncode == 0, done.stdout + done.stderr
    stem = f"{name}-{target.default_precision}"
    assert f"verified {stem}.engine on {GOLDEN} tiles" in done.stdout
    engine = kit.path / f"{stem}.engine"
    record = check_engine(engine)
    assert (record["version"], record["target"]) == (GENERATIONS[name], name)
    assert record["onnx_sha256"] == bundle.manifest.files[f"model.{target.default_precision}.onnx"]
    assert record["note"].startswith(f"Built by trtexec {GENERATIONS[name]}; on golden tiles: agreement ")
    assert not list(kit.path.glob("*.partial"))


def test_the_engine_goes_into_the_bundle(
    ready: Bundle, gathering: Bundle, trtexec: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(shutil.copytree(ready.path, tmp_path / "copy.hfd"))
    kit = make_kit(bundle, load_target("tensorrt-t4"), tmp_path / "kit", precision="fp16")
    assert on_device(kit.path, trtexec, "10.13.3").returncode == 0
    engine = kit.path / "tensorrt-t4-fp16.engine"
    with pytest.raises(
        EngineError, match=r"was built from another fp16 model .*Give the bundle that the kit"
    ):
        take_engine(gathering, engine)
    taken = take_engine(bundle, engine)
    assert taken.engine("tensorrt-t4-fp16").read_bytes() == engine.read_bytes()
    check_engine(taken.engine("tensorrt-t4-fp16"))
    Bundle.open(bundle.path).verify()


def test_a_wrong_engine_is_caught(ready: Bundle, trtexec: Path, tmp_path: Path) -> None:
    kit = make_kit(ready, load_target("tensorrt-t4"), tmp_path / "kit", precision="fp16").path
    engine, sidecar = kit / "tensorrt-t4-fp16.engine", kit / "tensorrt-t4-fp16.json"
    wrong = on_device(kit, trtexec, "10.13.3", fault="labels")
    assert wrong.returncode == 1
    assert re.search(
        r"does not compute what the model computes: agreement is 0\.\d+, expected at least 0\.995; "
        r"difference is \d\.\d+, expected at most 0\.05; miou is 0\.\d+, expected at least 0\.97, "
        r"over \d+ pixels",
        wrong.stderr,
    ), wrong.stderr
    assert engine.exists()
    assert not sidecar.exists()  # without it nothing loads the engine
    verify = (sys.executable, "verify.py", "--trtexec", str(trtexec))
    nan = on_device(kit, trtexec, "10.13.3", fault="nan", script=verify)
    assert nan.returncode == 1
    assert "the engine gives NaN or infinity" in nan.stderr
    assert on_device(kit, trtexec, "10.13.3", script=verify).returncode == 0
    assert sidecar.exists()


def test_a_failed_build_leaves_no_engine(ready: Bundle, trtexec: Path, tmp_path: Path) -> None:
    kit = make_kit(ready, load_target("orin-nx-jp62"), tmp_path / "kit").path
    before = sorted(path.name for path in kit.iterdir())
    done = on_device(kit, trtexec, "10.3.0", fault="build")
    assert done.returncode == 1
    assert "Engine could not be created from network" in done.stdout
    assert sorted(path.name for path in kit.iterdir()) == before


def test_another_tensorrt_is_refused_before_the_build(ready: Bundle, trtexec: Path, tmp_path: Path) -> None:
    cached = make_kit(ready, load_target("orin-nx-jp62"), tmp_path / "cached").path
    done = on_device(cached, trtexec, "10.3.1")
    assert done.returncode == 1
    assert "this kit is for TensorRT 10.3.0, but" in done.stderr
    assert "is 10.3.1. A calibration cache is for one version alone." in done.stderr
    typed = make_kit(ready, load_target("tensorrt-t4"), tmp_path / "typed").path
    before = (sys.executable, "verify.py", "--before", "--trtexec", str(trtexec))
    assert on_device(typed, trtexec, "10.13.4", script=before).returncode == 0
    assert on_device(typed, trtexec, "10.14.0", script=before).returncode == 1
    nothing = on_device(typed, tmp_path / "none" / "trtexec", "10.13.3")
    assert nothing.returncode == 1
    assert "there is no trtexec at /usr/src/tensorrt/bin/trtexec. Install TensorRT 10.13.3" in nothing.stderr


def test_a_kit_that_was_cut_off(ready: Bundle, trtexec: Path, tmp_path: Path) -> None:
    kit = make_kit(ready, load_target("orin-nx-jp62"), tmp_path / "kit").path
    before = (sys.executable, "verify.py", "--before", "--trtexec", str(trtexec))
    model = (kit / "model.onnx").read_bytes()
    (kit / "model.onnx").write_bytes(model[:-1])
    assert (
        "model.onnx was changed or cut off. Copy the whole kit"
        in on_device(kit, trtexec, "10.3.0", script=before).stderr
    )
    (kit / "model.onnx").write_bytes(model)
    (kit / "calibration.cache").unlink()
    assert "calibration.cache is missing" in on_device(kit, trtexec, "10.3.0", script=before).stderr


def test_the_scripts_run_on_python_3_6(root: Path) -> None:
    source = (root / "export/kit/verify.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {
        "argparse",
        "array",
        "hashlib",
        "json",
        "os",
        "pathlib",
        "re",
        "subprocess",
        "sys",
        "tempfile",
    }
    # Added to the standard library in 3.7 or later.
    for late in ("capture_output", "text=True", "missing_ok", "dataclass", "removeprefix", ":=", "strict="):
        assert late not in source


def test_golden_tiles(ready: Bundle, tmp_path: Path) -> None:
    target = load_target("tensorrt-t4")
    fixed = target.model_copy(
        update={"batch": target.batch.model_copy(update={"min": 2, "opt": 2, "max": 2})}
    )
    kit = make_kit(ready, fixed, tmp_path / "kit", precision="fp32").path
    pixels = np.fromfile(kit / "golden/000.f32", "<f4").reshape(2, BANDS, TILE, TILE)
    expected, _ = ready.manifest.preprocessing(ready.golden()[0].image)
    np.testing.assert_array_equal(pixels[0], expected)
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert (kit / "golden/000.logits.f32").stat().st_size == 4 * len(CLASSES) * (TILE // 4) ** 2


def test_a_dla_kit_has_no_quantisers_and_asks_for_a_core(
    ready: Bundle, trtexec: Path, tmp_path: Path
) -> None:
    kit = make_kit(ready, load_target("orin-nx-jp62"), tmp_path / "kit", dla_core=1)
    assert {"--useDLACore=1", "--allowGPUFallback", "--int8", "--fp16"} <= set(kit.command)
    assert "--useDLACore=1" in json.loads((kit.path / "kit.json").read_text())["run"]
    assert on_device(kit.path, trtexec, "10.3.0").returncode == 0
    with pytest.raises(EngineError, match=r"orin-nx-jp62 has DLA cores 0 to 1; core 2 was asked for"):
        make_kit(ready, load_target("orin-nx-jp62"), tmp_path / "none", dla_core=2)
    with pytest.raises(EngineError, match=r"tensorrt-t4 has no DLA; core 0 was asked for. Leave --dla away"):
        make_kit(ready, load_target("tensorrt-t4"), tmp_path / "none", dla_core=0)


def test_what_no_kit_can_be_made_of(ready: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "kit"
    with pytest.raises(
        EngineError, match=r"desktop-rtx takes no device kit: tensorrt_rtx engines are built on"
    ):
        make_kit(ready, load_target("desktop-rtx"), out)
    with pytest.raises(
        EngineError,
        match=r"TensorRT 8.2.1 has no GridSample.*--warp gather.*preflight .* nano-jp46 --precision fp32",
    ):
        make_kit(ready, load_target("nano-jp46"), out, precision="fp32")
    with pytest.raises(EngineError, match=r"has no golden tiles.*Export the run again with --data DIR"):
        make_kit(bundle, load_target("tensorrt-t4"), out, precision="fp32")
    assert not out.exists()
    out.mkdir()
    with pytest.raises(StorageError, match="already exists"):
        make_kit(ready, load_target("tensorrt-t4"), out)
