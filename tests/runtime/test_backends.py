"""What was asked for is used, or refused with a reason."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, BundleError
from hfd_edge.files import sha256
from hfd_edge.runtime.backends import choice, open_backend
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

MakeBundle = Callable[..., Bundle]


def identity(shape: list[int | str | None], *, kind: int = TensorProto.FLOAT, name: str = "sar") -> bytes:
    """Make a model whose output is its input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["logits"])],
        "identity",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info("logits", kind, shape)],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "torch_tensorrt"])
def test_gpu_backends_need_a_gpu(make_bundle: MakeBundle, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_gpu", lambda: None)
    with pytest.raises(BackendError, match=rf"{name} cannot run .*There is no NVIDIA GPU with a driver"):
        open_backend(make_bundle(), backend=name)


def test_unknown_backend_and_threads(make_bundle: MakeBundle) -> None:
    with pytest.raises(BackendError, match="no backend 'npu'. Choose one of auto, onnxruntime, openvino, "):
        open_backend(make_bundle(), backend="npu")
    with pytest.raises(BackendError, match="threads is 0, expected 1 or more"):
        open_backend(make_bundle(name="other.hfd"), threads=0)


def test_auto_says_what_it_chose(make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hfd_edge.runtime"):
        open_backend(make_bundle()).close()
    assert "chose backend onnxruntime and precision fp32" in caplog.text


def test_runs_batches(make_bundle: MakeBundle) -> None:
    backend = open_backend(make_bundle(), backend="onnxruntime", precision="fp32", threads=1)
    batch = np.random.default_rng(0).normal(size=(2, 2, 128, 128)).astype(np.float32)
    logits = backend.run(batch)
    assert logits.shape == (2, 4, 32, 32)
    assert logits.dtype == np.float32
    assert np.allclose(backend.run(batch[1:]), logits[1:], atol=1e-5)
    with pytest.raises(BackendError, match=r"could not run .*model\.fp32\.onnx on a batch of \(1, 3, 128"):
        backend.run(np.zeros((1, 3, 128, 128), np.float32))


def test_half_precision_input(make_bundle: MakeBundle) -> None:
    model = identity(["batch", 4, "side", "side"], kind=TensorProto.FLOAT16)
    bundle = make_bundle(onnx=model, bands=("hh", "hv", "vh", "vv"), head="full")
    logits = open_backend(bundle).run(np.ones((1, 4, 128, 128), np.float32))
    assert logits.dtype == np.float32
    assert (logits == 1).all()


def test_truncated_model_names_the_file(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    path = bundle.path / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx was changed"):
        open_backend(bundle)
    # A bundle that was made from a truncated file: its hash is right, the model is not.
    manifest = bundle.manifest.model_copy(update={"files": {"model.fp32.onnx": sha256(path)}})
    with pytest.raises(
        BackendError, match=r"ONNX Runtime cannot load .*model\.fp32\.onnx.*copy the bundle again"
    ):
        OnnxRuntimeBackend(Bundle(bundle.path, manifest), precision="fp32")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (identity(["batch", 4, 128, 128], name="image"), r"inputs \['image'\] .* expected 'sar'"),
        (
            identity(["batch", 3, 128, 128]),
            r"'sar' is \['batch', 3, 128, 128\], .*\(any batch, 4, 128, 128\)",
        ),
        (identity(["batch", 4, 64, 64]), r"'sar' is \['batch', 4, 64, 64\]"),
        (identity([1, 4, 128, 128]), r"'sar' is \[1, 4, 128, 128\]"),
        (identity(["batch", 4, 128]), r"'sar' is \['batch', 4, 128\]"),
        (identity(["batch", 4, 128, 128], kind=TensorProto.DOUBLE), r"'sar' is tensor\(double\)"),
    ],
)
def test_model_that_does_not_fit_the_manifest(make_bundle: MakeBundle, model: bytes, message: str) -> None:
    onnx.checker.check_model(model)
    bundle = make_bundle(onnx=model, bands=("hh", "hv", "vh", "vv"), head="full")
    with pytest.raises(BackendError, match=message):
        open_backend(bundle)


def test_runtime_needs_no_training_packages() -> None:
    """A device has neither torch nor onnx, and a runtime that is only imported not even onnxruntime."""
    code = (
        "import sys; import hfd_edge.runtime.segmenter; "
        "heavy = ('torch', 'onnx', 'onnxruntime', 'openvino', 'timm', 'modelopt'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
