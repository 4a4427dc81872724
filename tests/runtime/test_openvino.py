"""OpenVINO computes what ONNX Runtime computes, refuses what it refuses, and keeps to itself."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, load_from_string, numpy_helper

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, BundleError, MissingExtraError
from hfd_edge.files import sha256, user_cache
from hfd_edge.raster.logits import labels_from_logits
from hfd_edge.runtime.backends import available_backends, open_backend
from hfd_edge.runtime.backends.openvino import OpenVinoBackend
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import CLASSES, MakeBundle, make_onnx
from .test_backends import identity

pytest.importorskip("openvino", reason="needs the extra openvino")


def make_int8_onnx() -> bytes:
    """The small network with quantised tensors and weights around every convolution."""
    model: ModelProto = load_from_string(make_onnx(bands=2, classes=len(CLASSES)))
    graph, nodes = model.graph, []
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def quantised(name: str, scale: float) -> str:
        names = [f"{name}/{part}" for part in ("scale", "zero", "q", "dq")]
        graph.initializer.append(numpy_helper.from_array(np.float32(scale), names[0]))
        graph.initializer.append(numpy_helper.from_array(np.int8(0), names[1]))
        nodes.append(helper.make_node("QuantizeLinear", [name, *names[:2]], [names[2]]))
        nodes.append(helper.make_node("DequantizeLinear", [names[2], *names[:2]], [names[3]]))
        return names[3]

    for node in list(graph.node):
        if node.op_type == "Conv":
            tensor, weight = node.input
            node.input[0] = quantised(tensor, 8 / 127)
            node.input[1] = quantised(weight, float(np.abs(weights[weight]).max()) / 127)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def tiles(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    row, col = np.mgrid[:128, :128] / 20
    wave = np.sin(row) * np.cos(col)
    return [(wave + 0.3 * rng.normal(size=(1, 2, 128, 128))).astype(np.float32) for _ in range(count)]


def agreement(bundle: Bundle, precision: str) -> float:
    """Share of labels that the two engines have in common."""
    labels = []
    for backend in ("onnxruntime", "openvino"):
        opened = open_backend(bundle, backend=backend, precision=precision, threads=1)
        found = [opened.run(tile)[0] for tile in tiles(3)]
        opened.close()
        labels.append([labels_from_logits(logits, stride=4, rows=128, cols=128) for logits in found])
    assert len(np.unique(labels)) == len(CLASSES), "a constant would agree with itself"
    return float(np.mean(np.equal(*labels)))


def test_the_labels_are_those_of_onnxruntime(make_bundle: MakeBundle) -> None:
    """In FP32 too on a processor with bfloat16, which OpenVINO would use unless it is told not to."""
    bundle = make_bundle().add({"model.int8.onnx": make_int8_onnx()}, precisions={"int8": "model.int8.onnx"})
    assert "openvino" in available_backends()
    assert agreement(bundle, "fp32") >= 0.999
    assert agreement(bundle, "int8") >= 0.99


def test_fp32_is_fp32(make_bundle: MakeBundle) -> None:
    """bfloat16 has 8 bits: its logits would be off by 1e-2 of their range."""
    bundle, (tile,) = make_bundle(), tiles(1)
    logits = [open_backend(bundle, backend=name, threads=1).run(tile) for name in ("onnxruntime", "openvino")]
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.ptp(logits[0])


def test_logits_belong_to_the_caller(make_bundle: MakeBundle) -> None:
    backend = open_backend(make_bundle(), backend="openvino", threads=1)
    first, second = tiles(2)
    logits = backend.run(first)
    kept = logits.copy()
    assert logits.shape == (1, 4, 32, 32) and logits.dtype == np.float32
    assert not np.array_equal(backend.run(second), kept)
    np.testing.assert_array_equal(logits, kept)
    read_only = np.asfortranarray(first)
    read_only.flags.writeable = False
    np.testing.assert_array_equal(backend.run(read_only), kept)


def test_threads_take_turns(make_bundle: MakeBundle) -> None:
    backend = open_backend(make_bundle(), backend="openvino", threads=1)
    given = tiles(4)
    expected = [backend.run(tile) for tile in given]
    faults: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            try:
                same = np.array_equal(backend.run(given[index]), expected[index])
            except BackendError:
                same = False
            if not same:
                faults.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert faults == []


def test_half_precision_input(make_bundle: MakeBundle) -> None:
    model = identity(["batch", 4, "side", "side"], kind=TensorProto.FLOAT16)
    bundle = make_bundle(onnx=model, bands=("hh", "hv", "vh", "vv"), head="full")
    logits = open_backend(bundle, backend="openvino").run(np.ones((1, 4, 128, 128), np.float32))
    assert logits.dtype == np.float32
    assert (logits == 1).all()


def test_what_cannot_run_is_refused(make_bundle: MakeBundle) -> None:
    backend = open_backend(make_bundle(), backend="openvino", threads=1)
    with pytest.raises(BackendError, match=r"batch of \(2, 2, 128, 128\), expected \(1, 2, 128, 128\)"):
        backend.run(np.zeros((2, 2, 128, 128), np.float32))
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match=r"model\.fp32\.onnx was closed"):
        backend.run(tiles(1)[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (identity(["batch", 4, 128, 128], name="image"), r"inputs \['image'\] .* expected 'sar'"),
        (identity(["batch", 3, 128, 128]), r"'sar' is \[None, 3, 128, 128\], .*\(any batch, 4, 128, 128\)"),
        (identity([1, 4, 128, 128]), r"'sar' is \[1, 4, 128, 128\]"),
        (identity(["batch", 4, 128]), r"'sar' is \[None, 4, 128\]"),
        (
            identity(["batch", 4, 128, 128], kind=TensorProto.DOUBLE),
            r"'sar' is f64, expected one of f32, f16",
        ),
    ],
)
def test_model_that_does_not_fit_the_manifest(make_bundle: MakeBundle, model: bytes, message: str) -> None:
    bundle = make_bundle(onnx=model, bands=("hh", "hv", "vh", "vv"), head="full")
    with pytest.raises(BackendError, match=message):
        open_backend(bundle, backend="openvino")


def test_logits_of_another_size(make_bundle: MakeBundle) -> None:
    """All sizes are free in the file: only fixing them shows what it gives."""
    model = identity(["batch", 4, "side", "side"])
    with pytest.raises(BackendError, match=r"gives 'logits' \(1, 4, 128, 128\) .* says \(1, 4, 32, 32\)"):
        open_backend(make_bundle(onnx=model, bands=("hh", "hv", "vh", "vv")), backend="openvino")


def test_truncated_model_names_the_file(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    path = bundle.path / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx was changed"):
        open_backend(bundle, backend="openvino")
    manifest = bundle.manifest.model_copy(update={"files": {"model.fp32.onnx": sha256(path)}})
    message = r"OpenVINO .* cannot load .*model\.fp32\.onnx.*backend='onnxruntime'"
    with pytest.raises(BackendError, match=message):
        OpenVinoBackend(Bundle(bundle.path, manifest), precision="fp32")


def test_not_installed(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert available_backends()[0] == "onnxruntime" and "openvino" not in available_backends()
    with pytest.raises(
        MissingExtraError, match=r"backend openvino needs .*pip install 'hfd-edge\[openvino\]'"
    ):
        open_backend(make_bundle(), backend="openvino")
    open_backend(make_bundle(name="other.hfd")).close()


# --- what was compiled is kept --------------------------------------------------------------------------


def compiled() -> list[Path]:
    return sorted(user_cache("openvino").glob("*"))


def test_a_second_start_compiles_nothing(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, (tile,) = make_bundle(), tiles(1)
    expected = open_backend(bundle, backend="openvino", threads=1).run(tile)
    (kept,) = compiled()
    with monkeypatch.context() as context:
        context.setattr(OpenVinoBackend, "_model", None)
        again = open_backend(bundle, backend="openvino", threads=1).run(tile)
    np.testing.assert_array_equal(again, expected)
    assert compiled() == [kept]
    open_backend(make_bundle(name="b.hfd", onnx=make_int8_onnx()), backend="openvino", threads=1).close()
    assert len(compiled()) == 2, "other weights are another model"


@pytest.mark.parametrize("place", [0, 40, -5000, -1])
def test_a_damaged_cache_does_not_matter(
    make_bundle: MakeBundle, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, (tile,) = make_bundle(), tiles(1)
    expected = open_backend(bundle, backend="openvino", threads=1).run(tile)
    (kept,) = compiled()
    content = bytearray(kept.read_bytes())
    content[place] ^= 0xFF
    kept.write_bytes(content)
    np.testing.assert_array_equal(open_backend(bundle, backend="openvino", threads=1).run(tile), expected)
    assert f"{kept} is damaged; the model is compiled again" in caplog.text
    caplog.clear()
    open_backend(bundle, backend="openvino", threads=1).close()
    assert "damaged" not in caplog.text, "it was replaced"


def test_a_cache_that_cannot_be_written(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="hfd_edge.runtime"):
        open_backend(make_bundle(), backend="openvino", threads=1).run(tiles(1)[0])
    assert "what OpenVINO compiled is not kept" in caplog.text


def test_old_models_leave_the_cache(make_bundle: MakeBundle) -> None:
    user_cache("openvino").mkdir(parents=True)
    for index in range(20):
        (user_cache("openvino") / f"{index}.blob").write_bytes(b"")
    open_backend(make_bundle(), backend="openvino", threads=1).close()
    assert len(compiled()) == 16


def test_another_process_clears_the_cache_too(
    make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    """What it removes is gone between looking and asking for its age, as a link to nothing is."""
    user_cache("openvino").mkdir(parents=True)
    (user_cache("openvino") / "gone.blob").symlink_to("nowhere")
    open_backend(make_bundle(), backend="openvino", threads=1).close()
    assert "is not kept" not in caplog.text, "it was"


# --- nothing leaves the machine -------------------------------------------------------------------------


def test_no_telemetry(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """In a process of its own, whose home would show the identifiers that both engines make for theirs."""
    code = (
        "import sys, hfd_edge.runtime.backends as backends; from hfd_edge.bundle import Bundle; "
        f"bundle = Bundle.open({str(make_bundle().path)!r}); "
        "[backends.open_backend(bundle, backend=name).close() for name in ('onnxruntime', 'openvino')]; "
        "print([name for name in sys.modules if name.startswith('openvino_tele')], 'openvino' in sys.modules)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] True"
    assert [path.name for path in home.rglob("*") if path.is_file()] == [
        path.name for path in (home / ".cache/hfd-edge/openvino").iterdir()
    ]


def test_a_segmenter_runs_on_it(make_bundle: MakeBundle, make_image: object) -> None:
    image = make_image(150, 200)  # type: ignore[operator]
    masks = []
    bundle = make_bundle()
    for backend in ("onnxruntime", "openvino"):
        with Segmenter(bundle, backend=backend, precision="fp32", threads=1) as segment:
            masks.append(segment(image))
            assert segment.backend == backend
    assert np.mean(masks[0] == masks[1]) >= 0.999
