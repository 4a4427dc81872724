"""card: what a trained network is, in one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Json, OptionalData, Scheme


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    data: OptionalData = None,
    split: Annotated[str, typer.Option(help="With --data: train, val or test.")] = "test",
    scheme: Scheme = None,
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file to write, e.g. CARD.md.")] = None,
    json: Json = False,
) -> None:
    """Write a model card: input, accuracy, training data and licence, limits, provenance, citation.

    Everything comes from the run folder; with --data its accuracy on a split is measured, too. Without --out
    the card is printed. Bundles get theirs, without that measurement, as README.md when they are exported.

    Example: `hfd-edge card runs/student --data data/ombria --out CARD.md`
    """
    from hfd_edge.evaluation import measure
    from hfd_edge.files import write_text
    from hfd_edge.hfdnet.card import model_card
    from hfd_edge.hfdnet.run import Run
    from hfd_edge.report.console import bars, print_json

    opened, scores = Run.open(run), []
    if data is not None:
        with bars() as progress:
            scores.append(measure(run, data, split=split, scheme=scheme, progress=progress))
    text = model_card(opened, scores=scores)
    if out is not None:
        write_text(out, text)
    if json:
        print_json({"run": str(run), "out": None if out is None else str(out), "card": text})
    else:
        typer.echo(text if out is None else f"Wrote {out}")
