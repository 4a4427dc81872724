"""Accuracy of anything that segments: a run folder (teacher or student) or a variant of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.evaluate import evaluate
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import BundleError, DatasetError
from hfd_edge.progress import Progress, silent


def measure(
    model: Path,
    data: Path,
    *,
    split: str = "test",
    scheme: str | None = None,
    precision: str = "fp32",
    backend: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a model on a labelled split.

    Args:
        model: Run folder or bundle.
        data: Data folder.
        split: "train", "val" or "test".
        scheme: Split scheme of the data folder; None takes the recipe's that the model was trained with.
        precision: Variant of a bundle; a run has fp32 alone.
        backend: Runtime backend of a bundle.
    Returns:
        miou, iou per class, accuracy (0 to 1), pixels, tiles, backend, precision, split.
    Raises:
        DatasetError: the data do not fit the model, or the split has no labels.
        BundleError: `model` is neither a run nor a bundle, or a run was asked for another precision.
    """
    if (model / "run.json").is_file():
        if precision != "fp32":
            raise BundleError(
                f"{model} is a run folder, which has fp32 weights only, not {precision}. Export and quantize "
                "it, then evaluate the bundle."
            )
        from hfd_edge.hfdnet.run import Run
        from hfd_edge.training.evaluate import evaluate_run

        run = Run.open(model)
        folder = PairFolder.open(data, scheme=scheme or run.recipe.split)
        return {**evaluate_run(run, folder, split=split, progress=progress), "split": split}
    return {
        **_measure_bundle(
            Bundle.open(model), data, split, scheme, precision=precision, backend=backend, progress=progress
        ),
        "split": split,
    }


def _measure_bundle(
    bundle: Bundle,
    data: Path,
    split: str,
    scheme: str | None,
    *,
    precision: str,
    backend: str,
    progress: Progress,
) -> dict[str, Any]:
    from hfd_edge.runtime.segmenter import Segmenter

    manifest = bundle.manifest
    folder = PairFolder.open(data, scheme=scheme or manifest.provenance.recipe.get("split"))
    if folder.config.classes != manifest.classes:
        raise DatasetError(
            f"{data} has classes {list(folder.config.classes)}, but the bundle was trained for "
            f"{list(manifest.classes)}. Evaluate on data with the same classes in the same order."
        )
    if folder.config.sar != manifest.sar:
        raise DatasetError(
            f"{data} declares SAR input {folder.config.sar}, but the bundle expects {manifest.sar}. "
            "Convert the data, or correct [sar] in its dataset.toml."
        )
    with Segmenter(bundle, backend=backend, precision=precision) as segment:
        confusion = evaluate(segment, folder, split=split, progress=progress)
        return {**confusion.scores(), "backend": segment.backend, "precision": segment.precision}
