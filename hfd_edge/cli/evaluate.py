"""evaluate: accuracy of a run or bundle; evaluate diff: of one against another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Data, DefaultGroup, Json, Scheme

evaluate_app = typer.Typer(
    cls=DefaultGroup, no_args_is_help=True, help="Measure accuracy on a labelled split; compare two runs."
)
app.add_typer(evaluate_app, name="evaluate")

Split = Annotated[str, typer.Option(help="train, val or test.")]
Backend = Annotated[str, typer.Option(help="Runtime backend of a bundle.")]


@evaluate_app.command()
def run(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.", metavar="RUN|BUNDLE")],
    data: Data,
    split: Split = "test",
    scheme: Scheme = None,
    precision: Annotated[str, typer.Option(help="Bundle variant: fp32, fp16 or int8.")] = "fp32",
    backend: Backend = "auto",
    pictures: Annotated[
        Path | None, typer.Option(help="PNG to draw: tiles with SAR, EO, truth and prediction.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="PNG to draw: which class is taken for which.", metavar="FILE.png")
    ] = None,
    json: Json = False,
) -> None:
    """Measure accuracy on a labelled split; `evaluate diff A B` says how much better A is, and how surely.

    From one confusion matrix over all labelled pixels: mIoU, F1, accuracy. Near the outlines alone: boundary
    IoU, which notices what areas forgive. Of a run's probabilities: the expected calibration error (ECE); a
    bundle keeps none, so its ECE stays empty.

    Example: `hfd-edge evaluate flood.hfd --data data/ombria --scheme spatial --precision int8`
    """
    from hfd_edge.evaluation import measure, open_folder, open_predictor
    from hfd_edge.report.console import bars, print_json
    from hfd_edge.report.evaluation import print_scores

    title = f"{model.name} on {split}"
    with bars() as progress:
        scores = measure(
            model, data, split=split, scheme=scheme, precision=precision, backend=backend, progress=progress
        )
    if json:
        print_json(scores)
    else:
        print_scores(scores, title=title)
    if pictures:
        from hfd_edge.report.tiles import write_tiles

        with open_predictor(model, precision=precision, backend=backend) as predict:
            folder = open_folder(model, data, scheme=scheme)
            write_tiles(folder, {scores["precision"]: predict}, pictures, split=split)
    if confusion:
        from hfd_edge.report.confusion import plot_confusion

        plot_confusion(scores["confusion"], confusion, classes=list(scores["iou"]), title=title)


@evaluate_app.command()
def diff(
    first: Annotated[str, typer.Argument(help="Run or bundle; several seeds: A1,A2,A3.", metavar="A")],
    second: Annotated[str, typer.Argument(help="What A is compared with: B, or B1,B2,B3.", metavar="B")],
    data: Data,
    split: Split = "test",
    scheme: Scheme = None,
    precision: Annotated[
        str, typer.Option(help="Variant of bundles: fp32, fp16 or int8. Runs have fp32 alone.")
    ] = "fp32",
    backend: Backend = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="PNG to draw: resamples, and classes with intervals.", metavar="FILE.png"),
    ] = None,
    json: Json = False,
) -> None:
    """Say how much better A is than B on the same tiles, in points of mIoU and of each class's IoU.

    The 95 % interval is that of a paired bootstrap: tiles are drawn with replacement, the same ones for both
    sides, and so are seeds where there are several (in pairs, in the order given, where both sides have as
    many). A difference whose interval holds 0 may be chance. Tiles are ranked by their influence: by how much
    the difference would be smaller without them.

    Example: `hfd-edge evaluate diff runs/hfdm-0,runs/hfdm-1 runs/sar-0,runs/sar-1 --data data/ombria`
    """
    from hfd_edge.comparison.difference import difference
    from hfd_edge.evaluation import count_tiles
    from hfd_edge.report.console import bars, print_json
    from hfd_edge.report.evaluation import plot_difference, print_difference

    sides = [_models(first), _models(second)]
    with bars() as progress:
        counts, classes = count_tiles(
            [*sides[0], *sides[1]], data, split=split, scheme=scheme, precision=precision, backend=backend,
            progress=progress,
        )  # fmt: skip
    result = difference(counts[: len(sides[0])], counts[len(sides[0]) :], classes=classes)
    names = [", ".join(str(model) for model in side) for side in sides]
    if json:
        models = {"a": [str(model) for model in sides[0]], "b": [str(model) for model in sides[1]]}
        print_json({**models, "split": split, **result.as_json()})
    else:
        print_difference(result, first=names[0], second=names[1])
    if out:  # last: what was measured is not lost when it cannot be drawn
        plot_difference(result, out, first=names[0], second=names[1])


def _models(text: str) -> list[Path]:
    """Folders that are named with commas between; a folder may have a comma in its own name."""
    if Path(text).exists():
        return [Path(text)]
    models = [Path(part) for part in text.split(",") if part]
    missing = [str(model) for model in models if not model.is_dir()]
    if missing or not models:
        raise typer.BadParameter(
            f"There is no folder {', '.join(missing) or repr(text)}. Give run folders or bundles: A, or "
            "A1,A2,A3."
        )
    return models
