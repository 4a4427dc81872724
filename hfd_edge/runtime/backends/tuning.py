"""Which engine and precision a CPU runs a bundle with best: measured once, remembered, used by "auto".

No rule says it beforehand: INT8 takes half as long as FP32 on a processor with dot-product instructions and
OpenVINO, and longer than FP32 with ONNX Runtime on the same one. A measurement holds for one bundle's models,
one CPU, one number of threads and the releases of the engines; "auto" ignores one of anything else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hfd_edge import __version__
from hfd_edge.bundle import Bundle
from hfd_edge.config import Strict
from hfd_edge.environment import allowed_cores
from hfd_edge.errors import BackendError, MissingExtraError
from hfd_edge.files import user_cache, write_text
from hfd_edge.metrics import Confusion
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.logits import labels_from_logits
from hfd_edge.runtime.agreement import FIXED, Required, required_agreement
from hfd_edge.runtime.backends import CPU_BACKENDS, Backend, available_backends, open_backend

RUNS = 20
"""Timed runs of each variant, at most."""
_WARM_RUNS, _LEAST_RUNS = 2, 3
_SECONDS_PER_VISIT = 5.0
# Labels of a rare class may all go before the share of all labels shows it; of a few pixels nothing is known.
_LEAST_IOU, _RARE = 0.5, 1e-3
# Closer medians than this change places from one measurement to the next: the better labels decide.
_TIE = 1.05

_log = logging.getLogger("hfd_edge.runtime")

Key = tuple[str, str]
"""Precision and backend."""


class Trial(Strict):
    """One variant, measured.

    Attributes:
        median_ms: Median time of one tile; None where it cannot run.
        agreement: Share of the golden tiles' valid pixels that have the bundle's label; None like it.
        reason: Why "auto" does not choose it, a sentence; "" where it may, if need be only for who names
            the precision (`agrees`).
    """

    backend: str
    precision: str
    median_ms: float | None = None
    agreement: float | None = None
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it may stand in for FP32, whatever quantisation did to the variant elsewhere."""
        return self.agreement is not None and self.agreement >= FIXED[self.precision]

    def describe(self) -> str:
        """The figures in words, without a full stop; for one that ran."""
        return (
            f"{self.backend} {self.precision} took {self.median_ms:.1f} ms a tile and gave "
            f"{self.agreement:.2%} of the golden labels"
        )


class Conditions(Strict):
    """What a measurement holds for.

    Attributes:
        cores: Cores that the process may use.
        threads: How many were asked for; None for what each engine takes by itself, at most one per core.
        versions: Releases of hfd-edge and of the CPU engines that are installed.
        models: Precision to the SHA-256 of its model.
    """

    cpu: str
    cores: int
    threads: int | None
    versions: dict[str, str]
    models: dict[str, str]

    @classmethod
    def here(cls, bundle: Bundle, threads: int | None) -> Conditions:
        """This machine and this bundle."""
        versions = {"hfd-edge": __version__}
        for backend in CPU_BACKENDS:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[backend] = importlib.metadata.version(backend)
        manifest = bundle.manifest
        models = {str(name): manifest.files[relpath] for name, relpath in manifest.precisions.items()}
        cores = len(allowed_cores())
        return cls(cpu=_cpu(), cores=cores, threads=threads, versions=versions, models=models)

    def path(self) -> Path:
        """Where it is remembered; one file for all releases."""
        text = json.dumps([self.cpu, self.cores, self.threads, self.models], sort_keys=True)
        return user_cache("tuning") / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


class Tuning(Strict):
    """All variants of a bundle on all CPU engines of a machine."""

    conditions: Conditions
    created: str
    trials: tuple[Trial, ...]

    def best(self, *, backend: str = "auto", precision: str = "auto") -> Trial | None:
        """The fastest of those asked for that may be chosen; of equals the one with the best labels.

        Where no precision is asked for, only of those whose labels are nearly FP32's.
        """
        allowed = [
            (trial.median_ms, trial.agreement, trial)
            for trial in self.trials
            if not trial.reason
            and trial.median_ms is not None
            and trial.agreement is not None
            and backend in ("auto", trial.backend)
            and (precision == trial.precision or (precision == "auto" and trial.agrees))
        ]
        if not allowed:
            return None
        least = min(median for median, _, _ in allowed)
        close = [entry for entry in allowed if entry[0] <= _TIE * least]
        return max(close, key=lambda entry: (entry[1], -entry[0]))[2]


