"""Plans and their tables: which runs, in which order, once each, and only of one recipe."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hfd_edge.comparison.ablation import summarise
from hfd_edge.config import Recipe, parse, read_toml
from hfd_edge.errors import CheckpointError, DatasetError, HfdEdgeError, RecipeError
from hfd_edge.files import resource_folder
from hfd_edge.hfdnet.run import Run
from hfd_edge.raster.image import read_image
from hfd_edge.training import ablation
from hfd_edge.training.ablation import SCORES_NAME, Table
from hfd_edge.training.ablation_plan import AblationPlan, Job, jobs_of, select

RECIPE = """
[network]
encoder = "mobilenetv3_small_050"
channels = 8
init = "random"
[training]
epochs = 2
batch = 4
crop_px = 64
checkpoint_every = 1
"""
PLAN = """
name = "tiny"
recipe = "r.toml"
[[rows]]
method = "teacher"
teacher = ["eo"]
[[rows]]
method = "sar_only"
[[rows]]
method = "logits"
teacher = ["eo"]
[[rows]]
method = "baseline"
arch = ["PSPNet"]
"""
NAMES = [
    "teacher-eo-seed0",
    "sar_only-seed0",
    "logits-eo-seed0",
    "baseline-PSPNet-seed0",
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def plan_of(*rows: dict[str, Any], **keys: Any) -> AblationPlan:
    return parse({"name": "p", "recipe": "r.toml", "rows": rows, **keys}, AblationPlan, source="plan")


SCRIPT = Path(__file__).resolve().parents[2] / "train" / "ablation.py"


def arguments(base: Path, data: Path, *options: str) -> list[str]:
    where = ["--data", str(data), "--runs", str(base / "runs"), "--root", str(base)]
    return [str(SCRIPT), str(base / "plan.toml"), *where, *options]


def test_a_killed_table_is_finished_by_the_same_command(
    base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = base / "runs"
    monkeypatch.setattr(sys, "argv", arguments(base, pairs, "--dry-run"))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    listed = capsys.readouterr().out
    assert [line.split() for line in listed.splitlines() if "seed0" in line] == [
        [name, "4", "new"] for name in NAMES
    ]
    assert not runs.exists()

    command = [sys.executable, *arguments(base, pairs)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    killed = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **quiet)
    deadline = time.monotonic() + 100
    while not (runs / NAMES[1] / "last.ckpt.safetensors").is_file():
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    first = (runs / NAMES[0] / SCORES_NAME).stat().st_mtime_ns
    assert not (runs / NAMES[3]).exists()

    monkeypatch.setattr(sys, "argv", arguments(base, pairs))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (runs / NAMES[0] / SCORES_NAME).stat().st_mtime_ns == first  # not run again
    result = Path(capsys.readouterr().out.strip())
    content = json.loads(result.read_text())
    assert content["benchmark"] == "ablation-tiny"
    keys = ("split", "method", "teacher", "hfam", "seed", "steps")
    assert [tuple(row[key] for key in keys) for row in content["rows"]] == [
        ("default", "teacher", "eo", True, 0, 4),
        ("default", "sar_only", None, True, 0, 4),
        ("default", "logits", "eo", True, 0, 4),
        ("default", "baseline:PSPNet", None, None, 0, 4),
    ]
    row = content["rows"][2]
    assert row["gain_points"] == pytest.approx(100 * (row["miou"] - content["rows"][1]["miou"]))
    assert set(row["iou"]) and "counts" not in row
    table = result.with_suffix(".md").read_text()
    assert "| logits | eo | on |  | 0 |" in table
    assert "not finished" not in table
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_script_for_baselines(
    base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, runs = str(SCRIPT.with_name("baselines.py")), base / "baselines"
    given = [script, str(base / "r.toml"), "--data", str(pairs), "--runs", str(runs), "--arch", "PSPNet"]
    monkeypatch.setattr(sys, "argv", [*given, "--set", "training.seed=1"])
    with pytest.raises(SystemExit, match="training.seed is not for overrides"):
        runpy.run_path(script, run_name="__main__")
    monkeypatch.setattr(sys, "argv", given)
    runpy.run_path(script, run_name="__main__")
    assert "| baseline:PSPNet |" in capsys.readouterr().out
    rows = json.loads((runs / "baselines.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["sar_only", "baseline:PSPNet"]
    assert (runs / "baselines.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_done_once_and_a_changed_recipe_is_refused(base: Path, pairs: Path) -> None:
    plan = read_toml(base / "plan.toml", AblationPlan)
    jobs = select(jobs_of(plan, base=base), "sar_only*")
    table = Table(jobs, pairs, base / "runs")
    told: list[tuple[float, float, str]] = []
    table.run(progress=lambda done, total, text: told.append((done, total, text)))
    assert told[-1] == (4, 4, "ablation 1/1 sar_only-seed0: finished")
    assert {total for _, total, _ in told} == {4}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    told.clear()
    table.run(progress=lambda done, total, text: told.append((done, total, text)))
    assert told == []

    (result,) = table.results()
    counts = sum(sum(map(sum, tile)) for tile in result.counts.values())
    assert counts == result.row["pixels"] > 0
    assert len(result.counts) == result.row["tiles"] == 2

    (base / "r.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 3"))
    other = Table(select(jobs_of(plan, base=base), "sar_only*"), pairs, base / "runs")
    message = "epochs was 2, is 3.*A table takes runs of one plan only: give another --runs"
    with pytest.raises(CheckpointError, match=message):
        other.check()
    with pytest.raises(CheckpointError, match=message):
        other.results()
    (base / "runs" / "sar_only-seed0" / SCORES_NAME).write_text("{}")
    with pytest.raises(CheckpointError, match=r"test.json is damaged \(KeyError: 'counts'\). Remove it"):
        table.results()


def test_processes_give_the_same_scores(base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = plan_of({"method": "logits", "teacher": ["eo"]}, {"method": "baseline", "arch": ["Unet"]})
    jobs = jobs_of(plan, base=base)
    told: list[float] = []
    together = Table(jobs, pairs, base / "together")
    together.run(parallel=2, progress=lambda done, total, text: told.append(done))
    assert told == [4, 8, 12]  # the student waited for its teacher
    one = Table(jobs, pairs, base / "one")
    one.run()
    for first, second in zip(together.results(), one.results(), strict=True):
        assert first.row["miou"] == pytest.approx(second.row["miou"], abs=0.02)  # threads add up differently
        losses = [Run.open(t.runs / first.job.name).metrics()["history"][0]["loss"] for t in (together, one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(summarise([(result.row, result.counts) for result in one.results()])) == 3


def test_a_failure_names_the_run_and_starts_no_other(base: Path, pairs: Path) -> None:
    plan = plan_of(
        {"method": "sar_only"}, {"method": "baseline", "arch": ["Unet"]}, overrides=["training.batch=1"]
    )
    table = Table(jobs_of(plan, base=base), pairs, base / "runs")
    for parallel in (1, 2):
        with pytest.raises(
            HfdEdgeError, match="The run baseline-Unet-seed0 failed: training.batch is 1.*kept"
        ):
            Table(table.jobs[1:], pairs, base / "runs").run(parallel=parallel)
    assert not (base / "runs").exists()


def test_the_shipped_plan_has_what_the_claim_needs() -> None:
    folder = resource_folder("recipes")
    jobs = jobs_of(read_toml(folder / "ablation-ombria.toml", AblationPlan), base=folder)
    spatial = [job for job in jobs if job.split == "spatial"]
    for method in ("teacher", "sar_only", "logits", "hfdm"):
        for inputs in {job.teacher for job in spatial if job.method == method}:
            seeds = {job.seed for job in spatial if (job.method, job.teacher) == (method, inputs)}
            assert len(seeds) >= 3
    assert len({job.method for job in jobs if job.arch}) >= 7
    assert {job.seed for job in jobs if (job.split, job.method) == ("event", "sar_only")} == {0, 1, 2}
    positions = {job.name: position for position, job in enumerate(jobs)}
    assert all(positions[job.taught_by] < positions[job.name] for job in jobs if job.taught_by)


def test_folds_are_runs_of_one_split(base: Path) -> None:
    rows = ({"method": "sar_only"}, {"method": "logits", "teacher": ["eo"], "splits": ["both"]})
    plan = plan_of(*rows, splits=["event", "both"], folds={"both": ["one", "two"]})
    jobs = jobs_of(plan, base=base)
    assert [(job.name, job.split, job.recipe.split, job.folds, job.taught_by) for job in jobs] == [
        ("event-sar_only-seed0", "event", "event", 1, None),
        ("one-sar_only-seed0", "both", "one", 2, None),
        ("two-sar_only-seed0", "both", "two", 2, None),
        ("one-teacher-eo-seed0", "both", "one", 2, None),
        ("one-logits-eo-seed0", "both", "one", 2, "one-teacher-eo-seed0"),
        ("two-teacher-eo-seed0", "both", "two", 2, None),
        ("two-logits-eo-seed0", "both", "two", 2, "two-teacher-eo-seed0"),
    ]
    for faulty in ({"both": ["one", "one"]}, {"both": []}):
        with pytest.raises(HfdEdgeError, match="'folds' needs at least one scheme"):
            plan_of(*rows, folds=faulty)
    with pytest.raises(HfdEdgeError, match="'folds' names 'boht', which is none of the 'splits'"):
        plan_of(*rows, folds={"boht": ["one", "two"]})


def test_folds_test_all_pairs_and_none_twice(base: Path, pairs: Path) -> None:
    root = base / "pool"
    shutil.copytree(pairs / "train", root)
    shutil.copy(pairs / "dataset.toml", root)
    names = sorted(path.stem for path in (root / "sar").iterdir())
    for scheme, test in (("one", names[3:4]), ("two", names[4:])):
        (root / "splits" / scheme).mkdir(parents=True)
        for split, own in (("train", names[:2]), ("val", names[2:3]), ("test", test)):
            (root / "splits" / scheme / f"{split}.txt").write_text("\n".join(own))
    overrides = ["training.epochs=1", "training.batch=2"]
    plan = plan_of({"method": "sar_only"}, splits=["s"], folds={"s": ["one", "two"]}, overrides=overrides)
    table = Table(jobs_of(plan, base=base), root, base / "runs")
    table.run()
    results = table.results()
    assert [(result.row["scheme"], result.row["folds"]) for result in results] == [("one", 2), ("two", 2)]
    (line,) = summarise([(result.row, result.counts) for result in results])
    assert line.split == "s" and line.seeds == (0,)
    total = sum(np.array(count) for result in results for count in result.counts.values())
    pixels = sum(read_image(root / "label" / f"{name}.png").size for name in names[3:])
    assert total.sum() == pixels
    (root / "splits" / "two" / "test.txt").write_text("\n".join(names[3:]))
    with pytest.raises(
        DatasetError, match=rf"one and two both test '{names[3]}' \(1 pairs\), but are folds of s"
    ):
        Table(table.jobs, root, base / "more").check()


def test_the_best_students_recipe_is_that_of_its_row() -> None:
    folder = resource_folder("recipes")
    jobs = jobs_of(read_toml(folder / "ablation-ombria.toml", AblationPlan), base=folder)
    wanted = ("new_flood", "hfdm+logits", 0)
    row = next(job for job in jobs if (job.recipe.split, job.method, job.seed) == wanted)
    recipe = read_toml(folder / "flood.toml", Recipe)
    assert recipe.model_copy(update={"deploy": row.recipe.deploy}) == row.recipe


@pytest.mark.parametrize(
    "plan", sorted(resource_folder("recipes").glob("ablation-*.toml")), ids=lambda p: p.stem
)
def test_shipped_plans_are_valid_and_have_one_budget(plan: Path) -> None:
    jobs = jobs_of(read_toml(plan, AblationPlan), base=plan.parent)
    assert plan.stem == "ablation-" + read_toml(plan, AblationPlan).name
    budget = {(j.recipe.network.init, *training_budget(j.recipe.training)) for j in jobs}
    assert len(budget) == 1
    assert {"teacher", "sar_only", "hfdm+logits"} <= {job.method for job in jobs}


def training_budget(training: Any) -> tuple[Any, ...]:
    return (training.epochs, training.batch, training.crop_px, training.keep, training.label_share)


def test_rows_share_teachers_and_variants_have_names(base: Path) -> None:
    plan = plan_of(
        {"method": "teacher", "teacher": ["eo+sar"], "variant": "m", "overrides": ["network.preset=m"]},
        {"method": "hfdm", "teacher": ["eo", "eo+sar"], "hfam": [True, False]},
        {"method": "hfdm", "teacher": ["eo"], "variant": "pool", "overrides": ["distill.pool=true"]},
        {"method": "cwd", "teacher": ["eo+sar"], "taught_by": "m", "seeds": [5]},
        seeds=[3, 4],
    )
    jobs = {job.name: job for job in jobs_of(plan, base=base)}
    of_seed = [name for name in jobs if name.endswith("seed3")]
    assert of_seed == [
        "teacher-eo+sar-m-seed3",
        "teacher-eo-seed3",
        "hfdm-eo-seed3",
        "hfdm-eo-hfam_off-seed3",
        "teacher-eo+sar-seed3",
        "hfdm-eo+sar-seed3",
        "hfdm-eo+sar-hfam_off-seed3",
        "hfdm-eo-pool-seed3",
    ]
    assert jobs["hfdm-eo+sar-hfam_off-seed3"].taught_by == "teacher-eo+sar-seed3"
    assert jobs["hfdm-eo+sar-hfam_off-seed3"].recipe.network.hfam is False
    assert jobs["hfdm-eo-pool-seed3"].recipe.distill.pool
    assert jobs["cwd-eo+sar-by_m-seed5"].taught_by == "teacher-eo+sar-m-seed5"
    assert jobs["teacher-eo+sar-m-seed5"].recipe.teacher.inputs == "eo+sar"
    assert [job.name for job in select(tuple(jobs.values()), "*pool*seed4")] == [
        "teacher-eo-seed4",
        "hfdm-eo-pool-seed4",
    ]
    with pytest.raises(RecipeError, match=r"No run of the plan matches --only 'x\*'.*teacher-eo"):
        select(tuple(jobs.values()), "x*")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "hfdm"}, "method 'hfdm' needs teacher"),
        ({"method": "sar_only", "teacher": ["eo"]}, "method 'sar_only' takes no teacher"),
        ({"method": "baseline"}, "'arch' is what a row of method 'baseline'"),
        ({"method": "teacher", "teacher": ["eo"], "hfam": [True]}, "method 'teacher' takes no 'hfam'"),
        ({"method": "teacher", "teacher": ["sar"]}, "rows.0.teacher.0"),
        ({"method": "sar_only", "overrides": ["distill.pool=true"]}, "need a 'variant' that names them"),
        (
            {"method": "sar_only", "variant": "long", "overrides": ["training.epochs=9"]},
            "training.epochs is the same for all runs of a plan",
        ),
        (
            {"method": "sar_only", "variant": "m", "overrides": ["network.preset=m"]},
            "network.preset is the same for all runs of a plan",
        ),
        (
            {"method": "sar_only", "variant": "x", "overrides": ["training.seed=9"]},
            "training.seed is not for overrides: a plan has 'seeds' for it",
        ),
        (
            {"method": "sar_only", "variant": "wide", "overrides": ["network.channels=9"]},
            "network.channels is the same for all runs of a plan",
        ),
        (
            {"method": "sar_only", "variant": "x", "overrides": ["training={epochs=9}"]},
            "training.seed is not for overrides",  # a section sets all of its keys
        ),
        ({"method": "sar_only", "seeds": []}, "rows.0.seeds: Tuple should have at least 1 item"),
        ({"method": "sar_only", "unlabelled": ["d"], "variant": "u"}, "neither 'taught_by' nor 'unlabelled'"),
    ],
)
def test_rows_that_make_no_fair_table_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_of(row)


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ([{"method": "sar_only"}] * 2, {}, "Two rows of the plan 'p' ask for the run sar_only-seed0"),
        (
            [{"method": "sar_only"}, {"method": "sar_only", "hfam": [True]}],
            {},
            "Two rows of the plan 'p' ask for the run sar_only-seed0",
        ),
        (
            [
                {"method": "teacher", "teacher": ["eo"], "variant": "m", "overrides": [f"network.preset={p}"]}
                for p in ("m", "l")
            ],
            {},
            "Two rows of the plan 'p' ask for the run teacher-eo-m-seed0",
        ),
        ([{"method": "baseline", "arch": ["Vnet"]}], {}, "no baseline architecture 'Vnet'"),
        ([{"method": "sar_only"}], {"overrides": ["network.init=teacher"]}, "so runs would not start alike"),
        ([{"method": "sar_only"}], {"recipe": "none.toml"}, "There is no file .*none.toml"),
        (
            [{"method": "cwd", "teacher": ["eo"], "taught_by": "m"}],
            {},
            "no row of method 'teacher' with variant 'm' and input 'eo'",
        ),
    ],
)
def test_plans_that_cannot_be_run_are_refused(
    rows: list[dict[str, Any]], keys: dict[str, Any], message: str, base: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        jobs_of(plan_of(*rows, **keys), base=base)


@pytest.mark.parametrize("key", ["training.seed", "distill.method", "teacher.inputs"])
def test_what_a_plan_would_overrule_is_refused(key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key} is not for overrides: a plan has"):
        plan_of({"method": "sar_only"}, overrides=[f"{key}=1"])


class Pool:
    """Stands for the pool of processes: jobs end in the order in which they were submitted, or fail."""

    def __init__(self, failing: str = "", error: Exception | None = None) -> None:
        self.failing = failing
        self.error = error
        self.running: list[Future[None]] = []
        self.started: list[str] = []
        self.most = 0

    def __call__(self, *_: object) -> Pool:
        return self

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, _: object, job: Job, *__: object) -> Future[None]:
        self.started.append(job.name)
        self.running.append(Future())
        self.most = max(self.most, len(self.running))
        return self.running[-1]

    def wait(self, futures: object, **_: object) -> SimpleNamespace:
        future, name = self.running.pop(0), self.started[-len(self.running) - 1]
        if name == self.failing:
            future.set_exception(self.error)
        else:
            future.set_result(None)
        return SimpleNamespace(done={future})


def test_no_run_is_queued_behind_those_that_run(
    base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool starts what is queued in it even after a failure, and after Ctrl-C."""
    jobs = jobs_of(plan_of({"method": "sar_only"}, seeds=range(8)), base=base)
    table = Table(jobs, pairs, base / "runs")

    def run(pool: Pool) -> None:
        monkeypatch.setattr(ablation, "ProcessPoolExecutor", pool)
        monkeypatch.setattr(ablation, "wait", pool.wait)
        table.run(parallel=2)

    good = Pool()
    run(good)
    assert good.most == 2
    assert good.started == [job.name for job in jobs]
    for error, message in (
        (HfdEdgeError("sar_only-seed1 failed"), "sar_only-seed1 failed"),
        (
            BrokenProcessPool("abruptly"),
            "while these ran: sar_only-seed1, sar_only-seed2.*smaller --parallel",
        ),
    ):
        bad = Pool("sar_only-seed1", error)
        with pytest.raises(HfdEdgeError, match=message):
            run(bad)
        assert bad.started == [job.name for job in jobs[:3]]


