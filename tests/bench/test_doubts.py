"""Each reason not to trust figures, planted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hfd_edge.bench import doubts
from hfd_edge.bench.doubts import OtherLoad, drift_doubt, jitter_doubt, synchronisation_doubt
from hfd_edge.bench.measure import Run


def test_drift() -> None:
    assert drift_doubt([10.0] * 30) is None
    assert drift_doubt([10.0] * 20 + [10.9] * 10) is None
    assert drift_doubt([10.0, 20.0, 30.0]) is None, "too few to tell"
    slower = drift_doubt([10.0] * 20 + [12.5] * 10)
    assert slower is not None
    assert slower.startswith("throttled: the last third of the runs took 25% more time than the first")
    assert "cool it" in slower
    faster = drift_doubt([10.0] * 10 + [8.0] * 20)
    assert faster is not None
    assert faster.startswith("not warmed up: the last third of the runs took 20% less time")


def test_jitter() -> None:
    assert jitter_doubt([10.0, 10.5, 9.5] * 9, most=0.10) is None
    found = jitter_doubt([10.0, 15.0, 5.0] * 9, most=0.10)
    assert found is not None
    assert found.startswith("noisy: the runs vary by 41.6% of their mean")
    assert "at most 10.0% allowed" in found


def test_synchronisation() -> None:
    good = [Run(5.0, {"copy_in": 1.0, "infer": 3.0}, on_device=True)] * 4
    assert synchronisation_doubt(good, gpu=True) is None
    early = [Run(0.2, {"copy_in": 1.0, "infer": 3.0}, on_device=True)] * 4
    assert synchronisation_doubt(early, gpu=False) is None, "a CPU is done when the call returns"
    found = synchronisation_doubt(early, gpu=True)
    assert found is not None
    assert found.startswith(
        "not synchronised: the host waited 0.8 ms for masks on which the GPU worked for 16.0 ms"
    )
    for silent in (Run(5.0, {}, on_device=True), Run(5.0, {"infer": 4.0}, on_device=False)):
        assert "records no events" in str(synchronisation_doubt([*good, silent], gpu=True))


class Machine:
    """A made /proc/stat, and clocks that stand where they are set."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.now, self.own, self.switches = root, 0.0, 0.0, 0
        (root / "proc").mkdir()
        usage = lambda _: SimpleNamespace(ru_utime=self.own, ru_stime=0.0, ru_nivcsw=self.switches)  # noqa: E731
        monkeypatch.setattr(doubts.resource, "getrusage", usage)
        monkeypatch.setattr(doubts.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(doubts, "allowed_cores", lambda: frozenset({0, 1}))
        monkeypatch.setattr(doubts.os, "sysconf", lambda _: 100)
        self.busy(0.0, 0.0)

    def busy(self, first_s: float, second_s: float, *, foreign_s: float = 0.0) -> None:
        """Seconds that cores 0, 1 and 2 were busy; the last is not this process's. Idle time stands still."""
        lines = ["cpu 9 9 9 9 9 9 9 9 0 0"]
        for core, seconds in enumerate((first_s, second_s, foreign_s)):
            lines.append(f"cpu{core} {round(100 * seconds)} 0 0 7000 300 0 0 0 50 0")
        (self.root / "proc" / "stat").write_text("\n".join([*lines, "intr 1 2 3"]))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_other_programs(machine: Machine) -> None:
    with OtherLoad(machine.root) as load:
        machine.now, machine.own = 10.0, 12.0
        machine.busy(10.0, 8.0, foreign_s=10.0)
    found = load.doubt()
    assert found is not None
    assert found.startswith("other load: other programs used 30% of the 2 cores, at most 10% allowed")


def test_own_work_is_no_other_load(machine: Machine) -> None:
    with OtherLoad(machine.root) as load:
        machine.now, machine.own = 10.0, 19.0
        machine.busy(10.0, 10.0, foreign_s=10.0)
        machine.switches = 100_000
    assert load.doubt() is None


def test_too_short_to_tell(machine: Machine) -> None:
    with OtherLoad(machine.root) as load:
        machine.now = 0.4
        machine.busy(0.4, 0.4)
    assert load.doubt() is None


@pytest.mark.parametrize("gone", [True, False])
def test_where_the_system_hides_its_counters_lost_cores_tell(machine: Machine, gone: bool) -> None:
    if gone:
        (machine.root / "proc" / "stat").unlink()
    for switches, doubtful in ((100, False), (9000, True)):
        machine.now, machine.switches = 0.0, 0
        with OtherLoad(machine.root) as load:
            machine.now, machine.own, machine.switches = 10.0, machine.own + 20.0, switches
        found = load.doubt()
        assert (found is not None) == doubtful
        if found is not None:
            assert "the system took the cores away 450 times a second" in found


def test_this_machine_can_be_watched() -> None:
    with OtherLoad() as load:
        pass
    assert load.doubt() is None


@pytest.mark.parametrize(
    ("groups", "folder", "before", "after"),
    [
        ("0::/a/b", "a/b", "usage_usec 9\nnr_throttled 3\nthrottled_usec 100000", "throttled_usec 900000"),
        ("0::/a/b", "a", "throttled_usec 100000", "throttled_usec 900000"),
        ("0::/../other", "", "throttled_usec 100000", "throttled_usec 900000"),
        (
            "3:cpuset:/\n2:cpu,cpuacct:/a",
            "cpu,cpuacct/a",
            "throttled_time 100000000",
            "throttled_time 900000000",
        ),
        ("1:cpu:/docker/id", "cpu", "throttled_time 100000000", "throttled_time 900000000"),
    ],
)
def test_a_quota_that_holds_back_is_throttling(
    machine: Machine, groups: str, folder: str, before: str, after: str
) -> None:
    stat = machine.root / "sys" / "fs" / "cgroup" / folder / "cpu.stat"
    stat.parent.mkdir(parents=True)
    (machine.root / "proc" / "self").mkdir()
    (machine.root / "proc" / "self" / "cgroup").write_text(groups + "\n")
    stat.write_text(before)
    with OtherLoad(machine.root) as load:
        machine.now = 10.0
        stat.write_text(after)
    assert str(load.quota_doubt()).startswith(
        "throttled: the CPU quota of this container (cgroup) held threads back for 0.80 s in 10.0 s"
    )
    with OtherLoad(machine.root) as load:
        machine.now = 20.0
    assert load.quota_doubt() is None, "that it did so before is not these runs' fault"