def tune(bundle: Bundle, *, threads: int | None = None, progress: Progress = silent) -> Tuning:
    """Measure as `measure` does, and remember it for "auto".

    Raises:
        BackendError: the bundle has no golden tiles.
        BundleError: the bundle was changed.
        StorageError: the result cannot be remembered.
    """
    result = measure(bundle, threads=threads, progress=progress)
    write_text(result.conditions.path(), result.model_dump_json(indent=2) + "\n")
    return result


def measure(
    bundle: Bundle, *, threads: int | None = None, rounds: int = 1, progress: Progress = silent
) -> Tuning:
    """Measure every precision of a bundle on every CPU engine that is installed.

    Args:
        bundle: Bundle with golden tiles, which tell whether a variant's labels are right.
        threads: CPU threads; None for one per core.
        rounds: As for `time_in_turns`.
        progress: Counts variants.
    Raises:
        BackendError: the bundle has no golden tiles.
        BundleError: a model or a golden tile was changed.
    """
    golden = _golden(bundle)
    if not golden:
        raise BackendError(
            f"{bundle.path} has no golden tiles with data, so nothing would tell whether a faster variant's "
            "labels are right. Export the run again with --data, which adds some."
        )
    engines = [name for name in available_backends() if name in CPU_BACKENDS]
    keys: list[Key] = [(str(kind), engine) for engine in engines for kind in bundle.precisions]
    checked: dict[Key, tuple[float | None, str]] = {}
    for done, key in enumerate(keys):
        progress(done, len(keys), f"labels of {key[0]} on {key[1]}")
        checked[key] = _check(bundle, key, golden, threads)
    runnable = [key for key in keys if checked[key][0] is not None]
    tile = golden[0][0]
    times = time_in_turns(bundle, runnable, tile, threads=threads, rounds=rounds, progress=progress)
    trials = [
        Trial(
            precision=key[0],
            backend=key[1],
            median_ms=float(np.median(times[key])) if key in times else None,
            agreement=agreement,
            reason=reason,
        )
        for key, (agreement, reason) in checked.items()
    ]
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Tuning(conditions=Conditions.here(bundle, threads), created=created, trials=tuple(trials))


def recall(bundle: Bundle, *, threads: int | None = None) -> Tuning | None:
    """What `tune` measured for this bundle here; None, with the reason in the log, if it does not hold."""
    here = Conditions.here(bundle, threads)
    path = here.path()
    try:
        found = Tuning.model_validate_json(path.read_bytes())
    except OSError:
        return None
    except ValidationError as error:
        _log.warning("%s is damaged and ignored (%s). %s", path, _first_fault(error), _again(bundle))
        return None
    if found.conditions != here:
        seen, now = found.conditions, here
        text = "%s was measured with %s on %s, here is %s on %s: it is ignored. %s"
        _log.warning(text, path, seen.versions, seen.cpu, now.versions, now.cpu, _again(bundle))
        return None
    return found


def fastest(bundle: Bundle, *, backend: str, precision: str, threads: int | None) -> Trial | None:
    """What "auto" chooses by measurement; None without one, or if it knows nothing of what was asked for."""
    found = recall(bundle, threads=threads)
    return None if found is None else found.best(backend=backend, precision=precision)


