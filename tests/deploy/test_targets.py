"""Target profiles: the shipped ones are sound, and mistakes are named."""

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
    "precisions": ("fp16",),
    "default_precision": "fp16",
}


@pytest.mark.parametrize("name", list_targets())
def test_shipped_profiles(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert target.source
    assert set(target.compute_capabilities) <= {75, 80, 86, 89, 120, 121}


def test_the_desktop_profile_covers_every_generation() -> None:
    assert "desktop-rtx" in list_targets()
    desktop = set(load_target("desktop-rtx").compute_capabilities)
    assert desktop == {75, 80, 86, 89, 120, 121}
    generations = [
        set(load_target(name).compute_capabilities) for name in list_targets() if name.startswith("rtx-")
    ]
    assert set().union(*generations) == desktop
    assert sum(len(part) for part in generations) == len(desktop)
    assert load_target("desktop-rtx").default_precision == "fp16"


def test_an_unknown_name() -> None:
    with pytest.raises(EngineError, match=r"no target 'orin'. Choose one of: desktop-rtx, rtx-ada"):
        load_target("orin")
    with pytest.raises(EngineError, match="no target '../pyproject'"):
        load_target("../pyproject")


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(
        'name = "lab"\nflavour = "tensorrt_rtx"\ncompute_capabilities = [89]\nprecisions = ["int8"]\n'
        'default_precision = "int8"\nbatch = {min = 1, opt = 2, max = 4}\n'
    )
    target = load_target(str(path))
    assert target.batch == Batch(min=1, opt=2, max=4)
    path.write_text(path.read_text() + "speed = 3\n")
    with pytest.raises(RecipeError, match="speed: Extra inputs are not permitted"):
        load_target(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"default_precision": "int8"}, "default_precision int8 is not one of precisions"),
        ({"compute_capabilities": (89, 89)}, "names one twice"),
        ({"compute_capabilities": ()}, "at least 1 item"),
        ({"batch": {"min": 2, "opt": 1, "max": 4}}, "needs min <= opt <= max, got 2, 1, 4"),
        ({"flavour": "tensorrt"}, "tensorrt_rtx"),
        ({"name": "a/b"}, "pattern"),
        ({"workspace_mb": 0}, "greater than 0"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Target.model_validate({**GOOD, **changes})
