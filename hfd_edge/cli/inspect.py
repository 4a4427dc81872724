"""inspect, doctor: what is here, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Json, show


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Bundle, run folder or engine file.", metavar="BUNDLE|RUN|ENGINE")
    ],
    json: Json = False,
) -> None:
    """Say what a bundle, run or engine is, and check every hash in it.

    Example: `hfd-edge inspect flood.hfd`
    """
    from hfd_edge.errors import BundleError

    if (path / "manifest.json").is_file():
        result = describe_bundle(path, verify=True)
    elif (path / "run.json").is_file():
        result = _describe_run(path)
    elif path.is_file() and path.suffix in (".engine", ".pt2"):
        from hfd_edge.engine_record import check_engine

        result = check_engine(path)
    else:
        raise BundleError(
            f"{path} is not a bundle (no manifest.json), not a run (no run.json) and not an .engine or "
            ".pt2 file. Check the path."
        )
    show(result, as_json=json, title=path.name)


def describe_bundle(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """A bundle as plain values; with `verify` every file's hash is compared first (BundleError)."""
    from hfd_edge.bundle import Bundle

    bundle = Bundle.open(path)
    if verify:
        bundle.verify()
    manifest = bundle.manifest
    sizes = {name: (path / name).stat().st_size for name in manifest.files}
    return {
        "bundle": str(path),
        "name": manifest.name,
        "classes": list(manifest.classes),
        "sar": manifest.sar.model_dump(mode="json"),
        "head": manifest.head,
        "tile_px": manifest.tile_px,
        "precisions": {name: sizes[file] for name, file in manifest.precisions.items()},
        "engines": {name: sizes[file] for name, file in manifest.engines.items()},
        "bytes": sum(sizes.values()),
        "verified": verify,
    }


def _describe_run(path: Path) -> dict[str, Any]:
    from hfd_edge.hfdnet.run import Run

    run = Run.open(path)
    return {
        "run": str(path),
        "kind": run.info.kind,
        **({"arch": run.info.arch} if run.info.arch else {}),
        "parameters": run.network().count_parameters(),
        **{k: v for k, v in run.metrics().items() if k != "history"},
    }


@app.command()
def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle whose engines are to fit this machine.", metavar="[BUNDLE]")
    ] = None,
    json: Json = False,
) -> None:
    """List what this machine can do, what is missing for the rest, and the command that mends it.

    Looks at the packages of each extra, the NVIDIA driver and its CUDA, TensorRT, PyCUDA, JetPack,
    permissions, power mode, clocks and sensors. "advice" works as it is, but could be better.

    Example: `hfd-edge doctor flood.hfd`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.cli.checks import machine_checks
    from hfd_edge.cli.device_checks import bundle_checks

    opened = None if bundle is None else Bundle.open(bundle)
    checks = machine_checks()
    if opened is not None:
        checks += bundle_checks(opened)
    if json:
        lines = {check.name: asdict(check) for check in checks}
        show({"checks": lines}, as_json=True, title="")
        return
    from hfd_edge.report.console import table

    states = {True: "advice", False: "missing"}
    rows = [[c.name, states[c.ok] if c.fix else "ok", c.found, c.fix] for c in checks]
    table("hfd-edge doctor", ["for", "", "found", "to mend it"], rows)
