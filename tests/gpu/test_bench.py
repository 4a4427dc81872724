"""A benchmark of an engine: a smoke test, because the times of the emulated driver mean nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from hfd_edge.bench.options import BenchOptions
from hfd_edge.bench.run import run_bench
from hfd_edge.bundle import Bundle
from hfd_edge.raster.image import write_image
from hfd_edge.runtime.segmenter import Segmenter

from ..bench.bundles import hasty
from ..runtime.conftest import make_manifest, make_onnx
from .pipelines import make_image
from .test_selftest import with_engine

__all__ = ["hasty"]

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("hasty")]


def golden(bundle: Bundle, folder: Path) -> Bundle:
    """Add a golden tile with the labels of the CPU."""
    image = make_image(64, 64)
    with Segmenter(bundle, backend="onnxruntime", threads=1) as segment:
        labels = segment(image)
    write_image(folder / "tile.tif", image)
    write_image(folder / "tile.png", labels)
    contents = {"sar.tif": "tile.tif", "labels.png": "tile.png"}
    return bundle.add({f"golden/0.{end}": (folder / name).read_bytes() for end, name in contents.items()})


def test_an_engine_is_timed_by_events_and_emulation_is_told(
    tmp_path: Path, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = make_onnx(bands=2, classes=4, tile=64)
    made = Bundle.create(tmp_path / "small.hfd", make_manifest(tile_px=64), {"model.fp32.onnx": model})
    bundle = with_engine(golden(made, tmp_path), monkeypatch)
    before = softcuda.live()
    options = BenchOptions(
        backend="all",
        precision="all",
        threads=1,
        runs=2,
        scenarios=("tile", "stream", "scene"),
        max_jitter=1000.0,
        cold_start=False,
    )
    content = run_bench(bundle, options=options)
    assert softcuda.live() == before
    records = {record.backend: record for record in content.records}
    record = records["tensorrt"]
    assert record.golden.agreement is not None and record.golden.agreement >= 0.999
    assert record.bytes == (bundle.path / bundle.manifest.engines["here-fp32"]).stat().st_size
    (reason,) = record.invalid
    assert reason.startswith("emulated driver: 'Emulated")
    assert [scenario.kind for scenario in record.scenarios] == ["tile", "stream", "scene"]
    tile, stream, scene = record.scenarios
    stages = [stage.name for stage in tile.stages]
    assert stages == ["copy_in", "preprocess", "infer", "postprocess", "copy_out"]
    for scenario in (tile, stream):
        assert scenario.clock == "cuda events"
        assert scenario.device is not None and scenario.device.p50_ms > 0
        assert scenario.device.mean_ms == pytest.approx(sum(stage.mean_ms for stage in scenario.stages))
        assert [text for text in scenario.invalid if "not synchronised" in text] == []
    assert scene.device is None
    for scenario in record.scenarios:
        assert scenario.memory.device_peak_mb is not None and scenario.memory.device_peak_mb > 0
    cpu = records["onnxruntime"]
    assert not cpu.invalid and cpu.scenarios[0].clock == "monotonic" and cpu.scenarios[0].device is None
