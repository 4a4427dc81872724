"""Peak memory of work that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.bench.memory import PeakMemory
from hfd_edge.gpu import Gpu


def peak_mb(megabytes: int) -> float:
    with PeakMemory(gpu=lambda: None) as memory:
        np.ones(megabytes * 1_000_000, np.uint8)
    found = memory.read()
    assert found.device_peak_mb is None
    assert found.host_peak_mb is not None
    return found.host_peak_mb


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel cannot forget a peak")
def test_a_peak_is_seen_and_forgotten() -> None:
    small, large, again = peak_mb(1), peak_mb(200), peak_mb(1)
    assert 170 < large - small < 230
    assert again < small + 50, "the peak of the work before is not this one's"


def test_without_the_kernel_the_peak_is_that_of_the_process(tmp_path: Path) -> None:
    with PeakMemory(root=tmp_path, gpu=lambda: None) as memory:
        pass
    found = memory.read().host_peak_mb
    assert found is not None
    assert 20 < found < 20_000


def test_device_memory_is_the_most_that_was_seen() -> None:
    free = iter((9_000_000_000, 8_500_000_000, 8_200_000_000, 8_900_000_000))
    with PeakMemory(gpu=lambda: Gpu(86, next(free), 10**10)) as memory:
        memory.look()
        memory.look()
    assert memory.read().device_peak_mb == 800
