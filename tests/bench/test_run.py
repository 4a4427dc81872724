"""Whole benchmarks of bundles whose labels are known, with faults planted."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from hfd_edge.bench import scenarios
from hfd_edge.bench.measure import WarmUp
from hfd_edge.bench.options import BenchOptions
from hfd_edge.bench.result import BenchFile, read_bench, write_bench
from hfd_edge.bench.run import run_bench
from hfd_edge.bench.sampling import Sampler
from hfd_edge.bench.sensors import Reading
from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, BenchError, BundleError, RasterError
from hfd_edge.files import sha256
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.segmenter import Segmenter

from .bundles import golden_bundle, hasty

__all__ = ["golden_bundle", "hasty"]

pytestmark = pytest.mark.usefixtures("hasty")
MakeBundle = Callable[..., Bundle]
QUIET = {"threads": 1, "max_jitter": 1000.0, "cold_start": False, "backend": "onnxruntime"}


def bench(bundle: Bundle, **options: Any) -> BenchFile:
    return run_bench(bundle, options=BenchOptions(**{**QUIET, "runs": 4, "precision": "fp32", **options}))


def delay(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Let the nth submission take some time longer, the golden check's included."""
    submit, count = Segmenter.submit, iter(range(1_000_000))

    def slow(self: Segmenter, image: Any) -> Any:
        time.sleep(seconds(next(count)))
        return submit(self, image)

    monkeypatch.setattr(Segmenter, "submit", slow)


