"""A network that computes on the host in the middle of a stream, so that pipelines need no TensorRT."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError
from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.ports import Ports

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class HostNetwork:
    """A bundle's model on ONNX Runtime between two copies, as a host function of the stream.

    The interface of a TensorRT backend with `enqueue`; works on every driver, at the speed of a CPU.
    """

    name, precision = "host", "fp32"

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        half: tuple[bool, bool] = (False, False),
        batch: int = 2,
        least: int = 1,
    ) -> None:
        manifest = bundle.manifest
        size, side = manifest.tile_px, manifest.tile_px // manifest.stride
        self.device = device
        self.batch, self.least = batch, least
        bands, classes = len(manifest.sar.bands), len(manifest.classes)
        self.ports = Ports(*half, (bands, size, size), (classes, side, side), least, batch)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(bundle.model("fp32")), options, providers=["CPUExecutionProvider"]
        )
        self._calls: deque[tuple[Any, ...]] = deque()  # memory and callbacks must outlive their calls
        self._lock = threading.Lock()
        self.enqueued = 0

    def compute(self, tiles: NDArray[Any]) -> NDArray[Any]:
        (logits,) = self._session.run(None, {"sar": tiles.astype(np.float32)})
        return logits

    def enqueue(self, input_address: int, output_address: int, tiles: int, stream: Stream) -> None:
        if not self.least <= tiles <= self.batch:
            raise BackendError(f"{tiles} tiles were given to a batch of {self.least} to {self.batch}.")
        if input_address % 256 or output_address % 256:
            raise BackendError("TensorRT takes multiples of 256 only.")
        with self._lock:
            self._enqueue(input_address, output_address, tiles, stream)

    def _enqueue(self, input_address: int, output_address: int, tiles: int, stream: Stream) -> None:
        while self._calls and self._calls[0][-1].done():
            self._forget()
        ports, device = self.ports, self.device
        given = device.pinned((tiles, *ports.tile), np.float16 if ports.input_half else np.float32)
        logits = device.pinned((tiles, *ports.logits), np.float16 if ports.output_half else np.float32)

        def work(_: Any) -> None:
            logits.array[:] = self.compute(given.array)

        function, done = _HOST_FUNCTION(work), device.event()
        self._calls.append((function, given, logits, done))
        stream.copy_out(given.array, input_address)
        launch_host(device, stream, function)
        stream.copy_in(output_address, logits.array)
        stream.record(done)
        self.enqueued += tiles

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.compute(batch)

    def close(self) -> None:
        while self._calls:
            self._forget()

    def _forget(self) -> None:
        for item in self._calls.popleft()[1:]:
            item.close()


def launch_host(device: Device, stream: Stream, function: Any) -> None:
    """Queue a C function."""
    from cuda.bindings import driver

    with device.current("launching a host function"):
        pointer = driver.CUhostFn(ctypes.cast(function, ctypes.c_void_p).value)
        (status,) = driver.cuLaunchHostFunc(driver.CUstream(stream.handle), pointer, 0)
    if int(status) != 0:
        raise BackendError(f"Launching a host function failed: {status.name}.")
