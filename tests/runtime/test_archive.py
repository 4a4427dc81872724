"""Archives on Ray: each scene once, whatever is killed, corrupt or changed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app
from hfd_edge.cli import archive as archive_command
from hfd_edge.errors import BackendError, BundleError, RasterError, StorageError
from hfd_edge.raster.image import read_image, write_image
from hfd_edge.runtime import archive, cluster
from hfd_edge.runtime import journal as journal_module
from hfd_edge.runtime.archive import ArchiveReport, Cluster, Engine, find_scenes, segment_archive
from hfd_edge.runtime.backends import open_backend
from hfd_edge.runtime.cluster import Answer, Lost, Task, Worker, bundle_key
from hfd_edge.runtime.journal import JOURNAL, Entry, Journal, Stamp
from hfd_edge.runtime.segmenter import Segmenter

Make = Callable[..., np.ndarray]
SCENES, CORRUPT = 40, "scene_17"
TWO = Cluster(workers=2, threads=1)


def write_scenes(folder: Path, make_image: Make, count: int, *, rows: int = 150) -> list[Path]:
    paths = [folder / f"scene_{index:02}.tif" for index in range(count)]
    for index, path in enumerate(paths):
        write_image(path, make_image(rows + index, 140))
    return paths


@pytest.fixture
def ray() -> Iterator[None]:
    """One Ray for all runs of a test: starting it takes seconds."""
    with cluster.connected(TWO):
        yield


def run(bundle: Bundle, scenes: Path, out: Path, **options: object) -> ArchiveReport:
    options = {"cluster": TWO, "engine": Engine(backend="onnxruntime"), **options}
    return segment_archive(bundle, find_scenes([scenes], out=out), out, **options)  # type: ignore[arg-type]


def names(entries: tuple[Entry, ...]) -> list[str]:
    return sorted(Path(entry.scene).stem for entry in entries)


def rows_of(out: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()[1:]]


def workers_of(driver: int) -> list[int]:
    """Ray's workers below a process that hold our actor."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                if title.startswith(b"ray::Worker") and driver in ancestors(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


