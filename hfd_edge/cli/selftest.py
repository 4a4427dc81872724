"""selftest: does this machine compute what the bundle's author computed?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Json


@app.command()
def selftest(
    bundle: BundleFolder,
    backend: Annotated[
        str, typer.Option(help="Backend to check, for example tensorrt; auto: all that are here.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, int8, int8_fp16; auto: all that the bundle has.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the report, to send back.")] = None,
    json: Json = False,
) -> None:
    """Check the kernels against NumPy and the bundle's models and engines against its golden tiles.

    Without a GPU the models run on the CPU, and the kernels are listed as not run. When anything is wrong
    the command ends with status 1. The report names the GPU, the driver, all versions and how the kernels
    were compiled: send it along then.

    Example: `hfd-edge selftest flood.hfd --out report.json`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.files import write_json
    from hfd_edge.report.console import bars, print_json
    from hfd_edge.runtime.selftest import run_selftest

    with bars() as progress:
        result = run_selftest(Bundle.open(bundle), backend=backend, precision=precision, progress=progress)
    content = result.content()
    if out is not None:
        write_json(out, content)
    if json:
        print_json(content)
    else:
        _print(content)
    if not result.ok:
        raise typer.Exit(1)


def _print(content: dict[str, Any]) -> None:
    from hfd_edge.report.console import table

    environment = content["environment"]
    facts = {**environment, **environment["versions"], **(environment["gpu"] or {"gpu": "none"})}
    rows = [[name, str(value)] for name, value in facts.items() if not isinstance(value, dict)]
    table("Machine", ["", ""], [*rows, *_ways(environment)])
    states = {True: "ok", False: "WRONG", None: "not run"}
    checks = [
        [check["name"], states[check["ok"]], check["found"], "" if check["ok"] is not False else check["fix"]]
        for check in content["checks"]
    ]
    table(f"Self-test of {content['bundle']}", ["check", "", "found", "to mend it"], checks)


def _ways(environment: dict[str, Any]) -> list[list[str]]:
    gpu = environment["gpu"]
    return [] if gpu is None else [[f"{name}.cu", way] for name, way in gpu["kernels"].items()]
