"""Images per second of the training loop against a bare forward, backward and step on one batch.

    python benchmarks/bench_training.py

The loop is `train_teacher` and `train_student` (hfdm) as the command line calls them, on simulated pairs:
loading, augmentation, progress, the check of the loss and the schedule are in; validation and the checkpoint
behind it are left out, and so is the first epoch, which prepares the tiles. The bare loop has the same
network, losses, frozen teacher, optimiser and precision, and one batch of the same data that never changes.
Both run in this process, in turns. `ratio` is the loop's images per second over the bare loop's. Further rows
compare the bare loop's own choices: memory layout, and bfloat16 with float32. On an NVIDIA GPU where there is
one, else on the CPU.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _measure import alternate, arguments, comparison
from _results import write

from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.hfdnet.distillation import Hfdm
from hfd_edge.hfdnet.run import Run
from hfd_edge.progress import Progress
from hfd_edge.report.console import bars
from hfd_edge.training.evaluate import eo_statistics_of
from hfd_edge.training.fit import train_student, train_teacher
from hfd_edge.training.objective import Distillation, Objective
from hfd_edge.training.preparation import make_batches
from hfd_edge.training.samples import TileCache, TileStore, teacher_pixels

WANTED = 0.9
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_STEPS = 4


def loop(train: Callable[..., Run], folder: PairFolder, recipe: Recipe, **options: Any) -> float:
    """Images a second of a training in a folder of its own, between reports of progress."""
    reports: list[tuple[int, float]] = []

    def note(done: float, total: float, text: str, /) -> None:
        if " epoch " in text:
            reports.append((int(done), time.perf_counter()))

    epoch = -(-len(folder.pairs("train")) // recipe.training.batch)
    with tempfile.TemporaryDirectory() as work:
        train(folder, recipe, Path(work) / "run", progress=note, **options)
    # In the first epoch tiles are prepared. After the report of an epoch's last step comes validation.
    counted = [
        (step - before, now - then)
        for (before, then), (step, now) in pairwise(reports)
        if before > epoch and before % epoch
    ]
    steps, seconds = map(sum, zip(*counted, strict=True))
    return float(recipe.training.batch * steps / seconds)


class Bare:
    """The same arithmetic on a batch that never changes."""

    def __init__(
        self,
        run: Run,
        folder: PairFolder,
        *,
        teacher: Run | None,
        precision: str | None = None,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        """Build it as the run was; `teacher` is the student's."""
        self.training, self.layout = run.recipe.training, layout
        self.precision = precision or self.training.precision
        self.teacher = None if teacher is None else teacher.network().requires_grad_(False)
        objective = Objective(
            run.untrained_network(),
            ignore_index=folder.config.ignore_index,
            distillation=Distillation({} if teacher is None else {"feature": 1.0, "cwd": 1.0}),
            hfdm=None if teacher is None else Hfdm(run.network().classifier.in_channels),
        )
        self.objective = objective.train().to(DEVICE, memory_format=layout)
        if self.teacher is not None:
            self.teacher = self.teacher.to(DEVICE, memory_format=layout)
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), lr=1e-4, fused=True)
        eo = eo_statistics_of(teacher or run)
        pairs = folder.pairs("train")
        store = TileStore(folder, pairs, run.info.preprocessing, eo, TileCache(4096))
        batch = make_batches(run, store, epoch=len(pairs), eo_jitter=0.0)(0)
        self.batch = type(batch)(*(None if part is None else part.to(DEVICE) for part in batch))

    def step(self) -> None:
        """Forward, backward, step."""
        batch, teacher = self.batch, self.teacher
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            taps = None
            if teacher is not None:
                with torch.no_grad():
                    taps = teacher.taps(self._laid(teacher_pixels(batch, bands=teacher.bands)))
            pixels = self._laid(batch.eo if batch.sar.shape[1] == 0 else batch.sar)
            losses = self.objective(pixels, batch.label, taps, batch.valid, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self.optimizer.step()

    def _laid(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.contiguous(memory_format=self.layout)

    def __call__(self, steps: int) -> float:
        """Images a second over so many steps, after some that are not counted."""
        for _ in range(WARM_STEPS):
            self.step()
        synchronise()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronise()
        return steps * self.training.batch / (time.perf_counter() - started)


def synchronise() -> None:
    """Wait for the GPU, if that is what computes."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def recipe_of(args: Any) -> Recipe:
    """An epoch that prepares the tiles, and one that counts; one checkpoint, with the last validation."""
    small = {"encoder": "resnet10t", "channels": 16} if args.quick else {"preset": "s"}
    training = {"epochs": 2, "batch": args.batch, "crop_px": args.crop, "precision": args.precision}
    return Recipe.model_validate(
        {"network": {**small, "init": "random"}, "training": {**training, "checkpoint_every": 1_000_000}}
    )


def measure(
    run: Run, folder: PairFolder, recipe: Recipe, *, teacher: Run | None, args: Any, progress: Progress
) -> dict[str, Any]:
    """The row of one kind of training; `teacher` is the student's."""
    bare = Bare(run, folder, teacher=teacher)
    train, options = (train_teacher, {}) if teacher is None else (train_student, {"teacher": teacher.path})
    works: dict[str, Callable[[], float]] = {
        "loop": lambda: loop(train, folder, recipe, **options),
        "bare": lambda: bare(args.steps),
    }
    found = alternate(works, repeats=args.repeats, progress=progress, text=run.info.kind)
    return comparison(
        f"training loop, {run.info.kind}{'' if teacher is None else ' (hfdm)'}",
        "bare forward, backward and step on one batch",
        unit="img_s",
        ours=found["loop"],
        theirs=found["bare"],
        wanted=WANTED,
        device=run.metrics()["device"],
        batch=args.batch,
        crop_px=args.crop,
        precision=args.precision,
    )


def choices(
    run: Run, folder: PairFolder, *, teacher: Run, args: Any, progress: Progress
) -> list[dict[str, Any]]:
    """Rows of what the student's bare loop gains by its layout, and would by bfloat16."""
    bare = {
        "channels-last, float32": Bare(run, folder, teacher=teacher, precision="32-true"),
        "channels-first, float32": Bare(
            run, folder, teacher=teacher, precision="32-true", layout=torch.contiguous_format
        ),
        "channels-last, bfloat16": Bare(run, folder, teacher=teacher, precision="bf16-mixed"),
    }
    works = {name: functools.partial(work, args.steps) for name, work in bare.items()}
    found = alternate(works, repeats=args.repeats, progress=progress, text="bare")
    usual, first, half = found
    shared = {"device": run.metrics()["device"], "batch": args.batch, "crop_px": args.crop, "in_table": False}
    return [
        comparison(f"bare loop, student (hfdm), {one}", other, unit="img_s", ours=found[one],
                   theirs=found[other], **shared)
        for one, other in ((usual, first), (half, usual))
    ]  # fmt: skip


def main() -> None:
    """Simulate, measure, record."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--crop", type=int, default=128, help="side of the crops, pixels; tiles have twice that"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps in each turn; take 100 on a GPU")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    args = parser.parse_args()
    if args.quick:
        args.batch, args.crop, args.steps, args.repeats = 2, 64, 4, 1
    recipe, more = recipe_of(args), {"size_px": 2 * args.crop, "seed": 0}
    with bars() as progress, tempfile.TemporaryDirectory() as work:
        data, out = Path(work) / "data", Path(work) / "runs"
        write_dataset(data, train=args.steps * args.batch, val=1, test=0, progress=progress, **more)
        folder = PairFolder.open(data)
        teacher = train_teacher(folder, recipe, out / "teacher", progress=progress)
        student = train_student(folder, recipe, out / "student", teacher=teacher.path, progress=progress)
        rows = [
            measure(run, folder, recipe, teacher=expert, args=args, progress=progress)
            for run, expert in ((teacher, None), (student, teacher))
        ]
        rows += choices(student, folder, teacher=teacher, args=args, progress=progress)
    for row in rows:
        print(f"{row['what']}: {row['ratio']:.3f} of {row['against']} ({row['ours_img_s']:.1f} img/s)")
    print(write("training", rows, command=" ".join(["python", *sys.argv]), root=args.root))


if __name__ == "__main__":
    main()
