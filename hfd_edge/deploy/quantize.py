"""Add the FP16 and INT8 variants to a bundle, with the record of how they were made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hfd_edge.bundle import Bundle, Precision
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.calibration import METHODS, collect, ranged_tensors
from hfd_edge.deploy.gate import Bound, Verdict, gate
from hfd_edge.deploy.graph import kept_reasons, load, unfused_sums
from hfd_edge.deploy.precision import Agreement, agreement, first_tile, place, ranges, save, to_fp16
from hfd_edge.deploy.qat import QAT_RANGES
from hfd_edge.deploy.qdq import Rest, int8_model, layers, quantized_tensors, share
from hfd_edge.deploy.record import RECORD, CalibrationRecord, KeptNode, write_record
from hfd_edge.deploy.scoring import Bench, Drop
from hfd_edge.deploy.selection import load_selection, selected_tiles
from hfd_edge.deploy.sensitivity import load_sensitivity
from hfd_edge.deploy.tiles import Tiles, TileSet, calibration_tiles
from hfd_edge.errors import ExportError
from hfd_edge.progress import Progress, silent

SPLIT = "train"
HELD_OUT = "val"
TILES = 64
"""Calibration tiles where neither a number nor a selection is given."""
GATE_TILES = 64
"""Most held-out tiles that the accuracy gate looks at; a bound for its memory and its patience."""
_DEFAULT_METHOD = "entropy"
_COMPARED_TILES = 8
_FP16_TOLERANCE = 0.05
"""Largest logits difference of FP16, relative to their range. Sound conversions stay near 0.005; an
activation beyond the range of FP16 (65504) exceeds this at once."""
_PACKAGES = ("nvidia-modelopt", "onnx", "onnxruntime")
_MADE: tuple[Precision, ...] = ("fp16", "int8", "int8_fp16")


@dataclass(frozen=True)
class Ranges:
    """Ranges of the activations and where they come from.

    Attributes:
        method: One of `calibration.METHODS`, or "qat".
        amax: Largest magnitude that is not clipped, for every tensor of the FP32 model that INT8 may want.
        placed: The FP32 model with Q/DQ nodes everywhere (`precision.place`).
    """

    method: str
    amax: dict[str, float]
    placed: Any


def quantize(
    bundle: Bundle,
    folder: PairFolder,
    *,
    method: str | None = None,
    tiles: int | None = None,
    bound: Bound | None = None,
    max_drop: float | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Make the FP16, INT8 and INT8+FP16 models from the bundle's FP32 model.

    INT8 is calibrated on tiles of the training split, through the bundle's own preprocessing. What was
    measured goes to calibration/int8.json, and the agreement with FP32 on some of those tiles to the
    manifest's metrics. With a bound, layers go back to high precision until the drop on the validation
    split is within it (`gate.gate`); its figures go to the metrics as well.

    Args:
        bundle: Gets the three models and the record, all or none of them.
        folder: Data folder that the model was trained on, or one like it.
        method: How activations are clipped, one of `calibration.METHODS`. None takes the ranges that
            quantisation-aware training learnt, if the bundle has them, and "entropy" for the rest.
        tiles: Tiles to calibrate on, spread evenly over the split. None takes the bundle's selection
            (`selection.select`), or 64 where it has none.
        bound: What INT8 may lose on held-out tiles.
        max_drop: Short for a bound on mean IoU, in points, with the default per class.
        progress: Told of every tile.
    Raises:
        ExportError: unknown method, a variant is too far from FP32, the bound cannot be met, or the selection
            is of the split that it is checked on.
        DatasetError: the folder's SAR is not what the bundle takes, a file is unreadable, a selected tile
            changed, or the gate has no labelled validation tiles.
        BundleError: the FP32 model is missing or was changed.
        StorageError: the disk is full; the bundle is as it was.
    """
    if max_drop is not None:
        if bound is not None:
            raise ExportError(f"max_drop {max_drop} and the bound {bound} are both given. Give one of them.")
        bound = Bound(miou_points=max_drop)
    _check_options(method, tiles)
    folder.require_fit("the bundle", sar=bundle.manifest.sar)
    source = bundle.model("fp32")
    chosen, how, requested = _tiles(bundle, folder, tiles, progress)
    if bound is not None and chosen.split == HELD_OUT:
        raise ExportError(
            f"The calibration tiles of {bundle.path} are of split '{HELD_OUT}', which the accuracy gate "
            "scores on: INT8 would be judged by what it was calibrated on. Choose training tiles with: "
            f"hfd-edge calibrate select {bundle.path} --data DIR"
        )
    # Before the minutes of calibration, so that a missing label is told at once.
    bench = Bench(bundle, folder, split=HELD_OUT, limit=GATE_TILES, progress=progress) if bound else None
    measured = measure_ranges(bundle, chosen, method=method, progress=progress)
    verdict = None
    if bound is not None and bench is not None:
        known = load_sensitivity(bundle, measured.amax)
        # Of other tiles, above all of the test split, the ranking must know nothing.
        harm = known.harm() if known and known.split == HELD_OUT else None
        verdict = gate(measured.placed, measured.amax, bench, bound=bound, harm=harm, progress=progress)
    with tempfile.TemporaryDirectory(prefix="hfd-edge-") as work:
        made = _make(source, measured, verdict.keep if verdict else (), Path(work))
        compared = list(islice(chosen, 0, None, -(-len(chosen) // _COMPARED_TILES)))
        closeness = agreement(source, made, compared)
        _check_fp16(closeness["fp16"])
        record = _record(bundle, folder, measured, chosen, how=how, requested=requested, verdict=verdict)
        return bundle.add(
            {**{path.name: path for path in made.values()}, RECORD: write_record(record)},
            precisions={name: path.name for name, path in made.items()},
            metrics=_metrics(closeness, len(compared), bound, verdict),
        )


def measure_ranges(
    bundle: Bundle, tiles: TileSet, *, method: str | None = None, progress: Progress = silent
) -> Ranges:
    """Place Q/DQ nodes in a bundle's FP32 model and find the ranges of its tensors.

    Args:
        bundle: Gives the FP32 model, and ranges that training learnt.
        tiles: Standardised tiles of the training split.
        method: See `quantize`.
        progress: Told of every tile.
    Raises:
        ExportError: unknown method, no tiles, or learnt ranges of another model.
    """
    _check_options(method, None)
    source = bundle.model("fp32")
    learnt = _learnt(bundle) if method is None else {}
    placed = place(source, first_tile(tiles))
    histograms = collect(source, ranged_tensors(load(source)), tiles, progress=progress)
    measured = ranges(histograms, method or _DEFAULT_METHOD)
    unknown = sorted(set(learnt) - set(measured))
    if unknown:
        raise ExportError(
            f"{bundle.path / QAT_RANGES} has a range for {unknown[0]}, which is no tensor of the FP32 model. "
            "Export the run again."
        )
    amax = share({**measured, **learnt}, placed, fixed=learnt)
    return Ranges(method="qat" if learnt else method or _DEFAULT_METHOD, amax=amax, placed=placed)


def _check_options(method: str | None, tiles: int | None) -> None:
    if method not in (None, *METHODS) or (tiles is not None and tiles < 1):
        raise ExportError(
            f"Calibration method {method!r} on {tiles} tiles is not possible; choose one of "
            f"{', '.join(METHODS)} and at least 1 tile."
        )


def _tiles(
    bundle: Bundle, folder: PairFolder, count: int | None, progress: Progress
) -> tuple[Tiles, str, int]:
    """Calibration tiles, how they were chosen, and how many were asked for."""
    selection = load_selection(bundle) if count is None else None
    if selection is not None:
        return selected_tiles(folder, bundle, selection), selection.method, selection.requested
    manifest, requested = bundle.manifest, count or TILES
    tiles = calibration_tiles(
        folder,
        manifest.preprocessing,
        tile_px=manifest.tile_px,
        count=requested,
        split=SPLIT,
        progress=progress,
    )
    return tiles, "even", requested


def _learnt(bundle: Bundle) -> dict[str, float]:
    """Ranges that quantisation-aware training left in the bundle; none if it was trained without."""
    if QAT_RANGES not in bundle.manifest.files:
        return {}
    try:
        amax = json.loads(bundle.file(QAT_RANGES).read_text("utf-8"))["amax"]
        found = {str(name): float(value) for name, value in amax.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{bundle.path / QAT_RANGES} is damaged: {error!r}, expected "
            '{"amax": {tensor: number}}. Export the run again.'
        ) from error
    bad = next((name for name, value in found.items() if not 0 < value < np.inf), None)
    if bad is not None:
        raise ExportError(
            f"{bundle.path / QAT_RANGES} gives {bad} the range {found[bad]}, expected a positive number. "
            "Train with --qat and export again."
        )
    return found


def _make(source: Path, measured: Ranges, keep: tuple[str, ...], work: Path) -> dict[Precision, Path]:
    made: dict[Precision, Path] = {name: work / f"model.{name}.onnx" for name in _MADE}
    to_fp16(source, made["fp16"])
    rests: dict[Precision, Rest] = {"int8": "fp32", "int8_fp16": "fp16"}
    for name, rest in rests.items():
        save(int8_model(measured.placed, measured.amax, keep=keep, rest=rest), made[name])
    return made


def _record(
    bundle: Bundle,
    folder: PairFolder,
    measured: Ranges,
    tiles: Tiles,
    *,
    how: str,
    requested: int,
    verdict: Verdict | None,
) -> CalibrationRecord:
    manifest = bundle.manifest
    model = load(bundle.model("fp32"))
    keep = verdict.keep if verdict else ()
    harm = verdict.harm if verdict else {}
    reasons = kept_reasons(model) | unfused_sums(model)
    reasons |= {name: f"accuracy gate: alone it costs {harm[name]:.2f} points" for name in keep}
    int8 = int8_model(measured.placed, measured.amax, keep=keep)
    return CalibrationRecord(
        method=measured.method,
        onnx_sha256=manifest.files[manifest.precisions["fp32"]],
        data_sha256=folder.sha256,
        split=tiles.split,
        input_shape=(len(manifest.sar.bands), manifest.tile_px, manifest.tile_px),
        selection=how,
        requested_tiles=requested,
        tiles=tiles.sources,
        amax=measured.amax,
        quantized_tensors=quantized_tensors(int8),
        quantized_nodes=layers(int8),
        kept=tuple(
            KeptNode(node=node.name, reason=reasons[node.name])
            for node in model.graph.node
            if node.name in reasons
        ),
        versions={name: metadata.version(name) for name in _PACKAGES},
    )


def _metrics(
    closeness: Mapping[Precision, Agreement], tiles: int, bound: Bound | None, verdict: Verdict | None
) -> dict[Precision, dict[str, Any]]:
    found: dict[Precision, dict[str, Any]] = {
        name: {
            "label_agreement_with_fp32": close.labels,
            "logits_difference_to_fp32": close.logits,
            "compared_tiles": tiles,
        }
        for name, close in closeness.items()
    }
    if bound is not None and verdict is not None:
        common = {
            "bound": asdict(bound),
            "kept_layers": len(verdict.keep),
            "layers": verdict.layers,
            "split": HELD_OUT,
            "tiles": verdict.tiles,
        }
        drops: dict[Precision, tuple[Drop, Drop]] = {
            "int8": (verdict.before, verdict.after),
            "int8_fp16": (verdict.before_fp16, verdict.after_fp16),
        }
        for name, (before, after) in drops.items():
            found[name]["gate"] = {**common, "before": asdict(before), "after": asdict(after)}
    return found


def _check_fp16(closeness: Agreement) -> None:
    if closeness.logits > _FP16_TOLERANCE:
        raise ExportError(
            f"The FP16 model differs from FP32 by {closeness.logits:.3f} of the range of the logits "
            f"(allowed {_FP16_TOLERANCE}), labels agree on {closeness.labels:.1%}. Some activations exceed "
            "the range of FP16: train with weight decay or a lower learning rate, and export again."
        )
