"""Twenty thousand small frames through streams on the CPU: nothing lost, nothing leaked, nothing stuck."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hfd_edge.runtime.segmenter import Segmenter

from .soak import make_level_bundle, soak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.timeout(180)
def test_soak_on_the_cpu(tmp_path: Path) -> None:
    with Segmenter(make_level_bundle(tmp_path / "levels.hfd"), backend="onnxruntime", threads=1) as segment:
        tally = soak(segment, frames=20_000, pace_s=5e-4)
    assert tally.taken >= 20_000
    assert tally.taken == tally.delivered + tally.dropped + tally.discarded + tally.failed
    # Every kind of ending came up, so the checks inside mean something.
    assert min(tally.delivered, tally.dropped, tally.discarded, tally.failed) > 10
    assert tally.resident <= 1.02 * tally.resident_early
