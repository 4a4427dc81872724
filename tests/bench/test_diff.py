"""The gate: what it calls a regression, what it cannot tell, and what it refuses to compare."""

from __future__ import annotations

from typing import Any

import pytest

from hfd_edge.bench.diff import Change, Diff, compare_benches
from hfd_edge.bench.result import BenchFile, Golden, Machine, Memory, Scenario
from hfd_edge.errors import BenchError

from ..benches import make_bench, make_cold_start, make_record, make_samples, make_scenario, make_spread

MACHINE = make_bench().machine


def bench(scenario: Scenario | None = None, **changes: Any) -> BenchFile:
    return make_bench(make_record(scenarios=(scenario or make_scenario(seed=1),), **changes))


def diff(old: BenchFile, new: BenchFile, **options: Any) -> Diff:
    return compare_benches(old, new, **{"tolerance": 0.05, **options})


def change(found: Diff, figure: str) -> Change:
    (one,) = [one for one in found.changes if one.figure == figure]
    return one


def test_the_same_program_measured_twice_passes() -> None:
    found = diff(make_bench(), bench())
    assert [one.figure for one in found.changes] == [
        *("latency p50", "latency p99", "throughput", "host memory", "total")
    ]
    assert {one.verdict for one in found.changes} == {"same"}
    assert found.differences == found.only_old == found.only_new == found.not_compared == ()


def test_a_slower_program_is_a_regression_and_the_other_way_round_an_improvement() -> None:
    slow = bench(make_scenario(112.0, seed=1))
    found, back = diff(make_bench(), slow), diff(slow, make_bench())
    for figure in ("latency p50", "latency p99", "throughput"):
        one, other = change(found, figure), change(back, figure)
        assert (one.verdict, other.verdict) == ("regression", "improvement")
        assert one.ratio * other.ratio == pytest.approx(1)
    p50, throughput = change(found, "latency p50"), change(found, "throughput")
    assert p50.ratio == pytest.approx(1.12)
    assert (p50.record, p50.scenario, p50.unit) == ("onnxruntime fp32", "tile", "ms")
    assert throughput.new < throughput.old, "fewer megapixels a second cost more"
    assert throughput.ratio == pytest.approx(1.12, rel=1e-3)
    assert throughput.bounds is not None
    assert throughput.bounds.low < throughput.ratio < throughput.bounds.high


def test_the_tolerance_decides() -> None:
    slow = bench(make_scenario(112.0, seed=1))
    assert change(diff(make_bench(), slow, tolerance=0.1), "latency p50").verdict == "regression"
    assert change(diff(make_bench(), slow, tolerance=0.12), "latency p50").verdict == "cannot tell"
    assert change(diff(make_bench(), slow, tolerance=0.2), "latency p50").verdict == "same"
    with pytest.raises(ValueError, match="tolerance is -0.1, expected 0 or more"):
        diff(make_bench(), slow, tolerance=-0.1)


def test_few_or_noisy_runs_cannot_tell() -> None:
    noisy = make_spread(100 + 10 * (make_samples(100.0, seed=3, runs=25) - 99))
    found = diff(make_bench(), bench(make_scenario(latency=noisy, runs=25)))
    assert change(found, "latency p50").verdict == "cannot tell"
    tail = change(found, "latency p99")
    assert (tail.verdict, tail.bounds) == ("cannot tell", None)
    assert found.having("regression") == ()


def test_a_slower_tail_alone_is_found() -> None:
    samples = make_samples(100.0, seed=1)
    samples[::20] *= 1.6
    found = diff(make_bench(), bench(make_scenario(latency=make_spread(samples))))
    assert [one.figure for one in found.having("regression")] == ["latency p99"]


def test_memory_may_vary_by_what_an_allocator_does() -> None:
    def of(host: float, device: float | None = None) -> BenchFile:
        return bench(make_scenario(memory=Memory(host_peak_mb=host, device_peak_mb=device)))

    assert change(diff(of(100), of(108)), "host memory").verdict == "cannot tell"
    assert change(diff(of(100), of(96)), "host memory").verdict == "same"
    assert change(diff(of(400), of(440)), "host memory").verdict == "regression"
    assert change(diff(of(440), of(400)), "host memory").verdict == "improvement"
    assert change(diff(of(9, 0), of(9, 0)), "device memory").ratio == 1
    assert change(diff(of(9, 0), of(9, 90)), "device memory").verdict == "regression"
    assert [one.unit for one in diff(of(9, 0), of(9)).changes].count("MB") == 1, "one side has none"


