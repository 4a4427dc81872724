"""What a benchmark is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfd_edge.bench.result import Kind
from hfd_edge.errors import BenchError

ALL = "all"
RATE_HZ = 5.0
"""Frames a second of a stream for which none are named."""
TILE_RUNS, SCENE_RUNS = 50, 3


@dataclass(frozen=True)
class BenchOptions:
    """Options of `run_bench`.

    Attributes:
        backend: One backend, "auto" for the one that a user gets, or "all" that this machine has.
        precision: One precision, "auto" likewise, or "all" that the bundle has.
        threads: CPU threads; None for one per core.
        scenarios: What to time; none named: tiles, a stream if a rate is named, a scene if one is named.
        runs: Timed runs of each scenario and variant; None for 50 tiles or frames and 3 scenes.
        rate_hz: Frames a second of the stream; None for 5.
        scene: Scene to time; None for a simulated one of three by three tiles.
        max_jitter: Standard deviation of tiles or scenes, as a share of their mean, beyond which they are
            too noisy.
        cold_start: Whether new processes are started and timed.
        command: What was typed, for the record.
    """

    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    scenarios: tuple[Kind, ...] = ()
    runs: int | None = None
    rate_hz: float | None = None
    scene: Path | None = None
    max_jitter: float = 0.10
    cold_start: bool = True
    command: str = "hfd_edge.bench.run.run_bench"

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before anything is measured."""
        positive = {"threads": self.threads, "runs": self.runs, "rate_hz": self.rate_hz}
        for name, value in {**positive, "max_jitter": self.max_jitter}.items():
            if value is not None and not 0 < value < float("inf"):
                raise BenchError(f"{name} is {value}, expected a positive number.")
        for name, given, kind in (("rate", self.rate_hz, "stream"), ("scene", self.scene, "scene")):
            if given is not None and self.scenarios and kind not in self.scenarios:
                raise BenchError(
                    f"A {name} is given ({given}), but the scenarios are {', '.join(self.scenarios)}. Add "
                    f"--scenario {kind}, or leave the {name} out."
                )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Scenarios to time, each once."""
        chosen: list[Kind] = ["tile"]
        if self.rate_hz is not None:
            chosen.append("stream")
        if self.scene is not None:
            chosen.append("scene")
        return tuple(dict.fromkeys(self.scenarios)) or tuple(chosen)

    def runs_of(self, kind: Kind) -> int:
        """Timed runs of a scenario."""
        return self.runs or (SCENE_RUNS if kind == "scene" else TILE_RUNS)
