"""The runtime's front door: a bundle in, label maps out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.drift import DriftReport
from hfd_edge.errors import BackendError, HfdEdgeError, RadiometryError, RasterError, StorageError
from hfd_edge.progress import Progress, silent
from hfd_edge.raster.scene import MaskWriter, SceneReader
from hfd_edge.raster.tiling import LATTICE_PX, default_overlap
from hfd_edge.runtime.drift import Watch, check_image
from hfd_edge.runtime.pipeline import Pending, open_pipeline
from hfd_edge.runtime.scene import SceneSource, segment_rows
from hfd_edge.runtime.stream import MaskStream

Array = NDArray[Any]


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
        drift: What is unlike the training images; None where the bundle has no statistics of them.
        stages_ms: Time of each stage, milliseconds. Where cores are left beside the network, reading and
            writing go on beside the others.
    """

    rows: int
    cols: int
    megapixels: float
    seconds: float
    tiles: int
    skipped_tiles: int
    drift: DriftReport | None = None
    stages_ms: Mapping[str, float] = field(default_factory=dict)


class Segmenter:
    """Segments SAR images with a bundle; use it in a `with` statement, or `close` it.

    Attributes:
        bundle: The bundle.
        backend: Backend in use; what "auto" chose, if that was asked for.
        precision: Precision in use.
        overlap_px: Overlap of tiles in use, pixels.
        pipeline: What moves pixels to the network and labels back.
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
            backend: "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch_tensorrt", or "auto" for
                the best of the bundle's engines that fits this GPU, or else, on the CPU, the fastest that
                `hfd-edge bench tune` measured here, or else ONNX Runtime.
            precision: "fp32", "fp16", "int8", "int8_fp16", or "auto": on a GPU the fastest, on a CPU the
                fastest that was measured and gives nearly FP32's labels, or else FP32.
            threads: CPU threads of ONNX Runtime or OpenVINO; None for one per core. What was measured with
                one number is not used with another.
            overlap_px: Overlap of tiles, a multiple of 32 up to half a tile; None for 256, or half a tile
                where that is less. More of it hides tile borders better and costs time.
        Raises:
            BackendError: the backend is not available, cannot load the model, or an option is out of
                range.
            BundleError: the bundle has no model of this precision, or it was changed.
            MissingExtraError: the backend that is named is not installed.
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
        self.pipeline = open_pipeline(
            bundle, backend=backend, precision=precision, threads=threads, overlap_px=overlap
        )
        self.backend: str = self.pipeline.name
        self.precision: str = self.pipeline.precision

    def __call__(self, image: Array) -> NDArray[np.uint8]:
        """Segment an image in memory.

        Args:
            image: Stored pixels (bands, rows, cols) of any size, in the units of the manifest; on a GPU
                backend also something in device memory, with `__cuda_array_interface__`.
        Returns:
            Labels (rows, cols); the manifest's no-data label where a band has no data.
        Raises:
            RadiometryError: the pixels, or the number of bands, are not what the bundle expects.
            BackendError: the network failed to run, the segmenter was closed, or the image is in device
                memory and the backend is not.
        """
        return self.submit(image).result()

    @property
    def depth(self) -> int:
        """Frames that the backend has in the making at once."""
        return self.pipeline.depth

    def submit(self, image: Array) -> Pending:
        """Start to segment an image, as a call does, and give something to ask for its mask.

        Args:
            image: As for a call. In host memory it may be changed once this returns.
        Raises:
            Exception: as a call; what is wrong may also show only when the mask is asked for.
        """
        on_device = getattr(image, "__cuda_array_interface__", None)
        if on_device is None:
            image = np.asarray(image)
        shape = image.shape if on_device is None else tuple(on_device["shape"])
        self._check_shape(shape)
        return self.pipeline.submit(image)

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
            self.check_bands(str(source), reader.bands, error=RasterError)
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
            watch = Watch(manifest, rows, writer)
            with writer:
                engine = self.pipeline.rows(cols=reader.cols)
                count = segment_rows(
                    watch.source,
                    watch.sink,
                    engine=engine,
                    tiler=self.pipeline.tiler,
                    progress=progress,
                    aside=self.pipeline.spare_cores,
                )
                if count.tiles == 0:
                    raise RasterError(
                        f"{source} has no valid pixel: all of it is NaN, no-data, or "
                        "without backscatter. Check that the file is whole and that its no-data value is "
                        f"right; the bundle expects {manifest.sar.units}."
                    )
            drift = watch.report()
            return SceneReport(
                rows=reader.rows,
                cols=reader.cols,
                megapixels=reader.rows * reader.cols / 1e6,
                seconds=time.perf_counter() - started,
                tiles=count.tiles,
                skipped_tiles=count.skipped,
                drift=drift,
                stages_ms=count.stages_ms,
            )

    def check(self, image: Array, *, mask: Array | None = None) -> DriftReport | None:
        """Compare an image with what the network was trained on; `scene` does so by itself.

        Takes 10 to 100 milliseconds, whatever the size: patches of the image are looked at.

        Args:
            image: Stored pixels (bands, rows, cols) in host memory, in the units of the manifest.
            mask: What a call gave for it, to compare the class shares too.
        Returns:
            What is unlike the training images; None where the bundle has no statistics of them: bundles have
            them that were exported with data.
        Raises:
            RadiometryError: the pixels, or the number of bands, are not what the bundle expects.
            BackendError: the image is in device memory.
        """
        if hasattr(image, "__cuda_array_interface__"):
            raise BackendError(
                "The image is in GPU memory, but drift is looked for on the CPU. Copy it to the host as a "
                "NumPy array."
            )
        image = np.asarray(image)
        self._check_shape(image.shape)
        return check_image(self.bundle.manifest, image, mask)

    def stream(
        self, frames: Iterable[Array], *, policy: str = "block", deadline_ms: float | None = None
    ) -> MaskStream:
        """Segment frames as they come; masks keep their order.

        A worker thread takes and segments the next frames while the caller uses a mask. It runs only a few
        frames ahead, so a slow caller does not fill the memory. Closing the iterator early stops the worker
        after the frame that it is at.

        Args:
            frames: Images as for a call, of any sizes. They are taken in a thread of the stream.
            policy: What happens when frames come faster than masks: "block" lets the source wait,
                "drop-oldest" and "deadline" leave frames out, and count them; see `MaskStream`.
            deadline_ms: Age of a frame beyond which its mask is of no use, for "deadline".
        Returns:
            An iterator over the masks; it raises what `frames` or the segmentation raised, in the place of
            that frame's mask.
        Raises:
            BackendError: there is no such policy.
        """
        return MaskStream(self, frames, policy=policy, deadline_ms=deadline_ms)

    def close(self) -> None:
        """Free the model; later calls raise BackendError. More than once is allowed."""
        self.pipeline.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or 0 in shape:
            raise RadiometryError(f"The image is {shape}, expected (bands, rows, cols), none empty.")
        self.check_bands("The image", shape[0])

    def check_bands(self, what: str, bands: int, *, error: type[HfdEdgeError] = RadiometryError) -> None:
        """Refuse another number of bands than the bundle's.

        Args:
            what: Has these bands; the subject of the message.
            bands: How many there are.
            error: What is raised.
        """
        names = self.bundle.manifest.sar.bands
        if bands != len(names):
            raise error(
                f"{what} has {bands} band{'' if bands == 1 else 's'}, but bundle "
                f"'{self.bundle.manifest.name}' expects {len(names)}: {', '.join(names)}. Put exactly these "
                "bands into one file or array, in this order."
            )


def _check_destination(source: Path, destination: Path) -> None:
    if destination.is_dir():
        raise StorageError(f"{destination} is a folder. Name the mask file to write, ending in .tif")
    if destination.exists() and destination.samefile(source):
        raise StorageError(
            f"{destination} is the scene itself, which the mask would replace. Choose another destination."
        )
