"""The `hfd-edge` command: one library call plus one report for each verb.

Nothing heavy is imported here; each command imports what it needs when it runs, so `--help` is quick
and works without torch.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hfd_edge import __version__
from hfd_edge.errors import HfdEdgeError

_ROAD = (
    *("demo", "simulate", "data", "train", "evaluate", "card", "export"),
    *("calibrate", "quantize", "sensitivity", "compare"),
    *("preflight", "build", "predict", "bench", "selftest", "inspect", "doctor"),
)


class _Group(TyperGroup):
    """Lists commands in the order of the road; turns this package's errors into one line and exit code 1."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=_ROAD.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HfdEdgeError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `hfd-edge demo`. Errors of use exit with 2, all others with 1.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hfd-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Put SAR image segmentation on edge devices.

    The road: pairs of EO and SAR images → **train** teacher and student → **export** a bundle →
    **quantize** to FP16 and INT8 → **build** TensorRT engines → **predict** scenes.
    """


def main() -> None:
    """Run the command line; SIGTERM (docker stop, systemd, timeout) cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop)
    app()


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)  # the status by which shells know a signal


from hfd_edge.cli import (  # noqa: E402
    bench_diff,
    bench_tune,
    caches,
    calibrate,
    card,
    compare,
    data,
    deploy,
    engines,
    evaluate,
    inspect,
    run,
    selftest,
    train,
)

__all__ = [
    "app",
    "bench_diff",
    "bench_tune",
    "caches",
    "calibrate",
    "card",
    "compare",
    "data",
    "deploy",
    "engines",
    "evaluate",
    "inspect",
    "main",
    "run",
    "selftest",
    "train",
]
