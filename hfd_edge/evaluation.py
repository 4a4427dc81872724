"""Accuracy of anything that segments: a run folder (teacher or student) or a variant of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.evaluate import evaluate
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import BundleError, DatasetError
from hfd_edge.metrics import Details
from hfd_edge.progress import Progress, silent

if TYPE_CHECKING:
    from hfd_edge.runtime.segmenter import Segmenter

Array = NDArray[Any]
Predict = Callable[[Array], NDArray[np.uint8]]
"""Stored SAR image (bands, rows, cols) to labels (rows, cols)."""
Counts = dict[str, NDArray[np.int64]]
"""Confusion counts (classes, classes + 1) of each tile, by its name; see `hfd_edge.metrics.Confusion`."""


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
        model: Run folder (a teacher is scored on what it sees, a student on SAR) or bundle.
        data: Data folder.
        split: "train", "val" or "test".
        scheme: Split scheme of the data folder; None takes the recipe's that the model was trained with.
        precision: Variant of a bundle; a run has fp32 alone.
        backend: Runtime backend of a bundle.
        progress: Counts tiles.
    Returns:
        miou, iou per class, accuracy (0 to 1), pixels, tiles, backend, precision, split, scheme, and as data
        the data set's name; and what `hfd_edge.metrics.Details.scores` has, with ece None for a bundle: the
        runtime turns logits into labels as it goes and keeps no probabilities.
    Raises:
        DatasetError: the data do not fit the model, or the split has no labels.
        BundleError: `model` is neither a run nor a bundle, or a run was asked for another precision.
    """
    folder = open_folder(model, data, scheme=scheme)
    details = Details(folder.config.classes, ignore_index=folder.config.ignore_index)
    measured_on = {"split": split, "scheme": folder.scheme, "data": folder.config.name}
    if _is_run(model):
        from hfd_edge.training.evaluate import evaluate_run

        run = _open_run(model, precision)
        scores = evaluate_run(run, folder, split=split, progress=progress, details=details)
        return {**scores, **measured_on}
    with _open_fitting(model, folder, precision=precision, backend=backend) as segment:
        confusion = evaluate(segment, folder, split=split, progress=progress, details=details)
        scores = {**confusion.scores(), **details.scores(confusion)}
        return {**scores, "backend": segment.backend, "precision": segment.precision, **measured_on}


def count_tiles(
    models: Sequence[Path],
    data: Path,
    *,
    split: str = "test",
    scheme: str | None = None,
    precision: str = "fp32",
    backend: str = "auto",
    progress: Progress = silent,
) -> tuple[list[Counts], tuple[str, ...]]:
    """Count the truth against what each of several models says, tile by tile, on one split.

    Args:
        models: Run folders and bundles.
        data: Data folder.
        split: "train", "val" or "test".
        scheme: Split scheme; None takes the recipes', which has to be one and the same.
        precision: Variant of bundles; runs have fp32 alone and take no notice.
        backend: Runtime backend of bundles.
        progress: Counts tiles of one model after the other.
    Returns:
        The counts of each model, and the names of the classes.
    Raises:
        DatasetError: the models were trained under different split schemes and `scheme` is None; or as
            `measure`, like BundleError.
    """
    folders = [open_folder(model, data, scheme=scheme) for model in models]
    schemes = {str(folder.scheme): model for folder, model in zip(folders, models, strict=True)}
    if len(schemes) > 1:
        (one, first), (other, second) = list(schemes.items())[:2]
        raise DatasetError(
            f"{first} was trained under split scheme {one}, but {second} under {other}: their {split} splits "
            "hold different tiles, and one may have been trained on the other's. Name one with --scheme if "
            "you know that neither has seen its tiles."
        )
    found = []
    for position, (model, folder) in enumerate(zip(models, folders, strict=True)):
        counts: Counts = {}

        def report(done: float, total: float, text: str, /, place: int = position) -> None:
            progress(place * total + done, len(models) * total, f"{text} ({place + 1}/{len(models)})")

        if _is_run(model):
            from hfd_edge.training.evaluate import evaluate_run

            evaluate_run(_open_run(model, "fp32"), folder, split=split, progress=report, counts=counts)
        else:
            with _open_fitting(model, folder, precision=precision, backend=backend) as segment:
                evaluate(segment, folder, split=split, progress=report, counts=counts)
        found.append(counts)
    return found, folders[0].config.classes


def _open_fitting(model: Path, folder: PairFolder, *, precision: str, backend: str) -> Segmenter:
    """Open a bundle that fits the data. Raises DatasetError, BundleError and BackendError."""
    bundle = Bundle.open(model)
    folder.require_fit("the bundle", classes=bundle.manifest.classes, sar=bundle.manifest.sar)
    from hfd_edge.runtime.segmenter import Segmenter

    return Segmenter(bundle, backend=backend, precision=precision)


@contextmanager
def open_predictor(model: Path, *, precision: str = "fp32", backend: str = "auto") -> Iterator[Predict]:
    """Open a student's run or a bundle as a function from stored SAR pixels to labels.

    Raises:
        BundleError: `model` is neither, or is a teacher, which does not take SAR.
    """
    if not _is_run(model):
        from hfd_edge.runtime.segmenter import Segmenter

        with Segmenter(Bundle.open(model), backend=backend, precision=precision) as segment:
            yield segment
        return
    run = _open_run(model, precision)
    preprocessing = run.info.preprocessing
    if run.info.kind == "teacher" or preprocessing is None:
        raise BundleError(f"{model} is a teacher, which takes EO images. Give a student's run or a bundle.")
    import torch

    from hfd_edge.training.evaluate import NODATA_LABEL, predict_labels

    network, device = run.network(), torch.device("cpu")

    def predict(image: Array) -> NDArray[np.uint8]:
        pixels, valid = preprocessing(image)
        labels = predict_labels(network, pixels[None], device=device)[0]
        return np.asarray(np.where(valid, labels, np.uint8(NODATA_LABEL)))

    yield predict


def open_folder(model: Path, data: Path, *, scheme: str | None = None) -> PairFolder:
    """Open a data folder under the split scheme that a run or bundle was trained with, unless told."""
    if scheme is None and _is_run(model):
        from hfd_edge.hfdnet.run import Run

        scheme = Run.open(model).recipe.split
    elif scheme is None:
        scheme = Bundle.open(model).manifest.provenance.recipe.get("split")
    return PairFolder.open(data, scheme=scheme)


def _is_run(model: Path) -> bool:
    return (model / "run.json").is_file()


def _open_run(model: Path, precision: str) -> Any:
    from hfd_edge.hfdnet.run import Run

    if precision != "fp32":
        raise BundleError(
            f"{model} is a run folder, which has fp32 weights only, not {precision}. Export and quantize "
            "it, then evaluate the bundle."
        )
    return Run.open(model)
