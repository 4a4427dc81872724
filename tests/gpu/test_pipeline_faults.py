"""What becomes of frames on the GPU when pixels, memory, calls or the order of streams are wrong."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RadiometryError
from hfd_edge.runtime import transfer
from hfd_edge.runtime.cuda_pipeline import CudaPipeline
from hfd_edge.runtime.device import Device, Event, Stream

from .pipelines import OnDevice, Pair, make_image

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


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


def test_labels_that_failed_are_still_under_way(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their memory must not be given to the next raster."""
    both, image = pair(), make_image(64, 64)
    engine = both.gpu.rows(cols=64)
    engine.prepare(image, above=0, below=0)
    decided = engine.segment(both.gpu.tiler.plan(rows=64, cols=64).tile_row(0, stride=4))

    def interrupted(_: Event) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Event, "synchronize", interrupted)
        decided.labels()
    assert not engine.quiet
    assert (decided.labels() == both.cpu(image)).mean() >= 0.999
    assert engine.quiet
    engine.close()


def test_a_fault_in_a_kernel_ends_it_but_hangs_nothing(
    make_small: Callable[..., Bundle], softcuda: ModuleType
) -> None:
    with Device.open() as device:
        both = Pair(make_small(), device)
        both.agree(make_image(64, 64))
        softcuda.inject("kernel", softcuda.ILLEGAL_ADDRESS)
        for _ in range(2):
            with pytest.raises(BackendError, match="illegal memory access .*context is lost|ILLEGAL_ADDRESS"):
                both.gpu.submit(make_image(64, 64)).result()
        both.gpu.close()
        with pytest.raises(BackendError, match="was closed"):
            both.gpu.submit(make_image(64, 64))
        softcuda.reset()


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


END = """
import atexit, itertools, sys
from pathlib import Path
from tests.softcuda import control
control.load()
atexit.register(lambda: print(control.faults(), flush=True))
import numpy as np
from hfd_edge.runtime.cuda_pipeline import CudaPipeline
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.segmenter import Segmenter
from hfd_edge.runtime.stream import MaskStream
from tests.gpu.network import HostNetwork
from tests.runtime.soak import make_level_bundle
bundle = make_level_bundle(Path(sys.argv[1]))
cpu = Segmenter(bundle, backend="onnxruntime", threads=1)
pipeline = CudaPipeline(HostNetwork(bundle, Device.open()), cpu.pipeline.tiler)
masks = MaskStream(pipeline, itertools.repeat(np.full((1, 30, 30), 0.1, np.float32)))
next(masks)
"""


@pytest.mark.usefixtures("softcuda")
def test_a_program_ends_with_frames_under_way(tmp_path: Path) -> None:
    """Nobody closes anything: no memory may be freed before the work that uses it is done."""
    command = [sys.executable, "-c", END, str(tmp_path / "levels.hfd")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
