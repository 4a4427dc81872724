"""What a network on the GPU takes and gives; TensorRT's backend tells it, and the pipeline works by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ALIGNMENT = 256
"""Bytes; where a batch may begin. Buffers do, and what TensorRT is given must (NvInferRuntime.h)."""


@dataclass(frozen=True)
class Ports:
    """An engine's input and output.

    Attributes:
        input_half: Tiles are float16; else float32.
        output_half: The same of the logits.
        tile: Shape of one tile, (bands, tile_px, tile_px).
        logits: Shape of its logits, (classes, tile_px / stride, tile_px / stride).
        least: Fewest tiles of a batch.
        most: Most tiles.
    """

    input_half: bool
    output_half: bool
    tile: tuple[int, int, int]
    logits: tuple[int, int, int]
    least: int
    most: int

    def input_bytes(self, tiles: int) -> int:
        """Size of a batch of tiles."""
        return tiles * int(np.prod(self.tile)) * (2 if self.input_half else 4)

    def logits_bytes(self, tiles: int) -> int:
        """Size of their logits."""
        return tiles * int(np.prod(self.logits)) * (2 if self.output_half else 4)
