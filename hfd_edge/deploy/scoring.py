"""What a variant of a model loses, measured in the terms of segmentation.

A bench is opened once and scores many candidates: tiles, labels and the FP32 model's answers stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.layout import Pair
from hfd_edge.deploy.graph import logits_of, session
from hfd_edge.deploy.tiles import cut
from hfd_edge.errors import DatasetError, ExportError
from hfd_edge.metrics import BoundaryConfusion, Confusion
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.logits import labels_from_logits


@dataclass(frozen=True)
class Score:
    """Accuracy of one model on a bench; all shares are from 0 to 1.

    Attributes:
        miou: Mean IoU against the truth.
        iou: IoU per class; None for a class that does not occur.
        boundary_miou: Mean IoU near the outlines of the classes.
        accuracy: Share of labelled pixels that are right.
        flipped: Share of valid pixels whose label is not the FP32 model's.
        fidelity: Mean IoU with the FP32 model's labels as the truth. Finer than `miou`, where gains and
            losses cancel, and fairer to rare classes than `flipped`.
        tiles: Tiles scored.
        pixels: Labelled pixels.
    """

    miou: float
    iou: dict[str, float | None]
    boundary_miou: float
    accuracy: float
    flipped: float
    fidelity: float
    tiles: int
    pixels: int


@dataclass(frozen=True)
class Drop:
    """What a model loses against another; points are hundredths, and negative where it gains.

    Attributes:
        miou_points: Mean IoU lost.
        worst_class: The class that loses most; "" if no class occurs.
        worst_class_points: IoU that it loses.
        boundary_points: Mean boundary IoU lost.
        fidelity_points: 100 * (1 - fidelity) of the model.
        flipped: Share of pixels, 0 to 1, whose label is not the FP32 model's.
    """

    miou_points: float
    worst_class: str
    worst_class_points: float
    boundary_points: float
    fidelity_points: float
    flipped: float

    @classmethod
    def between(cls, reference: Score, score: Score) -> Drop:
        """What `score` loses against `reference`, both of one bench."""
        lost = {
            name: 100 * (before - (score.iou[name] or 0.0))
            for name, before in reference.iou.items()
            if before is not None
        }
        worst = max(lost, key=lambda name: lost[name], default="")
        return cls(
            miou_points=100 * (reference.miou - score.miou),
            worst_class=worst,
            worst_class_points=lost.get(worst, 0.0),
            boundary_points=100 * (reference.boundary_miou - score.boundary_miou),
            fidelity_points=100 * (1 - score.fidelity),
            flipped=score.flipped,
        )


@dataclass(frozen=True)
class _Tile:
    """One tile with what is known about it; the last three are (rows, cols) of its part of the image."""

    pixels: NDArray[np.float32]  # (bands, tile_px, tile_px)
    valid: NDArray[np.bool_]
    truth: NDArray[np.integer[Any]]
    expected: NDArray[np.uint8]  # labels of the FP32 model


class Bench:
    """Labelled tiles of a split, and the FP32 model's answers, for scoring variants of one bundle.

    Attributes:
        split: Where the tiles come from.
        reference: Score of the FP32 model.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: PairFolder,
        *,
        split: str = "val",
        limit: int | None = None,
        progress: Progress = silent,
    ) -> None:
        """Read the tiles and run the FP32 model on them.

        Images are cut into tiles that touch; small ones are padded as the runtime pads them.

        Args:
            bundle: Says how tiles are made, and holds the FP32 model.
            folder: Data folder.
            split: Split to score on; not the one that calibrates.
            limit: Most tiles, spread evenly over the split; None for all. A tile of 512 pixels takes about
                1 MB a band.
            progress: Told of every tile.
        Raises:
            DatasetError: the split is missing, has no labels, or does not fit the bundle.
            BundleError: the FP32 model is missing or was changed.
        """
        manifest = bundle.manifest
        folder.require_fit("the bundle", classes=manifest.classes, sar=manifest.sar)
        if limit is not None and limit < 1:
            raise DatasetError(f"Scoring on {limit} tiles is not possible. Ask for at least one.")
        self.split = split
        self._manifest = manifest
        self._ignore_index = folder.config.ignore_index
        runner = session(bundle.model("fp32"))
        self._tiles: list[_Tile] = []
        pairs = _labelled(folder, split)
        for done, pair in enumerate(_spread(pairs, limit)):
            progress(done, min(len(pairs), limit or len(pairs)), f"reading {split} tiles")
            self._tiles += self._cut(folder, pair, runner, _share(len(pairs), limit))
        self._tiles = _spread(self._tiles, limit)
        if not any((tile.truth != self._ignore_index).any() for tile in self._tiles):
            raise DatasetError(
                f"Split '{split}' of {folder.root} has no labelled pixel, so nothing can be scored on it."
            )
        self.reference = self._score(tile.expected for tile in self._tiles)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self._tiles)

    def tile(self, index: int) -> NDArray[np.float32]:
        """Standardised pixels of one tile (bands, tile_px, tile_px)."""
        return self._tiles[index].pixels

    def first(self, count: int) -> Bench:
        """A bench of at most `count` of these tiles, spread evenly, for quick comparisons."""
        other = object.__new__(Bench)
        other.__dict__.update(self.__dict__)
        other._tiles = _spread(self._tiles, count)
        other.reference = other._score(tile.expected for tile in other._tiles)
        return other

    def score(self, model: Path | Any, *, progress: Progress = silent) -> Score:
        """Run a model (a file, or a ModelProto) on every tile.

        Raises:
            ExportError: ONNX Runtime refuses the model, or its logits are not finite.
        """
        return self._score(self._labels(session(model), progress))

    def drop(self, model: Path | Any, *, progress: Progress = silent) -> Drop:
        """What a model loses against FP32. Raises as `score`."""
        return Drop.between(self.reference, self.score(model, progress=progress))

    def _labels(self, runner: Any, progress: Progress) -> Iterator[NDArray[np.uint8]]:
        for index, tile in enumerate(self._tiles):
            yield self._run(runner, tile.pixels, tile.valid)
            progress(index + 1, len(self._tiles), f"scoring on {self.split}")

    def _run(self, runner: Any, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        logits = logits_of(runner, pixels[None])[0]
        if not np.isfinite(logits).all():
            raise ExportError(
                "A variant gives logits that are not finite: some activations exceed its range. Use a higher "
                "precision for this model."
            )
        rows, cols = valid.shape
        labels = labels_from_logits(logits, stride=self._manifest.stride, rows=rows, cols=cols)
        labels[~valid] = self._manifest.nodata_label
        return labels

    def _cut(self, folder: PairFolder, pair: Pair, runner: Any, count: int | None) -> list[_Tile]:
        side = self._manifest.tile_px
        pixels, valid = self._manifest.preprocessing(folder.load_sar(pair))
        truth = folder.load_label(pair)
        rows, cols = valid.shape
        origins = [(row, col) for row in range(0, rows, side) for col in range(0, cols, side)]
        tiles = []
        for row, col in _spread(origins, count):
            window = np.s_[row : row + side, col : col + side]
            tile = cut(pixels, row=row, col=col, tile_px=side)
            # Copies, or each tile would keep its whole image alive.
            known = valid[window].copy()
            tiles.append(_Tile(tile, known, truth[window].copy(), self._run(runner, tile, known)))
        return tiles

    def _score(self, labels: Iterator[NDArray[np.uint8]]) -> Score:
        classes = self._manifest.classes
        truth = Confusion(classes, ignore_index=self._ignore_index)
        outlines = BoundaryConfusion(classes, ignore_index=self._ignore_index)
        same = Confusion(classes, ignore_index=self._manifest.nodata_label)
        for tile, found in zip(self._tiles, labels, strict=True):
            truth.add(tile.truth, found)
            outlines.add(tile.truth, found)
            same.add(tile.expected, found)
        return Score(
            miou=truth.miou,
            iou=truth.iou,
            boundary_miou=outlines.miou,
            accuracy=truth.accuracy,
            flipped=1 - same.accuracy if same.pixels else 0.0,
            fidelity=same.miou if same.pixels else 1.0,
            tiles=len(self._tiles),
            pixels=truth.pixels,
        )


def _labelled(folder: PairFolder, split: str) -> list[Pair]:
    pairs = [pair for pair in folder.pairs(split) if pair.label is not None]
    if not pairs:
        raise DatasetError(
            f"Split '{split}' of {folder.root} has no label files, so nothing can be scored on it. Add "
            "label/ files, or choose another split with --split."
        )
    return pairs


def _share(pairs: int, limit: int | None) -> int | None:
    """Most tiles of one image."""
    return None if limit is None else -(-limit // min(pairs, limit))


def _spread(items: list[Any], count: int | None) -> list[Any]:
    """At most `count` items at equal distances."""
    if count is None or count >= len(items):
        return items
    return [items[index * len(items) // count] for index in range(count)]
