"""What `hfd-edge doctor` says of devices that stand-in programs and folders make."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import hfd_edge.gpu
from hfd_edge.bench import programs
from hfd_edge.cli import app, device_checks
from hfd_edge.cli.checks import Check
from hfd_edge.gpu import Gpu

from ..machines import make, program

BOARD = {"proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0"}
HEADER = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4     |"
GOOD = f"""case "$1" in
  --query-gpu=name,driver*) echo 'NVIDIA H100, 550.54.15, 81559 MiB' ;;
  --query-gpu*) echo 'NVIDIA H100, 700.00' ;;
  *) echo '{HEADER}' ;;
esac"""


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH of its own, and none of this machine's GPU, NVML or jtop."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", str(folder))
    for module in ("pynvml", "jtop"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(hfd_edge.gpu, "find_gpu", lambda: None)
    for module in (programs, device_checks):
        monkeypatch.setattr(module, "TIMEOUT_S" if module is programs else "_SMI_TIMEOUT_S", 1.0)
    return folder


def found(root: Path) -> dict[str, Check]:
    return {check.name: check for check in device_checks.device_checks(root)}


def packages(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    installed = [
        SimpleNamespace(metadata={"Name": name.replace("_", "-")}, version=version)
        for name, version in versions.items()
    ]
    monkeypatch.setattr(device_checks.importlib.metadata, "distributions", lambda: installed)


def test_a_machine_without_anything(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert list(checks) == ["NVIDIA GPU", "sensors for bench"]
    assert checks["NVIDIA GPU"].found == "no nvidia-smi on PATH"
    assert (
        "install the NVIDIA driver" in checks["NVIDIA GPU"].fix and "--gpus all" in checks["NVIDIA GPU"].fix
    )
    assert checks["sensors for bench"] == Check(
        "sensors for bench", True, "power n/a, temperature n/a, clock n/a"
    )


def test_a_good_driver(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, cuda_bindings="12.6.2", tensorrt_cu12="10.3.0", torch="2.11.0+cu128", numpy="2.0")
    program(path, "nvidia-smi", GOOD)
    checks = found(tmp_path)
    assert checks["NVIDIA GPU"] == Check("NVIDIA GPU", True, "NVIDIA H100, 550.54.15, 81559 MiB")
    assert checks["CUDA"] == Check(
        "CUDA",
        True,
        "driver takes CUDA up to 12.4, cuda-bindings 12.6.2, tensorrt-cu12 10.3.0, torch 2.11.0+cu128",
    )
    assert checks["power mode and clocks"].found == "700 W"


def test_a_driver_that_is_too_old(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, cuda_bindings="13.0.1", torch="2.11.0+cu128", tensorrt_rtx_cu12="1.7.1")
    program(path, "nvidia-smi", GOOD)
    check = found(tmp_path)["CUDA"]
    assert not check.ok
    assert check.fix == (
        "install a driver 580.65.06 or newer, or replace what needs CUDA 13: cuda-bindings 13.0.1; "
        "for cuda-bindings: pip install 'cuda-bindings==12.*'"
    )
    program(path, "nvidia-smi", GOOD.replace("CUDA Version: 12.4", "CUDA UMD Version: 13.2"))
    assert found(tmp_path)["CUDA"].ok


@pytest.mark.parametrize(
    ("script", "said", "fix"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
            "nvidia-smi failed with status 9: NVIDIA-SMI has failed because",
            "sudo modprobe nvidia",
        ),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "Driver/library version mismatch",
            "reboot: the driver was updated",
        ),
        ("/bin/sleep 60", "nvidia-smi gave no answer within 1 s", "sudo dmesg | grep -i xid"),
        ("printf '\\377\\376\\n'", "nvidia-smi says '\ufffd\ufffd'", "reinstall the NVIDIA driver"),
        ("exit 0", "nvidia-smi says ''", "reinstall the NVIDIA driver"),
    ],
    ids=["failing", "mismatch", "hanging", "garbage", "silent"],
)
def test_a_driver_that_does_not_work(tmp_path: Path, path: Path, script: str, said: str, fix: str) -> None:
    program(path, "nvidia-smi", script)
    check = device_checks.driver(tmp_path)
    assert not check.ok
    assert said in check.found and fix in check.fix


def test_a_jetson_in_its_best_mode(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hfd_edge.gpu, "find_gpu", lambda: Gpu(87, 6_000_000_000, 16_000_000_000))
    program(path, "nvpmodel", "printf 'NV Power Mode: MAXN\\n0\\n'")
    program(path, "jetson_clocks", "echo 'GPU MinFreq=918000000 MaxFreq=918000000 CurrentFreq=918000000'")
    files = {"var/lib/dpkg/status": "Package: nvidia-jetpack\nVersion: 6.2.1+b38\n", "dev/nvmap": ""}
    checks = found(make(tmp_path, {**BOARD, **files}))
    assert checks["NVIDIA GPU"].found == "integrated, sm_87, 16.0 GB"
    assert checks["Jetson"].found.endswith("Kit, JetPack 6.2.1+b38") and checks["Jetson"].fix == ""
    assert checks["power mode and clocks"] == Check(
        "power mode and clocks", True, "power mode MAXN, jetson_clocks on"
    )
    assert checks["GPU permissions"].ok


def test_a_jetson_that_could_be_faster(tmp_path: Path, path: Path) -> None:
    program(path, "nvpmodel", "printf 'NV Power Mode: 15W\\n2\\n'")
    program(path, "jetson_clocks", "echo 'GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000'")
    files = {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >"}
    files |= {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1"}
    checks = found(make(tmp_path, {**BOARD, **files}))
    assert checks["power mode and clocks"] == Check(
        "power mode and clocks",
        True,  # advice, not a fault
        "power mode 15W, jetson_clocks off",
        "for the fastest and steadiest runs: sudo nvpmodel -m 0; sudo jetson_clocks",
    )
    assert checks["Jetson"].fix == "sudo apt install nvidia-jetpack  (brings CUDA, TensorRT and cuDNN)"
    assert not checks["NVIDIA GPU"].ok and "--runtime nvidia" in checks["NVIDIA GPU"].fix


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (None, "nvpmodel is not on PATH"),
        ("echo 'NVPM ERROR: bad' >&2; exit 1", "nvpmodel failed with status 1: NVPM ERROR: bad"),
        ("/bin/sleep 60", "nvpmodel gave no answer within 1 s"),
        ("echo '?!'", "nvpmodel -q says '?!'"),
    ],
    ids=["missing", "failing", "hanging", "garbage"],
)
def test_a_power_mode_that_cannot_be_told(tmp_path: Path, path: Path, script: str | None, fault: str) -> None:
    if script is not None:
        program(path, "nvpmodel", script)
    program(path, "jetson_clocks", "echo 'Error: Run this script as a root user'; exit 1")
    check = device_checks.clocks(make(tmp_path, BOARD))
    assert check is not None and check.ok
    assert check.found == f"power mode unknown: {fault}, clocks unknown"
    assert "sudo nvpmodel -q" in check.fix and "sudo jetson_clocks" in check.fix


def test_tegrastats_stands_in_for_files(tmp_path: Path, path: Path) -> None:
    program(
        path, "tegrastats", "echo 'GR3D_FREQ 0%@[306] gpu@41.5C VDD_IN 4767mW/4767mW'; exec /bin/sleep 60"
    )
    check = device_checks.sensors(make(tmp_path, BOARD))
    assert check.found == "power 4.8 W (tegrastats VDD_IN), temperature 42 °C, clock 306 MHz"
    program(path, "tegrastats", "echo 'No permission'; exit 1")
    assert "See what it says: sudo tegrastats" in device_checks.sensors(tmp_path).fix


def test_permissions(tmp_path: Path) -> None:
    assert device_checks.permissions(tmp_path) is None
    make(tmp_path, {"dev/nvhost-gpu": "", "dev/nvgpu/igpu0/ctrl": "", "dev/nvhost-vic": ""})
    check = device_checks.permissions(tmp_path, access=lambda path, mode: path.name != "nvhost-gpu")
    assert check is not None and not check.ok
    assert check.found == "no access to /dev/nvhost-gpu"
    assert check.fix == "sudo usermod -aG video,render $USER, then log in again"
    assert device_checks.permissions(tmp_path) == Check(
        "GPU permissions", True, "2 device files can be opened"
    )
    make(tmp_path, {"dev/nvidia0": "", "dev/nvidiactl": ""})
    missing = device_checks.permissions(tmp_path)
    assert missing is not None and missing.fix == "sudo nvidia-modprobe -u -c=0"
    orin = device_checks.permissions(make(tmp_path, BOARD))  # whose display driver brings nvidiactl alone
    assert orin is not None and orin.ok


def test_a_slow_governor_is_advice(tmp_path: Path) -> None:
    governor = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    check = device_checks.clocks(make(tmp_path, {governor: "powersave"}))
    assert check is not None and check.ok and "cpupower frequency-set -g performance" in check.fix
    check = device_checks.clocks(make(tmp_path, {governor: "performance"}))
    assert check is not None and check.fix == ""
    make(tmp_path, {governor.replace("cpu0", "cpu1"): "powersave"})
    check = device_checks.clocks(tmp_path)
    assert check is not None and check.found == "CPU governor performance and powersave"
    assert "cpupower frequency-set -g performance" in check.fix


def test_the_target_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hfd_edge.gpu, "find_gpu", lambda: Gpu(87, 1, 1))
    trt = SimpleNamespace(Builder=object, __version__="10.3.0.26")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    check = device_checks.build_target(tmp_path)
    assert check is not None and check.ok
    assert "orin-nx-jp62" in check.found and "jp51" not in check.found
    trt.__version__ = "10.5.0"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    check = device_checks.build_target(tmp_path)
    assert check is not None and not check.ok
    assert check.found == "sm_87 with tensorrt 10.5.0"
    assert "tensorrt 10.3.0" in check.fix and "copy one from export/targets" in check.fix


def test_engines_of_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfd_edge.errors import EngineError
    from hfd_edge.runtime import engines

    bundle = SimpleNamespace(manifest=SimpleNamespace(engines={"a-fp16": "x", "b-int8": "y"}))

    def verify(opened: object, name: str) -> tuple[object, object, Gpu]:
        if name == "b-int8":
            raise EngineError("Engine b-int8 was built by tensorrt 10.3.0. Build it for this machine with: X")
        return SimpleNamespace(flavour="tensorrt"), SimpleNamespace(__version__="10.3.0"), Gpu(87, 1, 1)

    monkeypatch.setattr(engines, "verify_engine", verify)
    good, bad = device_checks.bundle_checks(bundle)  # type: ignore[arg-type]
    assert good == Check("engine a-fp16", True, "TensorRT 10.3.0, sm_87")
    assert bad.name == "engine b-int8" and not bad.ok and "Build it for this machine with: X" in bad.fix


def test_the_command_says_ok_advice_and_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hfd_edge.cli import checks

    lines = [
        Check("one", True, "1"),
        Check("two", True, "2", "tune it"),
        Check("three", False, "", "mend it"),
    ]
    monkeypatch.setattr(checks, "machine_checks", lambda: list(lines))
    result = CliRunner().invoke(app, ["doctor"])
    rows = [line.split() for line in result.stdout.splitlines()]
    states = [words[1] for words in rows if words and words[0] in ("one", "two", "three")]
    assert states == ["ok", "advice", "missing"]
    result = CliRunner().invoke(app, ["doctor", "--json"])
    two = {"name": "two", "ok": True, "found": "2", "fix": "tune it"}
    assert json.loads(result.stdout)["checks"]["two"] == two
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 1 and str(tmp_path) in result.stderr
