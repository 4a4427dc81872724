"""What a benchmark writes and reads again: one JSON file, one record a variant, plain values with units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hfd_edge.config import Strict, parse
from hfd_edge.errors import BenchError
from hfd_edge.files import write_text

Kind = Literal["tile", "stream", "scene"]
"""What was timed: one tile after the other, frames at a given rate, a whole scene from file to file."""

STAGES = ("read", "copy_in", "preprocess", "infer", "postprocess", "copy_out", "write")
"""Stages of the road of a frame, in its order; a record holds those that its backend can tell apart."""


class Spread(Strict):
    """Times of repeated runs, milliseconds.

    Attributes:
        samples_ms: All of them, in the order in which they were taken.
        jitter_ms: Standard deviation (n - 1); 0 for one run.
    """

    samples_ms: tuple[float, ...] = Field(min_length=1)
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    jitter_ms: float


class Stage(Strict):
    """One stage of the road, over all timed runs; overlapping stages may add up to more than the whole."""

    name: str = Field(description="One of STAGES.")
    mean_ms: float = Field(ge=0)
    p50_ms: float = Field(ge=0)
    start_ms: float | None = Field(
        default=None, description="Median time after the run's start at which it begins; None if unknown."
    )


class Sample(Strict):
    """What the sensors said at one moment of the timed runs; None where there is no such sensor."""

    at_s: float = Field(ge=0, description="Seconds since the first timed run began.")
    power_w: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = Field(default=None, description="Of the GPU, or the mean of the CPU's cores.")


class Power(Strict):
    """Power and clocks while the runs were timed.

    Attributes:
        source: Where the power comes from, for example "nvml" or "ina3221 VDD_IN"; None for nowhere.
        idle_w: Mean power before the runs; None where it was not measured.
        energy_j_per_mpx: Mean power over megapixels per second.
    """

    source: str | None = None
    idle_w: float | None = None
    mean_w: float | None = None
    peak_w: float | None = None
    energy_j_per_mpx: float | None = None
    samples: tuple[Sample, ...] = ()


class Memory(Strict):
    """Peak memory, MB (1e6 bytes).

    Attributes:
        host_peak_mb: Of a whole process that does this and nothing else. Without cold starts it is that of
            the benchmark's own process, which holds the libraries of all variants.
        device_peak_mb: On the device, beyond what was in use before.
    """

    host_peak_mb: float | None = None
    device_peak_mb: float | None = None


class Scenario(Strict):
    """One kind of work, timed.

    Attributes:
        warmup_runs: Runs before the timed ones.
        megapixels: Pixels of one run / 1e6 (rows * cols, not times bands).
        throughput_mpx_s: Megapixels of all timed runs over the wall-clock time that they took together.
        rate_hz: Frames a second that were offered; streams only.
        dropped: Frames that the stream left out; streams only.
        clock: What timed the stages: "cuda events" or "monotonic". Latency is always what the caller waits.
        latency: From handing the pixels in (a stream's frame: from when it was due) to having the mask.
        device: What a GPU's stages took together, by events on it: less than `latency` by what the host needs
            to launch them and to wait; None on CPUs and for scenes.
        invalid: Why the figures cannot be trusted, a sentence each; empty when they can.
    """

    kind: Kind
    clock: str
    warmup_runs: int = Field(ge=0)
    runs: int = Field(ge=1)
    megapixels: float = Field(gt=0)
    latency: Spread
    device: Spread | None = None
    throughput_mpx_s: float = Field(gt=0)
    rate_hz: float | None = None
    dropped: int | None = None
    stages: tuple[Stage, ...] = ()
    memory: Memory = Memory()
    power: Power = Power()
    invalid: tuple[str, ...] = ()


class Golden(Strict):
    """The check before the timing: labels of the golden tiles against the bundle's own.

    Attributes:
        tiles: Golden tiles; 0 when the bundle has none, which makes a record invalid.
        agreement: Share of their pixels, 0 to 1, that have the bundle's label; None without tiles.
        required: Least agreement for this precision.
    """

    tiles: int
    agreement: float | None
    required: float


class ColdStart(Strict):
    """A new process, from its start to its first mask, seconds; medians over `runs` processes.

    Attributes:
        total_s: From the start of the process to the mask.
        import_s: `import hfd_edge` and what opening a bundle needs.
        load_s: Opening the bundle and its model.
        first_mask_s: The first tile.
        peak_mb: Peak memory of a process that segments three tiles, MB (1e6 bytes); None where nobody tells.
        runs: Processes.
        samples_s: `total_s` of each process, in their order; empty where they were not kept.
    """

    total_s: float
    import_s: float
    load_s: float
    first_mask_s: float
    peak_mb: float | None = None
    runs: int = Field(ge=1)
    samples_s: tuple[float, ...] = ()


class Record(Strict):
    """One variant on one backend.

    Attributes:
        bytes: Size of what ran: the ONNX file or the engine.
        miou: Of the bundle's manifest, if it has been scored; 0 to 1.
        invalid: Why no scenario was timed, or what holds for all of them; a sentence each.
    """

    backend: str
    precision: str
    threads: int
    tile_px: int
    overlap_px: int
    model_sha256: str
    bytes: int
    miou: float | None = None
    golden: Golden
    cold_start: ColdStart | None = None
    scenarios: tuple[Scenario, ...] = ()
    invalid: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether every figure in it can be trusted."""
        return not self.invalid and not any(scenario.invalid for scenario in self.scenarios)

    def scenario(self, kind: Kind) -> Scenario | None:
        """The scenario of this kind, if it was timed."""
        return next((scenario for scenario in self.scenarios if scenario.kind == kind), None)


class Machine(Strict):
    """What the figures belong to.

    Attributes:
        slug: Processor and cores, or the GPU or board: "amd-epyc-2c", "jetson-orin-nx".
        text: The same in words.
        cores: CPU cores that the process may use.
        gpu: Name of the GPU; None without one.
        power_mode: Jetson's power mode, or the power limit of a desktop GPU; None where there is none.
        clocks: What governs the clocks: CPU governor, whether jetson_clocks or locked GPU clocks are on.
    """

    slug: str
    text: str
    cores: int
    gpu: str | None = None
    power_mode: str | None = None
    clocks: str | None = None


class BenchFile(Strict):
    """The file: figures, and what they were measured on."""

    schema_version: Literal[1] = 1
    bundle: str
    bundle_sha256: str = Field(description="Of manifest.json, which names the hash of every other file.")
    machine: Machine
    versions: dict[str, str]
    commit: str | None = None
    command: str
    created: str = Field(description="ISO 8601 time, UTC.")
    records: tuple[Record, ...] = Field(min_length=1)
    not_run: tuple[str, ...] = Field(
        default=(), description="Variants that a backend of this machine refused, a sentence each."
    )
    notes: tuple[str, ...] = Field(
        default=(),
        description="Sensors that are here but could not be read, or failed midway, and what to do.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> BenchFile:
        keys = [(record.backend, record.precision) for record in self.records]
        if len(set(keys)) != len(keys):
            raise ValueError(f"two records are of one variant: {keys}")
        return self


def write_bench(path: Path, content: BenchFile) -> None:
    """Write the file whole or not at all. Raises StorageError."""
    write_text(path, content.model_dump_json(indent=2) + "\n")


def read_bench(path: Path) -> BenchFile:
    """Read a file that `hfd-edge bench` wrote.

    Raises:
        BenchError: there is no such file, or it is not one of these.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise BenchError(f"There is no file {path}. Make one: hfd-edge bench BUNDLE --out DIR") from error
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}. Name a bench.json.") from error
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}. Name the bench.json of a benchmark.") from error
    try:
        return parse(content, BenchFile, source=str(path))
    except ValueError as error:
        raise BenchError(f"{error} Name the bench.json of a benchmark of this version.") from error
