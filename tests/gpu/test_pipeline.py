"""The whole road of frames and rasters on the GPU against the CPU's, and what becomes of it when it fails."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.raster.image import write_image
from hfd_edge.raster.scene import SceneReader
from hfd_edge.runtime import transfer
from hfd_edge.runtime.cuda_pipeline import CudaPipeline
from hfd_edge.runtime.device import Device, Event, Stream
from hfd_edge.runtime.scene import ArraySink, ArraySource, segment_rows
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.stream import MaskStream
from hfd_edge.runtime.swath import SwathSegmenter

from ..runtime.conftest import CLASSES, make_manifest, make_onnx
from .network import HostNetwork

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

TILE = 64
SIZES = [(64, 64), (1, 1), (50, 37), (64, 63), (65, 64), (130, 150), (230, 70), (33, 300)]
STAGES = {"copy_in", "preprocess", "infer", "postprocess", "copy_out"}


def make_image(rows: int, cols: int, *, bands: int = 2) -> np.ndarray:
    """Make a speckled image with regions, a hole without data, and NaN in one band's corner."""
    rng = np.random.default_rng(rows * 7919 + cols)
    row, col = np.mgrid[:rows, :cols]
    level = -15 + 6 * np.sin(row / 23) * np.cos(col / 31)
    image = 10 ** (level / 10) * rng.gamma(4, 1 / 4, (bands, rows, cols))
    if rows > 40 and cols > 30:
        image[:, 20:35, 10:25] = 0.0
        image[0, -5:, -7:] = np.nan
    return image.astype(np.float32)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bundle]:
    """Give a function that makes the small bundle of the CPU's tests, with other options."""

    number = itertools.count()

    def bundle(**changes: Any) -> Bundle:
        manifest = make_manifest(tile_px=TILE, **changes)
        model = make_onnx(bands=len(manifest.sar.bands), classes=len(CLASSES), stride=manifest.stride)
        return Bundle.create(tmp_path / f"{next(number)}.hfd", manifest, {"model.fp32.onnx": model})

    return bundle


class Pair:
    """A bundle on the CPU and on the GPU."""

    def __init__(self, bundle: Bundle, device: Device, *, depth: int = 3, **options: Any) -> None:
        self.cpu = Segmenter(bundle, backend="onnxruntime", threads=1)
        self.network = HostNetwork(bundle, device, **options)
        self.gpu = CudaPipeline(self.network, self.cpu.pipeline.tiler, depth=depth)

    def agree(self, image: np.ndarray, given: Any = None, *, least: float = 0.999) -> np.ndarray:
        expected = self.cpu(image)
        found = self.gpu.submit(image if given is None else given).result()
        assert found.shape == expected.shape and found.dtype == np.uint8
        assert ((found == 255) == (expected == 255)).all(), "no-data is somewhere else"
        assert (found == expected).mean() >= least
        return expected


@pytest.fixture
def pair(make: Callable[..., Bundle], device: Device) -> Iterator[Callable[..., Pair]]:
    """Give a function that opens a bundle on both; the pipeline is closed at the end, and nothing is left."""
    opened: list[Pair] = []

    def both(*, on: Device = device, changes: dict[str, Any] | None = None, **options: Any) -> Pair:
        opened.append(Pair(make(**(changes or {})), on, **options))
        return opened[-1]

    yield both
    for item in opened * 2:
        item.gpu.close()
    if opened:
        assert [held for held in device._living if not held.closed and not isinstance(held, Stream)] == []


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_those_of_the_cpu(pair: Callable[..., Pair], size: tuple[int, int]) -> None:
    labels = pair().agree(make_image(*size))
    if min(size) > 60:
        assert len(np.unique(labels)) >= 4  # the comparison means something


@pytest.mark.parametrize("size", [(64, 64), (50, 37), (130, 150)])
def test_half_precision_at_both_ends(pair: Callable[..., Pair], size: tuple[int, int]) -> None:
    pair(half=(True, True)).agree(make_image(*size), least=0.995)


@pytest.mark.parametrize("size", [(64, 64), (100, 70)])
def test_logits_at_full_size(pair: Callable[..., Pair], size: tuple[int, int]) -> None:
    pair(changes={"head": "full"}).agree(make_image(*size))


