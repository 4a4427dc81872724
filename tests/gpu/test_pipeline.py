"""The whole road of frames and rasters on the GPU against the CPU's, and what becomes of it when it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.raster.image import write_image
from hfd_edge.raster.scene import SceneReader
from hfd_edge.runtime.cuda_pipeline import CudaPipeline
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.scene import ArraySink, ArraySource, segment_rows
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.stream import MaskStream
from hfd_edge.runtime.swath import SwathSegmenter

from .pipelines import STAGES, TILE, OnDevice, Pair, make_image

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

SIZES = [(64, 64), (1, 1), (50, 37), (64, 63), (65, 64), (130, 150), (230, 70), (33, 300)]


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


@pytest.mark.parametrize("size", [(230, 70), (130, 150), (128, 64)])
def test_tiles_without_overlap(pair: Callable[..., Pair], size: tuple[int, int]) -> None:
    """Rows above a row of tiles wait for it to be labelled, whether they are in its tiles or not."""
    pair(overlap_px=0).agree(make_image(*size))


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_at_odd_addresses(pair: Callable[..., Pair], batch: int) -> None:
    """Small logits in float16: the second batch would begin where TensorRT cannot write."""
    both = pair(changes={"tile_px": 32, "classes": 3}, half=(True, True), batch=batch)
    both.agree(make_image(70, 150), least=0.995)


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


def test_many_frames_at_once_in_any_order(pair: Callable[..., Pair]) -> None:
    both = pair()
    images = [make_image(*size) * (1 + index) for index, size in enumerate((SIZES * 2)[::-1])]
    expected = [both.cpu(image) for image in images]
    for seed in range(3):
        reorder(seed)
        pending = [both.gpu.submit(image) for image in images]
        for index in np.random.default_rng(seed).permutation(len(images)):
            found = pending[index].result()
            assert (found == expected[index]).mean() >= 0.999, f"frame {index} is another's"
            assert set(pending[index].stages_ms) == STAGES
            assert all(spent >= 0 for spent in pending[index].stages_ms.values())


def reorder(seed: int) -> None:
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
        return replace(softcuda.live(), operations=0)  # the last marks on the streams may still be queued

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
    given = OnDevice(device, make_image(8, 9).astype(">f4"))
    with pytest.raises(BackendError, match="holds >f4, but the kernels read uint8, .* Convert it on the GPU"):
        both.gpu.submit(given)
    given = OnDevice(device, make_image(8, 9).astype(np.float64))
    with pytest.raises(BackendError, match="holds float64, but the kernels read uint8, .* Convert it on the"):
        both.gpu.submit(given)
    given = OnDevice(device, make_image(8, 9))
    given.__cuda_array_interface__["stream"] = 0x1234
    with pytest.raises(BackendError, match="stream 0x1234 of the device array failed: cuEventRecord: CUDA_"):
        both.gpu.submit(given)


def test_mapped_memory_needs_no_copies(make_small: Callable[..., Bundle], softcuda: ModuleType) -> None:
    softcuda.become("orin")
    with Device.open(memory="mapped") as device:
        both = Pair(make_small(), device)
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


def test_threads_do_not_disturb_each_other(pair: Callable[..., Pair]) -> None:
    """Two pipelines on one GPU, one of which two threads use: for frames, and for a raster."""
    pairs, failures = [pair(), pair()], []

    def frames(both: Pair) -> None:
        for size in SIZES:
            both.agree(make_image(*size))

    def raster(both: Pair) -> None:
        image = make_image(230, 120)
        for _ in range(3):
            sink = ArraySink(rows=230, cols=120)
            engine = both.gpu.rows(cols=120)
            segment_rows(ArraySource(image), sink, engine=engine, tiler=both.gpu.tiler)
            assert (sink.labels == both.cpu(image)).mean() >= 0.999

    def work(run: Callable[[Pair], None], both: Pair) -> None:
        try:
            run(both)
        except BaseException as error:
            failures.append(error)

    jobs = [(frames, pairs[0]), (frames, pairs[1]), (raster, pairs[0])]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_front_door(make_small: Callable[..., Bundle], tmp_path: Path, use_tensorrt: Any) -> None:
    """Segmenter, scene, stream and swath on TensorRT as on the CPU."""
    bundle = use_tensorrt(make_small())
    image = make_image(200, 150)
    write_image(tmp_path / "s.tif", image)
    with Segmenter(bundle, backend="onnxruntime") as cpu, Segmenter(bundle, backend="tensorrt") as gpu:
        assert isinstance(gpu.pipeline, CudaPipeline)
        assert (gpu.backend, gpu.precision) == ("tensorrt", "fp32")
        expected = cpu(image)
        assert (gpu(image) == expected).mean() >= 0.999
        given = OnDevice(gpu.pipeline._parts.device, image)
        assert (gpu(given) == expected).mean() >= 0.999
        with pytest.raises(RadiometryError, match="has 1 band, but"):
            gpu(OnDevice(gpu.pipeline._parts.device, image[:1]))
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
