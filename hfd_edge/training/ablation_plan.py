"""Which trainings a table of comparisons is made of: a TOML plan, and the runs that it asks for.

All runs of a plan start from the same recipe, so they share initialisation, batches and number of steps;
rows differ in what the recipe's switches for the comparison say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hfd_edge.config import Recipe, Strict, TeacherInputs, read_toml
from hfd_edge.errors import RecipeError
from hfd_edge.hfdnet.baselines import check_architecture

_OWN_KEYS = {
    "split": "splits",
    "training.seed": "seeds",
    "distill.method": "method",
    "network.hfam": "hfam",
    "teacher.inputs": "teacher",
}
"""Recipe keys that a plan has keys of its own for."""
_SHARED_KEYS = (
    "training.epochs",
    "training.keep",
    "training.patience",
    "training.batch",
    "training.label_share",
    "training.crop_px",
    "training.precision",
    "network.init",
)
_SIZE_KEYS = ("network.preset", "network.encoder", "network.channels")


class PlanRow(Strict):
    """One or several configurations: every combination of the lists."""

    method: Literal["teacher", "sar_only", "logits", "fitnet", "cwd", "hfdm", "hfdm+logits", "baseline"]
    teacher: tuple[TeacherInputs, ...] = Field(
        default=(), description="Inputs of the teacher; for 'teacher' and the methods that distil."
    )
    taught_by: str = Field(default="", description="Variant of the teacher; empty for the plain one.")
    hfam: tuple[bool, ...] = Field(default=(), description="Alignment on, off; empty for the recipe's.")
    arch: tuple[str, ...] = Field(default=(), description="Architectures; for 'baseline'.")
    variant: str = Field(
        default="", pattern=r"^[a-z0-9_.]*$", description="Name for what `overrides` change."
    )
    overrides: tuple[str, ...] = Field(default=(), description="SECTION.KEY=VALUE, of this row alone.")
    unlabelled: tuple[str, ...] = Field(
        default=(), description="Data folders whose pairs distil, too; relative to the working directory."
    )
    splits: tuple[str, ...] | None = Field(default=None, min_length=1, description="Instead of the plan's.")
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1, description="Instead of the plan's.")

    @model_validator(mode="after")
    def _fits(self) -> PlanRow:
        takes_teacher = self.method not in ("sar_only", "baseline")
        if takes_teacher != bool(self.teacher):
            need = 'needs teacher = ["eo", ...]' if takes_teacher else "takes no teacher"
            raise ValueError(f"method {self.method!r} {need}")
        if (self.method == "baseline") != bool(self.arch):
            raise ValueError("'arch' is what a row of method 'baseline', and no other, has")
        if self.hfam and self.method in ("teacher", "baseline"):
            raise ValueError(f"method {self.method!r} takes no 'hfam'")
        if (self.taught_by or self.unlabelled) and (not takes_teacher or self.method == "teacher"):
            raise ValueError(f"method {self.method!r} takes neither 'taught_by' nor 'unlabelled'")
        if bool(self.overrides or self.unlabelled) != bool(self.variant):
            raise ValueError(
                "'overrides' and 'unlabelled' need a 'variant' that names them, and it needs them"
            )
        _refuse_own_keys(self.overrides, _OWN_KEYS)
        # A larger teacher is a fair question; a larger student, or a longer training, is another table.
        shared = _SHARED_KEYS if self.method == "teacher" else (*_SHARED_KEYS, *_SIZE_KEYS)
        for key in _keys_set(self.overrides, shared):
            raise ValueError(
                f"{key} is the same for all runs of a plan: set it in the plan's own 'overrides'"
            )
        return self


class AblationPlan(Strict):
    """A TOML file that says which runs a table is made of."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    recipe: str = Field(description="Recipe that all runs share; relative to the plan.")
    data: str = Field(default="", description="Data folder; relative to the working directory.")
    splits: tuple[str, ...] = Field(default=(), description="Split schemes; empty for the recipe's.")
    folds: dict[str, tuple[str, ...]] = Field(
        default={}, description="Schemes whose test pairs together are one of `splits`, by its name."
    )
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    overrides: tuple[str, ...] = Field(default=(), description="SECTION.KEY=VALUE, of all runs.")
    rows: tuple[PlanRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> AblationPlan:
        splits = {*self.splits, *(split for row in self.rows for split in row.splits or ())}
        if unknown := sorted(set(self.folds) - splits):
            raise ValueError(f"'folds' names {unknown[0]!r}, which is none of the 'splits'")
        if not all(schemes and len(set(schemes)) == len(schemes) for schemes in self.folds.values()):
            raise ValueError("'folds' needs at least one scheme for each split, and each scheme once")
        # Alignment and split are the recipe's where no row names them; these would be overruled unsaid.
        _refuse_own_keys(self.overrides, ("training.seed", "distill.method", "teacher.inputs"))
        return self


def _refuse_own_keys(overrides: Sequence[str], keys: Iterable[str]) -> None:
    for key in _keys_set(overrides, keys):
        raise ValueError(f"{key} is not for overrides: a plan has {_OWN_KEYS[key]!r} for it")


def _keys_set(overrides: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Those of the recipe keys that overrides set, by their name or with their whole section."""
    names = [override.partition("=")[0].strip() for override in overrides]
    return [key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in names)]


@dataclass(frozen=True)
class Job:
    """One training of a plan.

    Attributes:
        name: Of its run folder.
        recipe: What it is trained by.
        split: Split of the table; recipe.split is its scheme, one of several where it has folds.
        method: "teacher", "sar_only", a method of distillation, or "baseline:" and an architecture.
        teacher: Inputs of the teacher that teaches, or that this is; None without.
        taught_by: Name of the teacher's job; None when nothing is distilled.
        hfam: Alignment on or off; None of a baseline.
        variant: Name of the row's overrides; may be empty.
        seed: Of everything random.
        unlabelled: Data folders whose pairs distil, too.
        folds: How many schemes its split has.
    """

    name: str
    recipe: Recipe
    split: str
    method: str
    teacher: TeacherInputs | None
    taught_by: str | None
    hfam: bool | None
    variant: str
    seed: int
    unlabelled: tuple[Path, ...] = ()
    folds: int = 1

    @property
    def arch(self) -> str | None:
        """Architecture of a baseline."""
        kind, _, arch = self.method.partition(":")
        return arch if kind == "baseline" else None

    @property
    def kind(self) -> str:
        """Kind of its run."""
        return self.method if self.method == "teacher" else "student" if self.arch is None else "baseline"


@dataclass(frozen=True)
class _Place:
    """A split of the table, and one of its schemes; None is the recipe's."""

    split: str | None = None
    scheme: str | None = None


@dataclass(frozen=True)
class _Choice:
    """What a row's lists leave open, chosen."""

    seed: int
    place: _Place
    inputs: TeacherInputs | None
    hfam: bool | None = None
    arch: str | None = None


def jobs_of(plan: AblationPlan, *, base: Path) -> tuple[Job, ...]:
    """All trainings that a plan asks for; teachers stand before those that they teach.

    Whole seeds come one after the other, so that an unfinished table is a complete one of fewer seeds.

    Args:
        plan: The plan.
        base: Folder that the plan's recipe is relative to.
    Raises:
        RecipeError: the recipe is missing or faulty, an architecture or a teacher's variant is unknown, two
            rows ask for the same run, or network.init = "teacher", which would not be the same start.
    """
    jobs: dict[str, Job] = {}
    rows = [(row, plan.seeds if row.seeds is None else row.seeds) for row in plan.rows]
    for seed in dict.fromkeys((*plan.seeds, *(seed for _, seeds in rows for seed in seeds))):
        for row in (row for row, seeds in rows if seed in seeds):
            for job in _jobs_of_row(plan, row, base, seed):
                first = jobs.setdefault(job.name, job)
                # Every row that a teacher teaches names it, but all have to mean the same one.
                if first is not job and (job.kind != "teacher" or first != job):
                    raise RecipeError(
                        f"Two rows of the plan {plan.name!r} ask for the run {job.name}. Remove one of "
                        "them, or tell them apart by 'variant' and 'overrides'."
                    )
    return tuple(jobs.values())


def _jobs_of_row(plan: AblationPlan, row: PlanRow, base: Path, seed: int) -> Iterator[Job]:
    splits = plan.splits if row.splits is None else row.splits
    places = [_Place(split, scheme) for split in splits for scheme in plan.folds.get(split, (split,))]
    lists = (places or (_Place(),), row.teacher or (None,), row.hfam or (None,), row.arch or (None,))
    for place, inputs, hfam, arch in product(*lists):
        teacher = None
        if inputs is not None and row.method != "teacher":
            source = _teacher_row(plan, inputs, row.taught_by)
            teacher = _job(plan, source, base, _Choice(seed, place, inputs), teacher=None)
            yield teacher
        yield _job(plan, row, base, _Choice(seed, place, inputs, hfam, arch), teacher=teacher)


def _teacher_row(plan: AblationPlan, inputs: TeacherInputs, variant: str) -> PlanRow:
    for row in plan.rows:
        if row.method == "teacher" and row.variant == variant and inputs in row.teacher:
            return row
    if variant:
        raise RecipeError(
            f"The plan {plan.name!r} has no row of method 'teacher' with variant {variant!r} and input "
            f"{inputs!r}, which 'taught_by' names. Add that row, or correct the name."
        )
    return PlanRow(method="teacher", teacher=(inputs,))


def _job(plan: AblationPlan, row: PlanRow, base: Path, choice: _Choice, *, teacher: Job | None) -> Job:
    recipe = read_toml(base / plan.recipe, Recipe, overrides=tuple(_overrides(plan, row, choice)))
    if recipe.network.init == "teacher":
        raise RecipeError(
            f'The plan {plan.name!r} has network.init = "teacher", so runs would not start alike. Set it to '
            '"imagenet" or "random".'
        )
    if choice.arch is not None:
        check_architecture(choice.arch)
    inputs, by = choice.inputs, row.taught_by and f"by_{row.taught_by}"
    hfam = None if choice.arch is not None else recipe.network.hfam
    parts = (
        recipe.split,
        row.method,
        choice.arch,
        inputs and inputs.replace(" ", "_"),
        by,
        "hfam_off" if hfam is False else "",
        row.variant,
        f"seed{choice.seed}",
    )
    return Job(
        name="-".join(part for part in parts if part),
        recipe=recipe,
        split=choice.place.split or recipe.split or "default",
        method=row.method if choice.arch is None else f"{row.method}:{choice.arch}",
        teacher=inputs,
        taught_by=None if teacher is None else teacher.name,
        hfam=hfam,
        variant="-".join(part for part in (by, row.variant) if part),
        seed=choice.seed,
        unlabelled=tuple(Path(folder) for folder in row.unlabelled),
        folds=len(plan.folds.get(choice.place.split or "", ("",))),
    )


def _overrides(plan: AblationPlan, row: PlanRow, choice: _Choice) -> Iterator[str]:
    distils = row.method not in ("teacher", "sar_only", "baseline")
    yield from (*plan.overrides, *row.overrides)
    yield f"distill.method={row.method if distils else 'none'}"
    yield f"training.seed={choice.seed}"
    if choice.place.scheme is not None:
        yield f"split={choice.place.scheme}"
    if choice.hfam is not None:
        yield f"network.hfam={str(choice.hfam).lower()}"
    if choice.inputs is not None:
        yield f"teacher.inputs={choice.inputs}"


def select(jobs: Sequence[Job], only: str | None) -> tuple[Job, ...]:
    """The jobs whose name matches a pattern ("*hfdm*"), and the teachers that they need.

    Raises:
        RecipeError: none does.
    """
    if only is None:
        return tuple(jobs)
    wanted = [job for job in jobs if fnmatchcase(job.name, only)]
    if not wanted:
        raise RecipeError(
            f"No run of the plan matches --only {only!r}. Their names are, for example: "
            f"{', '.join(job.name for job in jobs[:3])}; --dry-run lists them all."
        )
    needed = {job.taught_by for job in wanted}
    return tuple(job for job in jobs if job in wanted or job.name in needed)
