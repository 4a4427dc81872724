"""Batches of tiles from host memory to an engine and back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.ports import Ports

Enqueue = Callable[[int, int, int, Stream], None]


class Staging:
    """Page-locked and device memory for the largest batch of an engine, and a stream; threads take turns."""

    def __init__(self, device: Device, ports: Ports) -> None:
        """Allocate. Raises BackendError where there is no room."""
        self._lock = threading.Lock()
        self._least = ports.least
        self._parts: list[Any] = []
        shapes = ((ports.tile, ports.input_half), (ports.logits, ports.output_half))
        try:
            self._stream = self._keep(device.stream())
            (self._tiles, self._logits) = (
                self._keep(device.pinned((ports.most, *shape), np.float16 if half else np.float32))
                for shape, half in shapes
            )
            self._input = self._keep(device.buffer(self._tiles.array.nbytes))
            self._output = self._keep(device.buffer(self._logits.array.nbytes))
        except BaseException:
            self.close()
            raise

    def run(self, batch: NDArray[np.float32], enqueue: Enqueue) -> NDArray[np.float32]:
        """Copy tiles in, run them, copy logits out, wait. A batch below the engine's least is filled up."""
        with self._lock:
            count = max(len(batch), self._least)
            tiles, logits = self._tiles.array[:count], self._logits.array[:count]
            tiles[: len(batch)] = batch
            tiles[len(batch) :] = 0
            self._stream.copy_in(self._input.address, tiles)
            enqueue(self._input.address, self._output.address, count, self._stream)
            self._stream.copy_out(logits, self._output.address)
            self._stream.synchronize()
            return logits[: len(batch)].astype(np.float32)

    def close(self) -> None:
        """Free the memory."""
        with self._lock:
            for part in self._parts:
                part.close()

    def _keep(self, part: Any) -> Any:
        self._parts.append(part)
        return part
