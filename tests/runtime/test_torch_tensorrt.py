"""The torch-tensorrt backend with a stand-in module: real programs of PyTorch, run on the CPU.

The real package needs a GPU; tests/deploy/test_torch_tensorrt.py says what is known of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.kit import take_engine
from hfd_edge.engine_record import EngineRecord, engine_key
from hfd_edge.errors import BackendError, BundleError, EngineError, MissingExtraError
from hfd_edge.files import sha256
from hfd_edge.gpu import Gpu
from hfd_edge.raster.image import write_image
from hfd_edge.raster.logits import labels_from_logits
from hfd_edge.runtime.backends import choice
from hfd_edge.runtime.backends import torch_tensorrt as subject
from hfd_edge.runtime.backends.torch_tensorrt import TorchTensorRTBackend
from hfd_edge.runtime.segmenter import Segmenter

from .conftest import BANDS, CLASSES, MakeBundle

torch = pytest.importorskip("torch", reason="torch-tensorrt runs on PyTorch")
nn = torch.nn
TILE, NAME = 64, "desktop-torch-tensorrt-fp32"
Change = Callable[[dict[str, Any]], None]


class StandIn(ModuleType):
    """torch_tensorrt as far as it is used."""

    __version__ = "2.14.0"

    def load(self, file_path: str) -> Any:
        return torch.export.load(file_path)


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A machine with an Ada GPU whose work the CPU does."""
    module = StandIn("torch_tensorrt")
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    for place in (subject, choice):
        monkeypatch.setattr(place, "find_gpu", lambda: Gpu(89, 1 << 30, 1 << 31))
    monkeypatch.setattr(subject, "_DEVICE", "cpu")
    return module


def network(seed: int = 0, classes: int = len(CLASSES)) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(len(BANDS), 8, 3, 2, 1), nn.LeakyReLU(0.3), nn.Conv2d(8, classes, 3, 2, 1)
    ).eval()


def save_program(
    path: Path, net: Any, *, batch: tuple[int, int] = (1, 3), change: Change | None = None
) -> Path:
    """A program and its sidecar, as compile_run leaves them; `change` edits the record's values."""
    least, most = batch
    zeros = torch.zeros(most, len(BANDS), TILE, TILE)
    dynamic = None if least == most else ({0: torch.export.Dim("batch", min=least, max=most)},)
    torch.export.save(torch.export.export(net, (zeros,), dynamic_shapes=dynamic), path)
    values: dict[str, Any] = {
        "flavour": "torch_tensorrt",
        "version": "2.14.0",
        "compute_capabilities": (89,),
        "options": {"batch": [least, most, most], "tile_px": TILE, "head": "quarter"},
    }
    if change is not None:
        change(values)
    record = EngineRecord(
        target="desktop-torch-tensorrt",
        precision="fp32",
        engine_key=engine_key("0" * 64, **values),
        onnx_sha256="0" * 64,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        seconds=1.0,
        **values,
    )
    path.with_suffix(".json").write_text(record.to_json())
    return path


@pytest.fixture
def open_program(
    desktop: StandIn, make_bundle: MakeBundle, tmp_path: Path
) -> Callable[..., tuple[Bundle, TorchTensorRTBackend]]:
    """Give a function that puts a program into a bundle with a golden tile, and opens it."""

    def opened(
        net: Any = None, *, golden: bool = True, **options: Any
    ) -> tuple[Bundle, TorchTensorRTBackend]:
        net = network() if net is None else net
        bundle = make_bundle(tile_px=TILE, speckle="none")
        if golden:
            bundle = _with_golden(bundle, tmp_path)
        bundle = take_engine(bundle, save_program(tmp_path / f"{NAME}.pt2", net, **options))
        assert bundle.manifest.engines == {NAME: f"engines/{NAME}.pt2"}
        return bundle, TorchTensorRTBackend(bundle, NAME)

    return opened


def _with_golden(bundle: Bundle, folder: Path) -> Bundle:
    """What network() says of a tile of 60 x 50 pixels."""
    image = np.random.default_rng(3).gamma(4, 0.01, (2, 60, 50)).astype(np.float32)
    image[:, :7] = 0
    pixels, valid = bundle.manifest.preprocessing(image)
    tile = np.pad(pixels, ((0, 0), (0, 4), (0, 14)), mode="symmetric")
    logits = network()(torch.from_numpy(tile[None])).detach().numpy()[0]
    labels = labels_from_logits(logits, stride=4, rows=60, cols=50)
    labels[~valid] = bundle.manifest.nodata_label
    write_image(folder / "000.sar.tif", image)
    write_image(folder / "000.labels.png", labels[None])
    return bundle.add({f"golden/{name}": folder / name for name in ("000.sar.tif", "000.labels.png")})


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 2, TILE, TILE)).astype(np.float32)


def test_logits_are_those_of_the_program(open_program: Any) -> None:
    _, backend = open_program()
    assert (backend.name, backend.precision, backend.batch) == ("torch_tensorrt", "fp32", 3)
    for count in (1, 2, 3):
        expected = network()(torch.from_numpy(tiles(count))).detach().numpy()
        found = backend.run(tiles(count))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match=rf"program {NAME} was closed\. Open the bundle again"):
        backend.run(tiles(1))


