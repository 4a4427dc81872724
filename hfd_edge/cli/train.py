"""train teacher, train student, train baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Data, Json, show

train_app = typer.Typer(no_args_is_help=True, help="Train the EO teacher, the SAR student, and baselines.")
app.add_typer(train_app, name="train")

RecipeFile = Annotated[Path, typer.Argument(help="Recipe; see train/recipes.", metavar="RECIPE.toml")]
Out = Annotated[Path, typer.Option("--out", help="Run folder to make (or to go on with, with --resume).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe key, e.g. training.epochs=50. May be repeated."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Board = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard into RUN/tensorboard, too.")
]


@train_app.command()
def teacher(
    recipe: RecipeFile,
    data: Data,
    out: Out,
    set_: Set = None,
    resume: Resume = False,
    tensorboard: Board = False,
    json: Json = False,
) -> None:
    """Train the optical teacher.

    Example: `hfd-edge train teacher train/recipes/ombria.toml --data data/ombria --out runs/teacher`

    On several GPUs or machines, for any `train` command: `torchrun --nproc-per-node 4 -m hfd_edge train
    teacher ...` The processes share each batch, so the recipe stays as it is.
    """
    from hfd_edge.training.fit import train_teacher

    options: dict[str, Any] = {"overrides": set_, "as_json": json, "tensorboard": tensorboard}
    _train(train_teacher, recipe, data, out, resume=resume, **options)


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
    tensorboard: Board = False,
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
        raise typer.BadParameter("--qat trains on the pairs of --data alone: leave out --unlabelled.")
    options: dict[str, Any] = {"overrides": set_, "as_json": json, "tensorboard": tensorboard}
    options |= {"resume": resume, "teacher": teacher}
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
    tensorboard: Board = False,
    json: Json = False,
) -> None:
    """Train another SAR-only network on the same encoder, to compare the student with.

    Recipe keys of the distillation, the decoder width and the alignment are not used. Baselines are
    evaluated as students are, but not exported.

    Example: `hfd-edge train baseline train/recipes/ombria.toml --arch Unet --data data/ombria --out
    runs/unet`
    """
    from hfd_edge.training.baselines import train_baseline

    options: dict[str, Any] = {"overrides": set_, "as_json": json, "tensorboard": tensorboard}
    _train(train_baseline, recipe, data, out, arch=arch, resume=resume, **options)


def _train(
    train: Callable[..., Any],
    recipe: Path,
    data: Path,
    out: Path,
    *,
    overrides: list[str] | None,
    as_json: bool,
    tensorboard: bool,
    **options: Any,
) -> None:
    from hfd_edge.config import Recipe, read_toml
    from hfd_edge.datasets.folder import PairFolder
    from hfd_edge.progress import silent
    from hfd_edge.report.console import bars
    from hfd_edge.training.devices import leads

    checked = read_toml(recipe, Recipe, overrides=tuple(overrides or ()))
    folder = PairFolder.open(data, scheme=checked.split)
    if not leads():
        train(folder, checked, out, progress=silent, **options)
        return
    with _pictures(tensorboard) as on_epoch, bars() as progress:
        run = train(folder, checked, out, progress=progress, on_epoch=on_epoch, **options)
    scores = {name: value for name, value in run.metrics().items() if name != "history"}
    show({"run": str(run.path), **scores}, as_json=as_json, title=f"Trained {out.name}")


@contextmanager
def _pictures(tensorboard: bool) -> Iterator[Callable[[Path, list[dict[str, Any]]], None]]:
    """What is drawn of a run after each epoch."""
    from hfd_edge.report.curves import plot_run_curves
    from hfd_edge.training.tensorboard import TensorBoard

    board = TensorBoard() if tensorboard else None

    def draw(run: Path, history: list[dict[str, Any]]) -> None:
        plot_run_curves(run, history)
        if board is not None:
            board(run, history)

    try:
        yield draw
    finally:
        if board is not None:
            board.close()
