"""Small frames through streams on the GPU, with delays, errors and cancellations: nothing lost or leaked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from hfd_edge.errors import BackendError
from hfd_edge.runtime.cuda_pipeline import CudaPipeline
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.pipeline import Pending
from hfd_edge.runtime.segmenter import Segmenter

from ..runtime.soak import Tally, make_level_bundle, soak
from ..softcuda import control
from .network import HostNetwork

pytestmark = pytest.mark.gpu


class Flaky:
    """A pipeline on which the emulated driver fails now and then, in whatever call comes next."""

    calls = (
        "cuMemcpyHtoDAsync",
        "cuLaunchKernel",
        "cuEventRecord",
        "cuMemsetD8Async",
        "cuEventSynchronize",
    )

    def __init__(self, pipeline: CudaPipeline) -> None:
        self.pipeline = pipeline
        self.depth = pipeline.depth
        self._random = random.Random(3)

    def submit(self, image: Any) -> Pending:
        if control.wanted() and self._random.random() < 0.02:
            control.inject(self._random.choice(self.calls), 999, after=self._random.randrange(30))
        return self.pipeline.submit(image)


def run(path: Path, device: Device, frames: int) -> Tally:
    bundle = make_level_bundle(path / "levels.hfd")
    if control.wanted():
        control.configure(seed=5, eager=0.5)
    with Segmenter(bundle, backend="onnxruntime") as cpu:
        pipeline = CudaPipeline(HostNetwork(bundle, device), cpu.pipeline.tiler)
    try:
        tally = soak(Flaky(pipeline), frames=frames, expected=BackendError, pace_s=0.01)
    finally:
        pipeline.close()
    assert tally.taken >= frames
    assert tally.taken == tally.delivered + tally.dropped + tally.discarded + tally.failed
    if control.wanted():
        control.reset()
    return tally


@pytest.mark.timeout(120)
def test_soak(tmp_path: Path, device: Device) -> None:
    tally = run(tmp_path, device, 400)
    assert tally.delivered > 0  # on a busy machine most frames of "deadline" and "drop-oldest" are dropped
    assert tally.dropped + tally.discarded + tally.failed > 0
    if control.wanted():
        assert control.live().device_bytes == 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_long_soak(tmp_path: Path, device: Device) -> None:
    tally = run(tmp_path, device, 20_000)
    assert min(tally.delivered, tally.dropped, tally.discarded, tally.failed) > 10
    assert tally.resident <= 1.02 * tally.resident_early
