"""Benchmarks with known figures, for the tests of their reports and of the gate."""

from __future__ import annotations

from typing import Any

import numpy as np

from hfd_edge.bench.result import (
    BenchFile,
    ColdStart,
    Golden,
    Kind,
    Machine,
    Memory,
    Power,
    Record,
    Sample,
    Scenario,
    Spread,
    Stage,
)

BYTES = {"fp32": 14_216_233, "fp16": 7_199_261, "int8": 4_680_793, "int8_fp16": 3_900_000}
MIOU = {"fp32": 0.6993, "fp16": 0.6991, "int8": 0.6911, "int8_fp16": 0.6905}
STAGES = (("preprocess", 0.03), ("infer", 0.95), ("postprocess", 0.02))


def make_spread(samples_ms: Any) -> Spread:
    """The figures of these samples."""
    values = np.asarray(samples_ms, np.float64)
    p50, p90, p95, p99 = (float(one) for one in np.percentile(values, (50, 90, 95, 99)))
    return Spread(
        samples_ms=tuple(values.tolist()),
        mean_ms=float(values.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(values.max()),
        jitter_ms=float(values.std(ddof=1)) if values.size > 1 else 0.0,
    )


def make_samples(median_ms: float, *, runs: int = 200, seed: int = 0) -> Any:
    """Times that spread by about 2 %; each is like the one before."""
    noise = np.random.default_rng(seed).normal(size=runs + 3)
    smooth = np.convolve(noise, (0.6, 0.5, 0.4, 0.3), "valid")
    return median_ms * np.exp(0.02 * (smooth - np.median(smooth)))


def make_scenario(
    median_ms: float = 100.0, *, kind: Kind = "tile", runs: int = 200, seed: int = 0, **changes: Any
) -> Scenario:
    """One tile of 512 px; every figure follows the median."""
    content: dict[str, Any] = {
        "kind": kind,
        "clock": "monotonic",
        "warmup_runs": 12,
        "runs": runs,
        "megapixels": 0.262144,
        "latency": make_spread(make_samples(median_ms, runs=runs, seed=seed)),
        "throughput_mpx_s": 262.144 / median_ms,
        "stages": make_stages(median_ms),
        "memory": Memory(host_peak_mb=412.0),
    }
    return Scenario(**{**content, **changes})


def make_stages(median_ms: float, *, starts: bool = True) -> tuple[Stage, ...]:
    """Stages one after the other that fill the run."""
    stages, passed = [], 0.0
    for name, share in STAGES:
        length = share * median_ms
        stages.append(Stage(name=name, mean_ms=length, p50_ms=length, start_ms=passed if starts else None))
        passed += length
    return tuple(stages)


def make_power(*, seconds: float = 20.0, watts: float = 14.0) -> Power:
    """A board that warms up; its clock falls a little."""
    times = np.arange(0.0, seconds, 0.25)
    rises = 1 - np.exp(-times / 3)
    samples = tuple(
        Sample(
            at_s=float(at),
            power_w=float(4 + (watts - 4) * rise + 0.4 * np.sin(5 * at)),
            temperature_c=float(41 + 12 * rise),
            clock_mhz=float(1300 - 40 * rise),
        )
        for at, rise in zip(times, rises, strict=True)
    )
    return Power(
        source="ina3221 VDD_IN", idle_w=4.1, mean_w=12.4, peak_w=14.6, energy_j_per_mpx=4.73, samples=samples
    )


def make_record(
    precision: str = "fp32", *, backend: str = "onnxruntime", median_ms: float = 100.0, **changes: Any
) -> Record:
    """A variant with one timed scenario and a cold start."""
    content: dict[str, Any] = {
        "backend": backend,
        "precision": precision,
        "threads": 2,
        "tile_px": 512,
        "overlap_px": 64,
        "model_sha256": f"{len(precision):x}" * 64,
        "bytes": BYTES[precision],
        "miou": MIOU[precision],
        "golden": Golden(tiles=4, agreement=0.9998, required=0.999),
        "cold_start": make_cold_start(),
        "scenarios": (make_scenario(median_ms),),
    }
    return Record(**{**content, **changes})


def make_cold_start(total_s: float = 0.53) -> ColdStart:
    """Five processes, 1 % apart."""
    return ColdStart(
        total_s=total_s,
        import_s=0.28,
        load_s=0.11,
        first_mask_s=0.12,
        runs=5,
        samples_s=tuple(total_s * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02)),
    )


def make_bench(*records: Record, **changes: Any) -> BenchFile:
    """A file of these records; of one FP32 record when there are none."""
    content: dict[str, Any] = {
        "bundle": "flood.hfd",
        "bundle_sha256": "ab" * 32,
        "machine": Machine(
            slug="test-cpu-2c", text="Test CPU, 2 cores", cores=2, clocks="governor performance"
        ),
        "versions": {"hfd-edge": "0.1.0", "onnxruntime": "1.32.0"},
        "commit": "c0ffee" * 6 + "c0ff",
        "command": "hfd-edge bench flood.hfd --precision all",
        "created": "2025-01-02T03:04:05Z",
        "records": records or (make_record(),),
    }
    return BenchFile(**{**content, **changes})


def make_full_bench() -> BenchFile:
    """Every part of a report: two backends, four precisions, three scenarios, power, doubts."""
    medians = {
        "fp32": (107.0, 68.6),
        "fp16": (122.0, 68.4),
        "int8": (160.0, 30.0),
        "int8_fp16": (331.0, 32.0),
    }
    records = []
    for place, backend in enumerate(("onnxruntime", "openvino")):
        for seed, (precision, both) in enumerate(medians.items()):
            median = both[place]
            samples = make_samples(median, seed=seed + 10 * place)
            samples[50:53] *= (2.2, 1.7, 3.1)  # strays
            tile = make_scenario(median, latency=make_spread(samples), power=make_power())
            stream = make_scenario(
                median * 1.1, kind="stream", seed=seed + 5, rate_hz=8.0, dropped=seed * 3,
                stages=make_stages(median, starts=False),
            )  # fmt: skip
            scene = make_scenario(
                median * 290, kind="scene", runs=3, megapixels=67.1, stages=_overlapping(median)
            )
            figures = {
                "throughput_mpx_s": 67.1e3 / (median * 290),
                "power": make_power(seconds=60.0, watts=12.0),
            }
            scene = scene.model_copy(update=figures)
            start = make_cold_start(0.53 + 0.02 * seed + 0.1 * place)
            three = (tile, stream, scene)
            records.append(make_record(precision, backend=backend, scenarios=three, cold_start=start))
    doubt = "throttled: the clock fell to 812 MHz of 1300 (thermal). Cool the board or lower the mode."
    records[1] = records[1].model_copy(
        update={"scenarios": (records[1].scenarios[0].model_copy(update={"invalid": (doubt,)}),)}
    )
    wrong = "wrong output: 61.20 % of the pixels have the bundle's label, 98 % are required. Not timed."
    records[3] = records[3].model_copy(
        update={
            "scenarios": (), "cold_start": None, "invalid": (wrong,),
            "golden": Golden(tiles=4, agreement=0.612, required=0.98),
        }
    )  # fmt: skip
    return make_bench(*records)


def _overlapping(median_ms: float) -> tuple[Stage, ...]:
    """Stages of a scene: side by side, and nobody knows when each began."""
    parts = {"read": 0.1, "preprocess": 0.15, "infer": 0.97, "postprocess": 0.06, "write": 0.04}
    whole = median_ms * 290
    return tuple(Stage(name=name, mean_ms=whole * part, p50_ms=whole * part) for name, part in parts.items())
