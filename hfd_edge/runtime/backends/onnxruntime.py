"""ONNX Runtime on the CPU: the backend that every device has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Manifest
from hfd_edge.errors import BackendError

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

# One tile of 512 pixels already occupies every core: larger batches were no faster, and each further tile
# took 125 MB (preset s, two cores).
_BATCH = 1
# It would turn biases into int32 with the product of two scales, which FP16 cannot hold: with ONNX Runtime
# 1.32 an INT8+FP16 preset s lost 5 % of its labels, and 0.5 % without this pass. No variant gets slower.
_HARMFUL = ["WeightBiasQuantization"]


class OnnxRuntimeBackend:
    """The bundle's ONNX model in an ONNX Runtime session; see `Backend`."""

    name = "onnxruntime"
    batch = _BATCH

    def __init__(self, bundle: Bundle, *, precision: str, threads: int | None = None) -> None:
        """Load the model.

        Raises:
            BackendError: ONNX Runtime cannot load the model, or it does not fit the manifest.
            BundleError: the bundle has no such model, or it was changed.
        """
        self.precision = precision
        self._path = bundle.model(precision)
        self._session: Any = _load(self._path, threads=threads)
        self._dtype = _check(self._session, bundle.manifest, self._path)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits; see `Backend.run`. Raises BackendError."""
        if self._session is None:
            raise BackendError(f"{self._path} was closed. Open the bundle again to run it.")
        try:
            (logits,) = self._session.run(["logits"], {"sar": batch.astype(self._dtype, copy=False)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BackendError(
                f"ONNX Runtime could not run {self._path} on a batch of {batch.shape}: {_first_line(error)}. "
                "If memory is short, use a bundle with smaller tiles."
            ) from error
        return logits.astype(np.float32, copy=False)

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _load(path: Path, *, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0  # 0: one per core
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_HARMFUL
        )
    except Exception as error:
        raise BackendError(
            f"ONNX Runtime cannot load {path}: {_first_line(error)}. The file is damaged or uses operators "
            "that this version of onnxruntime lacks: copy the bundle again, or update onnxruntime."
        ) from error


def check_ports(
    path: Path,
    manifest: Manifest,
    *,
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
) -> None:
    """Compare a model's interface with the manifest.

    Args:
        path: The model; the subject of the message.
        manifest: The bundle's.
        inputs: Shapes by name; a dimension that may vary is anything but an int, for example None.
        outputs: The same.
    Raises:
        BackendError: they differ.
    """
    if set(inputs) != {"sar"} or set(outputs) != {"logits"}:
        raise BackendError(
            f"{path} has inputs {sorted(inputs)} and outputs {sorted(outputs)}, expected 'sar' and 'logits'. "
            "Make it with hfd-edge export."
        )
    tile, bands, classes = manifest.tile_px, len(manifest.sar.bands), len(manifest.classes)
    ports = (
        ("sar", inputs["sar"], bands, tile),
        ("logits", outputs["logits"], classes, tile // manifest.stride),
    )
    for name, shape, channels, side in ports:
        fits = len(shape) == 4 and all(
            not isinstance(seen, int) or seen == wanted
            for seen, wanted in zip(shape[1:], (channels, side, side), strict=True)
        )
        if not fits or isinstance(shape[0], int):
            raise BackendError(
                f"{path}: '{name}' is {shape}, but the manifest says (any batch, {channels}, "
                f"{side}, {side}). Export the bundle again."
            )


def _check(session: Any, manifest: Manifest, path: Path) -> Any:
    """Compare the model's interface with the manifest; give the NumPy type of its input."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    check_ports(
        path,
        manifest,
        inputs={item.name: item.shape for item in inputs},
        outputs={item.name: item.shape for item in outputs},
    )
    kind = inputs[0].type
    if kind not in _FLOATS:
        raise BackendError(f"{path}: 'sar' is {kind}, expected one of {sorted(_FLOATS)}. Export it again.")
    return _FLOATS[kind]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
