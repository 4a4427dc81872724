from __future__ import annotations

import inspect

import pytest

from hfd_edge import errors


def test_every_error_is_of_the_family_and_of_a_builtin() -> None:
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.HfdEdgeError)
    ]
    assert len(classes) > 8
    for one in classes:
        if one is not errors.HfdEdgeError:
            assert any(base.__module__ == "builtins" for base in one.__bases__), one


def test_require_gives_the_module() -> None:
    assert errors.require("json", extra="train", purpose="Reading").dumps({}) == "{}"


def test_require_names_package_and_extra() -> None:
    with pytest.raises(
        errors.MissingExtraError,
        match=r"Training needs the package 'no_such_pkg'.*pip install 'hfd-edge\[train\]'",
    ):
        errors.require("no_such_pkg", extra="train", purpose="Training")
    assert issubclass(errors.MissingExtraError, ImportError)