def test_results_of_other_data_are_refused(base: Path, pairs: Path) -> None:
    data = base / "data"
    shutil.copytree(pairs, data)
    jobs = jobs_of(plan_of({"method": "sar_only"}, overrides=["training.epochs=1"]), base=base)
    table = Table(jobs, data, base / "runs")
    table.run()
    assert len(table.results()) == 1
    (score,) = (base / "runs").glob("*/test.json")
    score.write_text("[]")
    with pytest.raises(CheckpointError, match=r"test.json is damaged \(TypeError: .*Remove it"):
        table.results()
    label = sorted((data / "test" / "label").iterdir())[0]
    label.unlink()
    message = r"another data \(data_sha256\).*give another --runs, or remove .*runs/sar_only-seed0\."
    with pytest.raises(CheckpointError, match=message):
        table.results()


def test_pairs_without_label_leave_the_budget_as_it_is(base: Path, tmp_path: Path) -> None:
    from hfd_edge.datasets.simulated import write_dataset

    write_dataset(tmp_path / "data", train=6, val=1, test=1, size_px=64, seed=1)
    for label in sorted((tmp_path / "data" / "train" / "label").iterdir())[:3]:
        label.unlink()  # half of the pairs serve distillation alone
    jobs = jobs_of(plan_of({"method": "sar_only"}, {"method": "cwd", "teacher": ["eo"]}), base=base)
    steps = Table(jobs, tmp_path / "data", base / "runs").check()
    assert steps == {"sar_only-seed0": 2, "teacher-eo-seed0": 2, "cwd-eo-seed0": 2}
