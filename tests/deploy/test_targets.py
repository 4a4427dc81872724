"""Target profiles: the shipped ones agree with the published facts, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hfd_edge.deploy.targets import Batch, Target, list_targets, load_target
from hfd_edge.errors import EngineError, RecipeError

GOOD: dict[str, Any] = {
    "name": "lab",
    "flavour": "tensorrt_rtx",
    "compute_capabilities": (89,),
    "precisions": ("fp16", "int8"),
    "default_precision": "fp16",
}
ORIN: dict[str, Any] = {**GOOD, "flavour": "tensorrt", "tensorrt": "10.3.0", "compute_capabilities": (87,)}

# NVIDIA's release notes of each JetPack: TensorRT, CUDA, Python, compute capabilities of its boards.
JETPACK = {
    "4.6": ("8.2.1", "10.2", "3.6", {53, 62, 72}),
    "5.1": ("8.5.2", "11.4", "3.8", {72, 87}),
    "6.0": ("8.6.2", "12.2", "3.10", {87}),
    "6.2": ("10.3.0", "12.6", "3.10", {87}),
    "7.0": ("10.13.3", "13.0", "3.12", {110}),
    "7.2": ("10.16.2", "13.2", "3.12", {87, 110}),
}
# onnx-tensorrt's operator list of each release; from 10.0 on a lower bound.
OPSET = {(8, 2): 13, (8, 5): 17, (8, 6): 17, (10, 3): 20, (10, 13): 20, (10, 16): 20, (11, 4): 25}
# Compute capability, DLA cores and memory (GB) of the smallest module, from their data sheets.
BOARDS = {
    "nano": (53, 0, 4),
    "tx2": (62, 0, 4),
    "xavier-nx": (72, 2, 8),
    "xavier-agx": (72, 2, 16),
    "orin-nano-4gb": (87, 0, 4),
    "orin-nano": (87, 0, 8),
    "orin-nx-8gb": (87, 1, 8),
    "orin-nx": (87, 2, 16),
    "orin-agx": (87, 2, 32),
    "thor": (110, 0, 64),
}
# The JetPacks that share a profile, because their TensorRT is the same.
RELEASES = {"4.6": "4.6.1 to 4.6.6", "5.1": "5.1.x", "6.2": "6.1 and 6.2", "7.0": "7.0 and 7.1"}
TARGETS = [load_target(name) for name in list_targets()]
JETSONS = [target for target in TARGETS if target.jetson]


def every(targets: list[Target]) -> Any:
    return pytest.mark.parametrize("target", targets, ids=lambda target: target.name)


def test_every_kind_of_device_has_a_profile() -> None:
    names = set(list_targets())
    orins = {board for board in BOARDS if board.startswith("orin")}
    assert {f"{board}-jp{pack}" for board in orins for pack in (51, 60, 62, 72)} <= names
    assert {"nano-jp46", "tx2-jp46", "xavier-nx-jp51", "xavier-agx-jp51", "thor-jp70", "thor-jp72"} <= names
    assert {"tensorrt-t4", "tensorrt-a100", "tensorrt-a10", "tensorrt-l4", "tensorrt-h100"} <= names
    assert {"desktop-rtx", "desktop-torch-tensorrt"} <= names


@every(TARGETS)
def test_what_all_profiles_have(target: Target) -> None:
    assert target.name in list_targets()
    assert target.description and target.source
    assert "run" in target.source.rsplit(";", 1)[-1]  # every profile says whether it was run
    assert target.workspace_mb <= target.memory_mb
    assert target.shared_memory == target.jetson
    assert set(target.precisions) == (
        {"fp32", "fp16"} if target.int8 == "none" else {"fp32", "fp16", "int8", "int8_fp16"}
    )


@every(JETSONS)
def test_jetsons_agree_with_their_jetpack(target: Target) -> None:
    board, suffix = target.name.split("-jp", 1)
    assert target.jetpack is not None and suffix.startswith(target.jetpack.replace(".", ""))
    tensorrt, cuda, python, capabilities = JETPACK[target.jetpack]
    assert target.tensorrt == ("11.4.1" if suffix.endswith("-trt11") else tensorrt)
    assert (target.cuda, target.python) == (cuda, python)
    capability, cores, memory = BOARDS[board]
    assert target.memory_mb == memory * 1024
    named, release = target.description.split(", JetPack ")
    assert release.startswith(RELEASES.get(target.jetpack, target.jetpack))
    assert f"JetPack {target.jetpack}" in target.source
    siblings = [other for other in JETSONS if other.name.split("-jp")[0] == board]
    assert {other.description.split(", JetPack ")[0] for other in siblings} == {named}
    assert {other.workspace_mb for other in siblings} == {target.workspace_mb}
    # A DLA takes no dynamic shapes; without one a board has the same batches with every JetPack.
    batches = {other.batch for other in siblings if bool(other.dla_cores) == bool(target.dla_cores)}
    assert batches == {target.batch}
    assert target.compute_capabilities == (capability,) and capability in capabilities
    # TensorRT's DLA guide: 10.7 was the last of the 10 series with DLA, 11.4.1 has it again.
    version = target.tensorrt_version
    assert version is not None
    assert target.dla_cores == (0 if (10, 7, 99) < version < (11, 4, 1) else cores)


@every([target for target in TARGETS if target.flavour == "tensorrt"])
def test_opset_and_int8_fit_the_tensorrt(target: Target) -> None:
    version = target.tensorrt_version
    assert version is not None
    assert target.opset_max == OPSET[version[:2]]
    assert target.grid_sample == (version[:2] != (8, 2))
    assert target.strongly_typed == (version[0] >= 10)
    if version[0] >= 11 or (version[0] == 10 and not target.dla_cores):
        assert target.int8 == "qdq"
    elif set(target.compute_capabilities) <= {53, 62}:
        assert (target.int8, target.default_precision) == ("none", "fp16")
    else:
        assert target.int8 == "cache"
    if target.int8 != "none":
        assert target.default_precision == "int8_fp16"


@pytest.mark.parametrize(
    ("prefix", "own"),
    [
        ("tensorrt-", {"name", "description", "compute_capabilities", "memory_mb"}),
        ("rtx-", {"name", "description", "compute_capabilities", "memory_mb"}),
    ],
)
def test_profiles_of_one_kind_differ_only_in_the_gpu(prefix: str, own: set[str]) -> None:
    common = [target.model_dump(exclude=own) for target in TARGETS if target.name.startswith(prefix)]
    assert len(common) > 1
    assert all(values == common[0] for values in common)


def test_smallest_cards() -> None:
    """GeForce RTX 2060, RTX 3050 Laptop, RTX 500 Ada Laptop, RTX PRO 500 Blackwell Laptop: data sheets."""
    smallest = {"rtx-turing": 6, "rtx-ampere": 4, "rtx-ada": 4, "rtx-blackwell": 6}
    assert {name: load_target(name).memory_mb // 1024 for name in smallest} == smallest


def test_the_desktop_profile_covers_every_generation() -> None:
    desktop = load_target("desktop-rtx")
    parts = [load_target(name) for name in list_targets() if name.startswith("rtx-")]
    capabilities = set(desktop.compute_capabilities)
    assert capabilities == {75, 80, 86, 89, 120, 121}
    assert set().union(*(part.compute_capabilities for part in parts)) == capabilities
    assert sum(len(part.compute_capabilities) for part in parts) == len(capabilities)
    assert desktop.memory_mb == min(part.memory_mb for part in parts)
    for name in ("opset_max", "int8", "precisions", "default_precision", "batch", "workspace_mb", "source"):
        assert {getattr(part, name) for part in parts} == {getattr(desktop, name)}, name
    assert desktop.default_precision == "fp16"
    assert {part.tensorrt_version for part in (desktop, *parts)} == {None}
    assert desktop.grid_sample and desktop.strongly_typed and not desktop.jetson


def test_an_unknown_name() -> None:
    with pytest.raises(
        EngineError, match=r"no target 'thor'. Choose one of: thor-jp70, thor-jp72, thor-jp72-"
    ):
        load_target("thor")
    with pytest.raises(EngineError, match=r"no target 'rtx-adda'. Choose one of: rtx-ada"):
        load_target("rtx-adda")
    for other in ("../pyproject", ""):
        with pytest.raises(EngineError, match=r"Choose one of: desktop-rtx, .* the path of a TOML file"):
            load_target(other)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(
        'name = "lab"\nflavour = "tensorrt_rtx"\ncompute_capabilities = [89]\nprecisions = ["int8"]\n'
        'default_precision = "int8"\nbatch = {min = 1, opt = 2, max = 4}\n'
    )
    target = load_target(str(path))
    assert target.batch == Batch(min=1, opt=2, max=4)
    assert (target.int8, target.dla_cores, target.tensorrt) == ("qdq", 0, None)
    path.write_text(path.read_text() + "speed = 3\n")
    with pytest.raises(RecipeError, match="speed: Extra inputs are not permitted"):
        load_target(str(path))


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (GOOD, {"default_precision": "int8_fp16"}, "default_precision int8_fp16 is not one of precisions"),
        (GOOD, {"compute_capabilities": (89, 89)}, "names one twice"),
        (GOOD, {"compute_capabilities": ()}, "at least 1 item"),
        (GOOD, {"batch": {"min": 2, "opt": 1, "max": 4}}, "needs min <= opt <= max, got 2, 1, 4"),
        (GOOD, {"flavour": "openvino"}, "tensorrt_rtx"),
        (GOOD, {"flavour": "tensorrt"}, "flavour tensorrt needs key 'tensorrt'"),
        (GOOD, {"tensorrt": "10.3.0"}, "flavour tensorrt_rtx takes no key 'tensorrt'"),
        (GOOD, {"name": "a/b"}, "pattern"),
        (GOOD, {"workspace_mb": 0}, "greater than 0"),
        (GOOD, {"workspace_mb": 9000}, "workspace_mb 9000 exceeds memory_mb 4096"),
        (GOOD, {"int8": "none"}, 'int8 is "none", but precisions are'),
        (GOOD, {"int8": "cache"}, 'needs a TensorRT before 11, got tensorrt_rtx; use "qdq"'),
        (ORIN, {"tensorrt": "10.3"}, "pattern"),
        (ORIN, {"opset_max": 9}, "greater than or equal to 13"),
        (ORIN, {"int8": "qdq", "precisions": ("fp16",)}, 'int8 is "qdq", but precisions are'),
        (ORIN, {"tensorrt": "11.4.1", "int8": "cache"}, "needs a TensorRT before 11, got 11.4.1"),
        (ORIN, {"dla_cores": 2}, "a DLA takes no Q/DQ nodes with TensorRT 10.3.0"),
        (ORIN, {"dla_cores": 3, "int8": "cache"}, "less than or equal to 2"),
        (
            ORIN,
            {"dla_cores": 2, "int8": "cache", "batch": {"min": 1, "opt": 1, "max": 4}},
            "DLA takes no dynamic",
        ),
    ],
)
def test_values_out_of_range(base: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    Target.model_validate(base)
    with pytest.raises(ValidationError, match=message):
        Target.model_validate({**base, **changes})