def time_in_turns(
    bundle: Bundle,
    keys: Iterable[Key],
    tile: NDArray[np.float32],
    *,
    threads: int | None = None,
    rounds: int = 1,
    progress: Progress = silent,
) -> dict[Key, list[float]]:
    """Time one tile on several variants; milliseconds.

    Each is visited there and back again: a machine that gets slower (heat, other work) then does so for all
    of them. One model is loaded at a time.

    Args:
        bundle: The bundle.
        keys: CPU variants.
        tile: Network input (1, bands, tile_px, tile_px).
        threads: CPU threads; None for one per core.
        rounds: How often there and back.
        progress: Counts visits.
    Raises:
        BackendError: a variant cannot run.
    """
    times: dict[Key, list[float]] = {key: [] for key in keys}
    visits = [*times, *reversed(times)] * rounds
    for done, key in enumerate(visits):
        progress(done, len(visits), f"latency of {key[0]} on {key[1]}")
        model = open_backend(bundle, precision=key[0], backend=key[1], threads=threads)
        with closing(model):
            times[key] += _visit(model, tile)
    progress(len(visits), len(visits), "latency")
    return times


def _visit(model: Backend, tile: NDArray[np.float32]) -> list[float]:
    """Time one tile again and again; a slow device stops after some seconds."""
    for _ in range(_WARM_RUNS):
        model.run(tile)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < RUNS // 2:
        started = time.perf_counter()
        model.run(tile)
        ended = time.perf_counter()
        times.append(1000 * (ended - started))
        if ended - began > _SECONDS_PER_VISIT and len(times) >= _LEAST_RUNS:
            break
    return times


_Golden = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]


def _golden(bundle: Bundle) -> list[_Golden]:
    """Network input (1, bands, tile_px, tile_px), labels and valid pixels of golden tiles with data."""
    found = []
    for tile in bundle.golden():
        pixels, valid = bundle.manifest.preprocessing(tile.image)
        rows, cols = valid.shape
        side = bundle.manifest.tile_px
        missing = ((0, 0), (0, side - rows), (0, side - cols))
        if valid.any():
            found.append((np.pad(pixels, missing, mode="symmetric")[None], tile.labels, valid))
    return found


def _check(
    bundle: Bundle, key: Key, golden: Sequence[_Golden], threads: int | None
) -> tuple[float | None, str]:
    """Agreement of a variant with the golden labels, and why it may not be chosen."""
    confusion = Confusion(bundle.manifest.classes)
    try:
        model = open_backend(bundle, precision=key[0], backend=key[1], threads=threads)
        with closing(model):
            for batch, labels, valid in golden:
                rows, cols = labels.shape
                logits = model.run(batch)[0]
                found = labels_from_logits(logits, stride=bundle.manifest.stride, rows=rows, cols=cols)
                confusion.add(np.where(valid, labels, confusion.ignore_index), found)
    except (BackendError, MissingExtraError) as error:
        return None, str(error)
    return confusion.accuracy, fault(confusion, required_agreement(bundle.manifest, key[0]))


def fault(confusion: Confusion, required: Required) -> str:
    """What is wrong with a variant's labels, a sentence; "" where nothing is.

    Args:
        confusion: Of golden labels with the variant's.
        required: Least share of them.
    """
    if confusion.accuracy < required.share:
        return f"It gives {confusion.accuracy:.2%} of the golden labels, {required.text}."
    pixels = dict(zip(confusion.classes, confusion.counts.sum(axis=1), strict=True))
    for name, iou in confusion.iou.items():
        if iou is not None and iou < _LEAST_IOU and pixels[name] > _RARE * confusion.pixels:
            return (
                f"It loses {name}: IoU with the golden labels is {iou:.2f}, at least {_LEAST_IOU} expected."
            )
    return ""


def _cpu() -> str:
    """The processor's model; what ARM's kernels tell of it are numbers of its maker and design."""
    with suppress(OSError):
        pattern = r"^(?:model name|CPU implementer|CPU part)\s*:\s*(.+)$"
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        found = dict.fromkeys(re.findall(pattern, text, flags=re.MULTILINE))
        if found:
            return " ".join(found)
    return platform.processor() or platform.machine()


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"


def _again(bundle: Bundle) -> str:
    return f"Measure again with: hfd-edge bench tune {bundle.path}"
