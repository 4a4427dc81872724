"""What runs the network: one small interface, and the choice of who implements it."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError

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
    """Backends that this version has and this machine can run, the one that others are compared with first.

    Only says what is here; a backend can still refuse a variant of a bundle (`open_backend`).
    """
    return ("onnxruntime",)


def open_backend(
    bundle: Bundle, *, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> Backend:
    """Load a bundle's model.

    Args:
        bundle: The bundle.
        backend: One of `BACKENDS`. "auto" takes what this version has and the device can run, and logs
            its choice; a backend that is named is used or refused.
        precision: "fp32", "fp16", "int8", "int8_fp16", or "auto" for the fastest on this backend.
        threads: CPU threads; None for one per core.
    Raises:
        BackendError: the backend is unknown or not available here, or it cannot load the model.
        BundleError: the bundle has no model of this precision, or it was changed.
    """
    if backend in GPU_BACKENDS:
        raise BackendError(
            f"Backend {backend} was asked for, but the GPU runtime is not part of this version; it has "
            "onnxruntime (CPU). Pass backend='onnxruntime', or run the bundle's engine with trtexec."
        )
    if backend not in BACKENDS:
        raise BackendError(f"There is no backend {backend!r}. Choose auto or onnxruntime.")
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, expected 1 or more, or None for one per core.")
    from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    chosen = precision
    if precision == "auto":
        chosen = next((name for name in _CPU_PREFERENCE if name in bundle.precisions), "fp32")
    opened = OnnxRuntimeBackend(bundle, precision=chosen, threads=threads)
    if "auto" in (backend, precision):
        _log.info("chose backend %s and precision %s for %s", opened.name, opened.precision, bundle.path)
    return opened
