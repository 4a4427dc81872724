"""Triton model repositories: the schema is Triton's own, and a client gets the runtime's labels."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app
from hfd_edge.deploy.triton import export_triton, protobuf_text
from hfd_edge.errors import BundleError, EngineError, ExportError, StorageError
from hfd_edge.raster.image import write_image
from hfd_edge.runtime.segmenter import Segmenter

from ..runtime.conftest import CLASSES, make_manifest, make_onnx
from ..runtime.engine_files import put_engine

TILE = 128
BATCH = {"options": {"batch": [1, 4, 16]}}


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(3)
    level = np.repeat(np.repeat(rng.uniform(-25, 0, (2, 16, 16)), 8, axis=1), 8, axis=2)
    image = (10 ** (level / 10) * rng.gamma(4, 1 / 4, level.shape)).astype(np.float32)
    image[:, 20:55, 30:50] = 0.0
    return image


@pytest.fixture
def make(tmp_path: Path, image: np.ndarray) -> Callable[..., Bundle]:
    """Make a bundle; with a golden tile unless told otherwise."""

    def make(*, golden: bool = True, onnx: bytes | None = None, **changes: Any) -> Bundle:
        manifest = make_manifest(**changes)
        model = onnx or make_onnx(bands=2, classes=len(CLASSES), tile=TILE)
        files: dict[str, bytes | Path] = dict.fromkeys(manifest.precisions.values(), model)
        if golden:
            write_image(tmp_path / "g.tif", image)
            write_image(tmp_path / "g.png", np.zeros((1, TILE, TILE), np.uint8))
            files |= {"golden/0.sar.tif": tmp_path / "g.tif", "golden/0.labels.png": tmp_path / "g.png"}
        return Bundle.create(tmp_path / "small.hfd", manifest, files)

    return make


def read_config(model: Path) -> Any:
    """Parse as Triton does: an unknown field, enumeration or type is an error."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_onnx_repository(make: Callable[..., Bundle], image: np.ndarray, tmp_path: Path) -> None:
    bundle = make()
    made = export_triton(bundle, tmp_path / "models")
    config = read_config(made.path)
    files = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "README.md", "1/model.onnx", "warmup/tile.raw"}
    assert (config.name, made.path) == ("small", tmp_path / "models" / "small")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    assert config.max_batch_size == made.max_batch_size == 8
    assert (made.path / "1/model.onnx").read_bytes() == bundle.model("fp32").read_bytes()
    (taken,), (given,) = config.input, config.output
    session = onnxruntime.InferenceSession(made.path / "1/model.onnx", providers=["CPUExecutionProvider"])
    for port, real in ((taken, session.get_inputs()[0]), (given, session.get_outputs()[0])):
        assert (port.name, list(port.dims)) == (real.name, real.shape[1:])
        assert port.data_type == model_config_pb2.TYPE_FP32
    assert (made.path / given.label_filename).read_text().split() == list(CLASSES)
    assert config.version_policy.latest.num_versions == 1
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_AUTO]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
    warm = config.model_warmup[0].inputs["sar"]
    content = np.fromfile(made.path / "warmup" / warm.input_data_file, "<f4").reshape(warm.dims)
    assert np.array_equal(content, bundle.manifest.preprocessing(image)[0])
    assert json.loads(config.parameters["classes"].string_value) == list(CLASSES)