def test_memory_of_a_process_of_its_own_is_not_compared_with_that_of_the_benchmark() -> None:
    lone, shared = bench(), bench(make_scenario(memory=Memory(host_peak_mb=700.0)), cold_start=None)
    for found in (diff(lone, shared), diff(shared, lone)):
        assert "host memory" not in [one.figure for one in found.changes]
        assert found.not_compared == (
            "onnxruntime fp32 tile host memory: that of processes which held different things; measure "
            "neither side with --no-cold-start",
        )
    assert change(diff(shared, shared), "host memory").verdict == "same"
    both = make_bench(*shared.records, make_record("int8", cold_start=None))
    assert "host memory" not in [one.figure for one in diff(shared, both).changes]


def test_cold_start() -> None:
    def of(total_s: float, **changes: Any) -> BenchFile:
        return bench(cold_start=make_cold_start(total_s).model_copy(update=changes))

    assert change(diff(of(0.5), of(0.6)), "total").verdict == "regression"
    assert change(diff(of(0.5), of(0.52)), "total").verdict == "cannot tell"
    assert change(diff(of(0.5), of(0.6, samples_s=())), "total").verdict == "cannot tell"
    grown = diff(of(0.5, peak_mb=200.0), of(0.5, peak_mb=260.0)).having("regression")
    assert [(one.scenario, one.figure) for one in grown] == [("cold start", "host memory")]


def test_a_stream_that_loses_frames_is_a_regression_though_the_others_are_as_fast() -> None:
    def of(dropped: int, seed: int, offered: int = 200) -> BenchFile:
        samples = make_samples(30.0, runs=offered, seed=seed)[: offered - dropped]
        if dropped:
            samples[::50] *= 30  # it stalled; what it lost meanwhile is in no latency
        kept = {"runs": samples.size, "dropped": dropped, "rate_hz": 25.0}
        return bench(make_scenario(kind="stream", latency=make_spread(samples), **kept))

    lost = diff(of(0, 1), of(40, 2))
    assert change(lost, "latency p50").verdict == "same"
    one = change(lost, "frames kept")
    assert (one.verdict, one.old, one.new, one.unit) == ("regression", 100.0, 80.0, "%")
    assert change(diff(of(40, 2), of(0, 1)), "frames kept").verdict == "improvement"
    assert change(diff(of(0, 1), of(0, 2)), "frames kept").verdict == "same"
    assert change(diff(of(10, 1), of(19, 2)), "frames kept").verdict == "cannot tell"
    for dropped in (140, 10):
        found = change(diff(of(dropped, 1), of(75, 2)), "frames kept")
        assert found.bounds is not None and found.bounds.low < found.ratio < found.bounds.high
    assert "throughput" not in [one.figure for one in lost.changes], "the rate decides, and the frames kept"


def test_time_on_the_device_is_compared_where_both_have_it() -> None:
    def of(median_ms: float) -> BenchFile:
        device = make_spread(make_samples(median_ms, seed=int(median_ms)))
        return bench(make_scenario(seed=1, clock="cuda events", device=device))

    assert change(diff(of(5.0), of(6.0)), "device p50").verdict == "regression"
    assert "device p50" not in [one.figure for one in diff(bench(), of(6.0)).changes]


def test_what_one_side_lacks_is_listed() -> None:
    old = make_bench(make_record(), make_record("int8"))
    both = (make_scenario(seed=1), make_scenario(kind="stream", rate_hz=5.0, dropped=0))
    new = make_bench(make_record(scenarios=both, cold_start=None), make_record("fp16"))
    found = diff(old, new)
    assert found.only_old == (
        *("onnxruntime fp32 cold start", "onnxruntime int8 tile", "onnxruntime int8 cold start"),
    )
    assert found.only_new == (
        *("onnxruntime fp32 stream", "onnxruntime fp16 tile", "onnxruntime fp16 cold start"),
    )
    assert {one.record for one in found.changes} == {"onnxruntime fp32"}


