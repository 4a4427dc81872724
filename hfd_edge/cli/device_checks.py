"""What `hfd-edge doctor` says of the device: driver, CUDA, Jetson, permissions, clocks, sensors, engines."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hfd_edge.cli.checks import Check

if TYPE_CHECKING:
    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.targets import Target
    from hfd_edge.tensorrt_api import TensorRT

_ROOT = Path("/")
_SMI_TIMEOUT_S = 20.0  # it wakes a sleeping GPU first
_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
_GPU_LINE = re.compile(r"[^,]+, *[^,]*\d[^,]*, *[^,]+")  # "NVIDIA H100, 550.54.15, 81559 MiB"
# Least driver of a major CUDA release on Linux: CUDA Toolkit release notes, minor version compatibility.
_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# What CUDA opens; others beside them, for debuggers and profilers, are root's on purpose.
_NODES = (
    *("nvidia[0-9]*", "nvidiactl", "nvidia-uvm"),
    *("nvmap", "nvhost-gpu", "nvhost-ctrl-gpu", "nvhost-as-gpu", "nvgpu/igpu*/ctrl", "nvgpu/igpu*/channel"),
)


def device_checks(root: Path = _ROOT) -> Iterator[Check]:
    """All of them; those that make no sense on this machine are left out.

    Args:
        root: Below it lie dev, etc, proc and sys; another folder in tests.
    """
    answering = driver(root)
    yield answering
    for check in (*([cuda] if answering.ok else []), jetson, permissions, clocks, sensors, build_target):
        found = check(root)
        if found is not None:
            yield found


def driver(root: Path) -> Check:
    """The NVIDIA driver, asked through nvidia-smi; older Jetsons have none, and ask CUDA itself."""
    from hfd_edge.bench.programs import ask
    from hfd_edge.bench.sources.tegra import board

    name = "NVIDIA GPU"
    answer = ask(*_QUERY, timeout_s=_SMI_TIMEOUT_S)
    if board(root) is not None and (answer is None or not _GPU_LINE.match(answer.text)):
        return _integrated(name, root)
    if answer is None:
        fix = (
            "install the NVIDIA driver (Ubuntu: sudo ubuntu-drivers install), in a container start it with "
            "--gpus all; engines can be built without"
        )
        return Check(name, False, "no nvidia-smi on PATH", fix)
    if answer.fault:
        return Check(name, False, answer.fault, _mend_driver(answer.text + answer.fault))
    lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
    if not lines or not all(_GPU_LINE.fullmatch(line) for line in lines):
        said = " ".join(lines)[:80]
        return Check(name, False, f"nvidia-smi says {said!r}", "reinstall the NVIDIA driver, then reboot")
    return Check(name, True, "; ".join(lines))


def _integrated(name: str, root: Path) -> Check:
    from hfd_edge.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        fix = "in a container, start it with --runtime nvidia; otherwise: sudo apt install nvidia-l4t-cuda"
        return Check(name, False, "a Jetson whose GPU does not answer CUDA", fix)
    return Check(name, True, f"integrated, sm_{gpu.compute_capability}, {gpu.total_bytes / 1e9:.1f} GB")


def _mend_driver(said: str) -> str:
    if "mismatch" in said:
        return "reboot: the driver was updated, but the kernel still runs the old one"
    if "no answer within" in said:
        return "the GPU or its driver hangs: look at `sudo dmesg | grep -i xid`, then reboot"
    return "sudo modprobe nvidia; if that fails, reinstall the NVIDIA driver for this kernel and reboot"


def cuda(root: Path) -> Check | None:
    """Whether the driver is new enough for the CUDA that the installed packages were made for."""
    from hfd_edge.bench.programs import ask

    answer = ask("nvidia-smi", timeout_s=_SMI_TIMEOUT_S)
    # "CUDA Version: 12.4" in the header; the newest drivers say "CUDA UMD Version".
    offered = re.search(r"CUDA (?:UMD )?Version *: *(\d+)\.(\d+)", answer.text if answer else "")
    if offered is None:
        return None
    major, wanted = int(offered[1]), _cuda_of_packages()
    found = ", ".join([f"driver takes CUDA up to {offered[1]}.{offered[2]}", *sorted(wanted)])
    too_new = max((number for number in wanted.values() if number > major), default=None)
    if too_new is None:
        return Check("CUDA", True, found)
    least = f" {_DRIVERS[too_new]} or newer" if too_new in _DRIVERS else ""
    names = ", ".join(name for name, number in wanted.items() if number > major)
    fix = f"install a driver{least}, or replace what needs CUDA {too_new}: {names}"
    return Check("CUDA", False, found, f"{fix}; for cuda-bindings: pip install 'cuda-bindings=={major}.*'")


def _cuda_of_packages() -> dict[str, int]:
    """Installed packages that bring or need a certain CUDA, with their release, and its major number."""
    found = {}
    for package in importlib.metadata.distributions():
        name = (package.metadata["Name"] or "").lower().replace("_", "-")
        text = f"{name} {package.version}"
        if name == "cuda-bindings":
            found[text] = int(package.version.split(".")[0])
        elif tensorrt := re.match(r"tensorrt(?:-rtx)?-cu(\d+)$", name):
            found[text] = int(tensorrt[1])
        elif name == "torch" and (build := re.search(r"\+cu(\d+)\d$", package.version)):
            found[text] = int(build[1])
    return found


def jetson(root: Path) -> Check | None:
    """Board and JetPack; None on other machines."""
    from hfd_edge.bench.jetson import jetpack
    from hfd_edge.bench.sources.tegra import board

    name = board(root)
    if name is None:
        return None
    release = jetpack(root)
    if release is None:
        fix = "mount /etc/nv_tegra_release into the container, or: sudo apt install nvidia-jetpack"
        return Check("Jetson", True, f"{name}, JetPack unknown", fix)
    # An image may bring Jetson Linux without CUDA, TensorRT and cuDNN.
    whole = re.search(r"JetPack \d+\.", release) is not None
    fix = "" if whole else "sudo apt install nvidia-jetpack  (brings CUDA, TensorRT and cuDNN)"
    return Check("Jetson", True, f"{name}, {release}", fix)


def permissions(root: Path, access: Callable[[Path, int], bool] = os.access) -> Check | None:
    """Whether this user may open the GPU's device files; None where there are none."""
    from hfd_edge.bench.sources.tegra import board

    name = "GPU permissions"
    nodes = sorted({path for pattern in _NODES for path in (root / "dev").glob(pattern)})
    if not nodes:
        return None
    names = {path.name for path in nodes}
    denied = [path for path in nodes if not access(path, os.R_OK | os.W_OK)]
    if denied:
        groups = sorted({_group(path) for path in denied} - {"root"}) or ["video", "render"]
        fix = f"sudo usermod -aG {','.join(groups)} $USER, then log in again"
        found = ", ".join(f"/{path.relative_to(root)}" for path in denied[:4])
        return Check(name, False, f"no access to {found}", fix)
    # A Jetson's display driver makes nvidiactl as well; before Thor, CUDA there needs none of these.
    if "nvidiactl" in names and "nvidia-uvm" not in names and board(root) is None:
        return Check(name, False, "/dev/nvidia-uvm is missing, CUDA needs it", "sudo nvidia-modprobe -u -c=0")
    return Check(name, True, f"{len(nodes)} device files can be opened")


