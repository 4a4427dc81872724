"""bench: what a bundle costs on this machine. `bench diff` and `bench tune` live beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import BundleFolder, DefaultGroup, Json

if TYPE_CHECKING:
    from hfd_edge.bench.result import BenchFile, Kind

bench_app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    help="Measure latency, memory and power of a bundle; compare two measurements; choose the CPU engine.",
)
app.add_typer(bench_app, name="bench")


@bench_app.command()
def run(
    bundle: BundleFolder,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, int8, int8_fp16; auto: what a user gets; all: the bundle's.")
    ] = "auto",
    backend: Annotated[
        str, typer.Option(help="For example onnxruntime; auto: what a user gets; all: this machine's.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="tile, stream or scene; may be repeated. Default: tile, and what has an option."),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Timed runs of each. Default: 50 tiles or frames, 3 scenes.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Frames a second of the stream; default: 5.")] = None,
    scene: Annotated[
        Path | None, typer.Option(help="Scene to time; default: a simulated one, 3 x 3 tiles large.")
    ] = None,
    max_jitter: Annotated[
        float, typer.Option(help="Standard deviation of tiles or scenes, % of the mean, that is too much.")
    ] = 10.0,
    no_cold_start: Annotated[
        bool, typer.Option("--no-cold-start", help="Start no new processes; memory is then that of this one.")
    ] = False,
    allow_invalid: Annotated[
        bool, typer.Option("--allow-invalid", help="Exit with 0 even if figures cannot be trusted.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for bench.json, bench.csv and bench.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure latency, throughput, memory, power and cold start of a bundle, and say what not to trust.

    The output is checked against the golden tiles first; a variant that gives other labels is not timed. Runs
    count once their medians are stable. Figures of a machine that throttles, is busy, noisy or not warm are
    written with the reason, and the command ends with status 1. `bench diff` compares two such files,
    `bench tune` chooses the CPU engine.

    Example: `hfd-edge bench flood.hfd --precision all --rate 5 --out runs/bench`
    """
    import shlex
    import sys

    from hfd_edge.bench.options import BenchOptions
    from hfd_edge.bench.run import run_bench
    from hfd_edge.bundle import Bundle
    from hfd_edge.report.bench import print_tables
    from hfd_edge.report.console import bars, print_json

    options = BenchOptions(
        backend=backend,
        precision=precision,
        threads=threads,
        scenarios=_kinds(scenario or []),
        runs=runs,
        rate_hz=rate,
        scene=scene,
        max_jitter=max_jitter / 100,
        cold_start=not no_cold_start,
        command=shlex.join(["hfd-edge", *sys.argv[1:]]),
    )
    if out is not None:
        _prepare(out)
    with bars() as progress:
        content = run_bench(Bundle.open(bundle), options=options, progress=progress)
    files = [] if out is None else _write(content, out)
    if json:
        print_json(content.model_dump(mode="json"))
    else:
        print_tables(content)
    for text in content.not_run:
        typer.echo(f"not run: {text}", err=True)
    for text in content.notes:
        typer.echo(f"note: {text}", err=True)
    for path in files:
        typer.echo(str(path), err=json)
    wrong = any(not record.scenarios for record in content.records)
    if wrong or not (allow_invalid or all(record.valid for record in content.records)):
        raise typer.Exit(1)


def _kinds(names: list[str]) -> tuple[Kind, ...]:
    known = ("tile", "stream", "scene")
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no scenario {name!r}; choose from {', '.join(known)}")
    return tuple(cast("Kind", name) for name in names)


def _prepare(out: Path) -> None:
    """Find out now, rather than after minutes of measuring, that the files cannot be written."""
    from hfd_edge.files import storage_errors
    from hfd_edge.report.page import require_templates

    require_templates()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)


def _write(content: BenchFile, out: Path) -> list[Path]:
    """Write the figures first: they are there even if drawing fails."""
    from hfd_edge.bench.result import write_bench
    from hfd_edge.report.bench import render, write_csv

    files = [out / name for name in ("bench.json", "bench.csv", "bench.html")]
    write_bench(files[0], content)
    write_csv(content, files[1])
    render(content, files[2])
    return files