def test_acceptance(
    ray: None, bundle: Bundle, make_image: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One worker killed, one scene corrupt: 39 masks right, one listed, none twice; resume does the rest."""
    scenes, out = tmp_path / "scenes", tmp_path / "masks"
    paths = write_scenes(scenes, make_image, SCENES)
    corrupt = scenes / f"{CORRUPT}.tif"
    whole = corrupt.read_bytes()
    corrupt.write_bytes(whole[: len(whole) // 2])
    killed: list[int] = []
    told: list[str] = []

    def kill_one(done: float, total: float, text: str) -> None:
        told.append(text)
        if text.startswith("segment 8 of") and not killed:
            killed.append(workers_of(os.getpid())[0])
            os.kill(killed[0], signal.SIGKILL)

    report = run(bundle, scenes, out, progress=kill_one)

    assert killed and report.lost_workers == 1
    assert capfd.readouterr().out == ""  # Ray's own messages would spoil --json
    assert names(report.failed) == [CORRUPT]
    assert "truncated or damaged" in str(report.failed[0].error)
    assert names(report.done) == [path.stem for path in paths if path.stem != CORRUPT]
    assert sorted(row["scene"] for row in rows_of(out)) == sorted(map(str, paths))  # each once
    assert told[-1].startswith("segment 40 of 40 scenes") and told[-1].endswith("1 failed")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [JOURNAL, *(path.name for path in paths if path != corrupt)]
    )
    with Segmenter(bundle, threads=1) as segment:
        for path in paths:
            if path != corrupt:
                assert np.array_equal(read_image(out / path.name)[0], segment(read_image(path)))

    corrupt.write_bytes(whole)
    before = {path: Stamp.of(path) for path in out.glob("*.tif")}
    changed = paths[3]
    write_image(changed, make_image(90, 200))
    again = run(bundle, scenes, out, existing="resume")
    assert names(again.done) == sorted([CORRUPT, changed.stem])
    assert (len(again.kept), again.failed) == (SCENES - 2, ())
    assert {path.name for path, stamp in before.items() if Stamp.of(path) != stamp} == {changed.name}
    assert read_image(out / changed.name).shape == (1, 90, 200)
    last = run(bundle, scenes, out, existing="resume")
    assert (last.done, last.failed, len(last.kept), last.workers) == ((), (), SCENES, 0)


# --- without Ray: the same driver and the same workers, in this process ---------------------------------


class Here:
    """A pool whose workers are objects; `fate` decides what becomes of a call before it is made."""

    hired = 0

    def __init__(self, ray: object, task: Task, cluster: Cluster, *, most: int) -> None:
        self.workers = min(cluster.workers or 1, most)
        self.task = task
        self.waiting: list[tuple[Worker, Callable[[], Answer], Path | None]] = []

    def hire(self) -> None:
        type(self).hired += 1
        worker = Worker(self.task, 1)
        self.waiting.append((worker, worker.start, None))

    def give(self, worker: Worker, scene: Path, mask: Path) -> None:
        self.waiting.append((worker, lambda: worker.segment(scene, mask), scene))

    def next(self) -> tuple[Worker, Answer | Lost]:
        worker, call, scene = self.waiting.pop(0)
        return worker, self.fate(scene) or call()

    def close(self) -> None:
        self.waiting.clear()

    def fate(self, scene: Path | None) -> Lost | None:
        return None


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    """Puts workers into this process, for `run`; a test may give them a fate."""

    class Mine(Here):
        pass

    monkeypatch.setattr(archive, "connected", nullcontext)
    monkeypatch.setattr(archive, "Pool", Mine)
    return Mine


def test_a_scene_that_takes_its_workers_with_it(
    bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here]
) -> None:
    write_scenes(tmp_path / "scenes", make_image, 5)
    deadly = ("scene_02.tif", "scene_03.tif")
    pool.fate = lambda self, scene: Lost("killed by 9") if scene and scene.name in deadly else None  # type: ignore[method-assign]
    report = run(bundle, tmp_path / "scenes", tmp_path / "masks", cluster=Cluster(workers=1))
    assert names(report.done) == ["scene_00", "scene_01", "scene_04"]
    assert names(report.failed) == ["scene_02", "scene_03"]
    assert re.search("3 workers were lost while.*killed by 9.*fewer workers", str(report.failed[0].error))
    assert (report.lost_workers, pool.hired) == (6, 7)


def test_workers_that_never_start(bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here]) -> None:
    write_scenes(tmp_path / "scenes", make_image, 2)
    pool.fate = lambda self, scene: Lost("no module hfd_edge")  # type: ignore[method-assign]
    with pytest.raises(
        BackendError, match="6 workers were lost one after the other before they.*no module hfd_edge"
    ):
        run(bundle, tmp_path / "scenes", tmp_path / "masks")
    assert list((tmp_path / "masks").iterdir()) == []  # nothing that a next run would stumble over


def test_workers_that_cannot_do_it(
    bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "scenes", make_image, 2)
    with pytest.raises(BackendError, match=r"A worker cannot start: .*no fp16 model"):
        run(bundle, tmp_path / "scenes", tmp_path / "a", engine=Engine("onnxruntime", "fp16"))
    monkeypatch.setattr(cluster, "__version__", "0.0.1")
    with pytest.raises(BackendError, match=r"has hfd-edge 0\.0\.1, the run was started with"):
        run(bundle, tmp_path / "scenes", tmp_path / "b")


def test_workers_that_do_not_see_it(bundle: Bundle, tmp_path: Path) -> None:
    task = Task(bundle.path, bundle_key(bundle), Engine(), tmp_path / "masks" / "stage" / "probe")
    assert re.search("masks is not visible on node .*same paths", str(Worker(task, 1).start().error))
    task.probe.parent.mkdir(parents=True)
    task.probe.touch()
    assert Worker(task, 1).start().error is None
    gone = Worker(replace(task, bundle=tmp_path / "nowhere.hfd"), 1).start()
    assert re.search(r"nowhere\.hfd is not visible on node", str(gone.error))
    other = Worker(replace(task, bundle_key="0" * 64), 1).start()
    assert re.search("is another bundle than where the run was started", str(other.error))
    scene = Worker(task, 1).segment(tmp_path / "nowhere.tif", tmp_path / "mask.tif")
    assert re.search(r"nowhere\.tif is not visible on node", str(scene.error))


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        (Cluster(), 0, (3, {"num_cpus": 2})),  # nodes of 4, 3 and 1 cores hold 2 + 1 + 0 workers
        (Cluster(workers=4), 0, (4, {"num_cpus": 2})),
        (Cluster(workers=20), 0, (9, {"num_cpus": 1})),  # there are no more scenes
        (Cluster(threads=3), 0, (2, {"num_cpus": 3})),
        (Cluster(), 2, (2, {"num_cpus": 2, "num_gpus": 1.0})),
        (Cluster(workers=3, threads=1), 2, (3, {"num_cpus": 1, "num_gpus": 0.5})),
    ],
)
def test_workers_fit_the_nodes(asked: Cluster, gpus: int, expected: tuple[int, dict[str, float]]) -> None:
    options: dict[str, float] = {}

    class Ray:
        nodes = staticmethod(lambda: [{"Alive": n != 64, "Resources": {"CPU": n}} for n in (4, 3, 1, 64)])
        cluster_resources = staticmethod(lambda: {"GPU": gpus})
        remote = staticmethod(lambda **given: options.update(given) or (lambda worker: worker))

    engine = Engine(backend="tensorrt" if gpus else "onnxruntime", precision="fp16")
    task = Task(Path("b.hfd"), "key", engine, Path("probe"), gpu=gpus > 0)
    pool = cluster.Pool(Ray, task, asked, most=9)  # type: ignore[arg-type]
    assert (pool.workers, options.items() >= expected[1].items()) == (expected[0], True)
    assert ("num_gpus" in options) == ("num_gpus" in expected[1])
    with pytest.raises(BackendError, match="No node of the Ray cluster at 'local' has 5 CPUs.*--threads"):
        cluster.Pool(Ray, task, Cluster(threads=5), most=9)  # type: ignore[arg-type]
    gpus = 0
    with pytest.raises(BackendError, match="needs a GPU, and Ray knows of none at 'local'.*num-gpus"):
        cluster.Pool(Ray, replace(task, gpu=True), asked, most=9)  # type: ignore[arg-type]


def test_auto_is_chosen_once_for_all_nodes(
    bundle: Bundle,
    make_image: Make,
    tmp_path: Path,
    pool: type[Here],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Workers choose nothing: they may be tuned differently, and the archive would be of two variants."""
    write_scenes(tmp_path / "scenes", make_image, 1)
    given: list[object] = []
    start = Worker.start
    monkeypatch.setattr(
        Worker,
        "start",
        lambda self: given.append(self._task.engine) or start(self),  # type: ignore[func-returns-value]
    )
    run(bundle, tmp_path / "scenes", tmp_path / "masks", engine=Engine())
    assert given == [Engine(backend="onnxruntime", precision="fp32")]
    head = json.loads((tmp_path / "masks" / JOURNAL).read_text().splitlines()[0])
    assert (head["backend"], head["precision"]) == ("onnxruntime", "fp32")
    named = Engine(backend="onnxruntime", precision="fp32")
    again = run(bundle, tmp_path / "scenes", tmp_path / "masks", engine=named, existing="resume")
    assert len(again.kept) == 1, "the name and what was chosen are the same run"
    with pytest.raises(BackendError, match="tensorrt cannot run.*name both --backend and --precision"):
        run(bundle, tmp_path / "scenes", tmp_path / "other", engine=Engine(backend="tensorrt"))
    assert not (tmp_path / "other").exists()
    engines = bundle.manifest.model_copy(update={"engines": {"orin-int8": "engines/orin-int8.engine"}})
    monkeypatch.setattr(archive, "open_backend", lambda *_, **__: open_backend(bundle))
    chosen = archive._chosen(replace(bundle, manifest=engines), Engine(), Cluster(address="auto"))
    assert chosen == named
    assert "was chosen here for all nodes, so the bundle's engines (orin-int8) are not used" in caplog.text


def test_a_scene_that_fails_leaves_the_mask_of_an_earlier_run_alone(
    bundle: Bundle, make_bundle: Callable[..., Bundle], make_image: Make, tmp_path: Path, pool: type[Here]
) -> None:
    paths = write_scenes(tmp_path / "scenes", make_image, 2)
    out = tmp_path / "masks"
    run(bundle, tmp_path / "scenes", out)
    before = (out / "scene_00.tif").read_bytes()
    paths[0].write_bytes(paths[0].read_bytes()[:3000])
    other = make_bundle(name="other.hfd", speckle="none")
    report = run(other, tmp_path / "scenes", out, existing="replace")
    assert names(report.failed) == ["scene_00"]
    assert sorted(path.name for path in out.iterdir()) == [JOURNAL, "scene_00.tif", "scene_01.tif"]
    assert (out / "scene_00.tif").read_bytes() == before


def test_stopped_runs_are_resumed(bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here]) -> None:
    write_scenes(tmp_path / "scenes", make_image, 5)
    out = tmp_path / "masks"

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("segment 3 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bundle, tmp_path / "scenes", out, progress=stop)
    assert sorted(path.name for path in out.iterdir()) == [JOURNAL, *(f"scene_0{i}.tif" for i in range(3))]
    (out / "scene_01.tif").unlink()  # a mask that went away is left to do
    (out / ".writing-archive-killed").mkdir()
    with pytest.raises(StorageError, match=r"archive\.jsonl already exists. Pass --resume.*--overwrite"):
        run(bundle, tmp_path / "scenes", out)
    report = run(bundle, tmp_path / "scenes", out, existing="resume")
    assert names(report.done) == ["scene_01", "scene_03", "scene_04"]
    assert names(report.kept) == ["scene_00", "scene_02"]
    assert not (out / ".writing-archive-killed").exists()


def test_another_bundle_or_engine_is_not_mixed_in(
    bundle: Bundle, make_bundle: Callable[..., Bundle], make_image: Make, tmp_path: Path, pool: type[Here]
) -> None:
    write_scenes(tmp_path / "scenes", make_image, 1)
    run(bundle, tmp_path / "scenes", tmp_path / "masks")
    other = make_bundle(name="other.hfd", speckle="none")
    with pytest.raises(BundleError, match="of a run with another bundle .*start anew with --overwrite"):
        run(other, tmp_path / "scenes", tmp_path / "masks", existing="resume")
    engine = Engine(backend="onnxruntime", overlap_px=32)
    with pytest.raises(BundleError, match=r"another overlap_px \(overlap_px default; now overlap_px 32\)"):
        run(bundle, tmp_path / "scenes", tmp_path / "masks", existing="resume", engine=engine)
    assert len(run(other, tmp_path / "scenes", tmp_path / "masks", existing="replace").done) == 1
    scored = bundle.add({}, metrics={"fp32": {"miou": 0.5}})
    assert bundle_key(scored) == bundle_key(bundle) != bundle_key(other)


def test_masks_that_are_there_already(
    bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here]
) -> None:
    (scene,) = write_scenes(tmp_path / "scenes", make_image, 1)
    out = tmp_path / "masks"
    out.mkdir()
    (out / scene.name).write_text("precious")
    for existing in ("refuse", "resume"):
        with pytest.raises(StorageError, match=r"scene_00\.tif already exists. Pass --overwrite"):
            run(bundle, tmp_path / "scenes", out, existing=existing)
    assert [path.name for path in out.iterdir()] == [scene.name]
    with pytest.raises(StorageError, match="would be replaced by its own mask"):
        segment_archive(bundle, find_scenes([scene], out=tmp_path), scene.parent, existing="replace")
    assert len(run(bundle, tmp_path / "scenes", out, existing="replace").done) == 1