def _group(path: Path) -> str:
    try:
        return path.group()
    except (KeyError, OSError):  # a number without a name, as in containers
        return "video"


def clocks(root: Path) -> Check | None:
    """Power mode and clocks; what slows the machine down is advice, not a fault."""
    from hfd_edge.bench.machine import clock_settings, describe_machine
    from hfd_edge.bench.sources.tegra import board

    if board(root) is not None:
        found, fixes = _jetson_clocks(root, clock_settings(root) or "")
    else:
        here = describe_machine(root)
        found = [text for text in (here.power_mode, here.clocks) if text]
        slow = re.search(r"governor (?!performance(?:,|$))", here.clocks or "")
        fixes = ["sudo cpupower frequency-set -g performance"] if slow else []
    if not found:
        return None
    fix = f"for the fastest and steadiest runs: {'; '.join(fixes)}" if fixes else ""
    return Check("power mode and clocks", True, ", ".join(found), fix)


def _jetson_clocks(root: Path, settings: str) -> tuple[list[str], list[str]]:
    from hfd_edge.bench.jetson import power_mode

    mode, fixes = power_mode(root), []
    if mode.name is None:
        fixes.append("sudo nvpmodel -q  (if it is missing: sudo apt install nvidia-l4t-nvpmodel)")
    elif mode.unlimited is not None:
        fixes.append(f"sudo nvpmodel -m {mode.unlimited}")
    if "jetson_clocks on" not in settings:
        fixes.append("sudo jetson_clocks")
    found = [f"power mode unknown: {mode.fault}" if mode.name is None else f"power mode {mode.name}"]
    return [*found, settings or "clocks unknown"], fixes


