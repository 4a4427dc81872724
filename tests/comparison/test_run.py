"""Variants whose every score is known: thresholds on the pixel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.comparison import Comparison, compare, disagreements
from hfd_edge.comparison.result import KEPT_TILES
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.engine_record import EngineRecord, engine_key
from hfd_edge.errors import BackendError, BundleError, DatasetError
from hfd_edge.evaluation import measure
from hfd_edge.metrics import BoundaryConfusion
from hfd_edge.raster.image import write_image
from hfd_edge.runtime.backends import available_backends, open_backend
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

Make = Callable[..., Bundle]


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is another test's business."""
    monkeypatch.setattr("hfd_edge.runtime.backends.tuning.RUNS", 2)
    # Whatever else is installed.
    monkeypatch.setattr("hfd_edge.comparison.run.available_backends", lambda: ("onnxruntime",))


@pytest.fixture
def folder(threshold_data: Path) -> PairFolder:
    return PairFolder.open(threshold_data)


@pytest.fixture
def bundle(make_thresholds: Make) -> Bundle:
    return make_thresholds()


def pixels(folder: PairFolder, *, labelled: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """All pixels of the labelled test tiles, and their truth."""
    pairs = [pair for pair in folder.pairs("test") if pair.label is not None]
    images = [folder.load_sar(pair)[0].ravel() for pair in pairs]
    return np.concatenate(images), np.concatenate([folder.load_label(pair).ravel() for pair in pairs])


def sidecar(engine: bytes, *, onnx_sha256: str) -> bytes:
    """What the builder writes beside an engine."""
    made_from: Any = {"flavour": "tensorrt_rtx", "version": "1.7.1", "compute_capabilities": (75, 86)}
    record = EngineRecord(
        target="desktop",
        precision="int8",
        engine_key=engine_key(onnx_sha256, options={}, **made_from),
        onnx_sha256=onnx_sha256,
        options={},
        bytes=len(engine),
        sha256=hashlib.sha256(engine).hexdigest(),
        seconds=1.0,
        weights_bytes=3615752,
        activation_bytes=1000,
        **made_from,
    )
    return record.to_json().encode()


def row(comparison: Comparison, precision: str, backend: str = "onnxruntime") -> Any:
    (found,) = [r for r in comparison.rows if (r.precision, r.backend) == (precision, backend)]
    return found


def test_scores_are_those_of_evaluate(bundle: Bundle, folder: PairFolder) -> None:
    comparison = compare(bundle, folder, threads=1)
    assert [r.precision for r in comparison.rows] == ["fp32", "fp16", "int8"]
    for precision in ("fp32", "fp16", "int8"):
        expected = measure(bundle.path, folder.root, precision=precision)
        found = row(comparison, precision)
        assert (found.miou, found.iou, found.accuracy) == (
            expected["miou"],
            expected["iou"],
            expected["accuracy"],
        )
    assert (comparison.tiles, comparison.pixels) == (expected["tiles"], expected["pixels"])


def test_flipped_broken_and_corrected_are_counted(bundle: Bundle, folder: PairFolder) -> None:
    """INT8 turns 101..120 over; truth says that up to 110 this is right and above it is wrong."""
    comparison = compare(bundle, folder, threads=1)
    image, truth = pixels(folder)
    known, data = truth != 255, image != 0
    int8 = row(comparison, "int8")
    between = (image > 100) & (image <= 120)
    assert int8.flipped == np.count_nonzero(between) / np.count_nonzero(data)
    assert int8.corrected == np.count_nonzero(between & known & (image <= 110)) / np.count_nonzero(known)
    assert int8.broken == np.count_nonzero(between & known & (image > 110)) / np.count_nonzero(known)
    assert 0 < int8.broken != int8.corrected > 0
    fp32 = row(comparison, "fp32")
    assert int8.accuracy - fp32.accuracy == pytest.approx(int8.corrected - int8.broken)
    fp16 = row(comparison, "fp16")
    assert (fp16.flipped, fp16.broken, fp16.corrected, fp16.most_flipped) == (0, 0, 0, ())


def test_drops_are_against_fp32(bundle: Bundle, folder: PairFolder) -> None:
    comparison = compare(bundle, folder, threads=1)
    fp32, int8 = row(comparison, "fp32"), row(comparison, "int8")
    assert int8.drop_points == pytest.approx(100 * (fp32.miou - int8.miou))
    drops = {name: 100 * (fp32.iou[name] - int8.iou[name]) for name in ("dry", "flood")}
    assert int8.worst_class == max(drops, key=lambda name: drops[name])
    assert int8.worst_class_drop_points == pytest.approx(max(drops.values()))
    assert int8.drop_low_points <= int8.drop_points <= int8.drop_high_points
    assert int8.boundary_drop_points == pytest.approx(100 * (fp32.boundary_miou - int8.boundary_miou))
    assert (fp32.drop_points, fp32.worst_class, fp32.drop_low_points) == (0, None, None)


def test_boundary_scores(bundle: Bundle, folder: PairFolder) -> None:
    boundary = BoundaryConfusion(("dry", "flood"))
    for pair in folder.pairs("test"):
        if pair.label is not None:
            image = folder.load_sar(pair)[0]
            boundary.add(folder.load_label(pair), np.where(image == 0, 255, image > 120).astype(np.uint8))
    comparison = compare(bundle, folder, threads=1)
    assert row(comparison, "int8").boundary_iou == boundary.iou
    assert comparison.boundary_px == boundary.distance_px


def test_tiles_that_differ_most_are_named(bundle: Bundle, folder: PairFolder) -> None:
    comparison = compare(bundle, folder, threads=1)
    shares = {}
    for pair in folder.pairs("test"):
        image = folder.load_sar(pair)[0]
        if pair.label is not None:
            shares[pair.name] = np.mean((image > 100) & (image <= 120)) / np.mean(image != 0)
    worst = sorted(shares, key=lambda name: -shares[name])
    found = row(comparison, "int8").most_flipped
    assert [tile.name for tile in found] == worst
    assert [tile.flipped for tile in found] == pytest.approx([shares[name] for name in worst])
    assert "tile_7" not in worst, "a tile without label is not scored"
    chosen = disagreements(comparison, count=2)
    assert [(one.tile, one.precision) for one in chosen] == [(worst[0], "int8"), (worst[1], "int8")]
    assert len(disagreements(comparison, count=KEPT_TILES)) == 7


def test_tiles_are_shown_with_the_variant_that_differs_most(
    make_thresholds: Make, folder: PairFolder
) -> None:
    comparison = compare(make_thresholds({"fp32": 100, "fp16": 105, "int8": 120}), folder, threads=1)
    assert {found.precision for found in disagreements(comparison, count=9)} == {"int8"}
    assert len(row(comparison, "fp16").most_flipped) == 7


def test_sizes_setup_and_json(bundle: Bundle, folder: PairFolder) -> None:
    comparison = compare(bundle, folder, threads=1)
    assert row(comparison, "int8").bytes == (bundle.path / "model.int8.onnx").stat().st_size
    assert all(r.latency_ms > 0 and r.latency_p90_ms >= r.latency_ms for r in comparison.rows)
    content = json.loads(json.dumps(comparison.content(), allow_nan=False))
    assert content["threads"] == 1
    assert content["rows"][2]["precision"] == "int8"
    assert set(content["versions"]) == {"hfd-edge", "onnxruntime"}
    assert (content["reference"], content["split"], content["tile_px"]) == ("onnxruntime", "test", 64)


def test_some_tiles_only(bundle: Bundle, folder: PairFolder) -> None:
    comparison = compare(bundle, folder, tiles=2, threads=1)
    assert comparison.tiles == 2
    assert {tile.name for tile in row(comparison, "int8").most_flipped} == {"tile_0", "tile_6"}
    assert row(comparison, "int8").drop_low_points is None, "two tiles say nothing about others"
    with pytest.raises(DatasetError, match="tiles is 0, expected 1 or more"):
        compare(bundle, folder, tiles=0)


def test_one_variant_at_a_time(bundle: Bundle, folder: PairFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many variants there are, memory holds one model."""
    live, most = [0], [0]

    class Counted(OnnxRuntimeBackend):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            live[0] += 1
            most[0] = max(most[0], live[0])

        def close(self) -> None:
            live[0] -= self._session is not None
            super().close()

    monkeypatch.setattr("hfd_edge.runtime.backends.onnxruntime.OnnxRuntimeBackend", Counted)
    compare(bundle, folder, threads=1)
    assert (live[0], most[0]) == (0, 1)


def test_progress_may_stop_it(bundle: Bundle, folder: PairFolder) -> None:
    def stop(done: float, total: float, text: str, /) -> None:
        if text.startswith("int8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(bundle, folder, threads=1, progress=stop)


# --- backends -------------------------------------------------------------------------------------------


def also(name: str) -> Callable[..., Any]:
    """An `open_backend` that knows one more backend: ONNX Runtime under another name."""

    def opened(bundle: Bundle, *, backend: str, **options: Any) -> Any:
        if backend != name:
            return open_backend(bundle, backend=backend, **options)
        model = OnnxRuntimeBackend(bundle, **options)
        model.name = name  # type: ignore[misc]
        return model

    return opened


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("hfd_edge.comparison.run.available_backends", lambda: ("onnxruntime", name))
    for module in ("hfd_edge.runtime.pipeline", "hfd_edge.runtime.backends.tuning"):
        monkeypatch.setattr(f"{module}.open_backend", also(name))


def test_every_variant_on_every_backend(
    bundle: Bundle, folder: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "openvino")
    comparison = compare(bundle, folder, threads=1)
    assert [(r.backend, r.precision) for r in comparison.rows] == [
        (backend, precision)
        for backend in ("onnxruntime", "openvino")
        for precision in ("fp32", "fp16", "int8")
    ]
    assert row(comparison, "int8", "openvino").flipped == row(comparison, "int8").flipped > 0
    assert row(comparison, "fp32", "openvino").latency_ms > 0


def test_a_gpu_has_no_cpu_latency(
    make_thresholds: Make, folder: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "tensorrt_rtx")
    files = {"engines/a.engine": b"engine", "engines/a.json": sidecar(b"engine", onnx_sha256="0" * 64)}
    bundle = make_thresholds(extra=files)
    comparison = compare(bundle, folder, threads=1)
    assert row(comparison, "int8", "tensorrt_rtx").latency_ms is None
    assert row(comparison, "int8").latency_ms is not None
    assert comparison.engines[0].not_run is None, "the row stands for it"


def test_a_backend_that_refuses_is_listed(
    bundle: Bundle, folder: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it was asked for: then it is refused."""
    monkeypatch.setattr("hfd_edge.comparison.run.available_backends", lambda: ("onnxruntime", "npu"))
    comparison = compare(bundle, folder, threads=1)
    assert len(comparison.rows) == 3
    assert [(r.precision, r.backend) for r in comparison.not_run] == [
        (precision, "npu") for precision in ("fp32", "fp16", "int8")
    ]
    assert "There is no backend 'npu'" in comparison.not_run[0].reason
    with pytest.raises(BackendError, match="There is no backend 'npu'"):
        compare(bundle, folder, backends=("onnxruntime", "npu"), threads=1)
    with pytest.raises(BackendError, match="There is no backend 'npu'"):
        compare(bundle, folder, backends=("npu",), threads=1)


def test_auto_is_no_name(bundle: Bundle, folder: PairFolder) -> None:
    with pytest.raises(BackendError, match=r"backends are \['auto'\], but .* of this machine: onnxruntime"):
        compare(bundle, folder, backends=("auto",))


def test_threads_are_checked(bundle: Bundle, folder: PairFolder) -> None:
    with pytest.raises(BackendError, match="threads is 0, expected 1 or more"):
        compare(bundle, folder, threads=0)


def test_available_backends_can_be_opened(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert available_backends()
    for name in available_backends():
        open_backend(bundle, backend=name, precision="fp32", threads=1).close()


# --- what cannot be compared ----------------------------------------------------------------------------


def test_other_classes_are_refused(bundle: Bundle, threshold_data: Path) -> None:
    toml = threshold_data / "dataset.toml"
    toml.write_text(toml.read_text().replace('"flood"', '"lake"'))
    with pytest.raises(DatasetError, match="lake"):
        compare(bundle, PairFolder.open(threshold_data))


@pytest.mark.parametrize("remove", [True, False])
def test_split_without_a_labelled_pixel(bundle: Bundle, threshold_data: Path, remove: bool) -> None:
    for path in sorted((threshold_data / "test/label").iterdir()):
        if remove:
            path.unlink()
        else:
            write_image(path, np.full((1, 40, 50), 255, np.uint8))
    seen: list[str] = []
    with pytest.raises(DatasetError, match=rf"no labelled pixel \({0 if remove else 7} label files.*--split"):
        compare(
            bundle,
            PairFolder.open(threshold_data),
            threads=1,
            progress=lambda done, total, text: seen.append(text),
        )
    assert not any(text.startswith("int8") for text in seen), "said before everything else is scored"


def test_a_bundle_without_fp32(make_thresholds: Make, folder: PairFolder) -> None:
    with pytest.raises(BundleError, match=r"has no fp32 model; it has: int8\. .*hfd-edge export"):
        compare(make_thresholds({"int8": 100}), folder, threads=1)


def test_a_changed_variant_is_an_error_and_not_a_footnote(bundle: Bundle, folder: PairFolder) -> None:
    model = bundle.path / "model.int8.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"model\.int8\.onnx was changed"):
        compare(bundle, folder, threads=1)


# --- engines --------------------------------------------------------------------------------------------


def test_engines_are_listed(make_thresholds: Make, folder: PairFolder) -> None:
    plain = make_thresholds()
    engine = sidecar(b"12345", onnx_sha256=plain.manifest.files["model.int8.onnx"])
    bundle = plain.add(
        {
            "engines/now.engine": b"12345",
            "engines/now.json": engine,
            "engines/old.engine": b"123",
            "engines/old.json": sidecar(b"123", onnx_sha256="0" * 64),
            "engines/bare.engine": b"1",
            "engines/torn.engine": b"1",
            "engines/torn.json": b"{",
            "engines/gone.engine": b"1",
        },
        engines={name: f"engines/{name}.engine" for name in ("now", "old", "bare", "torn", "gone")},
    )
    (bundle.path / "engines" / "gone.engine").unlink()  # copied without its large files
    now, old, bare, torn, gone = compare(bundle, folder, threads=1).engines
    assert (now.name, now.bytes, now.weights_bytes, now.activation_bytes) == ("now", 5, 3615752, 1000)
    assert (now.compute_capabilities, now.version, now.target) == ((75, 86), "1.7.1", "desktop")
    assert (now.current, old.current, bare.current) == (True, False, None)
    assert now.not_run == "needs backend tensorrt_rtx; here: onnxruntime"
    assert "bare.engine has no sidecar" in str(bare.not_run)
    assert "torn.json is damaged" in str(torn.not_run)
    assert "gone.engine is missing. Copy the bundle again, or build" in str(gone.not_run)
    assert gone.bytes == 0
    assert (bare.bytes, bare.weights_bytes, bare.compute_capabilities) == (1, None, ())
