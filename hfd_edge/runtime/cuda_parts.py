"""What the frames and rasters of one GPU pipeline share: the network, the kernels and three streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hfd_edge.runtime.backends import Backend
from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Speckle
from hfd_edge.runtime.launch_logits import Blend, CutTiles, Labels
from hfd_edge.runtime.ports import Ports
from hfd_edge.runtime.rows import Tiler
from hfd_edge.runtime.transfer import Intake, quiesce


class DeviceBackend(Backend, Protocol):
    """A network that runs on device memory; see `backends.tensorrt.TensorRTBackend`.

    Attributes:
        least: Fewest tiles of a batch.
        device: Where it runs.
    """

    least: int
    device: Device

    @property
    def ports(self) -> Ports: ...

    def enqueue(self, input_address: int, output_address: int, tiles: int, stream: Stream) -> None:
        """Compute the logits of some tiles, asynchronously. Both addresses are multiples of ALIGNMENT."""
        ...


@dataclass(frozen=True)
class Parts:
    """The network, the kernels and the streams of a pipeline.

    The streams let the pixels of one frame come in and be preprocessed while the network works on the frame
    before, and the labels of the one before that go out.

    Attributes:
        backend: The network.
        tiler: Geometry and preprocessing.
        kernels: Where the kernels come from.
        speckle: Stored pixels to network input.
        cut: Rows to tiles.
        blend: Logits of tiles to logits of rows.
        labels: Logits to labels.
        load: Stream of pixels coming in and being preprocessed.
        infer: Stream of the network and of all that makes its logits labels.
        unload: Stream of labels going out.
    """

    backend: DeviceBackend
    tiler: Tiler
    kernels: Kernels
    speckle: Speckle
    cut: CutTiles
    blend: Blend
    labels: Labels
    load: Stream
    infer: Stream
    unload: Stream

    @classmethod
    def of(cls, backend: DeviceBackend, tiler: Tiler) -> Parts:
        """Load the kernels. Raises BackendError where one cannot be had, or not for this preprocessing."""
        device, limits = backend.device, backend.device.limits
        kernels = Kernels(device)
        return cls(
            backend=backend,
            tiler=tiler,
            kernels=kernels,
            speckle=Speckle(kernels, limits, tiler.preprocessing, half=backend.ports.input_half),
            cut=CutTiles(kernels, limits),
            blend=Blend(kernels, limits),
            labels=Labels(kernels, limits),
            load=device.stream(),
            infer=device.stream(),
            unload=device.stream(),
        )

    @property
    def device(self) -> Device:
        """The GPU."""
        return self.backend.device

    @property
    def itemsize(self) -> int:
        """Bytes of a value of the network's input."""
        return 2 if self.backend.ports.input_half else 4

    def intake(self) -> Intake:
        """Make room for a block of stored pixels."""
        return Intake(self.device, self.tiler.preprocessing, self.speckle)

    def quiesce(self) -> None:
        """Wait until nothing is under way, whether it failed or not."""
        quiesce(self.load, self.infer, self.unload)

    def close(self) -> None:
        """Free kernels and streams."""
        self.quiesce()
        self.kernels.close()
        for stream in (self.load, self.infer, self.unload):
            stream.close()


def whole_rows(cols: int) -> int:
    """Elements from one row to the next: the columns, rounded up so that kernels use vectors of four."""
    return -(-cols // 4) * 4