def test_readme_client_gets_the_labels_of_the_runtime(
    make: Callable[..., Bundle], image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's code, with a server that runs the repository's model and knows its configuration alone."""
    bundle = make()
    made = export_triton(bundle, tmp_path / "models", name="flood-2")
    config = json_format.MessageToDict(read_config(made.path), preserving_proto_field_name=True)

    class Input:
        def __init__(self, name: str, shape: list[int], datatype: str) -> None:
            self.described = (name, shape, datatype)

        def set_data_from_numpy(self, pixels: np.ndarray) -> None:
            assert self.described == ("sar", list(pixels.shape), "FP32")
            self.pixels = pixels

    class Client:
        def __init__(self, server: str) -> None:
            assert server == "localhost:8000"

        def get_model_config(self, name: str) -> Any:
            assert name == "flood-2"
            return config

        def infer(self, name: str, inputs: list[Input]) -> Any:
            session = onnxruntime.InferenceSession(
                made.path / "1/model.onnx", providers=["CPUExecutionProvider"]
            )
            (logits,) = session.run(["logits"], {"sar": inputs[0].pixels})
            return types.SimpleNamespace(as_numpy={"logits": logits}.__getitem__)

    module = types.ModuleType("tritonclient.http")
    module.InferInput, module.InferenceServerClient = Input, Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)
    monkeypatch.setattr("tritonclient.http", module, raising=False)
    readme = (made.path / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    with Segmenter(bundle, backend="onnxruntime") as segment:
        expected = segment(image)
    assert len(np.unique(expected)) > 2
    assert np.array_equal(names["segment"](image), expected)
    assert "| vv | -30 to 60 | -15 | 5 |" in readme
    assert "intensity -> speckle filter (lee, 5 x 5; looks\n4) -> dB" in readme


def test_tensorrt_plan(make: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = put_engine(make(), "10.3.0", content=b"plan", **BATCH)
    made = export_triton(bundle, tmp_path / "models", engine="orin-fp32")
    config = read_config(made.path)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16)
    assert (made.path / "1/model.plan").read_bytes() == b"plan"
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
    assert [sample.batch_size for sample in config.model_warmup] == [1, 16]


def test_a_plan_that_takes_no_single_tile(make: Callable[..., Bundle], tmp_path: Path) -> None:
    """A warm-up with fewer tiles than its profile allows would keep the model from loading."""
    bundle = put_engine(make(), "10.3.0", content=b"plan", options={"batch": [2, 4, 8]})
    config = read_config(export_triton(bundle, tmp_path / "models", engine="orin-fp32").path)
    assert [sample.batch_size for sample in config.model_warmup] == [2, 8]
    assert config.parameters["tiles_per_request"].string_value == "2"


def test_fixed_batch(make: Callable[..., Bundle], tmp_path: Path) -> None:
    """A plan for exactly two tiles: the server adds no batch axis, and gathers no requests."""
    bundle = put_engine(make(), "10.3.0", content=b"plan", options={"batch": [2, 2, 2]})
    config = read_config(export_triton(bundle, tmp_path / "models", engine="orin-fp32").path)
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert list(config.input[0].dims) == [2, 2, TILE, TILE]
    assert list(config.output[0].dims) == [2, len(CLASSES), TILE // 4, TILE // 4]
    (sample,) = config.model_warmup
    assert (sample.batch_size, list(sample.inputs["sar"].dims)) == (1, [2, 2, TILE, TILE])
    assert config.parameters["tiles_per_request"].string_value == "2", "the README's client sends so many"
    assert (tmp_path / "models/small/warmup/tile.raw").stat().st_size == 2 * 2 * TILE * TILE * 4


def test_without_golden_tiles_the_sample_is_the_mean(make: Callable[..., Bundle], tmp_path: Path) -> None:
    made = export_triton(make(golden=False), tmp_path / "models")
    (first, _) = read_config(made.path).model_warmup
    assert first.inputs["sar"].zero_data
    assert not (made.path / "warmup").exists()


def test_what_triton_cannot_serve_is_refused(make: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = put_engine(make(), "1.7.1", name="rtx-fp32", **BATCH)
    bundle = put_engine(bundle, "10.3.0", name="old-fp32", onnx_sha256="0" * 64, **BATCH)
    bundle = put_engine(bundle, "2.11", name="pt-fp32", flavour="torch_tensorrt", **BATCH)
    bundle = put_engine(bundle, "10.3.0", name="bare-fp32")
    out = tmp_path / "models"
    for engine, words in {
        "rtx-fp32": "made by TensorRT-RTX, which Triton's TensorRT backend cannot load.*--precision fp32",
        "pt-fp32": "made by torch_tensorrt, which Triton's TensorRT backend cannot load",
        "old-fp32": "from another fp32 model.*hfd-edge build .* --target old --precision fp32",
        "bare-fp32": "batch None, expected .least, best, most.",
    }.items():
        with pytest.raises(EngineError, match=words):
            export_triton(bundle, out, engine=engine)
    with pytest.raises(BundleError, match="no engine orin-int8"):
        export_triton(bundle, out, engine="orin-int8")
    with pytest.raises(BundleError, match="no fp16 model"):
        export_triton(bundle, out, precision="fp16")
    with pytest.raises(ExportError, match="WeightBiasQuantization.*--engine"):
        export_triton(bundle, out, precision="int8_fp16")
    with pytest.raises(ExportError, match="Give one"):
        export_triton(bundle, out, precision="fp32", engine="old-fp32")
    with pytest.raises(ExportError, match="'../x' is no name"):
        export_triton(bundle, out, name="../x")
    assert not out.exists()


def test_names(make: Callable[..., Bundle], tmp_path: Path) -> None:
    """A bundle's name may hold anything; other models of the repository stay."""
    bundle = make()
    odd = replace(bundle, manifest=bundle.manifest.model_copy(update={"name": "flood / \u00fc 2"}))
    assert export_triton(odd, tmp_path / "models").name == "flood-2"
    export_triton(bundle, tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["flood-2", "small"]
    with pytest.raises(StorageError, match="small already exists.*--name"):
        export_triton(bundle, tmp_path / "models")


def test_text_of_awkward_strings() -> None:
    text = 'quote " back\\slash\nline \u00e4\u00f6 \u6771'
    parsed = text_format.Parse(protobuf_text({"name": text}), model_config_pb2.ModelConfig())
    assert parsed.name == text


def test_command(make: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make()
    arguments = ["export", "triton", str(bundle.path), str(tmp_path / "models"), "--name", "x", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["name"], found["backend"], found["max_batch_size"]) == ("x", "onnxruntime", 8)
    assert read_config(Path(found["path"])).name == "x"
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ") and "already exists" in again.stderr
