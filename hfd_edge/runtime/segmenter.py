"""The runtime's front door: a bundle in, label maps out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError, RasterError, StorageError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.scene import MaskWriter, SceneReader
from hfd_edge.raster.tiling import LATTICE_PX, default_overlap
from hfd_edge.runtime.backends import open_backend
from hfd_edge.runtime.scene import ArraySink, ArraySource, SceneSource, Tiler, segment_rows

Array = NDArray[Any]

# Masks that wait for the consumer: one is taken while the next is made.
_WAITING_MASKS = 2


@dataclass(frozen=True)
class SceneReport:
    """What segmenting a scene took.

    Attributes:
        rows: Height of the scene, pixels.
        cols: Width of the scene, pixels.
        megapixels: rows * cols / 1e6.
        seconds: Wall-clock time, reading and writing included.
        tiles: Tiles that the network saw.
        skipped_tiles: Tiles without a valid pixel, which it did not need to see.
    """

    rows: int
    cols: int
    megapixels: float
    seconds: float
    tiles: int
    skipped_tiles: int


class Segmenter:
    """Segments SAR images with a bundle; use it in a `with` statement, or `close` it.

    Attributes:
        bundle: The bundle.
        backend: Backend in use; what "auto" chose, if that was asked for.
        precision: Precision in use.
        overlap_px: Overlap of tiles in use, pixels.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        overlap_px: int | None = None,
    ) -> None:
        """Load the bundle's model.

        Args:
            bundle: What `Bundle.open` gives.
            backend: "onnxruntime", or "auto".
            precision: "fp32", "fp16", "int8", or "auto" for the fastest on this backend.
            threads: CPU threads; None for one per core.
            overlap_px: Overlap of tiles, a multiple of 32 up to half a tile; None for 256, or half a tile
                where that is less. More of it hides tile borders better and costs time.
        Raises:
            BackendError: the backend is not available, cannot load the model, or an option is out of
                range.
            BundleError: the bundle has no model of this precision, or it was changed.
        """
        manifest = bundle.manifest
        overlap = default_overlap(manifest.tile_px) if overlap_px is None else overlap_px
        if overlap % LATTICE_PX or not 0 <= overlap <= manifest.tile_px // 2:
            raise BackendError(
                f"overlap_px is {overlap}, expected a multiple of {LATTICE_PX} from 0 to half the bundle's "
                f"tile ({manifest.tile_px // 2})."
            )
        self.bundle = bundle
        self.overlap_px = overlap
        self._model = open_backend(bundle, backend=backend, precision=precision, threads=threads)
        self.backend: str = self._model.name
        self.precision: str = self._model.precision
        self._tiler = Tiler(
            preprocessing=manifest.preprocessing,
            classes=len(manifest.classes),
            stride=manifest.stride,
            tile_px=manifest.tile_px,
            overlap_px=overlap,
            nodata_label=manifest.nodata_label,
        )

    def __call__(self, image: Array) -> NDArray[np.uint8]:
        """Segment an image in memory.

        Args:
            image: Stored pixels (bands, rows, cols) of any size, in the units of the manifest.
        Returns:
            Labels (rows, cols); the manifest's no-data label where a band has no data.
        Raises:
            RadiometryError: the pixels, or the number of bands, are not what the bundle expects.
            BackendError: the network failed to run, or the segmenter was closed.
        """
        image = np.asarray(image)
        if image.ndim != 3 or 0 in image.shape:
            raise RadiometryError(f"The image is {image.shape}, expected (bands, rows, cols), none empty.")
        if len(image) != len(self.bundle.manifest.sar.bands):
            raise RadiometryError(self._wrong_bands("The image", len(image)))
        source = ArraySource(image)
        sink = ArraySink(rows=source.rows, cols=source.cols)
        segment_rows(source, sink, backend=self._model, tiler=self._tiler)
        return sink.labels

    def scene(
        self, source: Path | str, destination: Path | str, *, progress: Progress = silent
    ) -> SceneReport:
        """Segment a scene of any size in bounded memory; equal to calling the segmenter on all of it.

        Pixels are no-data where the manifest says so, and where the file itself declares it.

        Args:
            source: GeoTIFF, PNG or another raster, with the manifest's bands in order.
            destination: GeoTIFF to write; an existing one is replaced once the new one is whole. It keeps
                the scene's CRS and transform, or ground control points.
            progress: Called with tiles done and tiles in all.
        Raises:
            RasterError: the scene cannot be read, is truncated, has another number of bands, or has no
                valid pixel at all.
            RadiometryError: the pixels are not in the manifest's units.
            StorageError: the mask cannot be written, or is the scene itself.
            BackendError: the network failed to run, or the segmenter was closed.
        """
        started = time.perf_counter()
        source, destination = Path(source), Path(destination)
        manifest = self.bundle.manifest
        with SceneReader(source) as reader:
            if reader.bands != len(manifest.sar.bands):
                raise RasterError(self._wrong_bands(str(source), reader.bands))
            _check_destination(source, destination)
            writer = MaskWriter(
                destination,
                rows=reader.rows,
                cols=reader.cols,
                georeference=reader.georeference,
                palette=manifest.palette,
                classes=manifest.classes,
                nodata_label=manifest.nodata_label,
            )
            rows = SceneSource(reader, nodata=manifest.preprocessing.nodata)
            with writer:
                count = segment_rows(rows, writer, backend=self._model, tiler=self._tiler, progress=progress)
                if count.tiles == 0:
                    raise RasterError(
                        f"{source} has no valid pixel: all of it is NaN, no-data, or "
                        "without backscatter. Check that the file is whole and that its no-data value is "
                        f"right; the bundle expects {manifest.sar.units}."
                    )
            return SceneReport(
                rows=reader.rows,
                cols=reader.cols,
                megapixels=reader.rows * reader.cols / 1e6,
                seconds=time.perf_counter() - started,
                tiles=count.tiles,
                skipped_tiles=count.skipped,
            )

    def stream(self, frames: Iterable[Array]) -> Iterator[NDArray[np.uint8]]:
        """Segment frames as they come; masks keep their order.

        A worker thread takes and segments the next frames while the caller uses a mask. It runs at most
        three frames ahead, so a slow caller does not fill the memory. Closing the iterator early stops the
        worker after the frame that it is at.

        Args:
            frames: Images as for a call, of any sizes. They are taken in the worker thread.
        Yields:
            The mask of each frame.
        Raises:
            Exception: what `frames` or the segmentation raised, in the place of that frame's mask.
        """
        worker = _Worker(self, frames)
        worker.start()
        try:
            yield from worker.masks()
        finally:
            worker.stop()

    def close(self) -> None:
        """Free the model; later calls raise BackendError. More than once is allowed."""
        self._model.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wrong_bands(self, what: str, bands: int) -> str:
        names = self.bundle.manifest.sar.bands
        return (
            f"{what} has {bands} band{'' if bands == 1 else 's'}, but bundle '{self.bundle.manifest.name}' "
            f"expects {len(names)}: {', '.join(names)}. Put exactly these bands into one file or array, in "
            "this order."
        )


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _Worker(threading.Thread):
    """Segments frames into a bounded queue until they end, one fails, or nobody wants more."""

    def __init__(self, segment: Segmenter, frames: Iterable[Array]) -> None:
        # A daemon: a camera that blocks for ever must not keep the process alive.
        super().__init__(name="hfd-edge-stream", daemon=True)
        self._segment = segment
        self._frames = frames
        self._ready: queue.Queue[NDArray[np.uint8] | _Failure | None] = queue.Queue(_WAITING_MASKS)
        self._stopped = threading.Event()
        self._running = threading.Lock()

    def run(self) -> None:
        frames: Iterator[Array] = iter(())
        try:
            frames = iter(self._frames)
            for frame in frames:
                with self._running:
                    if self._stopped.is_set():
                        return
                    mask = self._segment(frame)
                if not self._put(mask):
                    return
            self._put(None)
        except BaseException as error:
            self._put(_Failure(error))
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                with suppress(Exception):  # the frames' own cleaning up; nobody is left to tell
                    close()

    def masks(self) -> Iterator[NDArray[np.uint8]]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def stop(self) -> None:
        """Let no more frames be segmented; wait for the one that is, but not for the next frame."""
        self._stopped.set()
        with self._running:
            pass

    def _put(self, item: NDArray[np.uint8] | _Failure | None) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._ready.put(item, timeout=0.05)
                return True
        return False


def _check_destination(source: Path, destination: Path) -> None:
    if destination.is_dir():
        raise StorageError(f"{destination} is a folder. Name the mask file to write, ending in .tif")
    if destination.exists() and destination.samefile(source):
        raise StorageError(
            f"{destination} is the scene itself, which the mask would replace. Choose another destination."
        )
