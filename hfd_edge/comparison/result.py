"""What a comparison of variants holds; plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KEPT_TILES = 12
"""Tiles that each row remembers by name: those that differ most from FP32."""


@dataclass(frozen=True)
class TileFlips:
    """A tile, and the share of its pixels with data, 0 to 1, whose label differs from FP32's."""

    name: str
    flipped: float


@dataclass(frozen=True)
class Row:
    """One variant on one backend. Shares and scores are 0 to 1; points are hundredths of them.

    Attributes:
        precision: Variant of the bundle.
        backend: What ran it.
        miou: Mean IoU over the classes that occur.
        iou: IoU by class; None for a class in neither truth nor prediction.
        boundary_miou: Mean boundary IoU; see `hfd_edge.metrics.BoundaryConfusion`.
        boundary_iou: The same by class.
        accuracy: Share of labelled pixels that are right.
        drop_points: mIoU lost against the reference; negative where it gained.
        drop_low_points: Lower bound of the drop, other tiles granted; see `hfd_edge.comparison.bootstrap`.
            None for the reference itself, and with few tiles.
        drop_high_points: Upper bound.
        worst_class: The class that lost most IoU; None for the reference itself.
        worst_class_drop_points: What it lost.
        boundary_drop_points: Boundary mIoU lost.
        flipped: Share of pixels with data whose label differs from the reference's.
        broken: Share of labelled pixels that the reference has right and this variant wrong.
        corrected: The other way round; `corrected - broken` is the change of accuracy.
        bytes: Size of the variant's ONNX file.
        latency_ms: Median time of one tile; None where it was not measured (a GPU backend).
        latency_p90_ms: Nine in ten were faster.
        most_flipped: The tiles that differ most, worst first; tiles without a difference are left out.
    """

    precision: str
    backend: str
    miou: float
    iou: dict[str, float | None]
    boundary_miou: float
    boundary_iou: dict[str, float | None]
    accuracy: float
    drop_points: float
    drop_low_points: float | None
    drop_high_points: float | None
    worst_class: str | None
    worst_class_drop_points: float | None
    boundary_drop_points: float
    flipped: float
    broken: float
    corrected: float
    bytes: int
    latency_ms: float | None
    latency_p90_ms: float | None
    most_flipped: tuple[TileFlips, ...]


@dataclass(frozen=True)
class NotRun:
    """A variant that a backend of this machine refused."""

    precision: str
    backend: str
    reason: str


@dataclass(frozen=True)
class EngineRow:
    """An engine of the bundle; values are None where its sidecar has none, or cannot be trusted.

    Attributes:
        name: Its name in the bundle.
        bytes: Size on disk.
        not_run: Why none of the rows stands for it; None when one does.
        target: Profile that it was built for.
        precision: Variant that it was built from.
        flavour: Compiler, which is also the backend that runs it.
        version: The compiler's version.
        compute_capabilities: GPUs that it runs on; 75 is sm_75.
        weights_bytes: Memory of its weights, as the compiler logged it.
        activation_bytes: Memory of its activations, as the compiler logged it.
        current: Whether it was built from the variant's present ONNX file.
    """

    name: str
    bytes: int
    not_run: str | None
    target: str | None = None
    precision: str | None = None
    flavour: str | None = None
    version: str | None = None
    compute_capabilities: tuple[int, ...] = ()
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    current: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured.

    Attributes:
        bundle: Path of the bundle.
        name: Its name.
        data: Path of the data folder.
        split: Split that was scored.
        scheme: Split scheme in use; None for a folder with one only.
        tiles: Label maps that were scored.
        pixels: Labelled pixels in them.
        boundary_px: Width of the band along outlines that boundary IoU looks at.
        tile_px: Side of the tile whose latency was measured.
        threads: CPU threads in use.
        latency_runs: Timed runs of each row on a CPU, at most.
        reference: Backend of the FP32 row that the others are compared with.
        rows: Variants, the reference first.
        not_run: Variants that a backend refused.
        engines: Engines of the bundle.
        versions: Package name to version.
    """

    bundle: str
    name: str
    data: str
    split: str
    scheme: str | None
    tiles: int
    pixels: int
    boundary_px: int
    tile_px: int
    threads: int
    latency_runs: int
    reference: str
    rows: tuple[Row, ...]
    not_run: tuple[NotRun, ...]
    engines: tuple[EngineRow, ...]
    versions: dict[str, str]

    def content(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return tuple(self.rows[0].iou)


@dataclass(frozen=True)
class Disagreement:
    """A tile to look at: the row that differs most from FP32 on it."""

    tile: str
    precision: str
    backend: str
    flipped: float


def disagreements(comparison: Comparison, *, count: int) -> tuple[Disagreement, ...]:
    """The tiles on which any variant differs most from FP32, each once, with the row that does; worst first.

    Args:
        comparison: What `compare` gave.
        count: Tiles at most, up to `KEPT_TILES`; fewer when fewer differ.
    """
    worst: dict[str, Disagreement] = {}
    for row in comparison.rows:
        for tile in row.most_flipped:
            if tile.name not in worst or tile.flipped > worst[tile.name].flipped:
                worst[tile.name] = Disagreement(tile.name, row.precision, row.backend, tile.flipped)
    return tuple(sorted(worst.values(), key=lambda found: (-found.flipped, found.tile))[:count])
