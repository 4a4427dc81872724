"""Does this machine compute what the bundle's author computed? For `hfd-edge selftest`.

Three kinds of checks: the CUDA kernels against NumPy, every variant of the bundle against its golden tiles
and against ONNX Runtime, and streams against single frames. Nothing is written into the bundle.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, GoldenTile
from hfd_edge.engine_record import read_engine_record
from hfd_edge.errors import BackendError, HfdEdgeError, MissingExtraError
from hfd_edge.gpu import find_gpu
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.tiling import mirrored
from hfd_edge.runtime.agreement import Required, required_agreement
from hfd_edge.runtime.backends import BACKENDS, CPU_BACKENDS, available_backends, open_backend
from hfd_edge.runtime.engines import verify_engine
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.tensorrt_api import PRODUCTS

if TYPE_CHECKING:
    from hfd_edge.runtime.device import Device

_NEAR = 1e-3
_NEAR_TF32 = 2e-2
"""Largest distances of FP32 logits from ONNX Runtime's, as shares of their range: of its own, and of those of
GPU backends, which multiply with TF32's 11 bits unless they are told not to (as deploy.torch_program)."""
_SAME = 4e-3
"""Largest distance between runs: some kernels add up in no fixed order (as runtime.graphs)."""
_REPEATS = 4
_PACKAGES = (
    *("hfd-edge", "numpy", "opencv-python-headless", "onnxruntime", "pycuda", "cuda-bindings"),
    *("openvino", "tensorrt", "tensorrt-rtx", "torch-tensorrt"),
)
_SEND = "Send this report with a description of the machine."


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: What was checked.
        ok: Whether it is right; None where it was not run.
        found: What was seen, or why it was not run.
        fix: What to do where it is wrong.
        values: The numbers in `found`, with units in their names.
    """

    name: str
    ok: bool | None
    found: str
    fix: str = ""
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfTest:
    """A finished self-test.

    Attributes:
        bundle: Path of the bundle.
        environment: What ran it, as JSON values.
        findings: In the order in which they were made.
    """

    bundle: str
    environment: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; what was not run is not wrong."""
        return all(finding.ok is not False for finding in self.findings)

    def content(self) -> dict[str, Any]:
        """The report, as JSON values."""
        return {
            "ok": self.ok,
            "bundle": self.bundle,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": self.environment,
            "checks": [asdict(finding) for finding in self.findings],
        }