def test_a_short_batch_is_filled_up(open_program: Any) -> None:
    _, backend = open_program(batch=(2, 2))
    expected = network()(torch.from_numpy(tiles(1))).detach().numpy()
    np.testing.assert_allclose(backend.run(tiles(1)), expected, atol=1e-5)


def test_the_segmenter_runs_it(open_program: Any, make_image: Any) -> None:
    bundle, _ = open_program()
    with Segmenter(bundle, backend="torch_tensorrt", precision="fp32") as segment:
        labels = segment(make_image(100, 90))
    assert labels.shape == (100, 90) and len(np.unique(labels)) > 2


@pytest.mark.parametrize(
    "shape", [(4, 2, TILE, TILE), (0, 2, TILE, TILE), (1, 2, TILE, 32), (1, 3, TILE, TILE)]
)
def test_a_batch_that_does_not_fit(open_program: Any, shape: tuple[int, ...]) -> None:
    _, backend = open_program()
    with pytest.raises(
        BackendError, match=r"was given to program .*, expected 1 to 3 tiles of \(2, 64, 64\)"
    ):
        backend.run(np.zeros(shape, np.float32))


def test_other_weights_are_refused(open_program: Any) -> None:
    with pytest.raises(
        BackendError, match=r"own labels to \d.*% of golden tile 000, expected 95%.*hfd-edge build"
    ):
        open_program(network(seed=1))


def test_a_bundle_without_golden_tiles_takes_any(open_program: Any) -> None:
    open_program(network(seed=1), golden=False)


def test_another_number_of_classes_is_refused(open_program: Any) -> None:
    with pytest.raises(BackendError, match=r"gives logits \(1, 3, 16, 16\), expected \(1, 4, 16, 16\)"):
        open_program(network(classes=3))


def test_a_program_that_fails(open_program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, backend = open_program()

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(backend, "_module", fail)
    with pytest.raises(BackendError, match=r"failed on a batch of \(1, 2, 64, 64\): CUDA out of memory"):
        backend.run(tiles(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2.13.0"}, r"built by torch_tensorrt 2.13.0, but this machine has 2.14.0.*build RUN"),
        ({"compute_capabilities": (86,)}, r"built for sm_86, but this GPU is sm_89"),
        (
            {"options": {"batch": [1, 1, 1], "tile_px": 96, "head": "quarter"}},
            r"tile_px 96, but the bundle has 64",
        ),
        (
            {"options": {"batch": [1, 1, 1], "tile_px": 64, "head": "full"}},
            r"head full, but the bundle has quarter",
        ),
    ],
)
def test_programs_that_do_not_fit(open_program: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_program(change=lambda values: values.update(change))


def test_nothing_is_loaded_before_it_is_checked(
    open_program: Any, desktop: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = open_program()
    loaded: list[str] = []
    monkeypatch.setattr(StandIn, "load", lambda self, path: loaded.append(path))
    path = bundle.path / bundle.manifest.engines[NAME]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        TorchTensorRTBackend(bundle, NAME)
    changed = bundle.add({f"engines/{NAME}.pt2": path})
    with pytest.raises(EngineError, match=r"was changed after it was built: its SHA-256 differs"):
        TorchTensorRTBackend(changed, NAME)
    assert loaded == []


def test_a_program_that_cannot_be_loaded(open_program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: StandIn, path: str) -> None:
        raise ValueError("unknown archive version 7")

    monkeypatch.setattr(StandIn, "load", refuse)
    with pytest.raises(EngineError, match=r"2.14.0 cannot load .*pt2: unknown archive version 7.*build RUN"):
        open_program()


def test_an_engine_of_another_compiler(open_program: Any) -> None:
    with pytest.raises(EngineError, match=r"was built from another fp32 model"):
        open_program(change=lambda values: values.update(flavour="tensorrt"))
    record = EngineRecord("t", "fp32", "tensorrt", "10.3.0", (89,), "", "", {}, 0, "0" * 64, 0.0)
    with pytest.raises(EngineError, match=r"Engine t-fp32 was made by tensorrt, .*backend='tensorrt'"):
        subject._check_manifest(record, Any)  # type: ignore[arg-type]


def test_without_a_gpu_or_the_package(
    open_program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, _ = open_program()
    with monkeypatch.context() as nothing:
        nothing.setattr(subject, "find_gpu", lambda: None)
        with pytest.raises(EngineError, match=r"needs an NVIDIA GPU with a driver, and there is none here"):
            TorchTensorRTBackend(bundle, NAME)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(
        MissingExtraError, match=r"running a torch-tensorrt program.*hfd-edge\[torch-tensorrt\]"
    ):
        TorchTensorRTBackend(bundle, NAME)
    (tmp_path / "torch_tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_tensorrt")
    with pytest.raises(EngineError, match=r"installed but cannot be loaded: libnvinfer.so.10: cannot open"):
        TorchTensorRTBackend(bundle, NAME)