@pytest.mark.parametrize(
    ("units", "dtype", "speckle"),
    [
        ("dn", "uint8", "lee"),
        ("dn", "uint16", "boxcar"),
        ("dn", "int16", "lee"),
        ("amplitude", "float64", "kuan"),
        ("intensity", ">f4", "lee"),
        ("complex", "complex64", "gamma_map"),
        ("complex", "complex128", "none"),
        ("sigma0_db", "float16", "none"),
        ("stretched", "uint8", "none"),
    ],
)
def test_every_kind_of_pixel(pair: Callable[..., Pair], units: str, dtype: str, speckle: str) -> None:
    both = pair(changes={"units": units, "speckle": speckle, "nodata": 0.0})
    intensity = np.nan_to_num(make_image(70, 60))
    if units == "sigma0_db":
        image = (10 * np.log10(intensity + 1e-3)).astype(dtype)
    elif units == "complex":
        image = (np.sqrt(intensity) * np.exp(1j * np.arange(60))).astype(dtype)
    else:
        image = (intensity * 255 if dtype[0] in "ui" else intensity).astype(dtype)
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(image, 0, -1)), -1, 0)
    both.agree(image, strided)


def test_many_frames_at_once_in_any_order(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    both = pair()
    images = [make_image(*size) * (1 + index) for index, size in enumerate((SIZES * 2)[::-1])]
    expected = [both.cpu(image) for image in images]
    for seed in range(3):
        reorder(request, seed)
        pending = [both.gpu.submit(image) for image in images]
        for index in np.random.default_rng(seed).permutation(len(images)):
            found = pending[index].result()
            assert (found == expected[index]).mean() >= 0.999, f"frame {index} is another's"
            assert set(pending[index].stages_ms) == STAGES
            assert all(spent >= 0 for spent in pending[index].stages_ms.values())


def reorder(request: pytest.FixtureRequest, seed: int) -> None:
    """Let the emulated driver run streams that are ready in another order; real ones do as they like."""
    from ..softcuda import control

    if control.wanted():
        control.configure(seed=seed, eager=0.5 * (seed % 3))


def test_the_source_may_change_its_array_after_submit(pair: Callable[..., Pair]) -> None:
    both = pair()
    for size in ((64, 64), (50, 37), (130, 150)):
        image = make_image(*size)
        expected, buffer = both.cpu(image), image.copy()
        pending = both.gpu.submit(buffer)
        buffer[:] = -1.0
        assert (pending.result() == expected).mean() >= 0.999


def test_through_a_stream(pair: Callable[..., Pair]) -> None:
    both = pair()
    images = [make_image(20 + 15 * index, 90 - 8 * index) for index in range(7)]
    stream = MaskStream(both.gpu, images)
    for image, mask in zip(images, stream, strict=True):
        assert (mask == both.cpu(image)).mean() >= 0.999
    assert set(stream.stages_ms) == STAGES
    assert stream.counts["delivered"] == 7


def test_memory_does_not_grow(pair: Callable[..., Pair], softcuda: ModuleType) -> None:
    both = pair()
    sizes = ((64, 64), (50, 37), (130, 150), (130, 150))
    images = [make_image(*size) for size in sizes]

    def run() -> Any:
        for pending in [both.gpu.submit(image) for image in images]:
            pending.result()
        both.network.close()  # what the stand-in for the network keeps for itself
        return softcuda.live()

    run()
    after = run()
    assert all(run() == after for _ in range(4))


def test_batches(pair: Callable[..., Pair]) -> None:
    """A network that takes no single tiles sees others beside them."""
    both = pair(batch=4, least=2)
    for size in ((64, 64), (130, 200)):
        both.agree(make_image(*size))


def test_tiles_without_data_are_not_run(pair: Callable[..., Pair]) -> None:
    both = pair()
    image = make_image(230, 230)
    image[:, :, 120:] = 0
    counts = []
    for pipeline in (both.cpu.pipeline, both.gpu):
        sink = ArraySink(rows=230, cols=230)
        engine = pipeline.rows(cols=230)
        count = segment_rows(ArraySource(image), sink, engine=engine, tiler=both.gpu.tiler)
        counts.append((count, sink.labels))
        engine.close()
    assert counts[0][0] == counts[1][0]
    assert counts[0][0].skipped > 0
    assert both.network.enqueued == counts[1][0].tiles
    assert (counts[0][1] == counts[1][1]).mean() >= 0.999
    both.agree(np.zeros((2, 70, 70), np.float32))
    both.agree(np.full((2, 9, 9), np.nan, np.float32))


def test_a_raster_that_is_given_up(pair: Callable[..., Pair]) -> None:
    both = pair()
    engine = both.gpu.rows(cols=100)
    engine.prepare(make_image(64, 100), above=0, below=0)
    engine.close()
    both.agree(make_image(130, 100))


def test_labels_may_be_taken_late(pair: Callable[..., Pair]) -> None:
    """More rows of tiles than there is memory for labels: the oldest are taken out for their caller."""
    both, image = pair(), make_image(300, 90)
    plan = both.gpu.tiler.plan(rows=300, cols=90)
    engine, ready, decided = both.gpu.rows(cols=90), 0, []
    for index in range(plan.tile_rows):
        row = plan.tile_row(index, stride=4)
        stop = row.origin + row.used
        above, below = min(ready, 2), min(300 - stop, 2)
        engine.prepare(image[:, ready - above : stop + below], above=above, below=below)
        ready = stop
        decided.append(engine.segment(row))
    labels = np.concatenate([item.labels() for item in decided])
    assert len(decided) > 4
    assert (labels == both.cpu(image)).mean() >= 0.999
    assert set(engine.stages_ms) == STAGES
    engine.close()


class OnDevice:
    """An array in device memory, as other packages show it."""

    def __init__(self, device: Device, image: np.ndarray, *, stream: Stream | None = None, pad: int = 0):
        bands, rows, cols = image.shape
        wide = np.zeros((bands, rows, cols + pad), image.dtype)
        wide[:, :, :cols] = image
        self.shape = image.shape
        self.buffer = device.buffer(wide.nbytes)
        self.producer = stream or device.stream()
        self.producer.copy_in(self.buffer.address, wide)
        if stream is None:
            self.producer.synchronize()
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": image.shape,
            "typestr": image.dtype.str,
            "data": (self.buffer.address, True),
            "strides": wide.strides if pad else None,
            "stream": None if stream is None else stream.handle,
        }


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("size", [(64, 64), (50, 37), (130, 150)])
def test_device_memory_without_a_copy(
    pair: Callable[..., Pair], device: Device, size: tuple[int, int], pad: int
) -> None:
    both, image = pair(), make_image(*size)
    producer = None if pad else device.stream()  # nobody waits for it but the pipeline
    given = OnDevice(device, image, stream=producer, pad=pad)
    both.agree(image, given)
    given.producer.synchronize()
    given.buffer.free()