def run_selftest(
    bundle: Bundle, *, backend: str = "auto", precision: str = "auto", progress: Progress = silent
) -> SelfTest:
    """Check a bundle and this machine.

    Args:
        bundle: The bundle.
        backend: One to check, or "auto" for all that this machine has.
        precision: One to check, or "auto" for all that the bundle has.
        progress: Counts checks.
    Raises:
        BackendError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise BackendError(f"There is no backend {backend!r}. Choose one of {', '.join(BACKENDS)}.")
    environment = _environment()
    findings = [_attempt("bundle", lambda: _verify(bundle), fix="Copy the bundle again.")]
    findings += _kernel_findings(bundle, environment, progress)
    if findings[0].ok:
        findings += _network_findings(bundle, backend, precision, progress)
    return SelfTest(str(bundle.path), environment, tuple(findings))


@dataclass(frozen=True)
class _Tile:
    """What a variant is compared with: the bundle's labels, and ONNX Runtime's logits of the FP32 model."""

    image: NDArray[Any]
    labels: NDArray[np.uint8]
    network_input: NDArray[np.float32]
    logits: NDArray[np.float32]


def _environment() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "gpu": None,
    }


def _verify(bundle: Bundle) -> str:
    bundle.verify()
    return f"{len(bundle.manifest.files)} files are what the manifest says"


def _attempt(name: str, check: Callable[[], str], *, fix: str = _SEND) -> Finding:
    """Run a check; whatever this package raises on purpose makes it a wrong one."""
    try:
        return Finding(name, True, check())
    except HfdEdgeError as error:
        return Finding(name, False, str(error), fix)


def _kernel_findings(bundle: Bundle, environment: dict[str, Any], progress: Progress) -> list[Finding]:
    """Compare the kernels with NumPy, and say which GPU that was."""
    if find_gpu() is None:
        return [Finding("kernels", None, "not run: there is no NVIDIA GPU with a driver")]
    from hfd_edge.runtime.device import Device
    from hfd_edge.runtime.kernels import Kernels
    from hfd_edge.runtime.selftest_kernels import kernel_checks

    findings = []
    try:
        with Device.open() as device:
            kernels = Kernels(device)
            environment["gpu"] = _gpu(device, kernels.ways)
            checks = list(kernel_checks(device, kernels, bundle.manifest.preprocessing))
            for done, (name, check) in enumerate(checks):
                progress(done, len(checks), f"kernels: {name}")
                findings.append(_attempt(f"kernels: {name}", check))
            kernels.close()
    except HfdEdgeError as error:
        findings.append(Finding("kernels", False, str(error), "Run hfd-edge doctor."))
    return findings


def _gpu(device: Device, ways: dict[str, str]) -> dict[str, Any]:
    """What the GPU is; `ways` fills up as kernels are loaded."""
    limits = device.limits
    cuda = int(device.driver.get_driver_version())
    return {
        "name": limits.name,
        "compute_capability": limits.compute_capability,
        "multiprocessors": limits.multiprocessors,
        "total_bytes": limits.total_bytes,
        "cuda_of_driver": f"{cuda // 1000}.{cuda % 1000 // 10}",
        "memory": f"{device.memory_mode} ({device.memory_reason})",
        "kernels": ways,
    }


def _network_findings(bundle: Bundle, backend: str, precision: str, progress: Progress) -> Iterator[Finding]:
    """Check every variant that was asked for."""
    variants = _variants(bundle, backend, precision)
    if not variants:
        held = [*bundle.precisions, *bundle.manifest.engines]
        yield Finding(
            "network",
            False,
            f"the bundle has no model or engine for backend {backend} and precision {precision}; it has: "
            f"{', '.join(held) or 'none'}",
            f"Build one with: hfd-edge build {bundle.path} --target NAME",
        )
        return
    try:
        tiles = _reference(bundle)
    except HfdEdgeError as error:
        yield Finding("reference", False, str(error), "Everything is compared with the FP32 model.")
        return
    for done, ((name, kind), engines) in enumerate(variants.items()):
        progress(done, len(variants), f"networks: {name} {kind}")
        yield from _variant_findings(bundle, name, kind, engines, tiles, named=backend != "auto")
    progress(len(variants), len(variants), "networks")


def _reference(bundle: Bundle) -> list[_Tile]:
    """The golden tiles; a simulated one where the bundle has none, with the labels of its FP32 model."""
    with _opened(bundle, "onnxruntime", "fp32") as run:
        tiles = [_prepared(bundle, tile, run) for tile in bundle.golden()]
    if tiles:
        return tiles
    from hfd_edge.runtime.selftest_kernels import stored_frame

    side = bundle.manifest.tile_px
    image = stored_frame(bundle.manifest.preprocessing, side, side)
    with Segmenter(bundle, backend="onnxruntime", precision="fp32") as segment:
        tile = GoldenTile("simulated", image, segment(image))
    with _opened(bundle, "onnxruntime", "fp32") as run:
        return [_prepared(bundle, tile, run)]


Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@contextmanager
def _opened(bundle: Bundle, backend: str, precision: str) -> Iterator[Run]:
    opened = open_backend(bundle, backend=backend, precision=precision)
    try:
        yield opened.run
    finally:
        opened.close()


def _prepared(bundle: Bundle, tile: GoldenTile, run: Run) -> _Tile:
    pixels, _ = bundle.manifest.preprocessing(tile.image)
    side = bundle.manifest.tile_px
    rows, cols = (
        np.concatenate((np.arange(size), mirrored(size, side)))[:side] for size in tile.labels.shape
    )
    batch = np.ascontiguousarray(pixels[np.newaxis][:, :, rows][:, :, :, cols])
    return _Tile(tile.image, tile.labels, batch, run(batch))


def _variants(bundle: Bundle, backend: str, precision: str) -> dict[tuple[str, str], list[str]]:
    """Backend and precision of all models and engines that were asked for, and the names of the engines."""
    here = {*available_backends(), backend}
    found: dict[tuple[str, str], list[str]] = {
        (name, str(kind)): [] for name in CPU_BACKENDS if name in here for kind in bundle.precisions
    }
    for engine, relpath in bundle.manifest.engines.items():
        try:
            record = read_engine_record(bundle.path / relpath)
        except HfdEdgeError:
            continue  # the check of the bundle's files has told
        found.setdefault((record.flavour, str(record.precision)), []).append(engine)
    return {
        (name, kind): engines
        for (name, kind), engines in found.items()
        if backend in ("auto", name) and precision in ("auto", kind)
    }


def _variant_findings(
    bundle: Bundle, backend: str, precision: str, engines: list[str], tiles: list[_Tile], *, named: bool
) -> Iterator[Finding]:
    """Check one variant; an engine for another GPU is no fault unless its backend was asked for by name."""
    name = f"{backend} {precision}"
    engine, reason = _fitting(bundle, backend, engines)
    if reason and not named:
        yield Finding(name, None, f"not run: {reason}")
        return
    try:
        with _opened(bundle, backend, precision) as run:
            distance, repeat = _distances(tiles, run)
        with Segmenter(bundle, backend=backend, precision=precision) as segment:
            agreement = _agreement(bundle, tiles, segment)
            in_order = _streams_in_order(tiles, segment)
    except HfdEdgeError as error:
        # Only loading it tells whether a torch-tensorrt program is for this machine.
        wrong = named or backend != "torch_tensorrt"
        yield Finding(name, False, str(error), _SEND) if wrong else Finding(name, None, f"not run: {error}")
        return
    yield _labels_finding(name, agreement, required_agreement(bundle.manifest, precision), len(tiles))
    near = _NEAR if backend in CPU_BACKENDS else _NEAR_TF32
    yield _logits_finding(name, distance, near if precision == "fp32" else math.inf)
    yield _repeats_finding(name, repeat)
    told = "masks of a stream are those of single frames, in order"
    yield Finding(f"{name}: stream", in_order, told, _SEND)
    if engine is not None:
        yield _graphs_finding(bundle, engine, f"{name}: CUDA graphs", tiles[0])


def _fitting(bundle: Bundle, backend: str, engines: list[str]) -> tuple[str | None, str]:
    """The engine that was made for this machine, if it takes one; else why there is none."""
    if backend not in (*CPU_BACKENDS, *available_backends()):
        return None, f"this machine has no GPU with {backend}"
    reasons = []
    for engine in engines if backend in PRODUCTS else ():
        try:
            verify_engine(bundle, engine)
        except HfdEdgeError as error:
            reasons.append(str(error))
        else:
            return engine, ""
    return None, " ".join(reasons)


def _labels_finding(name: str, agreement: float, required: Required, tiles: int) -> Finding:
    return Finding(
        f"{name}: labels",
        agreement >= required.share,
        f"{agreement:.3%} of the labels of {tiles} tiles are the FP32 model's, {required.text}",
        f"Build the engine again, or look at hfd-edge compare. {_SEND}",
        {"agreement": agreement},
    )


def _logits_finding(name: str, distance: float, most: float) -> Finding:
    finite = math.isfinite(distance)
    return Finding(
        f"{name}: logits",
        finite and distance <= most,
        f"up to {distance:.1e} of their range from those of ONNX Runtime in FP32",
        f"The network computes something else here. {_SEND}",
        {"distance_of_range": distance} if finite else {},
    )


def _repeats_finding(name: str, distance: float) -> Finding:
    finite = math.isfinite(distance)
    return Finding(
        f"{name}: repeats",
        finite and distance <= _SAME,
        f"{_REPEATS} runs of a tile differ by up to {distance:.1e} of the range of the logits",
        f"The same input gives other logits. {_SEND}",
        {"distance_of_range": distance} if finite else {},
    )


def _graphs_finding(bundle: Bundle, engine: str, name: str, tile: _Tile) -> Finding:
    """Insist on CUDA graphs: the backend compares each replay with the run before it."""
    from hfd_edge.runtime.backends.tensorrt import TensorRTBackend

    try:
        opened = TensorRTBackend(bundle, engine, graphs=True)
        try:
            _, repeat = _distances([tile], opened.run)
        finally:
            opened.close()
    except MissingExtraError as error:
        return Finding(name, None, f"not run: {error}")
    except HfdEdgeError as error:
        return Finding(name, False, str(error), "Open the engine with graphs=False.")
    return replace(_repeats_finding(name, repeat), name=name)


def _distances(tiles: list[_Tile], run: Run) -> tuple[float, float]:
    """Distance of logits from ONNX Runtime's, and between runs of a tile; largest shares of the range."""
    distances, repeats = [], []
    for tile in tiles:
        found = [run(tile.network_input) for _ in range(_REPEATS)]
        span = max(float(np.ptp(tile.logits)), 1e-30)
        distances.append(np.abs(found[0] - tile.logits).max() / span)
        repeats += [np.abs(again - found[0]).max() / span for again in found[1:]]
    return float(np.max(distances)), float(np.max(repeats))  # NaN stays NaN


def _agreement(bundle: Bundle, tiles: list[_Tile], segment: Segmenter) -> float:
    """Share of labels of all tiles that are the bundle's, where either has data."""
    nodata, same, seen = bundle.manifest.nodata_label, 0, 0
    for tile in tiles:
        found = segment(tile.image)
        valid = (tile.labels != nodata) | (found != nodata)
        same += int(np.count_nonzero((found == tile.labels) & valid))
        seen += int(np.count_nonzero(valid))
    return same / seen if seen else 1.0


def _streams_in_order(tiles: list[_Tile], segment: Segmenter) -> bool:
    """Whether a stream of frames of two sizes gives each frame's own mask, in order."""
    frames = [image for tile in tiles[:2] for image in (tile.image, tile.image[:, :-7, :-5], tile.image)]
    singly = [segment(frame) for frame in frames]
    together = list(segment.stream(frames))
    return len(together) == len(singly) and all(map(np.array_equal, together, singly))
