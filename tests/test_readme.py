"""What README tells people to type is what the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from hfd_edge.cli import app
from hfd_edge.config import DatasetConfig, parse, tomllib
from hfd_edge.files import resource_folder

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    fenced = [line for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`(hfd-edge [a-z]+ [^`]*)`", README.read_text("utf-8"))
    return sorted({line for line in fenced if line.startswith("hfd-edge")} | set(inline))


def test_there_are_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("line", commands())
def test_command_is_understood(line: str) -> None:
    command = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    while hasattr(command, "resolve_command"):
        context = command.make_context(line, arguments)
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    if "--help" not in arguments:
        command.make_context(line, arguments)


def test_recipes_that_are_named_exist() -> None:
    named = re.findall(r"train/recipes/(\w+\.toml)", README.read_text("utf-8"))
    assert named
    assert all((resource_folder("recipes") / name).is_file() for name in named)


def test_dataset_toml_is_valid() -> None:
    (block,) = blocks("toml")
    assert parse(tomllib.loads(block), DatasetConfig, source="README").sar.units == "sigma0_db"


def test_make_targets_exist() -> None:
    targets = re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"make (\w+)\b", "\n".join(blocks("bash")))) <= set(targets)


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8")):
        assert (README.parent / link).exists(), link


def test_the_tables_of_the_docs_are_the_measured_ones() -> None:
    results = sorted((README.parent / "benchmarks" / "results").glob("*/ablation-*.md"))
    docs = (README.parent / "docs" / "hfdnet.md").read_text("utf-8")
    shown = [path for path in results if path.with_suffix(".png").name in docs]
    assert shown == results
    for path in results:
        lines = path.read_text("utf-8").splitlines()
        assert [line for line in lines if line.startswith(("| ", "**")) and line not in docs] == []
    section = docs.partition("## The ablation")[2].partition("## How to reproduce")[0]
    rows = {line for path in results for line in path.read_text("utf-8").splitlines()}
    measured = [line for line in section.splitlines() if line.startswith("| ") and "±" in line]
    assert [line for line in measured if line not in rows] == []
