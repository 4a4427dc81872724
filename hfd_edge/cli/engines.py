"""build: engines for a target."""

from __future__ import annotations

from typing import Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Json, show


@app.command()
def build(
    bundle: BundleFolder,
    target: Annotated[str, typer.Option(help="Target profile; see export/targets.")] = "desktop-rtx",
    precision: Annotated[
        list[str] | None, typer.Option(help="Variant to build; may be repeated. Default: all built ones.")
    ] = None,
    json: Json = False,
) -> None:
    """Build TensorRT engines for a target and put them into the bundle.

    TensorRT-RTX engines are built ahead of time: no GPU is needed. They run on the GPUs that the target
    names, not on this machine's CPU.

    Example: `hfd-edge build flood.hfd --target desktop-rtx --precision fp16 --precision int8`
    """
    from dataclasses import asdict

    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.build import build as build_engines
    from hfd_edge.deploy.targets import load_target
    from hfd_edge.report.console import bars

    profile = load_target(target)
    wanted = tuple(precision) if precision else None
    with bars() as progress:
        records = build_engines(Bundle.open(bundle), profile, precisions=wanted, progress=progress)
    rows = {f"{record.target}-{record.precision}": asdict(record) for record in records}
    show({"bundle": str(bundle), "engines": rows}, as_json=json, title="Built")