def test_a_record_is_whole_and_can_be_read_again(golden_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = golden_bundle()
    found = bench(bundle, command="hfd-edge bench x")
    write_bench(tmp_path / "bench.json", found)
    assert read_bench(tmp_path / "bench.json") == found
    assert found.bundle == "thresholds"
    assert found.bundle_sha256 == sha256(bundle.path / "manifest.json")
    assert found.command == "hfd-edge bench x"
    assert {"python", "numpy", "onnxruntime", "hfd-edge"} <= found.versions.keys()
    (record,) = found.records
    assert record.valid, (record.invalid, record.scenarios)
    assert (record.backend, record.precision, record.threads) == ("onnxruntime", "fp32", 1)
    assert (record.tile_px, record.overlap_px) == (64, 32)
    assert record.model_sha256 == sha256(bundle.model("fp32"))
    assert record.bytes == bundle.model("fp32").stat().st_size
    assert (record.golden.tiles, record.golden.agreement, record.golden.required) == (1, 1.0, 0.999)
    (scenario,) = record.scenarios
    assert (scenario.kind, scenario.clock, scenario.runs, scenario.warmup_runs) == ("tile", "monotonic", 4, 1)
    assert scenario.megapixels == 64 * 64 / 1e6
    assert scenario.throughput_mpx_s == pytest.approx(
        scenario.megapixels * 4000 / sum(scenario.latency.samples_ms)
    )
    assert scenario.device is None
    assert scenario.memory.host_peak_mb is not None
    assert [stage.name for stage in scenario.stages] == ["preprocess", "infer", "postprocess"]
    assert 0 < sum(stage.p50_ms for stage in scenario.stages) <= scenario.latency.max_ms


def test_wrong_output_is_not_timed(golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfd_edge.bench.run._COLD_STARTS", 1)
    found = bench(golden_bundle(), precision="all", cold_start=True)
    right, half, wrong = found.records
    assert right.valid and right.scenarios and right.cold_start is not None
    assert right.cold_start.runs == 1
    assert right.cold_start.peak_mb in (None, right.scenarios[0].memory.host_peak_mb), "of its own process"
    assert half.valid and half.golden.required == 0.995
    assert not wrong.valid
    assert (wrong.precision, wrong.scenarios, wrong.cold_start) == ("int8", (), None)
    assert wrong.golden.required == 0.98 and wrong.golden.agreement == pytest.approx(0.75, abs=0.03)
    (reason,) = wrong.invalid
    assert reason.startswith(f"wrong output: {wrong.golden.agreement:.2%} of the labels of 1 golden tiles")


def test_a_variant_that_lost_labels_when_quantised_is_not_wrong(golden_bundle: MakeBundle) -> None:
    """Three quarters of the golden labels are what this one gives; nothing was lost since it was made."""
    bundle = golden_bundle()
    known = bundle.add({}, metrics={"int8": {"label_agreement_with_fp32": 0.76}})
    (record,) = bench(known, precision="int8").records
    assert record.scenarios and record.golden.required == pytest.approx(0.74)
    better = bundle.add({}, metrics={"int8": {"label_agreement_with_fp32": 0.95}})
    (record,) = bench(better, precision="int8").records
    assert not record.scenarios
    assert "the lower of 98.0%, the bound of int8, and 93.0%, 2 points below the 95.0%" in record.invalid[0]


def test_a_clock_that_stands_still_gives_no_figures(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = golden_bundle()
    monkeypatch.setattr(scenarios.time, "perf_counter", lambda: 5.0)
    with pytest.raises(BenchError, match="The clock stood still while a tile was segmented"):
        bench(bundle)


def test_a_stream_on_a_machine_that_gets_slower_is_throttled(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its latencies wait for the rate; the work on each frame tells."""
    run, count = OnnxRuntimeBackend.run, iter(range(1_000_000))

    def slower(self: OnnxRuntimeBackend, batch: Any) -> Any:
        time.sleep(0.005 if next(count) < 12 else 0.03)
        return run(self, batch)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", slower)
    (record,) = bench(golden_bundle(), runs=20, rate_hz=20.0, scenarios=("stream",)).records
    assert [text for text in record.scenarios[0].invalid if text.startswith("throttled")]


def test_only_wrong_output_leaves_nothing_timed(golden_bundle: MakeBundle) -> None:
    (record,) = bench(golden_bundle(), precision="int8", cold_start=True).records
    assert not record.scenarios and record.cold_start is None and not record.valid


def test_without_golden_tiles_figures_are_doubtful(make_thresholds: MakeBundle) -> None:
    (record,) = bench(make_thresholds()).records
    assert record.scenarios and record.golden.tiles == 0 and record.golden.agreement is None
    assert record.invalid[0].startswith("no golden tiles: nothing shows that the labels are right")


def test_a_machine_that_gets_slower_is_throttled(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay(monkeypatch, lambda count: 0.01 if count < 12 else 0.03)
    (record,) = bench(golden_bundle(), runs=15).records
    (reason,) = [text for text in record.scenarios[0].invalid if text.startswith("throttled")]
    assert "more time than the first" in reason


def test_noise_beyond_the_bound(golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    delay(monkeypatch, lambda count: 0.05 * (count % 2))
    (record,) = bench(golden_bundle(), runs=6, max_jitter=0.2).records
    assert [text for text in record.scenarios[0].invalid if text.startswith("noisy")]


def test_runs_that_never_get_stable_are_not_warm(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfd_edge.bench.measure import warm_up

    monkeypatch.setattr("hfd_edge.bench.visit.warm_up", warm_up)
    rule = WarmUp(window=2, least_s=0.0, most=6)
    monkeypatch.setattr("hfd_edge.bench.run.Tiles", partial(scenarios.Tiles, rule=rule))
    delay(monkeypatch, lambda count: max(0.0, 0.06 - 0.01 * count))
    (record,) = bench(golden_bundle()).records
    assert record.scenarios[0].warmup_runs == 6
    assert [text for text in record.scenarios[0].invalid if text.startswith("not warmed up: 6 runs")]


class Hot:
    """Sensors of a device that throttles, and draws 5 W before the visits, then 10 W, 20 W, and so on."""

    power_source = "stand-in"
    notes = ("RAPL cannot be read: run chmod",)

    def __init__(self) -> None:
        self.closed, self.visits = False, 0

    def read(self) -> Reading:
        return Reading(power_w=10.0 * self.visits or 5.0)

    def throttling(self) -> str:
        return "The device holds its clocks down at 99 C."

    def close(self) -> None:
        self.closed = True


class Counted(Sampler):
    """Tells those sensors when a visit begins."""

    def __enter__(self) -> Sampler:
        cast("Hot", self._sensors).visits += 1
        return super().__enter__()


def test_sensors_are_asked_while_it_runs(golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = Hot()
    monkeypatch.setattr("hfd_edge.bench.run.open_sensors", lambda *, gpu: sensors)
    monkeypatch.setattr("hfd_edge.bench.run._IDLE_S", 0.05)
    monkeypatch.setattr("hfd_edge.bench.visit.Sampler", Counted)
    content = bench(golden_bundle(), precision="all", runs=4)
    assert sensors.closed
    assert content.notes == sensors.notes
    for record in content.records[:2]:
        (scenario,) = record.scenarios
        assert scenario.invalid == ("throttled: The device holds its clocks down at 99 C.",)
        power = scenario.power
        assert (power.source, power.idle_w) == ("stand-in", 5.0)
        assert power.mean_w is not None and power.energy_j_per_mpx is not None
        assert power.energy_j_per_mpx == pytest.approx(power.mean_w / scenario.throughput_mpx_s)
        times = [sample.at_s for sample in power.samples]
        assert times == sorted(times)
    # Visits are FP32, FP16, FP16, FP32: so their mean power is the same though it rises.
    assert [record.scenarios[0].power.mean_w for record in content.records[:2]] == [25.0, 25.0]


def test_variants_are_visited_there_and_back(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def opened(*arguments: Any, **options: Any) -> Segmenter:
        order.append(options["precision"])
        return Segmenter(*arguments, **options)

    monkeypatch.setattr("hfd_edge.bench.run.Segmenter", opened)
    content = bench(golden_bundle(), precision="all", runs=5)
    assert order == ["fp32", "fp16", "fp16", "fp32"]
    assert [record.scenarios[0].runs for record in content.records[:2]] == [6, 6], "three in each visit"


def test_a_stream_at_a_rate_drops_what_is_too_much(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay(monkeypatch, lambda count: 0.02)
    (record,) = bench(golden_bundle(), runs=30, rate_hz=200.0, scenarios=("stream",)).records
    (stream,) = record.scenarios
    assert stream.kind == "stream" and stream.rate_hz == 200.0
    assert stream.dropped is not None and stream.dropped > 10
    assert stream.runs + stream.dropped == 30
    assert min(stream.latency.samples_ms) >= 20
    assert stream.latency.p50_ms > 24, "of two frames that wait, 5 ms apart, the older is taken"


def test_a_slow_stream_drops_nothing(golden_bundle: MakeBundle) -> None:
    (record,) = bench(golden_bundle(), runs=4, rate_hz=20.0).records
    assert [scenario.kind for scenario in record.scenarios] == ["tile", "stream"]
    stream = record.scenarios[1]
    assert (stream.runs, stream.dropped) == (4, 0)
    assert [stage.name for stage in stream.stages] == ["preprocess", "infer", "postprocess"]
    assert all(0 <= stage.p50_ms <= stream.latency.max_ms for stage in stream.stages)
    assert stream.throughput_mpx_s < 20 * stream.megapixels * 4 / 3 * 1.01, "limited by the rate"


def test_latency_counts_from_when_a_frame_was_due(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that comes late, on a machine that is too busy, must not make the stream look fast."""
    sleep = time.sleep
    monkeypatch.setattr(scenarios.time, "sleep", lambda seconds: sleep(seconds + 0.05))
    (record,) = bench(golden_bundle(), runs=3, rate_hz=10.0, scenarios=("stream",)).records
    assert min(record.scenarios[0].latency.samples_ms) >= 50


def test_a_simulated_scene_has_the_bundles_units(golden_bundle: MakeBundle) -> None:
    (record,) = bench(golden_bundle(), runs=2, scenarios=("scene", "scene")).records
    (scene,) = record.scenarios
    assert (scene.kind, scene.runs) == ("scene", 2)
    assert scene.megapixels == 192 * 192 / 1e6
    assert {"read", "preprocess", "infer", "postprocess", "write"} == {stage.name for stage in scene.stages}
    assert all(stage.start_ms is None for stage in scene.stages)


def test_a_given_scene(golden_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfd_edge.raster.image import write_image

    write_image(tmp_path / "scene.tif", np.full((1, 100, 70), 90, np.uint8))
    bundle = golden_bundle()
    (record,) = bench(bundle, runs=1, scene=tmp_path / "scene.tif").records
    assert [scenario.kind for scenario in record.scenarios] == ["tile", "scene"]
    assert record.scenarios[1].megapixels == 0.007
    write_image(tmp_path / "two.tif", np.full((2, 100, 70), 90, np.uint8))
    with monkeypatch.context() as patched, pytest.raises(RasterError, match=r"two\.tif has 2 bands, but the"):
        patched.setattr("hfd_edge.bench.run.visit", None)  # before anything is timed
        bench(bundle, runs=1, scene=tmp_path / "two.tif")
    with pytest.raises(RasterError, match=r"nowhere\.tif"):
        bench(bundle, runs=1, scene=tmp_path / "nowhere.tif")


def test_all_lists_what_cannot_run_and_a_name_insists(
    golden_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hfd_edge.bench.variants.available_backends", lambda: ("onnxruntime", "torch_tensorrt")
    )
    bundle = golden_bundle(thresholds={"fp32": 100.0})
    content = bench(bundle, backend="all", precision="all", runs=1)
    assert [(record.backend, record.precision) for record in content.records] == [("onnxruntime", "fp32")]
    (refused,) = content.not_run
    assert refused.startswith("fp32 on torch_tensorrt: Backend torch_tensorrt cannot run")
    with pytest.raises(BackendError, match="Backend torch_tensorrt cannot run"):
        bench(bundle, backend="torch_tensorrt")
    with pytest.raises(BundleError, match="has no int8 model"):
        bench(bundle, precision="int8")
    with pytest.raises(BenchError, match="None of the variants of .* can run here"):
        bench(bundle, backend="torch_tensorrt", precision="all")
    with pytest.raises(BenchError, match="There is no backend 'npu'. Choose one of auto, onnxruntime"):
        bench(bundle, backend="npu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "runs is 0, expected a positive number"),
        ({"rate_hz": -1.0}, "rate_hz is -1.0, expected a positive number"),
        ({"rate_hz": float("inf")}, "rate_hz is inf"),
        ({"max_jitter": 0.0}, "max_jitter is 0.0"),
        ({"threads": 0}, "threads is 0"),
        ({"rate_hz": 5.0, "scenarios": ("tile",)}, r"A rate is given \(5.0\), but the scenarios are tile"),
        ({"scene": Path("x.tif"), "scenarios": ("tile",)}, "Add --scenario scene, or leave the scene out"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        BenchOptions(**options)
