"""Which variants are timed, and whether they compute what the bundle says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from hfd_edge.bench.golden import Inputs, check_golden, golden_doubt
from hfd_edge.bench.options import ALL, BenchOptions
from hfd_edge.bench.result import Golden
from hfd_edge.bench.scenarios import device_of
from hfd_edge.bundle import Bundle
from hfd_edge.engine_record import read_engine_record
from hfd_edge.errors import BenchError, HfdEdgeError
from hfd_edge.progress import Progress
from hfd_edge.runtime.agreement import required_agreement
from hfd_edge.runtime.backends import BACKENDS, GPU_BACKENDS, available_backends
from hfd_edge.runtime.engines import verify_engine
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.tensorrt_api import PRODUCTS


@dataclass(frozen=True)
class Variant:
    """One precision on one backend.

    Attributes:
        backend: Its name, never "auto".
        precision: Its name, never "auto".
        overlap_px: Overlap of tiles, pixels.
        golden: What the check of its output found.
        wrong: Why it must not be timed; None where its output is right or cannot be checked.
        events: Whether its stages are timed by events on a GPU.
        emulated: Name of the GPU if it is none; else None.
    """

    backend: str
    precision: str
    overlap_px: int
    golden: Golden
    wrong: str | None
    events: bool
    emulated: str | None

    @property
    def gpu(self) -> bool:
        """Whether it works on a GPU."""
        return self.backend in GPU_BACKENDS

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.precision} on {self.backend}"

    def doubts(self) -> tuple[str, ...]:
        """Why none of its figures can be trusted."""
        found = [] if self.wrong is None else [self.wrong]
        if self.golden.agreement is None:
            found.append(
                "no golden tiles: nothing shows that the labels are right, and the pixels are simulated. "
                "Export the bundle again with --data."
            )
        if self.emulated is not None:
            found.append(
                f"emulated driver: '{self.emulated}' is no GPU, and its times say nothing about one. "
                "Measure on the device."
            )
        return tuple(found)


def find_variants(
    bundle: Bundle, options: BenchOptions, inputs: Inputs, progress: Progress
) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    """Open and check each variant that was asked for.

    Returns:
        The variants, and a sentence for each that was refused.
    Raises:
        BenchError: there is no such backend, or none of several variants can run.
        BackendError: a variant that was named cannot run here.
        BundleError: the bundle has no such model, or it was changed.
    """
    if options.backend not in (*BACKENDS, ALL):
        raise BenchError(
            f"There is no backend {options.backend!r}. Choose one of {', '.join((*BACKENDS, ALL))}."
        )
    backends = available_backends() if options.backend == ALL else (options.backend,)
    precisions = tuple(map(str, bundle.precisions)) if options.precision == ALL else (options.precision,)
    wanted = [(backend, precision) for precision in precisions for backend in backends]
    strict = ALL not in (options.backend, options.precision)
    found: dict[tuple[str, str], Variant] = {}
    refused: list[str] = []
    for done, (backend, precision) in enumerate(wanted):
        progress(done, len(wanted), f"check {precision} on {backend}")
        try:
            variant = _check(bundle, backend, precision, options.threads, inputs)
        except HfdEdgeError as error:
            if strict:
                raise
            refused.append(f"{precision} on {backend}: {error}")
        else:
            found.setdefault((variant.backend, variant.precision), variant)
    progress(len(wanted), len(wanted), "check variants")
    if not found:
        raise BenchError(f"None of the variants of {bundle.path} can run here. {' '.join(refused)}")
    return tuple(found.values()), tuple(refused)


def file_of(bundle: Bundle, variant: Variant) -> str:
    """Path inside the bundle of what a variant runs: its ONNX file, or the engine that fits this GPU."""
    if variant.gpu:
        for name, relpath in bundle.manifest.engines.items():
            with suppress(HfdEdgeError):
                record = read_engine_record(bundle.path / relpath)
                if (record.flavour, record.precision) == (variant.backend, variant.precision):
                    if record.flavour in PRODUCTS:
                        verify_engine(bundle, name)
                    return relpath
    return {str(name): relpath for name, relpath in bundle.manifest.precisions.items()}[variant.precision]


def _check(bundle: Bundle, backend: str, precision: str, threads: int | None, inputs: Inputs) -> Variant:
    with Segmenter(bundle, backend=backend, precision=precision, threads=threads) as segment:
        required = required_agreement(bundle.manifest, segment.precision)
        golden = check_golden(inputs, segment, required=required, nodata=bundle.manifest.nodata_label)
        device = device_of(segment)
        name = "" if device is None else str(device.limits.name)
        return Variant(
            backend=segment.backend,
            precision=segment.precision,
            overlap_px=segment.overlap_px,
            golden=golden,
            wrong=golden_doubt(golden, required),
            events=device is not None,
            emulated=name if name.startswith("Emulated") else None,
        )
