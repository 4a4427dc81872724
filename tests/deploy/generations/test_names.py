"""The stand-ins' names are those of the real modules, and no others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hfd_edge.deploy.compiler import _MOVES_DATA

from . import stand_in
from .names import GENERATIONS, RTX, V10_3


@pytest.mark.parametrize("version", GENERATIONS)
def test_the_stand_ins_are_strict(version: str) -> None:
    module, _ = stand_in(version)
    config = module.Builder(module.ILogger()).create_builder_config()
    with pytest.raises(AttributeError):
        module.Nothing  # noqa: B018
    with pytest.raises(AttributeError):
        config.max_batch = 1
    for name, there in {
        "progress_monitor": version != "8.6.2",
        "int8_calibrator": version in ("8.6.2", "10.3.0"),
        "set_compute_capability": version == "1.7.1.116",
        "max_workspace_size": version == "8.6.2",
    }.items():
        assert hasattr(config, name) == there


def test_the_names_of_rtx_are_real() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only")
    for name, expected in RTX.items():
        assert expected <= set(dir(trt if name == "module" else getattr(trt, name))), name


def test_the_names_of_tensorrt_10_are_in_its_stubs() -> None:
    stubs = Path(__file__).parents[3] / ".venv" / "stubs"  # mypy_path in pyproject.toml
    if not stubs.is_dir():
        pytest.skip("tensorrt-stubs are not installed: make setup does that")
    source = (stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    classes = {item.name: item.body for item in ast.parse(source).body if isinstance(item, ast.ClassDef)}
    for name, expected in V10_3.items():
        known = {*classes, "__version__"}
        if name != "module":
            known = {item.name for item in classes[name] if isinstance(item, ast.FunctionDef)}
            assigned = (item.target for item in classes[name] if isinstance(item, ast.AnnAssign))
            known |= {item.id for item in assigned if isinstance(item, ast.Name)}
        assert expected <= known, name
    kinds = {item.target.id for item in classes["LayerType"] if isinstance(item, ast.AnnAssign)}
    # Asked for with `member`, which takes a typing error for an old TensorRT.
    assert set(_MOVES_DATA) <= kinds