def test_missing_scenes_are_listed_and_subfolders_kept(
    bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here]
) -> None:
    write_scenes(tmp_path / "scenes" / "north", make_image, 2)
    (tmp_path / "list.txt").write_text("# passes\n\nscenes/north/scene_00.tif\nscenes/gone.tif\n")
    found = find_scenes([tmp_path / "list.txt"], out=tmp_path / "a")
    report = segment_archive(bundle, found, tmp_path / "a")
    assert (names(report.done), names(report.failed)) == (["scene_00"], ["gone"])
    assert re.search(r"gone\.tif cannot be read: No such file.*Check the path", str(report.failed[0].error))
    assert (tmp_path / "a" / "scene_00.tif").is_file()
    assert len(run(bundle, tmp_path / "scenes", tmp_path / "b").done) == 2
    assert (tmp_path / "b" / "north" / "scene_01.tif").is_file()


def test_find_scenes(tmp_path: Path) -> None:
    for name in ("a.tif", "b/a.PNG", "b/c.tiff", ".d/e.tif", "f.txt", "masks/a.tif", "b/.g.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = find_scenes([tmp_path], out=tmp_path / "masks")
    assert [scene.mask for scene in found] == ["a.tif", "b/a.tif", "b/c.tif"]
    assert find_scenes([tmp_path / "a.tif", tmp_path / "a.tif"], out="o")[0].path == tmp_path / "a.tif"
    with pytest.raises(RasterError, match=r"a\.tif and .*a\.PNG would both become a\.tif"):
        find_scenes([tmp_path / "a.tif", tmp_path / "b" / "a.PNG"], out="o")
    with pytest.raises(RasterError, match=r"No scenes found in .*f\.txt"):
        find_scenes([tmp_path / "f.txt"], out="o")
    with pytest.raises(RasterError, match="cannot be read as a list of scenes"):
        find_scenes([tmp_path / "no.txt"], out="o")


# --- the journal ----------------------------------------------------------------------------------------

IDENTITY = {"bundle": "0" * 64}


def test_journal_survives_a_torn_line(tmp_path: Path) -> None:
    scene, mask = tmp_path / "s.tif", tmp_path / "m.tif"
    scene.write_text("scene"), mask.write_text("mask")
    entry = Entry(str(scene), "m.tif", None, Stamp.of(scene), Stamp.of(mask), {"seconds": np.float32(1.5)})
    with Journal.open(tmp_path, IDENTITY, resume=False) as journal:
        journal.add(entry)
        journal.add(Entry("other.tif", "o.tif", error="torn"))
    text = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(text[:-9])
    with Journal.open(tmp_path, IDENTITY, resume=True) as journal:
        found = journal.done(scene)
        assert found is not None and found.result == {"seconds": 1.5}
        journal.add(Entry("third.tif", "t.tif", error="failed"))
        assert journal.done(Path("third.tif")) is None
    assert [row["scene"] for row in rows_of(tmp_path)] == [str(scene), "third.tif"]


@pytest.mark.parametrize("changed", ["s.tif", "m.tif"])
def test_journal_knows_changed_files(tmp_path: Path, changed: str) -> None:
    scene, mask = tmp_path / "s.tif", tmp_path / "m.tif"
    scene.write_text("scene"), mask.write_text("mask")
    with Journal.open(tmp_path, IDENTITY, resume=False) as journal:
        journal.add(Entry(str(scene), "m.tif", None, Stamp.of(scene), Stamp.of(mask)))
        assert journal.done(scene) is not None
        os.utime(tmp_path / changed, ns=(1, 1))  # as many bytes
        assert journal.done(scene) is None
        (tmp_path / changed).unlink()
        assert journal.done(scene) is None


def test_a_journal_that_another_run_just_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines in a file without a name would be lost."""
    flock = journal_module.fcntl.flock

    def late(stream: IO[bytes], how: int) -> None:
        (tmp_path / JOURNAL).unlink()
        flock(stream, how)

    monkeypatch.setattr(journal_module.fcntl, "flock", late)
    with pytest.raises(StorageError, match="ended just now. Start this one again"):
        Journal.open(tmp_path, IDENTITY, resume=False)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY, resume=False) as journal:
        journal.add(Entry("a.tif", "a.tif", error="x"))
        for resume in (True, False):
            with pytest.raises(StorageError, match="Another run is segmenting into"):
                Journal.open(tmp_path, IDENTITY, resume=resume)
    assert len(rows_of(tmp_path)) == 1
    Journal.open(tmp_path, IDENTITY, resume=True).close()


@pytest.mark.parametrize("content", [b"not json\n", b"[]\n", b'{"archive": 1}\n{"scene": 3}\n', b"\xff\n"])
def test_damaged_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read as the journal of a run .*--overwrite"):
        Journal.open(tmp_path, {}, resume=True)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_journal_on_a_full_disk(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with Journal.open(tmp_path, IDENTITY, resume=False) as journal, full_disk(200):
        with pytest.raises(StorageError, match="Could not write"):
            journal.add(Entry("a" * 300, "a.tif"))


# --- the command ----------------------------------------------------------------------------------------


def test_command(bundle: Bundle, make_image: Make, tmp_path: Path, pool: type[Here]) -> None:
    paths = write_scenes(tmp_path / "scenes", make_image, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    arguments = ["predict", bundle.path, tmp_path / "scenes", "--out", tmp_path / "masks", "--cluster"]

    def call(*more: str) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments), *more])

    result = call("--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (found["masks"], found["failed"][0]["scene"]) == (1, str(paths[1]))
    assert found["scenes"][0]["mask"] == str(tmp_path / "masks" / paths[0].name)
    assert call().stderr.startswith("error: ") and call().exit_code == 1
    paths[1].write_bytes(paths[0].read_bytes())
    result = call("--resume")
    assert (result.exit_code, "done_before" in result.stdout) == (0, True)
    assert call("--resume", "--overwrite").exit_code == 2
    alone = CliRunner().invoke(app, [*map(str, arguments[:-1]), "--resume"])
    assert (alone.exit_code, "--resume works with --cluster only" in alone.stderr) == (2, True)
    (done,) = json.loads(call("--overwrite", "--json").stdout)["scenes"][:1]
    assert done["stages_ms"].keys() >= {"read", "infer"}  # all of SceneReport
    into_file = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "mask.tif")])
    assert into_file.exit_code == 2


def test_command_warns_of_scenes_unlike_the_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drift = {"findings": ({"message": "VV lies 9.8 dB above training"},)}
    done = tuple(Entry(name, name, result={"drift": found}) for name, found in (("a", drift), ("b", None)))
    report = ArchiveReport(done, (), (), lost_workers=0, workers=1, megapixels=1.0, seconds=1.0)
    archive_command._show(report, tmp_path, as_json=True)
    said = capsys.readouterr()
    assert said.err == "warning: a: VV lies 9.8 dB above training\n"
    assert json.loads(said.out)["masks"] == 2
