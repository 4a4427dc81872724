"""OpenVINO on the CPU: an extra that on most processors is faster than ONNX Runtime, above all in INT8."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Manifest
from hfd_edge.errors import BackendError, require
from hfd_edge.runtime.backends.onnxruntime import check_ports
from hfd_edge.runtime.backends.openvino_cache import CompiledCache

_FLOATS = ("f32", "f16")
_TELEMETRY = "openvino_telemetry"
_importing = threading.Lock()


def load_openvino(*, purpose: str) -> Any:
    """Import OpenVINO without its telemetry, which would report each import over the network.

    It asks nobody before it does so, and offers no switch but a file in the user's home. With its telemetry
    package out of reach it takes a stand-in that does nothing. Whoever imported OpenVINO before this decided
    for themselves.

    Args:
        purpose: What needs it; the subject of the message.
    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
    """
    with _importing:
        found = sys.modules.pop(_TELEMETRY, None)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # "import" then raises ImportError
        try:
            return require("openvino", extra="openvino", purpose=purpose)
        finally:
            del sys.modules[_TELEMETRY]
            if found is not None:
                sys.modules[_TELEMETRY] = found


class OpenVinoBackend:
    """The bundle's ONNX model, compiled for this CPU; see `Backend`. Threads share it in turns."""

    name = "openvino"
    # Two tiles side by side, on a stream and a thread each, took the same processor time as one after the
    # other on two threads (preset s, FP32 and INT8), and take twice the memory.
    batch = 1

    def __init__(self, bundle: Bundle, *, precision: str, threads: int | None = None) -> None:
        """Load the model.

        What was compiled is kept for the next start, in the user's cache.

        Raises:
            BackendError: OpenVINO cannot load the model, or it does not fit the manifest.
            BundleError: the bundle has no such model, or it was changed.
            MissingExtraError: OpenVINO is not installed.
        """
        self.precision = precision
        self._path = bundle.model(precision)
        self._lock = threading.Lock()
        self._request: Any = None
        self._openvino = load_openvino(purpose="backend openvino")
        manifest = bundle.manifest
        side, size = manifest.tile_px, manifest.tile_px // manifest.stride
        self._tile = (1, len(manifest.sar.bands), side, side)
        self._logits = (1, len(manifest.classes), size, size)
        try:
            self._request = self._compiled(bundle, threads).create_infer_request()
        except RuntimeError as error:  # what all of OpenVINO's exceptions are in Python
            if isinstance(error, BackendError):
                raise
            raise BackendError(
                f"OpenVINO {self._openvino.__version__} cannot load {self._path}: {_last_line(error)}. The "
                "file is damaged or uses operators that this version of openvino lacks: copy the bundle "
                "again, update openvino, or use backend='onnxruntime'."
            ) from error

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits; see `Backend.run`. Raises BackendError."""
        if batch.shape != self._tile:
            raise BackendError(
                f"OpenVINO could not run {self._path} on a batch of {batch.shape}, expected {self._tile}. "
                "Give one tile of the bundle's size at a time."
            )
        batch = np.ascontiguousarray(batch, np.float32)
        logits = np.empty(self._logits, np.float32)  # the caller's: the next run must not change it
        with self._lock:
            if self._request is None:
                raise BackendError(f"{self._path} was closed. Open the bundle again to run it.")
            try:
                self._request.set_output_tensor(self._openvino.Tensor(logits, shared_memory=True))
                self._request.infer({0: batch}, share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise BackendError(
                    f"OpenVINO could not run {self._path} on a batch of {batch.shape}: {_last_line(error)}. "
                    "If memory is short, use a bundle with smaller tiles."
                ) from error
        return logits

    def close(self) -> None:
        """Free the model; more than once is allowed."""
        with self._lock:
            self._request = None

    def _compiled(self, bundle: Bundle, threads: int | None) -> Any:
        """The compiled model, from the cache if it is there."""
        core = self._openvino.Core()
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Left alone, CPUs with bfloat16 use it for everything that is FP32: another precision than
            # the one that was asked for.
            "INFERENCE_PRECISION_HINT": "f32",
            # Two processes would pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        model_sha256 = bundle.manifest.files[self._path.relative_to(bundle.path).as_posix()]
        cache = CompiledCache(self._openvino, core, options)
        key = (model_sha256, self._tile, self._logits)
        compiled = cache.load(key)
        if compiled is None:
            compiled = core.compile_model(self._model(core, bundle.manifest), "CPU", options)
            cache.keep(key, compiled)
        return compiled

    def _model(self, core: Any, manifest: Manifest) -> Any:
        """Read the ONNX file, compare its interface with the manifest, and fix its shapes."""
        model = core.read_model(self._path)
        inputs, outputs = _shapes(model.inputs), _shapes(model.outputs)
        check_ports(self._path, manifest, inputs=inputs, outputs=outputs)
        kind = model.input("sar").element_type.get_type_name()
        if kind not in _FLOATS:
            raise BackendError(
                f"{self._path}: 'sar' is {kind}, expected one of {', '.join(_FLOATS)}. Export it again."
            )
        model.reshape(list(self._tile))
        found = tuple(_dimensions(model.output("logits")))
        if found != self._logits:
            raise BackendError(
                f"{self._path} gives 'logits' {found} for a tile of {self._tile}, but the manifest says "
                f"{self._logits}. Export the bundle again."
            )
        ports = self._openvino.preprocess.PrePostProcessor(model)  # FP16 models take and give FP32
        ports.input().tensor().set_element_type(self._openvino.Type.f32)
        ports.output().tensor().set_element_type(self._openvino.Type.f32)
        return ports.build()


def _shapes(ports: list[Any]) -> dict[str, list[int | None]]:
    return {port.any_name: _dimensions(port) for port in ports}


def _dimensions(port: Any) -> list[int | None]:
    """Sizes of a port, None where one may vary; empty where even their number may."""
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return []
    return [None if size.is_dynamic else size.get_length() for size in shape]


def _last_line(error: BaseException) -> str:
    """The fault itself: the lines before it name places in OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