def test_other_work_is_not_compared() -> None:
    stream = {"kind": "stream", "dropped": 0}
    old = make_bench(make_record(scenarios=(make_scenario(), make_scenario(rate_hz=5.0, **stream))))
    new = make_bench(
        make_record(scenarios=(make_scenario(150.0, megapixels=1.0), make_scenario(rate_hz=8.0, **stream)))
    )
    found = diff(old, new)
    assert found.not_compared == (
        "onnxruntime fp32 tile: a run was of 0.262144 megapixels and is now of 1",
        "onnxruntime fp32 stream: frames were offered at 5 a second and are now at 8",
    )
    assert {one.scenario for one in found.changes} == {"cold start"}


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"slug": "other-4c"}, "machine: test-cpu-2c and now other-4c"),
        # A slug of a GPU or board says nothing of the CPU beside it.
        ({"text": "Other CPU, 2 cores"}, "machine: Test CPU, 2 cores and now Other CPU, 2 cores"),
        ({"power_mode": "15W"}, "power mode: - and now 15W"),
        ({"clocks": "governor powersave"}, "clocks: governor performance and now governor powersave"),
    ],
)
def test_another_machine_or_setting_is_refused(machine: dict[str, str], message: str) -> None:
    other = make_bench(machine=Machine(**{**MACHINE.model_dump(), **machine}))
    with pytest.raises(BenchError, match="were not made alike") as raised:
        diff(make_bench(), other)
    assert message in str(raised.value)
    assert "--across" in str(raised.value)
    found = diff(make_bench(), other, across=True)
    assert message == "{0.name}: {0.old} and now {0.new}".format(*found.differences)


def test_other_threads_are_refused() -> None:
    with pytest.raises(BenchError, match="threads of onnxruntime fp32: 2 and now 1"):
        diff(make_bench(), bench(threads=1))
    assert diff(make_bench(), bench(threads=1), across=True).changes


def test_what_may_explain_a_change_is_listed() -> None:
    new = bench(model_sha256="f" * 64, overlap_px=32).model_copy(
        update={"versions": {"hfd-edge": "0.1.0", "openvino": "2026.4"}, "commit": None}
    )
    found = {one.name: (one.old, one.new) for one in diff(make_bench(), new).differences}
    assert found == {
        "onnxruntime": ("1.32.0", "-"),
        "openvino": ("-", "2026.4"),
        "commit": (make_bench().commit, "-"),
        "model of onnxruntime fp32": ("4" * 12, "f" * 12),
        "overlap of onnxruntime fp32": ("64 px", "32 px"),
    }


def test_figures_that_cannot_be_trusted_are_refused() -> None:
    hot = bench(make_scenario(seed=1, invalid=("throttled: 812 of 1300 MHz.",)))
    with pytest.raises(
        BenchError, match="new benchmark.*onnxruntime fp32 tile: throttled: 812 of 1300 MHz"
    ) as raised:
        diff(make_bench(), hot)
    assert "--allow-invalid" in str(raised.value)
    with pytest.raises(BenchError, match="The old benchmark"):
        diff(hot, make_bench())
    assert diff(make_bench(), hot, allow_invalid=True).having("same")


def test_a_wrong_output_leaves_nothing_to_compare() -> None:
    golden = Golden(tiles=4, agreement=0.5, required=0.999)
    wrong = make_bench(make_record(scenarios=(), cold_start=None, golden=golden, invalid=("wrong output.",)))
    with pytest.raises(BenchError, match=r"cannot be trusted \(onnxruntime fp32: wrong output\)"):
        diff(make_bench(), wrong)
    with pytest.raises(BenchError, match="nothing in common.*only in the old one: onnxruntime fp32 tile"):
        diff(make_bench(), wrong, allow_invalid=True)
    with pytest.raises(BenchError, match="neither file holds a timed scenario"):
        diff(wrong, wrong, allow_invalid=True)
