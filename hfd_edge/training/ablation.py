"""Run the trainings of a table that are missing, and collect what the finished ones scored.

A finished run is its run folder with test.json in it: scores, and the confusion counts of each test tile,
from which tables and intervals are made.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.environment import allowed_cores
from hfd_edge.errors import CheckpointError, DatasetError, HfdEdgeError
from hfd_edge.files import sha256, write_json
from hfd_edge.hfdnet.run import Run
from hfd_edge.progress import Progress, silent
from hfd_edge.training.ablation_plan import Job
from hfd_edge.training.baselines import sar_only, train_baseline
from hfd_edge.training.evaluate import evaluate_run
from hfd_edge.training.fit import train_student, train_teacher
from hfd_edge.training.pairs import epoch_pairs, labelled, open_unlabelled, student_pairs, teacher_pairs
from hfd_edge.training.plan import OnEpoch
from hfd_edge.training.preparation import reopen

SCORES_NAME = "test.json"
_FACTS = ("best_epoch", "steps", "seconds", "images_per_second", "device")


@dataclass(frozen=True)
class Table:
    """Jobs, their data and the folder of their runs.

    Attributes:
        jobs: Teachers before those that they teach.
        data: Data folder.
        runs: Folder that takes the run folders.
    """

    jobs: tuple[Job, ...]
    data: Path
    runs: Path

    def state(self, name: str) -> str:
        """How far a job is: "finished", "begun" or "new"."""
        out = self.runs / name
        if (out / SCORES_NAME).is_file():
            return "finished"
        return "begun" if out.exists() else "new"

    def check(self) -> dict[str, int]:
        """Steps of each job by name, before anything is trained.

        Raises:
            CheckpointError: a run folder is of another recipe, teacher or other data.
            DatasetError: the data lack a split, labels or images that a job needs, or two folds test a pair.
        """
        folders = self._folders(self.jobs)
        steps: dict[str, int] = {}
        for job in self.jobs:
            folder = folders[job.recipe.split]
            labelled(folder, "test")
            steps[job.name] = _steps(job, folder)
            for unlabelled in job.unlabelled:
                PairFolder.open(unlabelled)
            if self.state(job.name) != "new":
                self._check_run(job, folder)
        return steps

    def _folders(self, jobs: Sequence[Job]) -> dict[str | None, PairFolder]:
        schemes = dict.fromkeys(job.recipe.split for job in jobs)
        folders = {scheme: PairFolder.open(self.data, scheme=scheme) for scheme in schemes}
        _refuse_shared_tests(jobs, folders)
        return folders

    def _check_run(self, job: Job, folder: PairFolder) -> None:
        recipe = _trained_by(job)
        try:
            teacher = None if job.taught_by is None else Run.open(self.runs / job.taught_by)
            joining = open_unlabelled(job.unlabelled, recipe, folder, teacher)
            reopen(
                self.runs / job.name,
                recipe,
                kind=job.kind,
                data_sha256=folder.sha256,
                teacher_sha256=None if teacher is None else sha256(teacher.weights_path),
                unlabelled_sha256=tuple(other.sha256 for other in joining),
            )
        except (CheckpointError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{error} A table takes runs of one plan only: give another --runs, or remove "
                f"{self.runs / job.name}."
            ) from error

    def run(self, *, parallel: int = 1, progress: Progress = silent, on_epoch: OnEpoch | None = None) -> None:
        """Train and score what is not finished.

        Args:
            parallel: Processes; more than one is for a GPU that one training does not fill.
            progress: Counts steps over all jobs that are left.
            on_epoch: As in `hfd_edge.training.fit.train_student`; has to be importable with `parallel` > 1.
        Raises:
            HfdEdgeError: `check` fails, or a training does; what is finished stays, and a later call goes on.
        """
        steps = self.check()
        left = [job for job in self.jobs if self.state(job.name) != "finished"]
        meter = _Meter(progress, sum(steps[job.name] for job in left), len(left))
        if parallel == 1:
            for job in left:
                _run_named(job, self, meter.of(job, steps[job.name]), on_epoch)
                meter.finish(job, steps[job.name])
            return
        _run_together(left, self, parallel, on_epoch, lambda job: meter.finish(job, steps[job.name]))

    def results(self) -> tuple[Result, ...]:
        """What the finished jobs scored on the test split.

        Raises:
            CheckpointError: a test.json is damaged, or a run is of another recipe, teacher or other data.
            DatasetError: the data cannot be read.
        """
        finished = [job for job in self.jobs if self.state(job.name) == "finished"]
        folders = self._folders(finished)
        for job in finished:
            self._check_run(job, folders[job.recipe.split])
        return tuple(_result(job, self.runs / job.name) for job in finished)


@dataclass(frozen=True)
class Result:
    """A finished job.

    Attributes:
        job: The training.
        row: Scores and facts as one JSON-ready mapping.
        counts: Confusion counts (classes, classes + 1) of each test tile, by name.
    """

    job: Job
    row: dict[str, Any]
    counts: dict[str, Any]


def run_job(job: Job, table: Table, *, progress: Progress = silent, on_epoch: OnEpoch | None = None) -> None:
    """Train a job, from its last checkpoint if there is one, and write its test.json. Raises HfdEdgeError."""
    out = table.runs / job.name
    folder = PairFolder.open(table.data, scheme=job.recipe.split)
    options: dict[str, Any] = {"resume": out.exists(), "progress": progress, "on_epoch": on_epoch}
    if job.kind == "teacher":
        run = train_teacher(folder, job.recipe, out, **options)
    elif job.arch is not None:
        run = train_baseline(folder, job.recipe, out, arch=job.arch, **options)
    else:
        teacher = None if job.taught_by is None else table.runs / job.taught_by
        run = train_student(folder, job.recipe, out, teacher=teacher, unlabelled=job.unlabelled, **options)
    counts: dict[str, Any] = {}
    scores = evaluate_run(run, folder, split="test", progress=progress, counts=counts)
    facts = {"parameters": run.network().count_parameters()}
    tiles = {name: count.tolist() for name, count in counts.items()}
    write_json(out / SCORES_NAME, {**scores, **facts, "counts": tiles})


def _run_named(job: Job, table: Table, progress: Progress, on_epoch: OnEpoch | None) -> None:
    try:
        run_job(job, table, progress=progress, on_epoch=on_epoch)
    except HfdEdgeError as error:
        raise HfdEdgeError(
            f"The run {job.name} failed: {error} Finished runs are kept; once that is put right, the same "
            "command goes on."
        ) from error


def _run_together(
    jobs: Sequence[Job],
    table: Table,
    parallel: int,
    on_epoch: OnEpoch | None,
    finished: Callable[[Job], None],
) -> None:
    """Run jobs in processes, each when its teacher is there; after a failure, those that run are the last."""
    context = get_context("spawn")  # a forked process cannot use the parent's GPU
    with ProcessPoolExecutor(parallel, context, _begin_worker, (os.getpid(), parallel)) as pool:
        held, running = list(jobs), dict[Future[None], Job]()
        while held or running:
            untaught = {job.name for job in (*held, *running.values())}
            ready = [job for job in held if job.taught_by not in untaught]
            # A pool starts what is queued in it even after a failure or Ctrl-C, so nothing is.
            for job in ready[: parallel - len(running)]:
                held.remove(job)
                running[pool.submit(_run_named, job, table, silent, on_epoch)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    future.result()
                except BrokenProcessPool as error:
                    names = ", ".join(other.name for other in (job, *running.values()))
                    raise HfdEdgeError(
                        f"A process was killed, probably for lack of memory, while these ran: {names}. "
                        "Finished runs are kept; with a smaller --parallel the same command goes on."
                    ) from error
                finished(job)


def _begin_worker(parent: int, parallel: int) -> None:
    """Share the cores; end when the parent is killed: a second call must not meet a first one's run."""
    torch.set_num_threads(max(len(allowed_cores()) // parallel, 1))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Meter:
    """One bar over all jobs that are left, in steps."""

    def __init__(self, progress: Progress, total: int, count: int) -> None:
        self._progress = progress
        self._total = total
        self._count = count
        self._done = 0
        self._finished = 0

    def of(self, job: Job, steps: int) -> Progress:
        """Progress of a job's training; its statistics and its scoring count in other units."""
        within = 0.0

        def report(done: float, total: float, text: str, /) -> None:
            nonlocal within
            if total == steps and text.startswith(job.kind):
                within = max(within, done)
            self._show(self._done + within, f"{self._finished + 1}/{self._count} {job.name}: {text}")

        return report

    def finish(self, job: Job, steps: int) -> None:
        """A job has ended."""
        self._done += steps
        self._finished += 1
        self._show(self._done, f"{self._finished}/{self._count} {job.name}: finished")

    def _show(self, done: float, text: str) -> None:
        self._progress(done, self._total, f"ablation {text}")


def _trained_by(job: Job) -> Recipe:
    """The recipe that its run keeps."""
    return job.recipe if job.arch is None else sar_only(job.recipe)


def _steps(job: Job, folder: PairFolder) -> int:
    """Optimiser steps of a job."""
    training = job.recipe.training
    if job.kind == "teacher":
        inputs = job.recipe.teacher.inputs
        teacher_pairs(folder, "train", inputs, label_share=training.label_share)
        pairs = epoch_pairs(folder, inputs)
    else:
        pairs = student_pairs(folder, job.recipe).epoch
    return training.epochs * -(-pairs // training.batch)


def _refuse_shared_tests(jobs: Sequence[Job], folders: Mapping[str | None, PairFolder]) -> None:
    """Refuse folds of one split that share a test pair: one result would be lost. Raises DatasetError."""
    schemes = {job.recipe.split: job.split for job in jobs if job.folds > 1}
    for (one, split), (two, other) in itertools.combinations(schemes.items(), 2):
        tests = [{pair.name for pair in folders[scheme].pairs("test")} for scheme in (one, two)]
        if split == other and (shared := set.intersection(*tests)):
            raise DatasetError(
                f"The split schemes {one} and {two} both test '{min(shared)}' ({len(shared)} pairs), but are "
                f"folds of {split}. Take folds that share no test pair, or list them under 'splits' "
                "instead of 'folds'."
            )


def _result(job: Job, out: Path) -> Result:
    try:
        scores = json.loads((out / SCORES_NAME).read_text("utf-8"))
        counts = scores.pop("counts")
        trained = Run.open(out).metrics()
        facts = {key: trained[key] for key in _FACTS} | {"training_precision": trained["precision"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{out / SCORES_NAME} is damaged ({type(error).__name__}: {error}). Remove it; the same command "
            "then scores the run again."
        ) from error
    row = {
        "split": job.split,
        "method": job.method,
        "teacher": job.teacher,
        "hfam": job.hfam,
        "variant": job.variant,
        "seed": job.seed,
        "scheme": job.recipe.split,
        "folds": job.folds,
        **scores,
        **facts,
        "run": job.name,
    }
    return Result(job, row, counts)
