"""Options and output that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, nothing else.")]
Data = Annotated[
    Path, typer.Option("--data", help="Data folder: dataset.toml with train/val/test or splits/.")
]
OptionalData = Annotated[
    Path | None, typer.Option("--data", help="Data folder: dataset.toml with train/val/test or splits/.")
]
Scheme = Annotated[
    str | None, typer.Option("--scheme", help="Split scheme under DATA/splits; default: the recipe's.")
]


class DefaultGroup(TyperGroup):
    """A group one of whose commands need not be named: `bench BUNDLE` is `bench run BUNDLE`.

    The command is called "run"; it also answers `--help`, and its text has to name the others.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def show(result: dict[str, Any], *, as_json: bool, title: str) -> None:
    """Print a command's result: one JSON object, or a table of its plain values."""
    from hfd_edge.report.console import print_json, table

    if as_json:
        print_json(result)
        return
    table(title, ["", ""], [[name, text] for name, text in _lines(result)])


def _lines(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name} ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [line for row in value for line in _lines(row, f"{prefix}{name} ")]
        elif isinstance(value, (list, tuple)):
            lines.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            lines.append((f"{prefix}{name}", f"{value:.4f}" if isinstance(value, float) else str(value)))
    return lines
