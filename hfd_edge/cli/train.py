"""train teacher, train student, train baseline, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Data, Json, Scheme, show

train_app = typer.Typer(no_args_is_help=True, help="Train the EO teacher, the SAR student, and baselines.")
app.add_typer(train_app, name="train")

RecipeFile = Annotated[Path, typer.Argument(help="Recipe; see train/recipes.", metavar="RECIPE.toml")]
Out = Annotated[Path, typer.Option("--out", help="Run folder to make (or to go on with, with --resume).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe key, e.g. training.epochs=50. May be repeated."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]


@train_app.command()
def teacher(
    recipe: RecipeFile, data: Data, out: Out, set_: Set = None, resume: Resume = False, json: Json = False
) -> None:
    """Train the optical teacher.

    Example: `hfd-edge train teacher train/recipes/ombria.toml --data data/ombria --out runs/teacher`
    """
    from hfd_edge.training.fit import train_teacher

    _train(train_teacher, recipe, data, out, overrides=set_, as_json=json, resume=resume)


@train_app.command()
def student(
    recipe: RecipeFile,
    data: Data,
    out: Out,
    teacher: Annotated[
        Path | None, typer.Option(help="Teacher's run folder; not needed with distill.method=none.")
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(
            help="Data folder whose training pairs of SAR and EO distil, too, whatever their labels; see "
            "distill.unlabelled. May be repeated.",
            metavar="DIR",
        ),
    ] = None,
    qat: Annotated[
        Path | None,
        typer.Option(
            "--qat", help="Fine-tune this finished student for INT8 (see [qat] of the recipe).", metavar="RUN"
        ),
    ] = None,
    set_: Set = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train the SAR student, distilling from the teacher.

    Example: `hfd-edge train student train/recipes/ombria.toml --data data/ombria --teacher runs/teacher
    --out runs/student`. For a SAR-only student: `--set distill.method=none`.

    With --qat RUN the student in RUN learns to live with INT8 rounding: `hfd-edge train student
    runs/student/recipe.toml --data data/ombria --teacher runs/teacher --qat runs/student --out runs/qat`
    """
    from hfd_edge.training.fit import train_student
    from hfd_edge.training.qat import train_qat

    if qat is not None and unlabelled:
        raise typer.BadParameter("--qat trains on the labelled pairs alone: leave out --unlabelled.")
    options: dict[str, Any] = {"overrides": set_, "as_json": json, "resume": resume, "teacher": teacher}
    if qat is None:
        _train(train_student, recipe, data, out, unlabelled=unlabelled or (), **options)
    else:
        _train(train_qat, recipe, data, out, start=qat, **options)


@train_app.command()
def baseline(
    recipe: RecipeFile,
    arch: Annotated[
        str,
        typer.Option(
            help="Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus, PAN, UPerNet "
            "or Segformer, on the recipe's encoder."
        ),
    ],
    data: Data,
    out: Out,
    set_: Set = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train another SAR-only network on the same encoder, to compare the student with.

    Recipe keys of the distillation, the decoder width and the alignment are not used. Baselines are
    evaluated as students are, but not exported.

    Example: `hfd-edge train baseline train/recipes/ombria.toml --arch Unet --data data/ombria --out
    runs/unet`
    """
    from hfd_edge.training.baselines import train_baseline

    _train(train_baseline, recipe, data, out, overrides=set_, as_json=json, arch=arch, resume=resume)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.", metavar="RUN|BUNDLE")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    scheme: Scheme = None,
    precision: Annotated[str, typer.Option(help="Bundle variant: fp32, fp16 or int8.")] = "fp32",
    backend: Annotated[str, typer.Option(help="Runtime backend of a bundle.")] = "auto",
    pictures: Annotated[
        Path | None, typer.Option(help="PNG to draw: tiles with SAR, EO, truth and prediction.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure accuracy on a labelled split: mIoU and IoU per class, from one confusion matrix.

    Example: `hfd-edge evaluate flood.hfd --data data/ombria --scheme spatial --precision int8`
    """
    from hfd_edge.evaluation import measure, open_folder, open_predictor
    from hfd_edge.report.console import bars

    with bars() as progress:
        scores = measure(
            model, data, split=split, scheme=scheme, precision=precision, backend=backend, progress=progress
        )
        if pictures:
            from hfd_edge.report.tiles import write_tiles

            with open_predictor(model, precision=precision, backend=backend) as predict:
                folder = open_folder(model, data, scheme=scheme)
                write_tiles(folder, {scores["precision"]: predict}, pictures, split=split)
    show(scores, as_json=json, title=f"{model.name} on {split}")


def _train(
    train: Callable[..., Any],
    recipe: Path,
    data: Path,
    out: Path,
    *,
    overrides: list[str] | None,
    as_json: bool,
    **options: Any,
) -> None:
    from hfd_edge.config import Recipe, read_toml
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.report.console import bars
    from hfd_edge.report.curves import plot_curves

    checked = read_toml(recipe, Recipe, overrides=tuple(overrides or ()))
    folder = PairFolder.open(data, scheme=checked.split)
    with bars() as progress:
        run = train(
            folder,
            checked,
            out,
            progress=progress,
            on_epoch=lambda path, history: plot_curves(history, path / "curves.png"),
            **options,
        )
    scores = {name: value for name, value in run.metrics().items() if name != "history"}
    show({"run": str(run.path), **scores}, as_json=as_json, title=f"Trained {out.name}")
