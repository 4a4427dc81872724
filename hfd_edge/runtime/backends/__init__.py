"""What runs the network: one small interface, and the choice of who implements it."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError
from hfd_edge.gpu import find_gpu

GPU_BACKENDS = ("tensorrt", "tensorrt_rtx", "torch_tensorrt")
BACKENDS = ("auto", "onnxruntime", *GPU_BACKENDS)

# On CPUs ONNX Runtime executes quantised graphs slower than FP32 ones, and FP16 by conversion to FP32.
_CPU_PREFERENCE = ("fp32", "fp16", "int8")

_log = logging.getLogger("hfd_edge.runtime")


class Backend(Protocol):
    """Runs batches of tiles through the network.

    Attributes:
        name: Backend name, for example "onnxruntime".
        precision: "fp32", "fp16", "int8" or "int8_fp16".
        batch: Most tiles that `run` takes at once.
    """

    name: str
    precision: str
    batch: int

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits.

        Args:
            batch: Standardised tiles (n, bands, tile_px, tile_px), n from 1 to `batch`.
        Returns:
            Logits (n, classes, tile_px / stride, tile_px / stride).
        Raises:
            BackendError: the network failed to run, or the backend was closed.
        """
        ...

    def close(self) -> None:
        """Free the device memory; more than once is allowed."""
        ...


def available_backends() -> tuple[str, ...]:
    """Backends that this machine can run, the one that others are compared with first.

    Only says what is here; a backend can still refuse a variant of a bundle (`open_backend`).
    """
    from hfd_edge.runtime.backends.choice import gpu_backends

    return ("onnxruntime", *gpu_backends())


def open_backend(
    bundle: Bundle, *, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> Backend:
    """Load a bundle's model.

    Args:
        bundle: The bundle.
        backend: One of `BACKENDS`. A GPU backend runs an engine of the bundle. "auto" takes the best engine
            that fits this GPU, or else ONNX Runtime on the CPU, and logs its choice and why; a backend that
            is named is used or refused.
        precision: "fp32", "fp16", "int8", "int8_fp16", or "auto" for the fastest on this backend.
        threads: CPU threads of ONNX Runtime; None for one per core.
    Raises:
        BackendError: the backend is unknown or cannot run here, or it cannot load the model. Says why, and
            what would build an engine.
        BundleError: the bundle has no model of this precision, or it was changed.
    """
    if backend not in BACKENDS:
        raise BackendError(f"There is no backend {backend!r}. Choose one of {', '.join(BACKENDS)}.")
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, expected 1 or more, or None for one per core.")
    opened: Backend | None = None
    reasons: list[str] = []
    if backend != "onnxruntime":
        from hfd_edge.runtime.backends.choice import open_best_engine

        opened, reasons = open_best_engine(bundle, backend=backend, precision=precision)
        if opened is None and backend != "auto":
            raise BackendError(
                f"Backend {backend} cannot run {bundle.path}: {' '.join(reasons)} "
                "On the CPU: backend='onnxruntime'."
            )
    if opened is None:
        opened = _open_cpu(bundle, precision, threads)
    if "auto" in (backend, precision):
        told = f" ({' '.join(reasons)})" if reasons else ""
        # A device that has an engine, but not for this GPU, should not become slow in silence.
        idle = opened.name == "onnxruntime" and reasons and bundle.manifest.engines and find_gpu()
        level = logging.WARNING if idle else logging.INFO
        text = "chose backend %s and precision %s for %s%s"
        _log.log(level, text, opened.name, opened.precision, bundle.path, told)
    return opened


def _open_cpu(bundle: Bundle, precision: str, threads: int | None) -> Backend:
    from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    if precision == "auto":
        precision = next((name for name in _CPU_PREFERENCE if name in bundle.precisions), "fp32")
    return OnnxRuntimeBackend(bundle, precision=precision, threads=threads)
