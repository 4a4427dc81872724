"""Programs that torch-tensorrt compiled (`deploy.torch_tensorrt`), on desktops that have PyTorch.

The one backend that needs torch: it is imported when a program is opened, and never on a device. Pixels and
logits pass through host memory, as torch-tensorrt runs on PyTorch's own memory and streams. A .pt2 archive
may hold pickled parts, so its hashes and its sidecar are checked before anything opens it. A program names
only the weights that it was compiled from, so a golden tile tells whether it is the bundle's network.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Manifest
from hfd_edge.engine_record import EngineRecord, Here, check_engine, check_fits, read_engine_record
from hfd_edge.errors import BackendError, EngineError, require
from hfd_edge.gpu import find_gpu
from hfd_edge.raster.logits import labels_from_logits

FLAVOUR = "torch_tensorrt"
GOLDEN_AGREEMENT = 0.95
"""Least share of a golden tile's pixels with the label that the bundle's FP32 model gave them. When it was
compiled, the program was compared with its weights far more closely; this tells other weights from these."""

_DEVICE = "cuda"
_EXTRA = "torch-tensorrt"


class TorchTensorRTBackend:
    """A torch-tensorrt program of a bundle; see `Backend`. Threads may share it: they take turns.

    Attributes:
        name: "torch_tensorrt".
        precision: The program's.
        batch: Most tiles of a batch; fewer than the program's least are filled up.
    """

    name = FLAVOUR

    def __init__(self, bundle: Bundle, engine: str) -> None:
        """Load a program.

        Args:
            bundle: The bundle.
            engine: `<target>-<precision>`.
        Raises:
            BackendError: the program fails, or gives other labels than the bundle's model.
            BundleError: the bundle has no such program, or it was changed.
            EngineError: it was compiled for another GPU, by another release or for other tiles, or there is
                no GPU. Says what compiles it again.
            MissingExtraError: torch or torch-tensorrt is not installed.
        """
        self._lock = threading.Lock()
        self._module: Any = None
        self._manifest = bundle.manifest
        path = bundle.engine(engine)
        record = read_engine_record(path)
        self._what = f"program {engine}"
        _check_manifest(record, bundle.manifest)
        trt = _package(record)
        check_engine(path)
        self.precision: str = record.precision
        self._least, _, self.batch = (int(size) for size in record.options["batch"])
        self._torch: Any = require("torch", extra=_EXTRA, purpose="running a torch-tensorrt program")
        try:
            self._module = trt.load(str(path)).module()
        except Exception as error:  # torch and its pickles raise classes of their own
            raise EngineError(
                f"torch-tensorrt {trt.__version__} cannot load {path}: {error}. "
                f"Compile it again with: {record.rebuild()}"
            ) from error
        self._check_golden(bundle, record)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits; see `Backend.run`. Raises BackendError."""
        count, manifest = len(batch), self._manifest
        tile = (len(manifest.sar.bands), manifest.tile_px, manifest.tile_px)
        if batch.shape[1:] != tile or not 1 <= count <= self.batch:
            raise BackendError(
                f"A batch of {batch.shape} was given to {self._what}, expected 1 to {self.batch} tiles of "
                f"{tile}. Use the bundle's tile size, or split the batch."
            )
        if count < self._least:
            batch = np.concatenate([batch, np.repeat(batch[-1:], self._least - count, axis=0)])
        with self._lock:
            if self._module is None:
                raise BackendError(f"The {self._what} was closed. Open the bundle again to run it.")
            logits = self._logits(np.ascontiguousarray(batch, np.float32))
        size = manifest.tile_px // manifest.stride
        expected = (len(batch), len(manifest.classes), size, size)
        if logits.shape != expected:
            raise BackendError(
                f"The {self._what} gives logits {logits.shape}, expected {expected}. Compile the run again."
            )
        return logits[:count]

    def close(self) -> None:
        """Free the program's device memory; more than once is allowed."""
        with self._lock:
            self._module = None
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()

    def _logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            with self._torch.inference_mode():
                logits: NDArray[np.float32] = (
                    self._module(self._torch.from_numpy(batch).to(_DEVICE)).float().cpu().numpy()
                )
        except Exception as error:
            raise BackendError(
                f"The {self._what} failed on a batch of {batch.shape}: {error}. If memory is short, use a "
                "target with a smaller batch, or a bundle with smaller tiles."
            ) from error
        return logits

    def _check_golden(self, bundle: Bundle, record: EngineRecord) -> None:
        """Compare labels of a golden tile; a bundle that has none is taken as it is."""
        for tile in bundle.golden()[:1]:
            pixels, valid = bundle.manifest.preprocessing(tile.image)
            rows, cols = valid.shape
            missing = ((0, 0), (0, bundle.manifest.tile_px - rows), (0, bundle.manifest.tile_px - cols))
            logits = self.run(np.pad(pixels, missing, mode="symmetric")[None])[0]
            labels = labels_from_logits(logits, stride=bundle.manifest.stride, rows=rows, cols=cols)
            agreement = float((labels == tile.labels)[valid].mean()) if valid.any() else 1.0
            if agreement < GOLDEN_AGREEMENT:
                raise BackendError(
                    f"The {self._what} gives the bundle's own labels to {agreement:.1%} of golden tile "
                    f"{tile.name}, expected {GOLDEN_AGREEMENT:.0%}: it is of other weights. Compile the run "
                    f"that {bundle.path} was exported from: {record.rebuild()}"
                )


def _check_manifest(record: EngineRecord, manifest: Manifest) -> None:
    """Refuse a file of another compiler, or of another form of the network than the bundle's."""
    if record.flavour != FLAVOUR:
        raise EngineError(
            f"Engine {record.target}-{record.precision} was made by {record.flavour}, not by torch-tensorrt. "
            f"Use backend='{record.flavour}'."
        )
    for name, expected in (("tile_px", manifest.tile_px), ("head", manifest.head)):
        found = record.options.get(name)
        if found != expected:
            raise EngineError(
                f"Program {record.target}-{record.precision} was compiled with {name} {found}, but the "
                f"bundle has {expected}. Compile it again with: {record.rebuild()}"
            )


def _package(record: EngineRecord) -> Any:
    """torch_tensorrt, once it is certain that there is the GPU that the program is for."""
    gpu = find_gpu()
    if gpu is None:  # its import fails without one
        raise EngineError(
            f"Program {record.target}-{record.precision} needs an NVIDIA GPU with a driver, and there is "
            "none here. Check with nvidia-smi, or use backend='onnxruntime'."
        )
    try:
        trt: Any = require(FLAVOUR, extra=_EXTRA, purpose="running a torch-tensorrt program")
    except (OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"torch-tensorrt is installed but cannot be loaded: {error}. Its release must be that of torch. "
            "Install both again with: pip install 'hfd-edge[torch-tensorrt]'"
        ) from error
    here = Here(flavour=FLAVOUR, version=str(trt.__version__), compute_capability=gpu.compute_capability)
    check_fits(record, here, onnx_sha256=record.onnx_sha256)
    return trt
