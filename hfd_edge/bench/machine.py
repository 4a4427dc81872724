"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hfd_edge.bench import jetson
from hfd_edge.bench.programs import ask
from hfd_edge.bench.result import Machine
from hfd_edge.bench.sources import nvml, tegra
from hfd_edge.bench.sources.base import Unavailable, read_text
from hfd_edge.environment import allowed_cores

_ROOT = Path("/")
_CSV = "--format=csv,noheader,nounits"


@dataclass(frozen=True)
class _Card:
    """A graphics card: its name, power limit in watts, and SM clock that was asked for in MHz."""

    name: str
    limit_w: float | None = None
    clock_mhz: float | None = None


def describe_machine(root: Path = _ROOT) -> Machine:
    """Name the machine and what governs its speed; nothing that names the host or its owner.

    Args:
        root: Below it lie sys, proc, etc and var; another folder in tests.
    """
    cores = len(allowed_cores())
    board = tegra.board(root)
    card = _card(root) if board is None else None
    processor = f"{_processor(root)}, {cores} core{'s' if cores > 1 else ''}"
    if board is not None:
        release = jetson.jetpack(root)
        text = ", ".join(filter(None, [board, f"{cores} cores", release]))
        gpu: str | None = f"integrated, {board}"
        mode = jetson.power_mode(root).name
    else:
        text = processor if card is None else f"{card.name}, {processor}"
        gpu = None if card is None else card.name
        mode = None if card is None or card.limit_w is None else f"{card.limit_w:.0f} W"
    return Machine(
        slug=_slug(root, board, card),
        text=text,
        cores=cores,
        gpu=gpu,
        power_mode=mode,
        clocks=_clocks(root, board, card),
    )


def machine_slug(root: Path = _ROOT) -> str:
    """The GPU, the board, or processor and number of cores, for example "amd-epyc-2c"."""
    board = tegra.board(root)
    return _slug(root, board, _card(root) if board is None else None)


def clock_settings(root: Path = _ROOT) -> str | None:
    """What governs the clocks, in words that are equal where the settings are; None where unknown."""
    board = tegra.board(root)
    return _clocks(root, board, _card(root) if board is None else None)


def _slug(root: Path, board: str | None, card: _Card | None) -> str:
    if board is not None:
        name = re.sub(r"NVIDIA|Engineering Reference|Developer Kit|\(.*?\)", " ", board, flags=re.IGNORECASE)
        return _plain(name if "jetson" in name.lower() else f"jetson {name}")
    if card is not None:
        return _plain(card.name)
    model = re.sub(r"\(R\)|\(TM\)|\bCPU\b|\bProcessor\b|@.*", " ", _processor(root), flags=re.IGNORECASE)
    return _plain(f"{model} {os.cpu_count()}c")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _processor(root: Path) -> str:
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _card(root: Path) -> _Card | None:
    """The GPU by NVML, or by nvidia-smi where the package for NVML is missing."""
    try:
        source = nvml.start(root)
    except Unavailable:
        source = None
    if source is None:
        return _card_by_program()
    try:
        return _Card(source.gpu, _known(source.power_limit_w), _known(source.application_clock_mhz))
    finally:
        source.close()


def _known(ask_card: Callable[[], float | None]) -> float | None:
    try:
        return ask_card()
    except OSError:
        return None


def _card_by_program() -> _Card | None:
    chosen = nvml.visible()
    if chosen is None:
        return None
    answer = ask(
        *("nvidia-smi", "--query-gpu=name,enforced.power.limit", _CSV, f"--id={chosen}"), timeout_s=20
    )
    if answer is None or answer.fault or "," not in answer.text:
        return None
    name, limit = answer.text.splitlines()[0].rsplit(",", 1)
    try:
        return _Card(name.strip(), float(limit))
    except ValueError:  # "[N/A]"
        return _Card(name.strip())


def _clocks(root: Path, board: str | None, card: _Card | None) -> str | None:
    words = []
    if board is not None and (locked := jetson.clocks_locked(root)) is not None:
        words.append("jetson_clocks on" if locked else "jetson_clocks off")
    if card is not None and card.clock_mhz is not None:
        words.append(f"GPU application clock {card.clock_mhz:.0f} MHz")
    files = root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    governors = sorted({governor for path in files if (governor := read_text(path))})
    if governors:
        words.append(f"CPU governor {' and '.join(governors)}")
    boost = _boost(root)
    if boost is not None:
        words.append(f"CPU boost {'on' if boost else 'off'}")
    return ", ".join(words) or None


def _boost(root: Path) -> bool | None:
    """Whether cores may run above their nominal clock, which depends on heat and on their neighbours."""
    cpu = root / "sys/devices/system/cpu"
    on, off = read_text(cpu / "cpufreq/boost"), read_text(cpu / "intel_pstate/no_turbo")
    if on is not None:
        return on == "1"
    return None if off is None else off == "0"
