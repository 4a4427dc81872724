"""From a frame to its mask: what every pipeline offers, and the one that needs no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.environment import allowed_cores
from hfd_edge.errors import BackendError
from hfd_edge.runtime.backends import CPU_BACKENDS, Backend, open_backend
from hfd_edge.runtime.rows import CpuRows, RowEngine, Tiler
from hfd_edge.runtime.scene import ArraySink, ArraySource, segment_rows

if TYPE_CHECKING:
    from hfd_edge.runtime.cuda_parts import DeviceBackend

Array = NDArray[Any]


class Pending(Protocol):
    """A mask in the making.

    Attributes:
        stages_ms: Time that each stage took, by its name. Read it after `result`.
    """

    @property
    def stages_ms(self) -> Mapping[str, float]: ...

    def result(self) -> NDArray[np.uint8]:
        """Wait for the mask (rows, cols); the caller owns the array. Called once.

        Raises:
            RadiometryError: the pixels are not in the units that the bundle expects.
            BackendError: the network failed to run, or the pipeline was closed.
        """
        ...

    def discard(self) -> None:
        """Give the mask up, whether it is done or not, and free what it holds. Never raises."""
        ...


class FrameTaker(Protocol):
    """What a stream of frames is given to: a pipeline, or the `Segmenter` that checks frames before it."""

    @property
    def depth(self) -> int:
        """Frames that are in the making at once."""
        ...

    def submit(self, image: Any) -> Pending:
        """Start to segment a frame; see `Pipeline.submit`."""
        ...


class Pipeline(Protocol):
    """Takes frames in order and gives their masks; belongs to one `Segmenter`.

    Threads may call it side by side: a stream submits in its own thread while the caller's takes results, and
    may segment something else.

    Attributes:
        name: Backend, for example "onnxruntime".
        precision: "fp32", "fp16", "int8" or "int8_fp16".
        depth: Frames that are in the making at once. `submit` of one more waits until the oldest is made,
            whether anybody has asked for its result or not.
        tiler: Geometry and preprocessing of the bundle.
        spare_cores: Whether cores are left beside the network, so that files are read ahead and written
            behind in threads. Where it has every core, they would only make it wait; files are then decoded
            in between, with all threads.
    """

    name: str
    precision: str
    depth: int
    tiler: Tiler
    spare_cores: bool

    def submit(self, image: Any) -> Pending:
        """Start to segment a frame.

        Args:
            image: Stored pixels, an array (bands, rows, cols) of any size with the bundle's number of
                bands, not empty (`Segmenter` has checked that); or on a GPU an object with
                `__cuda_array_interface__`. In host memory it may be changed once this returns; in device
                memory only when the result is there.
        Raises:
            RadiometryError: the pixels are not in the units that the bundle expects ("The image: ...").
            BackendError: the network failed to run, the pipeline was closed, or it cannot read device
                memory.
        """
        ...

    def rows(self, *, cols: int) -> RowEngine:
        """Make an engine for a raster of this width, whatever its height. Raises BackendError."""
        ...

    def close(self) -> None:
        """Free the model and all memory; later calls raise BackendError. More than once is allowed."""
        ...


@dataclass(frozen=True, eq=False)
class Ready:
    """A mask that is there already; see `Pending`."""

    mask: NDArray[np.uint8]
    stages_ms: Mapping[str, float]

    def result(self) -> NDArray[np.uint8]:
        """Give the mask."""
        return self.mask

    def discard(self) -> None:
        """Nothing to free."""


class CpuPipeline:
    """Frames one after the other through `Backend.run`, all else in NumPy and OpenCV; see `Pipeline`."""

    depth = 1

    def __init__(self, backend: Backend, tiler: Tiler, *, spare_cores: bool) -> None:
        self._backend = backend
        self.tiler = tiler
        self.spare_cores = spare_cores
        self.name: str = backend.name
        self.precision: str = backend.precision

    def submit(self, image: Any) -> Ready:
        """Segment a frame at once; see `Pipeline.submit`. Raises RadiometryError and BackendError."""
        if hasattr(image, "__cuda_array_interface__"):
            raise BackendError(
                f"The image is in GPU memory, but backend {self.name} reads host memory. Copy it to the host "
                "as a NumPy array, or open the bundle with a GPU backend."
            )
        source = ArraySource(np.asarray(image))
        sink = ArraySink(rows=source.rows, cols=source.cols)
        count = segment_rows(source, sink, engine=self.rows(cols=source.cols), tiler=self.tiler, aside=False)
        # Reading and writing are none in memory.
        stages = {name: spent for name, spent in count.stages_ms.items() if name not in ("read", "write")}
        return Ready(sink.labels, stages)

    def rows(self, *, cols: int) -> CpuRows:
        """Make an engine for a raster of this width."""
        return CpuRows(self._backend, self.tiler, cols=cols)

    def close(self) -> None:
        """Free the model."""
        self._backend.close()


def open_pipeline(
    bundle: Bundle, *, backend: str, precision: str, threads: int | None, overlap_px: int
) -> Pipeline:
    """Load a bundle's model and choose what moves pixels to it and labels back.

    Args:
        bundle: The bundle.
        backend: As for `open_backend`, like `precision` and `threads`.
        overlap_px: Overlap of tiles, checked.
    Raises:
        BackendError: the backend is not available, or cannot load the model.
        BundleError: the bundle has no model of this precision, or it was changed.
    """
    manifest = bundle.manifest
    tiler = Tiler(
        preprocessing=manifest.preprocessing,
        classes=len(manifest.classes),
        stride=manifest.stride,
        tile_px=manifest.tile_px,
        overlap_px=overlap_px,
        nodata_label=manifest.nodata_label,
    )
    opened = open_backend(bundle, backend=backend, precision=precision, threads=threads)
    if not hasattr(opened, "enqueue"):
        here = opened.name in CPU_BACKENDS and (threads is None or threads >= len(allowed_cores()))
        return CpuPipeline(opened, tiler, spare_cores=not here)
    from hfd_edge.runtime.cuda_pipeline import CudaPipeline

    try:
        return CudaPipeline(cast("DeviceBackend", opened), tiler)
    except BaseException:
        opened.close()
        raise
