"""Score a network on whole tiles: validation during training, and run folders afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hfd_edge.datasets.augment import Sample
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.errors import DatasetError
from hfd_edge.hfdnet.alignment import upsample
from hfd_edge.hfdnet.network import MULTIPLE_PX
from hfd_edge.hfdnet.run import Run
from hfd_edge.metrics import Confusion, Details
from hfd_edge.progress import Progress, silent
from hfd_edge.training.samples import EoStatistics, TileCache, TileStore, images

NODATA_LABEL = 255
"""Given to pixels without SAR data, as the runtime does; an error where the truth is known."""

_BATCH_PX = 1 << 19
"""Pixels that are run together when nothing else is said: eight tiles of 256 x 256."""


@dataclass(frozen=True)
class Scorer:
    """Compares a network's labels with the truth over a store of tiles.

    Attributes:
        store: Whole tiles.
        device: Where the network is.
        batch_px: Tiles of one size run together up to this many pixels.
    """

    store: TileStore
    device: torch.device
    batch_px: int = _BATCH_PX

    def __call__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        text: str,
        progress: Progress = silent,
        counts: dict[str, NDArray[np.int64]] | None = None,
        details: Details | None = None,
    ) -> Confusion:
        """Run all tiles.

        Args:
            network: Standardised pixels to logits at stride 4, or at full size; in evaluation mode.
            text: Name of the work, for `progress`.
            progress: Counts tiles.
            counts: Takes the confusion counts of each tile, by the pair's name.
            details: Takes the tiles with the confidences, for the scores that cost more.
        Returns:
            The confusion matrix over all labelled pixels.
        Raises:
            DatasetError: a file is faulty.
        """
        config = self.store.folder.config
        confusion = Confusion(config.classes, ignore_index=config.ignore_index)
        for tiles in self._groups():
            progress(confusion.tiles, len(self.store), f"{text} mIoU {confusion.miou:.3f}")
            logits = _full_size(network, np.stack([_input(tile) for tile in tiles]), self.device)
            batch = _labels(logits)
            sure = [None] * len(tiles) if details is None else _confidences(logits)
            for tile, labels, confidence in zip(tiles, batch, sure, strict=True):
                if tile.eo is None:
                    seen = (tile.sar != 0).any(axis=0)
                    labels = np.where(seen, labels, np.uint8(NODATA_LABEL))
                    confidence = None if confidence is None else np.where(seen, confidence, np.nan)
                before, pair = confusion.counts.copy(), self.store.pairs[confusion.tiles]
                confusion.add(tile.label, labels)
                if counts is not None:
                    counts[pair.name] = confusion.counts - before
                if details is not None:
                    details.add(tile.label, labels, confidence)
        progress(len(self.store), len(self.store), f"{text} mIoU {confusion.miou:.3f}")
        return confusion

    def _groups(self) -> Iterator[list[Sample]]:
        """Neighbouring tiles of one size, few enough for one run."""
        group: list[Sample] = []
        for index in range(len(self.store)):
            tile = self.store[index]
            full = group and (len(group) + 1) * group[0].label.size > self.batch_px
            if group and (full or tile.label.shape != group[0].label.shape):
                yield group
                group = []
            group.append(tile)
        if group:
            yield group


def predict_labels(
    network: Callable[[Tensor], Tensor], pixels: NDArray[np.float32], *, device: torch.device
) -> NDArray[np.uint8]:
    """Label standardised images of any size.

    Sides that are no multiple of 32 are padded at the bottom and the right by repeating the edge.

    Args:
        network: Pixels to logits at stride 4, or at full size.
        pixels: (batch, bands, rows, cols).
        device: Where the network is.
    Returns:
        Class ids (batch, rows, cols).
    """
    return _labels(_full_size(network, pixels, device))


@torch.inference_mode()
def _full_size(
    network: Callable[[Tensor], Tensor], pixels: NDArray[np.float32], device: torch.device
) -> Tensor:
    """Logits (batch, classes, rows, cols) on the device."""
    rows, cols = pixels.shape[2:]
    padding = (0, -cols % MULTIPLE_PX, 0, -rows % MULTIPLE_PX)
    whole = F.pad(images(pixels).to(device), padding, mode="replicate")
    return upsample(network(whole).float(), size=whole.shape[2:])[:, :, :rows, :cols]


@torch.inference_mode()
def _labels(logits: Tensor) -> NDArray[np.uint8]:
    return np.asarray(logits.argmax(1).to(torch.uint8).cpu().numpy())


@torch.inference_mode()
def _confidences(logits: Tensor) -> NDArray[np.float32]:
    """Probability of the likeliest class, (batch, rows, cols)."""
    # The largest term of the softmax; the others need not be kept.
    return np.asarray((logits.amax(1) - logits.logsumexp(1)).exp().cpu().numpy())


def evaluate_run(
    run: Run,
    folder: PairFolder,
    *,
    split: str = "test",
    progress: Progress = silent,
    counts: dict[str, NDArray[np.int64]] | None = None,
    details: Details | None = None,
) -> dict[str, Any]:
    """Measure a run's best weights: students on SAR, teachers on what they see.

    Args:
        run: Trained run.
        folder: Data with the same classes and input.
        split: "train", "val" or "test"; pairs without label, or without EO that a teacher sees, are left
            out.
        progress: Counts tiles.
        counts: Takes the confusion counts of each tile, by the pair's name.
        details: Takes the tiles with the confidences; its scores are then given, too.
    Returns:
        miou, iou per class, accuracy (0 to 1), pixels, tiles, backend "torch", precision "fp32".
    Raises:
        DatasetError: the data do not fit the run, a file is faulty, or no pixel has a label.
        CheckpointError: the run has no usable weights.
    """
    teacher, trained = run.info.kind == "teacher", run.info.dataset
    takes_sar = run.info.preprocessing is not None
    folder.require_fit(
        "the run",
        classes=trained.classes,
        sar=trained.sar if takes_sar else None,
        eo=trained.eo if teacher else None,
    )
    pairs = [
        pair
        for pair in folder.pairs(split)
        if pair.label is not None and (not teacher or pair.shows(run.info.sees))
    ]
    store = TileStore(
        folder, pairs, run.info.preprocessing, eo_statistics_of(run), TileCache(0), run.info.sees
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = run.network().to(device, memory_format=torch.channels_last)
    confusion = Scorer(store, device)(
        network, text=f"evaluate {split}", progress=progress, counts=counts, details=details
    )
    if confusion.pixels == 0:
        labelled = any(pair.label is not None for pair in folder.pairs(split))
        missing = "the EO images that it sees" if labelled and not pairs else "label/ files"
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no labelled pixel for a {run.info.kind} ({len(pairs)} "
            f"pairs with the files that it needs), so it cannot be scored. Add {missing}, or choose another "
            "split."
        )
    more = {} if details is None else details.scores(confusion)
    return {**confusion.scores(), **more, "backend": "torch", "precision": "fp32"}


def eo_statistics_of(run: Run) -> EoStatistics | None:
    """How a teacher's input is standardised; None for a student."""
    if run.info.eo_mean is None or run.info.eo_std is None:
        return None
    return EoStatistics(run.info.eo_mean, run.info.eo_std)


def _input(tile: Sample) -> NDArray[np.float32]:
    """All bands that a store loads: EO, as far as it does, and SAR behind, as in `teacher_pixels`."""
    return tile.sar if tile.eo is None else np.concatenate([tile.eo, tile.sar])