def sensors(root: Path) -> Check:
    """What `hfd-edge bench` can measure of power, temperature and clock."""
    from hfd_edge.bench.sensors import open_sensors

    opened = open_sensors(root)
    try:
        now = opened.read()
    finally:
        opened.close()
    values = [
        f"power {'n/a' if now.power_w is None else f'{now.power_w:.1f} W ({opened.power_source})'}",
        f"temperature {'n/a' if now.temperature_c is None else f'{now.temperature_c:.0f} °C'}",
        f"clock {'n/a' if now.clock_mhz is None else f'{now.clock_mhz:.0f} MHz'}",
    ]
    return Check("sensors for bench", True, ", ".join(values), " ".join(opened.notes))


def build_target(root: Path) -> Check | None:
    """Which shipped profiles name this GPU and a TensorRT that is installed; None without either."""
    from hfd_edge.deploy.targets import list_targets, load_target
    from hfd_edge.gpu import find_gpu
    from hfd_edge.tensorrt_api import tensorrt_version

    gpu = find_gpu()
    installed = {flavour: tensorrt_version(trt) for flavour, trt in _installed().items()}
    if gpu is None or not installed:
        return None
    capability = gpu.compute_capability
    profiles = [load_target(name) for name in list_targets()]
    profiles = [profile for profile in profiles if capability in profile.compute_capabilities]
    fitting = [profile.name for profile in profiles if _fits(profile, installed)]
    if fitting:
        return Check("build target", True, ", ".join(fitting))
    here = ", ".join(f"{flavour} {version}" for flavour, version in installed.items())
    expected = sorted({f"{profile.flavour} {profile.tensorrt or ''}".strip() for profile in profiles})
    fix = (
        f"the shipped profiles for sm_{capability} expect {' or '.join(expected) or 'nothing'}: copy one "
        "from export/targets, set its `tensorrt`, and build with --target FILE.toml"
    )
    return Check("build target", False, f"sm_{capability} with {here}", fix)


def _fits(profile: Target, installed: dict[str, str]) -> bool:
    version = installed.get(profile.flavour)
    if version is None or profile.tensorrt is None:
        return version is not None
    return version.split(".")[:3] == profile.tensorrt.split(".")


def _installed() -> dict[str, TensorRT]:
    from hfd_edge.errors import HfdEdgeError
    from hfd_edge.tensorrt_api import EXTRAS, load_tensorrt

    found = {}
    for flavour in EXTRAS:
        try:
            found[flavour] = load_tensorrt(flavour, purpose="building engines")
        except HfdEdgeError:
            continue
    return found


def bundle_checks(bundle: Bundle) -> Iterator[Check]:
    """Whether each engine of a bundle fits the TensorRT and the GPU that are here."""
    from hfd_edge.errors import HfdEdgeError
    from hfd_edge.runtime.engines import verify_engine
    from hfd_edge.tensorrt_api import product

    for name in bundle.manifest.engines:
        try:
            record, trt, gpu = verify_engine(bundle, name)
        except HfdEdgeError as error:
            yield Check(f"engine {name}", False, "", str(error))
            continue
        here = f"{product(record.flavour, trt)}, sm_{gpu.compute_capability}"
        yield Check(f"engine {name}", True, here)
