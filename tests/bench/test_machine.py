"""What a machine says about itself, with programs and folders that stand in for those of real ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hfd_edge.bench import jetson, programs
from hfd_edge.bench.machine import clock_settings, describe_machine, machine_slug
from hfd_edge.bench.programs import Answer, ask

from ..machines import make, program

CPU = "sys/devices/system/cpu"
BOARD = {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"}
MODES = {
    "etc/nvpmodel.conf": "# < POWER_MODEL >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
}


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH of its own, and none of this machine's NVML."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return folder


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-64-core"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon"),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "11th-gen-intel-core-i7-1165g7"),
    ],
)
def test_slug_of_a_cpu(tmp_path: Path, model: str, slug: str) -> None:
    make(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nmodel name\t: {model}"})
    assert machine_slug(tmp_path) == f"{slug}-{os.cpu_count()}c"
    machine = describe_machine(tmp_path)
    assert (machine.slug, machine.gpu, machine.power_mode) == (machine_slug(tmp_path), None, None)
    assert machine.text.startswith(model)
    assert machine.cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "jetson-orin-nx"),
        ("NVIDIA Orin NX Developer Kit", "jetson-orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "jetson-agx-orin"),
        ("NVIDIA Jetson Nano Developer Kit", "jetson-nano"),
        ("Jetson-AGX", "jetson-agx"),
    ],
)
def test_slug_of_a_jetson(tmp_path: Path, model: str, slug: str) -> None:
    assert machine_slug(make(tmp_path, {"proc/device-tree/model": f"{model}\0"})) == slug


def test_other_boards_are_no_jetsons(tmp_path: Path) -> None:
    make(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    assert describe_machine(tmp_path).gpu is None


def test_a_jetson(tmp_path: Path, path: Path) -> None:
    program(path, "nvpmodel", "echo 'NVPM WARN: fan mode is not set!' >&2; echo 'NV Power Mode: 25W'; echo 1")
    files = {
        **BOARD,
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic",
        f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil",
        f"{CPU}/cpu0/cpufreq/scaling_min_freq": "729600",
        f"{CPU}/cpu0/cpufreq/scaling_max_freq": "1344000",
    }
    machine = describe_machine(make(tmp_path, files))
    assert machine.slug == "jetson-orin-nano-super"
    assert machine.gpu == f"integrated, {BOARD['proc/device-tree/model'].strip(chr(0))}"
    assert machine.text.endswith("JetPack 6, Jetson Linux 36.4.4")
    assert machine.power_mode == "25W"
    assert machine.clocks == "jetson_clocks off, CPU governor schedutil"


@pytest.mark.parametrize(
    ("files", "release"),
    [
        ({}, None),
        (
            {"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 3"},
            "JetPack 5, Jetson Linux 35.4.1",
        ),
        ({"etc/nv_tegra_release": "# R99 (release), REVISION: 1.0, GCID: 3"}, "Jetson Linux 99.1.0"),
        ({"etc/nv_tegra_release": "garbage"}, None),
        (
            {
                "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 3",
                "var/lib/dpkg/status": "Package: nvidia-jetpack-dev\nVersion: 1\n\n"
                "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2.1+b38\n\n"
                "Package: zsh\nVersion: 5",
            },
            "JetPack 6.2.1+b38, Jetson Linux 36.4.3",
        ),
    ],
)
def test_jetpack(tmp_path: Path, files: dict[str, str], release: str | None) -> None:
    assert jetson.jetpack(make(tmp_path, files)) == release


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("printf 'NV Power Mode: MAXN_SUPER\\n2\\n'", jetson.PowerMode("MAXN_SUPER")),
        (
            "printf 'NV Fan Mode:quiet\\nNV Power Mode: MODE_15W\\n0\\n'",
            jetson.PowerMode("MODE_15W", unlimited=2),
        ),
        (
            "printf 'NV Power Mode: 25W\\n1\\n'; echo 'NVPM ERROR: emc_iso_cap: 13' >&2; exit 1",
            jetson.PowerMode("25W", unlimited=2),
        ),
        (
            "echo 'NVPM ERROR: no' >&2; exit 255",
            jetson.PowerMode(None, "nvpmodel failed with status 255: NVPM ERROR: no"),
        ),
        ("echo what", jetson.PowerMode(None, "nvpmodel -q says 'what'")),
        ("/bin/sleep 60", jetson.PowerMode(None, "nvpmodel gave no answer within 0.3 s")),
    ],
)
def test_power_mode(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, script: str, mode: jetson.PowerMode
) -> None:
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.3)
    assert jetson.power_mode(tmp_path) == jetson.PowerMode(None, "nvpmodel is not on PATH")
    program(path, "nvpmodel", script)
    assert jetson.power_mode(make(tmp_path, MODES)) == mode


def test_clocks_that_are_held(tmp_path: Path, path: Path) -> None:
    assert jetson.clocks_locked(tmp_path) is None
    files = {
        f"{CPU}/cpu{n}/cpufreq/scaling_{which}_freq": "1728000" for n in (0, 1) for which in ("min", "max")
    }
    files |= {f"sys/class/devfreq/17000000.ga10b/{which}_freq": "918000000" for which in ("min", "max")}
    assert jetson.clocks_locked(make(tmp_path, files)) is True
    make(tmp_path, {"sys/class/devfreq/17000000.ga10b/min_freq": "306000000"})
    assert jetson.clocks_locked(tmp_path) is False


@pytest.mark.parametrize(
    ("script", "locked"),
    [
        (
            "echo 'cpu0: Online=1 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000'; "
            "echo 'GPU MinFreq=921600000 MaxFreq=921600000 CurrentFreq=921600000'; "
            "echo 'EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1'",
            True,
        ),
        ("echo 'GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000'", False),
        ("echo 'Error: Run this script(/usr/bin/jetson_clocks) as a root user'; exit 1", None),
    ],
)
def test_clocks_that_only_jetson_clocks_knows(
    tmp_path: Path, path: Path, script: str, locked: bool | None
) -> None:
    program(path, "jetson_clocks", script)
    assert jetson.clocks_locked(tmp_path) is locked


def test_a_card_by_nvidia_smi(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program(path, "nvidia-smi", "echo 'NVIDIA GeForce RTX 4090, 450.00'; echo 'NVIDIA T4, 70.00'")
    machine = describe_machine(make(tmp_path, {f"{CPU}/cpufreq/boost": "1"}))
    assert (machine.slug, machine.gpu) == ("nvidia-geforce-rtx-4090", "NVIDIA GeForce RTX 4090")
    assert (machine.power_mode, machine.clocks) == ("450 W", "CPU boost on")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    program(path, "nvidia-smi", 'echo "card $3, 70.00"')
    assert describe_machine(tmp_path).gpu == "card --id=1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert describe_machine(tmp_path).gpu is None, "hidden, as NVML has it"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program(path, "nvidia-smi", "echo 'NVIDIA GeForce GT 710, [N/A]'")
    assert describe_machine(tmp_path).power_mode is None
    for fault in ("echo 'No devices were found'", "exit 9"):
        program(path, "nvidia-smi", fault)
        assert describe_machine(tmp_path).gpu is None


def test_a_card_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    module = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        NVML_ERROR_NOT_SUPPORTED=3,
        NVML_ERROR_FUNCTION_NOT_FOUND=13,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: closed.append(True),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA H100 80GB HBM3",
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 500_000,
        nvmlDeviceGetApplicationsClock=lambda handle, kind: 1410,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = describe_machine(tmp_path)
    assert (machine.slug, machine.power_mode) == ("nvidia-h100-80gb-hbm3", "500 W")
    assert machine.clocks == "GPU application clock 1410 MHz" and closed == [True]


def test_what_governs_a_cpu(tmp_path: Path) -> None:
    assert clock_settings(tmp_path) is None
    files = {
        f"{CPU}/cpu{n}/cpufreq/scaling_governor": text for n, text in enumerate(["powersave", "performance"])
    }
    make(tmp_path, {**files, f"{CPU}/intel_pstate/no_turbo": "1"})
    assert clock_settings(tmp_path) == "CPU governor performance and powersave, CPU boost off"


def test_the_results_folder_is_named_by_the_library(root: Path) -> None:
    assert "from hfd_edge.bench.machine import machine_slug" in (root / "benchmarks/_results.py").read_text()


def test_a_program_that_hangs_goes_with_its_children(path: Path) -> None:
    program(path, "hangs", "/bin/sleep 60 & echo begun; wait")
    began = time.monotonic()
    assert ask("hangs", timeout_s=0.3) == Answer("", "hangs gave no answer within 0.3 s")
    assert time.monotonic() - began < 30  # the child would hold the pipe for 60


def test_programs_that_say_strange_things(path: Path) -> None:
    assert ask("missing") is None
    program(path, "garbage", "printf '\\377\\376ok'")
    assert ask("garbage") == Answer("\ufffd\ufffdok")
    (path / "broken").write_bytes(b"\x7fELF")
    (path / "broken").chmod(0o755)
    answer = ask("broken")
    assert answer is not None and answer.fault.startswith("broken cannot be started: Exec format error")
