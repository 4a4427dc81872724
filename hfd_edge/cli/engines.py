"""preflight, build: will it run on a device, and what runs there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, Json, show

if TYPE_CHECKING:
    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.preflight import Preflight
    from hfd_edge.deploy.targets import Target

TargetName = Annotated[
    str, typer.Option("--target", help="Target profile: a name in export/targets, or a TOML file.")
]
Dla = Annotated[
    int | None, typer.Option("--dla", min=0, help="DLA core that takes the layers it can; default: GPU only.")
]


@app.command()
def preflight(
    bundle: BundleFolder,
    target: TargetName,
    precision: Annotated[str | None, typer.Option(help="Variant; default: the target's.")] = None,
    dla: Dla = None,
    layers: Annotated[bool, typer.Option("--layers", help="List where every layer runs (DLA).")] = False,
    json: Json = False,
) -> None:
    """Check a bundle against a target without the device.

    Looks at precision, calibration, operators, opset, zero points, shapes, batch, types, memory and, where
    the device has one, at the DLA layer by layer. Exits with 1 when something stands against the build.

    Example: `hfd-edge preflight flood.hfd --target orin-nx-jp62`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.preflight import preflight as check
    from hfd_edge.deploy.targets import load_target

    report = check(Bundle.open(bundle), load_target(target), precision=precision, dla_core=dla)
    if json:
        show(_as_values(report), as_json=True, title="")
    else:
        _show_report(report, layers=layers)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def build(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle folder; a run folder for torch-tensorrt.", metavar="BUNDLE")
    ],
    target: TargetName = "desktop-rtx",
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Variant to build; may be repeated. Default: all, or the target's for a kit."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the device kit; default: BUNDLE-TARGET-PRECISION.kit here."),
    ] = None,
    kit: Annotated[bool, typer.Option("--kit", help="Make a device kit even if this GPU would do.")] = False,
    dla: Dla = None,
    engine: Annotated[
        Path | None, typer.Option(help="Take an engine that a kit built, or a .pt2 program, into the bundle.")
    ] = None,
    json: Json = False,
) -> None:
    """Build engines for a target, or a device kit that builds one there.

    TensorRT-RTX engines are built ahead of time: no GPU is needed. TensorRT engines are built on the GPU that
    runs them: here if the target is this GPU (on a Jetson, that Jetson), else by a device kit. A kit is a
    folder with the model, the calibration cache, the exact trtexec command, and golden tiles by which the
    device checks its engine.

    Example: `hfd-edge build flood.hfd --target desktop-rtx --precision fp16 --precision int8`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.deploy.targets import load_target

    if engine is not None:
        # Its sidecar says what it was built for: no profile is needed.
        why = "says nothing about an engine that is built already"
        _refuse(why, precision=precision or None, out=out, kit=kit, dla=dla)
        show(_take(Bundle.open(bundle), engine), as_json=json, title="Taken into the bundle")
        return
    profile = load_target(target)
    if profile.flavour == "torch_tensorrt":
        _refuse("is not for torch-tensorrt, which compiles a run on this GPU", kit=kit, dla=dla)
        show(_compile_run(bundle, profile, precision, out), as_json=json, title="Compiled")
        return
    opened = Bundle.open(bundle)
    reason = _why_a_kit(profile, wanted=kit, dla=dla)
    if reason is None:
        _refuse("is for device kits; engines go into the bundle", out=out)
        show(_build_engines(opened, profile, precision), as_json=json, title="Built")
        return
    show(
        {"reason": reason, **_make_kits(opened, profile, precision, out, dla)},
        as_json=json,
        title="No engine here, but a device kit",
    )


def _refuse(why: str, **options: object) -> None:
    """Raise for options that were given and would do nothing. Raises EngineError."""
    from hfd_edge.errors import EngineError

    found = [f"--{name}" for name, value in options.items() if value is not None and value is not False]
    if found:
        raise EngineError(f"{', '.join(found)} {why}. Leave it away.")


def _take(bundle: Bundle, engine: Path) -> dict[str, Any]:
    from hfd_edge.deploy.kit import take_engine

    taken = take_engine(bundle, engine)
    return {"bundle": str(bundle.path), "engine": str(engine), "engines": list(taken.manifest.engines)}


def _why_a_kit(target: Target, *, wanted: bool, dla: int | None) -> str | None:
    """None where an engine is built here; else why a kit is made instead."""
    from hfd_edge.deploy.build import can_build_here

    if wanted:
        return "a kit was asked for"
    if dla is not None:
        return "a DLA engine is built on the device"
    # TensorRT-RTX takes no kits: what is missing here is an error with its own remedy.
    return can_build_here(target) if target.flavour == "tensorrt" else None


def _build_engines(bundle: Bundle, target: Target, precision: list[str] | None) -> dict[str, Any]:
    from dataclasses import asdict

    from hfd_edge.deploy.build import build as build_engines
    from hfd_edge.report.console import bars

    with bars() as progress:
        records = build_engines(
            bundle, target, precisions=tuple(precision) if precision else None, progress=progress
        )
    rows = {f"{record.target}-{record.precision}": asdict(record) for record in records}
    return {"bundle": str(bundle.path), "engines": rows}


def _make_kits(
    bundle: Bundle, target: Target, precision: list[str] | None, out: Path | None, dla: int | None
) -> dict[str, Any]:
    from hfd_edge.deploy.kit import make_kit
    from hfd_edge.errors import EngineError
    from hfd_edge.report.console import bars

    wanted = precision or [target.default_precision]
    if out is not None and len(wanted) > 1:
        raise EngineError(
            f"--out names one kit, but {len(wanted)} precisions were asked for: {', '.join(wanted)}. "
            "Give one --precision, or leave --out away."
        )
    kits = {}
    for name in wanted:
        folder = out or Path(f"{bundle.path.stem}-{target.name}-{name}.kit")
        with bars() as progress:
            made = make_kit(bundle, target, folder, precision=name, dla_core=dla, progress=progress)
        kits[f"{made.target}-{made.precision}"] = {
            "kit": str(made.path),
            "bytes": made.bytes,
            "command": ["trtexec", *made.command],
            "warnings": [item.what for item in made.warnings],
            "next": f"copy {made.path} to the device and run: sh build.sh",
        }
    return {"bundle": str(bundle.path), "kits": kits}


def _compile_run(run: Path, target: Target, precision: list[str] | None, out: Path | None) -> dict[str, Any]:
    from dataclasses import asdict

    from hfd_edge.deploy.torch_tensorrt import compile_run
    from hfd_edge.report.console import bars

    folder = out or run / "engines"
    rows = {}
    for name in precision or [target.default_precision]:
        with bars() as progress:
            record = compile_run(run, folder, target, precision=name, progress=progress)
        rows[f"{record.target}-{record.precision}"] = asdict(record)
    return {"run": str(run), "out": str(folder), "engines": rows}


def _as_values(report: Preflight) -> dict[str, Any]:
    from dataclasses import asdict

    values: dict[str, Any] = {**asdict(report), "ok": report.ok}
    if report.dla is not None:
        values["dla"]["fallback_share"] = report.dla.fallback_share
    return values


def _show_report(report: Preflight, *, layers: bool) -> None:
    from hfd_edge.report.console import table

    titles = {"error": "Errors: it cannot be built", "warning": "Warnings", "ok": "In order"}
    for level, findings in ((level, report.of(level)) for level in ("error", "warning", "ok")):
        rows = [[item.check, item.where, _sentence(item.what, item.why), item.fix] for item in findings]
        if rows and level == "ok":
            table(titles[level], ["check", "where", "found"], [row[:3] for row in rows])
        elif rows:
            table(titles[level], ["check", "where", "found", "to mend it"], rows)
    if layers and report.dla is not None:
        placed = [
            [item.node, item.operator, item.device, item.macs, item.reason] for item in report.dla.layers
        ]
        table("Layers", ["node", "operator", "runs on", "multiply-accumulates", "why not on the DLA"], placed)
    state = "ready" if report.ok else "not possible"
    table("", ["", ""], [[f"{report.bundle} as {report.precision} for {report.target}", state]])


def _sentence(what: str, why: str) -> str:
    return f"{what} ({why})" if why else what
