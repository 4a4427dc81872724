"""How much each layer's INT8 costs: one layer at a time, and all layers but one.

"One only" isolates a layer's own harm. "Leave one out" says what is won when just this layer goes back to
high precision while all others stay in INT8. Where errors add up both agree; where a later layer hides an
earlier one's error they do not, which is why both are measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import Field, ValidationError

from hfd_edge.bundle import Bundle
from hfd_edge.config import Strict
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.graph import load
from hfd_edge.deploy.precision import place
from hfd_edge.deploy.qdq import int8_model, layers
from hfd_edge.deploy.record import read_record
from hfd_edge.deploy.scoring import Bench, Drop, Score
from hfd_edge.errors import ExportError
from hfd_edge.progress import Progress, silent

SENSITIVITY = "calibration/sensitivity.json"
TILES = 16
"""Tiles scored where no number is given: two models are run on them for every layer."""


class LayerEffect(Strict):
    """What one layer does."""

    layer: str
    operator: str
    one_only: Drop = Field(description="Drop when this layer alone is INT8.")
    leave_one_out: Drop = Field(description="Drop when every layer but this one is INT8.")


class Sensitivity(Strict):
    """Content of `SENSITIVITY`; the layer that costs most comes first."""

    onnx_sha256: str = Field(description="The FP32 model.")
    ranges_sha256: str = Field(description="The ranges that were used; see `ranges_key`.")
    data_sha256: str
    split: str
    tiles: int = Field(gt=0)
    reference: Score = Field(description="FP32.")
    all_int8: Drop = Field(description="Drop with every layer in INT8.")
    layers: tuple[LayerEffect, ...] = Field(min_length=1)

    def harm(self) -> dict[str, float]:
        """Layer to its one-only fidelity drop in points, the order of the ranking."""
        return {effect.layer: effect.one_only.fidelity_points for effect in self.layers}


def measure_sensitivity(
    bundle: Bundle,
    folder: PairFolder,
    *,
    split: str = "val",
    tiles: int = TILES,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure every layer that INT8 takes, with the ranges of the bundle's calibration record.

    Layers that the accuracy gate took back are measured like all others.

    Args:
        bundle: A quantised bundle.
        folder: Data folder with labels.
        split: Split to score on; not the one that calibrated.
        tiles: Most tiles, spread evenly over the split.
        progress: Counts models; there are two for each layer.
    Returns:
        Layers by their one-only fidelity drop (`Drop.fidelity_points`), the largest first.
    Raises:
        ExportError: the bundle was not quantised, or its record is damaged.
        DatasetError: the split is missing, has no labels, or does not fit the bundle.
    """
    record = read_record(bundle)
    bench = Bench(bundle, folder, split=split, limit=tiles, progress=progress)
    source = bundle.model("fp32")
    placed = place(source, bench.tile(0))
    names = layers(placed)
    operators = {node.name: node.op_type for node in load(source).graph.node}
    total, done = 2 * len(names) + 1, 0

    def drop(keep: Collection[str]) -> Drop:
        nonlocal done
        progress(done, total, "measuring layers")
        done += 1
        return bench.drop(int8_model(placed, record.amax, keep=keep))

    everything = drop(())
    effects = [_effect(name, names, operators[name], drop) for name in names]
    progress(total, total, "measuring layers")
    manifest = bundle.manifest
    return Sensitivity(
        onnx_sha256=manifest.files[manifest.precisions["fp32"]],
        ranges_sha256=ranges_key(record.amax),
        data_sha256=folder.sha256,
        split=split,
        tiles=len(bench),
        reference=bench.reference,
        all_int8=everything,
        layers=tuple(sorted(effects, key=lambda effect: -effect.one_only.fidelity_points)),
    )


def store_sensitivity(bundle: Bundle, found: Sensitivity) -> Bundle:
    """Write a measurement into its bundle, whole or not at all. Raises StorageError."""
    return bundle.add({SENSITIVITY: (found.model_dump_json(indent=2) + "\n").encode()})


def load_sensitivity(bundle: Bundle, amax: Mapping[str, float]) -> Sensitivity | None:
    """Read a bundle's measurement; None if there is none, or one with other ranges or of another FP32 model.

    Args:
        bundle: The bundle.
        amax: Ranges that it must have been made with.
    Raises:
        ExportError: it is damaged.
        BundleError: the file was changed.
    """
    manifest = bundle.manifest
    if SENSITIVITY not in manifest.files:
        return None
    try:
        found = Sensitivity.model_validate(json.loads(bundle.file(SENSITIVITY).read_text("utf-8")))
    except (ValueError, ValidationError) as error:
        raise ExportError(
            f"{bundle.path / SENSITIVITY} is damaged or from another version: {str(error).splitlines()[0]}. "
            f"Measure again with: hfd-edge sensitivity {bundle.path} --data DIR"
        ) from error
    expected = (manifest.files[manifest.precisions["fp32"]], ranges_key(amax))
    return found if (found.onnx_sha256, found.ranges_sha256) == expected else None


def ranges_key(amax: Mapping[str, float]) -> str:
    """Hash of all ranges; SHA-256, hex."""
    return hashlib.sha256(json.dumps(dict(amax), sort_keys=True).encode()).hexdigest()


def _effect(
    name: str, names: tuple[str, ...], operator: str, drop: Callable[[Collection[str]], Drop]
) -> LayerEffect:
    return LayerEffect(
        layer=name,
        operator=operator,
        one_only=drop([other for other in names if other != name]),
        leave_one_out=drop([name]),
    )


def as_rows(found: Sensitivity) -> list[dict[str, Any]]:
    """The ranking as plain rows, for tables and --json."""
    return [
        {
            "rank": rank,
            "layer": effect.layer,
            "operator": effect.operator,
            "one_only_miou_points": effect.one_only.miou_points,
            "one_only_fidelity_points": effect.one_only.fidelity_points,
            "one_only_flipped": effect.one_only.flipped,
            "leave_one_out_miou_points": effect.leave_one_out.miou_points,
            "leave_one_out_fidelity_points": effect.leave_one_out.fidelity_points,
            "leave_one_out_flipped": effect.leave_one_out.flipped,
        }
        for rank, effect in enumerate(found.layers, 1)
    ]
