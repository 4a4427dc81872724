"""docs/hfdnet.md names every switch with its default, and commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from hfd_edge.cli import app
from hfd_edge.config import Recipe, tomllib
from hfd_edge.hfdnet.baselines import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "hfdnet.md").read_text("utf-8")


def switches() -> dict[str, Any]:
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {
        f"{name}.{key}": field.default
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel)
        for key, field in section.model_fields.items()
    }


def documented() -> dict[str, Any]:
    """Key to default, of the rows of the table of switches."""
    found: dict[str, Any] = {}
    for keys, defaults in re.findall(r"^\| (`\w+\.[^|]*) \| ([^|]*) \|", TEXT, flags=re.MULTILINE):
        names, values = re.findall(r"`([\w.]+)`", keys), re.findall(r"`([^`]+)`", defaults) or [None]
        values = values * len(names) if len(values) == 1 else values
        found |= dict(zip(names, values, strict=True))
    return {
        key: None if value is None else tomllib.loads(f"v = {value}")["v"] for key, value in found.items()
    }


def test_every_switch_is_there_with_its_default_and_no_other() -> None:
    assert documented() == switches()


COMMANDS = sorted(
    {line for line in re.findall(r"hfd-edge [a-z]+ [^`\n]*", TEXT) if " --" in line}
    - {"hfd-edge data convert --help"}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str) -> None:
    command = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    while hasattr(command, "resolve_command"):
        context = command.make_context(line, arguments)
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(line, arguments)


def test_what_is_named_exists() -> None:
    for path in re.findall(r"\b(?:tests|benchmarks|train)/[\w/-]+\.(?:py|toml)", TEXT):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"`(hfdnet/\w+\.py)`", TEXT):
        assert (ROOT / "hfd_edge" / path).is_file(), path
    for link in re.findall(r"\]\((\w[\w.-]+\.(?:md|svg))\)", TEXT):
        assert (ROOT / "docs" / link).is_file(), link
    assert len(ARCHITECTURES) == 11 and "eleven architectures" in TEXT
    assert TEXT.count("<!-- ablation table -->") == 1
