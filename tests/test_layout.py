"""The house's own rules, where a linter cannot see them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

MODULES = sorted((Path(__file__).parent.parent / "hfd_edge").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert not missing


def test_scripts_are_thin(root: Path) -> None:
    for path in [*root.glob("train/*.py"), *root.glob("export/*.py")]:
        assert len(path.read_text().splitlines()) <= 60, f"{path} has logic of its own"
