"""calibrate cache, calibrate read: ranges in the form that TensorRT before 11 takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli.calibrate import calibrate_app
from hfd_edge.cli.common import BundleFolder, Json, show


@calibrate_app.command()
def cache(
    bundle: BundleFolder,
    tensorrt: Annotated[
        str,
        typer.Option(help="Version on the device, for example 8.5.2 or 10.3.0; another ignores the file."),
    ],
    json: Json = False,
) -> None:
    """Write the calibration cache for a version of TensorRT into the bundle.

    It comes from the ranges that **quantize** measured: nothing is calibrated again. TensorRT 11 and
    TensorRT-RTX take no caches; they build from the int8 and int8_fp16 models.

    Example: `hfd-edge calibrate cache flood.hfd --tensorrt 10.3.0`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.cache import add_cache, stored_cache

    path, info = stored_cache(add_cache(Bundle.open(bundle), tensorrt=tensorrt), tensorrt=tensorrt)
    result = {
        "bundle": str(bundle),
        "cache": str(path),
        "tensorrt": info.tensorrt,
        "algorithm": info.algorithm,
        "method": info.method,
        "tensors": info.tensors,
        "left_out": list(info.left_out),
        "kept": list(info.kept),
    }
    show(result, as_json=json, title="Calibration cache")


@calibrate_app.command()
def read(
    path: Annotated[Path, typer.Argument(help="Calibration cache, from here or elsewhere.", metavar="CACHE")],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle that it shall fit: its tensors are compared.")
    ] = None,
    ranges: Annotated[bool, typer.Option("--ranges", help="List the range of every tensor.")] = False,
    json: Json = False,
) -> None:
    """Say what a calibration cache holds, and whether it fits a bundle.

    Example: `hfd-edge calibrate read model.cache --bundle flood.hfd`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.cache import import_cache, open_cache, summary

    opened = Bundle.open(bundle) if bundle else None
    cache = open_cache(path) if opened is None else import_cache(path, opened.model("fp32"))
    result = {"cache": str(path), "fits": None if opened is None else str(bundle), **summary(cache)}
    if ranges:
        result["amax"] = cache.amax
    show(result, as_json=json, title="Calibration cache")
