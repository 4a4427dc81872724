"""Which backends are here; which engine of a bundle a GPU runs best, and why not the others."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec

from hfd_edge.bundle import Bundle
from hfd_edge.engine_record import EngineRecord, read_engine_record
from hfd_edge.errors import HfdEdgeError, require
from hfd_edge.gpu import find_gpu
from hfd_edge.runtime.backends import CPU_BACKENDS, Backend
from hfd_edge.runtime.engines import verify_engine
from hfd_edge.tensorrt_api import PRODUCTS, load_tensorrt

# TensorRT runs INT8 convolutions fastest; RTX lists only weight-only INT8 matrix products as accelerated.
_PREFERENCE = {
    "tensorrt": ("int8_fp16", "int8", "fp16", "fp32"),
    "tensorrt_rtx": ("fp16", "int8_fp16", "int8", "fp32"),
    "torch_tensorrt": ("fp16", "fp32"),
}
"""Flavours and their precisions, both in the order in which "auto" tries them."""


def cpu_backends() -> tuple[str, ...]:
    """CPU backends whose packages are installed. OpenVINO takes a while to import: only looked for."""
    return CPU_BACKENDS if _is_installed("openvino") else CPU_BACKENDS[:1]


def gpu_backends() -> tuple[str, ...]:
    """GPU backends whose packages are installed, where there is a GPU."""
    if find_gpu() is None:
        return ()
    here = []
    for flavour in PRODUCTS:
        try:
            require("pycuda.driver", extra="cuda", purpose="the GPU runtime")
            load_tensorrt(flavour, purpose="running an engine")
        except HfdEdgeError:
            continue
        here.append(flavour)
    # Its import brings torch, and fails without a GPU: only looked for.
    if _is_installed("torch_tensorrt"):
        here.append("torch_tensorrt")
    return tuple(here)


def _is_installed(package: str) -> bool:
    with contextlib.suppress(ValueError):
        return find_spec(package) is not None
    return False


def open_best_engine(bundle: Bundle, *, backend: str, precision: str) -> tuple[Backend | None, list[str]]:
    """Load the best engine that fits this GPU.

    Args:
        bundle: The bundle.
        backend: A flavour, or "auto" for any.
        precision: A precision, or "auto" for any.
    Returns:
        The backend, None where no engine fits; and sentences that say why the better ones were not taken.
    """
    if find_gpu() is None:
        return None, ["There is no NVIDIA GPU with a driver here (check with nvidia-smi)."]
    wanted, reasons = _ranked(bundle, backend, precision)
    if not wanted and not reasons:
        kind = " ".join(word for word in (precision, backend) if word != "auto")
        held = ", ".join(bundle.manifest.engines) or "none"
        build = f"hfd-edge build {bundle.path} --target NAME"
        return None, [
            f"The bundle has no {kind}{' ' * bool(kind)}engine; it has: {held}. Build one with: {build}."
        ]
    for name, record in wanted:
        try:
            return _open(bundle, name, record), reasons
        except HfdEdgeError as error:
            reasons.append(_sentence(error))
    return None, reasons


def _ranked(bundle: Bundle, backend: str, precision: str) -> tuple[list[tuple[str, EngineRecord]], list[str]]:
    """Engines that were asked for, best first; and what is wrong with those whose sidecar cannot be read."""
    found: list[tuple[str, EngineRecord]] = []
    reasons = []
    for name, relpath in bundle.manifest.engines.items():
        try:
            record = read_engine_record(bundle.path / relpath)
        except HfdEdgeError as error:
            reasons.append(_sentence(error))
            continue
        if backend in ("auto", record.flavour) and precision in ("auto", record.precision):
            found.append((name, record))
    return sorted(found, key=lambda item: _rank(item[1])), reasons


def _rank(record: EngineRecord) -> tuple[int, int]:
    order = _PREFERENCE.get(record.flavour, ())
    place = order.index(record.precision) if record.precision in order else len(order)
    return list(_PREFERENCE).index(record.flavour), place


def _open(bundle: Bundle, name: str, record: EngineRecord) -> Backend:
    if record.flavour == "torch_tensorrt":
        from hfd_edge.runtime.backends.torch_tensorrt import TorchTensorRTBackend

        return TorchTensorRTBackend(bundle, name)
    from hfd_edge.runtime.backends.tensorrt import TensorRTBackend

    verify_engine(bundle, name)  # before a context is made on the GPU
    return TensorRTBackend(bundle, name)


def _sentence(error: HfdEdgeError) -> str:
    return f"{str(error).rstrip('.')}."
