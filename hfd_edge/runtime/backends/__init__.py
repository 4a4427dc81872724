"""What runs the network: one small interface, and the choice of who implements it."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, MissingExtraError
from hfd_edge.gpu import find_gpu

CPU_BACKENDS = ("onnxruntime", "openvino")
GPU_BACKENDS = ("tensorrt", "tensorrt_rtx", "torch_tensorrt")
BACKENDS = ("auto", *CPU_BACKENDS, *GPU_BACKENDS)

# What a CPU runs best differs: unless it was measured (`tuning`), the precision whose labels are the model's
# own. ONNX Runtime executes quantised graphs slower than FP32 ones, and FP16 by conversion to FP32.
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
    from hfd_edge.runtime.backends.choice import cpu_backends, gpu_backends

    return (*cpu_backends(), *gpu_backends())


def open_backend(
    bundle: Bundle, *, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> Backend:
    """Load a bundle's model.

    Args:
        bundle: The bundle.
        backend: One of `BACKENDS`. A GPU backend runs an engine of the bundle. "auto" takes the best engine
            that fits this GPU, or else a CPU: what `tuning.tune` measured to be the fastest there, and ONNX
            Runtime where nothing was measured. It logs its choice and why; a backend that is named is used
            or refused.
        precision: "fp32", "fp16", "int8", "int8_fp16", or "auto" for the best on this backend: on a CPU the
            fastest that was measured, or else FP32.
        threads: CPU threads; None for one per core.
    Raises:
        BackendError: the backend is unknown or cannot run here, or it cannot load the model. Says why, and
            what would build an engine.
        BundleError: the bundle has no model of this precision, or it was changed.
        MissingExtraError: the backend that is named is not installed.
    """
    if backend not in BACKENDS:
        raise BackendError(f"There is no backend {backend!r}. Choose one of {', '.join(BACKENDS)}.")
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, expected 1 or more, or None for one per core.")
    opened: Backend | None = None
    reasons: list[str] = []
    if backend not in CPU_BACKENDS:
        from hfd_edge.runtime.backends.choice import open_best_engine

        opened, reasons = open_best_engine(bundle, backend=backend, precision=precision)
        if opened is None and backend != "auto":
            raise BackendError(
                f"Backend {backend} cannot run {bundle.path}: {' '.join(reasons)} "
                "On the CPU: backend='onnxruntime'."
            )
    # A device that has an engine, but not for this GPU, should not become slow in silence.
    idle = opened is None and reasons and bundle.manifest.engines and find_gpu()
    if opened is None:
        opened = _open_cpu(bundle, backend, precision, threads, reasons)
    if "auto" in (backend, precision):
        told = f" ({' '.join(reasons)})" if reasons else ""
        level = logging.WARNING if idle else logging.INFO
        text = "chose backend %s and precision %s for %s%s"
        _log.log(level, text, opened.name, opened.precision, bundle.path, told)
    return opened


def open_cpu_backend(bundle: Bundle, *, backend: str, precision: str, threads: int | None = None) -> Backend:
    """Load a model on one of `CPU_BACKENDS`; raises as `open_backend`."""
    if backend == "openvino":
        from hfd_edge.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, precision=precision, threads=threads)
    from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, precision=precision, threads=threads)


def _open_cpu(
    bundle: Bundle, backend: str, precision: str, threads: int | None, reasons: list[str]
) -> Backend:
    """Open what was asked for; where that leaves a choice, by measurement. Adds to `reasons`."""
    if "auto" in (backend, precision):
        from hfd_edge.runtime.backends.tuning import fastest

        best = fastest(bundle, backend=backend, precision=precision, threads=threads)
        if best is not None:
            try:
                opened = open_cpu_backend(
                    bundle, backend=best.backend, precision=best.precision, threads=threads
                )
            except (BackendError, MissingExtraError) as error:
                text = "%s %s, measured to be the fastest, cannot run and is not used: %s %s"
                _log.warning(
                    text, best.backend, best.precision, error, "Measure again with: hfd-edge bench tune"
                )
            else:
                reasons.append(f"Fastest by measurement: {best.describe()}.")
                return opened
    backend = "onnxruntime" if backend == "auto" else backend
    if precision == "auto":
        precision = next((name for name in _CPU_PREFERENCE if name in bundle.precisions), "fp32")
    return open_cpu_backend(bundle, backend=backend, precision=precision, threads=threads)
