"""bench tune: which CPU engine and precision "auto" takes, by measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hfd_edge.cli.bench import bench_app
from hfd_edge.cli.common import BundleFolder, Json

if TYPE_CHECKING:
    from hfd_edge.runtime.backends.tuning import Trial, Tuning


@bench_app.command("tune")
def tune_command(
    bundle: BundleFolder,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: one per core.")] = None,
    json: Json = False,
) -> None:
    """Measure every precision of a bundle on every CPU engine, and let "auto" use the fastest from now on.

    A precision whose labels on the golden tiles differ too much from FP32's is measured but not chosen; where
    that is how it was quantised, only if it is asked for by name. What was measured holds for this bundle,
    this CPU, this number of threads and these releases of hfd-edge and the engines; without it, "auto" on a
    CPU is ONNX Runtime with FP32. Close other programs first.

    Example: `hfd-edge bench tune flood.hfd`, then `hfd-edge predict flood.hfd scene.tif --out masks`
    """
    from hfd_edge.bundle import Bundle
    from hfd_edge.report.console import bars, print_json
    from hfd_edge.runtime.backends.tuning import tune

    with bars() as progress:
        result = tune(Bundle.open(bundle), threads=threads, progress=progress)
    best = result.best()
    if json:
        chosen = None if best is None else {"backend": best.backend, "precision": best.precision}
        remembered = str(result.conditions.path())
        print_json({**result.model_dump(mode="json"), "chosen": chosen, "remembered": remembered})
    else:
        _print(result, best)


def _print(result: Tuning, best: Trial | None) -> None:
    from hfd_edge.report.console import table

    rows = [
        [
            trial.backend,
            trial.precision,
            "n/a" if trial.median_ms is None else f"{trial.median_ms:.1f}",
            "n/a" if trial.agreement is None else f"{trial.agreement:.2%}",
            "chosen" if trial is best else _remark(trial),
        ]
        for trial in result.trials
    ]
    here = result.conditions
    table(
        f"{here.cpu}, {here.cores} cores, threads: {here.threads or 'as the engine likes'}",
        ["engine", "precision", "ms a tile", "golden labels", ""],
        rows,
    )
    typer.echo(f"remembered in {here.path()}")


def _remark(trial: Trial) -> str:
    from hfd_edge.runtime.agreement import FIXED

    if trial.reason or trial.agrees:
        return trial.reason
    return (
        f"only where {trial.precision} is asked for: at least {FIXED[trial.precision]:.1%} expected otherwise"
    )