def test_device_memory_that_cannot_be_read(pair: Callable[..., Pair], device: Device) -> None:
    both = pair()
    given = OnDevice(device, make_image(8, 9))
    given.__cuda_array_interface__["strides"] = (4, 8 * 9, 8)
    with pytest.raises(BackendError, match=r"strides \(4, 72, 8\) .* columns must be adjacent. Make it cont"):
        both.gpu.submit(given)
    given = OnDevice(device, make_image(8, 9).astype(np.float64))
    with pytest.raises(BackendError, match="holds float64, but the kernels read uint8, .* Convert it on the"):
        both.gpu.submit(given)
    given = OnDevice(device, make_image(8, 9))
    given.__cuda_array_interface__["stream"] = 0x1234
    with pytest.raises(BackendError, match=r"stream of a device array failed \(cuEventRecord: CUDA_ERROR_"):
        both.gpu.submit(given)


@pytest.mark.parametrize("size", [(64, 64), (50, 37), (130, 150)])
@pytest.mark.parametrize("units", ["intensity", "sigma0_db"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_wrong_units_are_refused_in_the_same_words(
    pair: Callable[..., Pair], device: Device, size: tuple[int, int], units: str, where: str
) -> None:
    both = pair(changes={"units": units, "speckle": "none", "nodata": None})
    image = np.nan_to_num(make_image(*size), nan=0.5)
    image[1, size[0] // 2, size[1] // 3] = 123.5 if units == "sigma0_db" else -0.25
    with pytest.raises(RadiometryError, match=r"The image: .*(123\.5|-0\.25)") as expected:
        both.cpu(image)
    given = image if where == "host" else OnDevice(device, image, stream=device.stream())
    with pytest.raises(RadiometryError) as found:
        both.gpu.submit(given).result()
    assert str(found.value) == str(expected.value)
    both.agree(make_image(*size) if units == "intensity" else np.zeros((2, *size), np.float32))
    if isinstance(given, OnDevice):
        given.buffer.free()


def test_wrong_types_are_refused_in_the_same_words(pair: Callable[..., Pair]) -> None:
    both = pair()
    for size in ((64, 64), (130, 150)):
        image = make_image(*size).astype(np.complex64)
        with pytest.raises(RadiometryError, match="The image: Image is complex64, but") as one:
            both.cpu(image)
        with pytest.raises(RadiometryError) as other:
            both.gpu.submit(image).result()
        assert str(one.value) == str(other.value)


def test_a_kernel_that_disagrees_with_the_host(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, image = pair(), make_image(64, 64)
    image[0, 3, 3] = -1
    monkeypatch.setattr(transfer, "check_units", lambda *_, **__: None)
    with pytest.raises(BackendError, match=r"found faults \(1\) .* but the host finds none. .*selftest"):
        both.gpu.submit(image).result()


def test_masks_survive_the_pipeline(pair: Callable[..., Pair]) -> None:
    both = pair()
    images = [make_image(64, 64), make_image(130, 150), make_image(20, 30)]
    expected = [both.cpu(image) for image in images]
    pending = [both.gpu.submit(image) for image in images]
    pending[2].discard()
    both.gpu.close()
    for index in (1, 0):
        assert (pending[index].result() == expected[index]).mean() >= 0.999
    with pytest.raises(BackendError, match="The host pipeline was closed. Open the bundle again to run it"):
        both.gpu.submit(images[0])
    with pytest.raises(BackendError, match="was closed"):
        both.gpu.rows(cols=5)


def test_depth_that_makes_no_sense(pair: Callable[..., Pair]) -> None:
    with pytest.raises(BackendError, match="depth is 0, expected 1 or more"):
        pair(depth=0)


CALLS = [
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuEventCreate",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuMemsetD8Async",
    "cuLaunchKernel",
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuMemcpyDtoDAsync",
]


@pytest.mark.parametrize("call", CALLS)
def test_nothing_leaks_whatever_fails(pair: Callable[..., Pair], softcuda: ModuleType, call: str) -> None:
    """One call after the other fails once; frames around it come out right, and nothing is left behind."""
    both = pair()
    images = [make_image(64, 64), make_image(50, 37), make_image(130, 90)]
    expected = [both.cpu(image) for image in images]
    failures = 0
    for after in range(16) if call == "cuEventSynchronize" else (0, 1, 2, 4, 7, 11, 16, 24, 40):
        error = softcuda.OUT_OF_MEMORY if "Alloc" in call else 999
        # PyCUDA asks twice for device memory, with a garbage collection between.
        softcuda.inject(call, error, after=after, times=2 if call == "cuMemAlloc" else 1)
        for index, image in enumerate(images):
            try:
                found = both.gpu.submit(image).result()
            except BackendError as failure:
                assert call in str(failure) or "no room for" in str(failure), failure
                failures += 1
            else:
                assert (found == expected[index]).mean() >= 0.999
        softcuda.reset()
        if "Alloc" in call or "Create" in call:  # everything is allocated by now: begin again
            both.gpu.close()
            both.gpu = CudaPipeline(both.network, both.gpu.tiler)
    assert failures >= 2, f"{call} was hardly met"
    assert softcuda.live().operations == 0


def test_a_fault_in_a_kernel_ends_it_but_hangs_nothing(
    make: Callable[..., Bundle], softcuda: ModuleType
) -> None:
    with Device.open() as device:
        both = Pair(make(), device)
        both.agree(make_image(64, 64))
        softcuda.inject("kernel", softcuda.ILLEGAL_ADDRESS)
        for _ in range(2):
            with pytest.raises(BackendError, match="illegal memory access .*context is lost"):
                both.gpu.submit(make_image(64, 64)).result()
        both.gpu.close()
        with pytest.raises(BackendError, match="was closed"):
            both.gpu.submit(make_image(64, 64))
        softcuda.reset()


def test_mapped_memory_needs_no_copies(make: Callable[..., Bundle], softcuda: ModuleType) -> None:
    softcuda.become("orin")
    with Device.open(memory="mapped") as device:
        both = Pair(make(), device)
        assert both.gpu.memory_mode == "mapped"
        for size in SIZES:
            both.agree(make_image(*size))
        with pytest.raises(RadiometryError, match="lowest -1"):
            both.gpu.submit(np.full((2, 64, 64), -1, np.float32)).result()
        softcuda.reset()
        before = softcuda.calls("cuMemcpyHtoDAsync"), softcuda.calls("cuMemcpyDtoHAsync")
        both.agree(make_image(64, 64))
        after = softcuda.calls("cuMemcpyHtoDAsync"), softcuda.calls("cuMemcpyDtoHAsync")
        # One each way for the stand-in of the network, which computes in other memory.
        assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
        both.gpu.close()


def test_two_pipelines_in_two_threads(pair: Callable[..., Pair]) -> None:
    pairs, failures = [pair(), pair()], []

    def work(both: Pair, seed: int) -> None:
        try:
            for size in np.random.default_rng(seed).permutation(SIZES):
                both.agree(make_image(*size))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(both, seed)) for seed, both in enumerate(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("plant", ["finish", "infer", "unload", "strip"])
def test_a_missing_synchronisation_shows(
    pair: Callable[..., Pair], softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    """The suite would fail if one of the pipeline's orders were forgotten."""
    both = pair()
    images = [make_image(190, 150), make_image(64, 64), make_image(30, 40)]
    expected = [both.cpu(image) for image in images]
    parts, wait = both.gpu._parts, Stream.wait
    if plant == "finish":
        monkeypatch.setattr(Event, "synchronize", lambda self: None)
    else:
        deaf = {"infer": parts.infer, "unload": parts.unload, "strip": parts.load}[plant]
        monkeypatch.setattr(Stream, "wait", lambda self, event: None if self is deaf else wait(self, event))
    caught = []
    for seed, (image, labels) in itertools.product(range(3), zip(images, expected, strict=True)):
        softcuda.configure(seed=seed, eager=0.3 * seed)
        try:
            caught.append((both.gpu.submit(image).result() == labels).mean() < 0.999)
        except Exception:
            caught.append(True)
        softcuda.drain()
        caught.append(bool(softcuda.faults(clear=True)))
    monkeypatch.undo()
    assert any(caught), f"without the order of '{plant}' everything still looked right"


def test_the_front_door(make: Callable[..., Bundle], tmp_path: Path, use_tensorrt: Any) -> None:
    """Segmenter, scene, stream and swath on TensorRT as on the CPU."""
    bundle = use_tensorrt(make())
    image = make_image(200, 150)
    write_image(tmp_path / "s.tif", image)
    with Segmenter(bundle, backend="onnxruntime") as cpu, Segmenter(bundle, backend="tensorrt") as gpu:
        assert isinstance(gpu.pipeline, CudaPipeline)
        assert (gpu.backend, gpu.precision) == ("tensorrt", "fp32")
        expected = cpu(image)
        assert (gpu(image) == expected).mean() >= 0.999
        report = gpu.scene(tmp_path / "s.tif", tmp_path / "m.tif")
        assert report.tiles == cpu.scene(tmp_path / "s.tif", tmp_path / "n.tif").tiles
        with SceneReader(tmp_path / "m.tif") as mask:
            assert (mask.read(0, 200)[0] == expected).mean() >= 0.999
        frames = [make_image(64, 64) * index for index in range(1, 9)]
        for frame, mask in zip(frames, gpu.stream(frames), strict=True):
            assert (mask == cpu(frame)).mean() >= 0.999
        with SwathSegmenter(gpu, cols=150) as swath:
            done = [rows for top in range(0, 200, 23) for rows in swath.push(image[:, top : top + 23])]
            done += list(swath.finish())
        assert np.array_equal(np.concatenate(done), gpu(image))


@pytest.fixture
def use_tensorrt(softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[Bundle], Bundle]:
    """Give a function that adds an engine for the emulated GPU to a bundle, for TensorRT's stand-in."""
    import sys

    from ..deploy.generations import plan, stand_in
    from ..runtime.engine_files import put_engine

    def add(bundle: Bundle) -> Bundle:
        module, world = stand_in("10.3.0")
        world.capability = 86
        monkeypatch.setitem(sys.modules, module.__name__, module)
        profile = tuple([count, 2, TILE, TILE] for count in (1, 2, 4))
        content = plan("10.3.0", bundle.model("fp32").read_bytes(), profile=profile, capability=86)
        return put_engine(bundle, "10.3.0", content=content, compute_capabilities=(86,), name="here-fp32")

    return add
