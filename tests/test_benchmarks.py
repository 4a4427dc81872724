"""Every benchmark of `make bench` on tiny sizes, and how figures become rows and a table; never how fast."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.simulate import CLASSES, PALETTE, SAR_INPUT

TILE_PX = 64


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Give a function that imports a script."""
    monkeypatch.syspath_prepend(root / "benchmarks")

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One convolution of stride 4 on what `simulate` writes; its labels follow VV and VH."""
    bands, classes = len(SAR_INPUT.bands), len(CLASSES)
    kernel = np.random.default_rng(3).normal(size=(classes, bands, 4, 4)).astype(np.float32)
    shapes = (("sar", bands, TILE_PX), ("logits", classes, TILE_PX // 4))
    sar, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", depth, side, side])
        for name, depth, side in shapes
    )
    node = helper.make_node("Conv", ["sar", "w"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])
    graph = helper.make_graph([node], "small", [sar], [logits], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    manifest = Manifest(
        name="small",
        classes=CLASSES,
        palette=PALETTE,
        sar=SAR_INPUT,
        preprocessing=Preprocessing(
            units=SAR_INPUT.units,
            looks=SAR_INPUT.looks,
            nodata=SAR_INPUT.nodata,
            speckle="none",
            window_px=7,
            clip=((-30.0, 0.0),) * bands,
            mean=(-13.0,) * bands,
            std=(4.0,) * bands,
        ),
        head="quarter",
        tile_px=TILE_PX,
        precisions={"fp32": "model.fp32.onnx"},
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )
    path = tmp_path / "small.hfd"
    Bundle.create(path, manifest, {"model.fp32.onnx": model.SerializeToString()})
    return path


def run(root: Path, out: Path, name: str, *options: object) -> list[dict[str, Any]]:
    """Run a script as `make bench` does, and give the rows that it wrote."""
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--root", out, *options]
    done = subprocess.run([str(part) for part in command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob(f"benchmarks/results/*/{name.removeprefix('bench_')}.json")
    assert str(path) in done.stdout
    content = json.loads(path.read_text())
    assert f"{name}.py" in content["command"] and content["machine"] == path.parent.name
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def test_bench_preprocess_compares_the_same_arithmetic(root: Path, tmp_path: Path) -> None:
    rows = run(root, tmp_path, "bench_preprocess")
    peers = {row["against"].split()[0] for row in rows}
    assert {"SciPy", "OpenCV"} <= peers
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours_mpx_s"] / row["theirs_mpx_s"])
        # Standardised units of 5 dB: 0.05 is 0.25 dB, which the variances (n or n - 1) of some peers explain.
        assert row["max_difference"] < (0.05 if row["against"].startswith("torchgeo") else 1e-3), row


def test_bench_scene_runs_the_engine_on_the_tiles_of_the_scene(
    root: Path, tmp_path: Path, bundle: Path
) -> None:
    rows = run(root, tmp_path, "bench_scene", "--bundle", bundle)
    first = rows[0]
    assert first["what"] == "deflated scene of 128 x 128, onnxruntime fp32"
    assert first["tiles"] == 9  # steps of 32, half a tile
    assert first["wanted"] == 0.92
    assert any(row["what"].startswith("uncompressed scene") for row in rows)
    (share,) = (row for row in rows if row.get("at_most") == 5.0)
    assert share["ours_percent"] == pytest.approx(100 * share["preprocess_ms"] / share["tile_ms"])
    assert rows[-1]["what"] == "peak memory, scene of 64 x 64" and rows[-1]["ours_mb"] > 20
    assert rows[-1]["backend"] == "onnxruntime" and rows[-1]["precision"] == "fp32"
    manifest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert {row["bundle_sha256"] for row in rows} == {manifest} and {row["repeats"] for row in rows} == {1}
    assert all(row["cores"] >= 1 for row in rows)


def test_peak_memory_is_in_millions_of_bytes(
    tmp_path: Path, benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    large_scene = benchmark("large_scene")
    scene = {"megapixels": 1.0, "seconds": 1.0, "tiles": 1, "skipped_tiles": 0}
    report = {"backend": "openvino", "precision": "int8", "scenes": [scene]}

    def predict(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        shutil.copy(tmp_path / "scene.label.tif", tmp_path / "mask.tif")
        return subprocess.CompletedProcess(command, 0, json.dumps(report), "peak_kb 700000\n")

    monkeypatch.setattr(large_scene.subprocess, "run", predict)
    row = large_scene.measure(tmp_path, 64, 64, tmp_path)
    assert row["peak_mb"] == pytest.approx(716.8)  # the kernel's kB are 1024 bytes
    assert (row["backend"], row["precision"]) == ("openvino", "int8")


def test_bench_coldstart_times_new_processes(root: Path, tmp_path: Path, bundle: Path) -> None:
    rows = run(root, tmp_path, "bench_coldstart", "--bundle", bundle, "--peers", tmp_path / "none")
    start, imported = rows
    steps = sum(start[key] for key in ("import_s", "load_s", "first_mask_s"))
    assert start["ours_s"] == pytest.approx(steps, rel=0.01) and start["peak_mb"] > 20
    assert imported["what"] == "import hfd_edge" and imported["ours_s"] < start["ours_s"]


def test_bench_peers_agrees_with_the_plain_loop(root: Path, tmp_path: Path, bundle: Path) -> None:
    rows = run(root, tmp_path, "bench_peers", "--bundle", bundle, "--run", tmp_path)
    (row,) = (row for row in rows if "onnxruntime" in row["what"] and row["against"] == "plain loop")
    # A stride 4 convolution sees no padding, so all overlapping tiles say the same.
    assert row["theirs_agreement"] > 0.999
    assert row["ours_agreement"] == 1.0 and row["theirs_peak_mb"] > 20


def test_alternate_turns_back_and_forth_and_takes_medians(benchmark: Callable[[str], ModuleType]) -> None:
    order: list[str] = []
    figures = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 4.0, 6.0])}

    def work(name: str) -> Callable[[], float]:
        def once() -> float:
            order.append(name)
            return next(figures[name])

        return once

    found = benchmark("_measure").alternate({name: work(name) for name in figures}, repeats=3)
    assert "".join(order) == "abbaab"
    assert found == {"a": 2.0, "b": 5.0}


def test_a_child_that_fails_is_an_error_with_its_own_words(benchmark: Callable[[str], ModuleType]) -> None:
    with pytest.raises(RuntimeError, match="no such peer"):
        benchmark("_measure").child([sys.executable, "-c", "raise SystemExit('no such peer')"])


def test_a_ratio_above_one_is_always_ours(benchmark: Callable[[str], ModuleType]) -> None:
    comparison = benchmark("_measure").comparison
    faster = comparison("scene", "peer", unit="mpx_s", ours=30.0, theirs=20.0)
    assert faster["ratio"] == 1.5 and faster["ratio_is"] == "ours over theirs"
    shorter = comparison("start", "peer", unit="s", ours=2.0, theirs=3.0)
    assert shorter["ratio"] == 1.5 and shorter["ratio_is"] == "theirs over ours"


def test_the_table_says_what_was_missed(root: Path, tmp_path: Path, benchmark: Callable[..., Any]) -> None:
    measure, results = benchmark("_measure"), benchmark("_results")
    rows = [
        measure.comparison("scene", "bare engine", unit="mpx_s", ours=2.2, theirs=2.5, wanted=0.92),
        measure.comparison("scene", "peer", unit="s", ours=100.0, theirs=160.0, wanted=1.5),
        measure.limit("memory", unit="mb", ours=812.4, at_most=700),
        measure.limit("start", unit="s", ours=0.71, at_most=1.0),
        measure.limit("other", unit="s", ours=0.71, in_table=False),
    ]
    results.write("scene", rows, command="test", root=tmp_path)
    best = {"case": "best", "fp32_backend": "onnxruntime", "fp32_ms": 68.6, "tile_px": 64}
    best |= {"backend": "openvino", "precision": "int8", "latency_ms": 56.2, "ratio": 1.22}
    results.write("int8-cpu", [{"case": "engine"}, best], command="test", root=tmp_path)
    command = [sys.executable, root / "benchmarks" / "table.py", "--root", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[2:] == [
        "| what | ours | against | theirs | ratio | wanted | reached |",
        "|---|---|---|---|---|---|---|",
        "| scene | 2.2 Mpx/s | bare engine | 2.5 Mpx/s | 0.88 | >= 0.92 | **no** |",
        "| scene | 100 s | peer | 160 s | 1.60 | >= 1.5 | yes |",
        "| memory | 812 MB |  |  |  | <= 700 MB | **no** |",
        "| start | 0.71 s |  |  |  | <= 1 s | yes |",
        "| one tile of 64, int8, openvino | 56.2 ms | FP32, onnxruntime | 68.6 ms | 1.22 | >= 1.3 | **no** |",
    ]
    assert "peers.json is missing: run make bench" in done.stderr


SCRIPTS = ("bench_scene", "bench_preprocess", "bench_coldstart", "bench_peers", "table")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches_with_an_example(
    name: str,
    benchmark: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = benchmark(name)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        script.main()
    assert left.value.code == 0
    description = capsys.readouterr().out.split("options:")[0].split("\n\n", 1)[1]
    assert f"python benchmarks/{name}.py" in description
