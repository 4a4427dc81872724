"""An archive of scenes on many workers: each scene once, whatever happens to a worker or to the run.

The driver alone decides: it hands scenes out, renames a mask into place when its worker has finished it, and
notes that in the journal. A worker that is lost gives its scene back; a scene that fails is noted and the
others go on; a run that was stopped is resumed from the journal.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, RasterError, StorageError
from hfd_edge.files import storage_errors, write_text
from hfd_edge.progress import Progress, silent
from hfd_edge.runtime.backends import GPU_BACKENDS, open_backend
from hfd_edge.runtime.cluster import LOCAL, Answer, Cluster, Engine, Lost, Pool, Task, bundle_key, connected
from hfd_edge.runtime.journal import JOURNAL, Entry, Journal, Stamp

__all__ = ["ArchiveReport", "ArchiveScene", "Cluster", "Engine", "find_scenes", "segment_archive"]

_log = logging.getLogger("hfd_edge.runtime")

Existing = Literal["refuse", "resume", "replace"]

_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".jp2", ".img", ".vrt"})
_ATTEMPTS = 3
"""Workers that a scene may take with it (out of memory, a crash in a driver) before it counts as failed; and
losses in a row of each worker, before it could start, after which the cluster counts as broken."""
_STAGE = ".writing-archive-"


@dataclass(frozen=True)
class ArchiveScene:
    """A scene and where its mask goes.

    Attributes:
        path: Absolute path of the scene.
        mask: Path of the mask below the folder of masks.
    """

    path: Path
    mask: str


@dataclass(frozen=True)
class ArchiveReport:
    """What a run did.

    Attributes:
        done: Scenes that were segmented, in the order in which they finished.
        failed: Scenes that were not, with their errors.
        kept: Scenes that an earlier run had done.
        lost_workers: Workers that were lost and replaced.
        workers: Workers at a time.
        megapixels: Of the scenes in `done`.
        seconds: Wall-clock time, with the start of the workers.
    """

    done: tuple[Entry, ...]
    failed: tuple[Entry, ...]
    kept: tuple[Entry, ...]
    lost_workers: int
    workers: int
    megapixels: float
    seconds: float


def find_scenes(given: Sequence[Path | str], *, out: Path | str) -> tuple[ArchiveScene, ...]:
    """List the scenes of an archive.

    Args:
        given: Scenes; folders, which are searched for rasters at any depth; and text files (.txt) with a
            scene a line, relative to the file, where empty lines and lines with # are passed over.
        out: Folder of the masks; what lies in it is no scene.
    Returns:
        Scenes in the order given, those of a folder by name. Masks take the scene's name, or in folders its
        path below the folder.
    Raises:
        RasterError: nothing was found, or two scenes would share a mask.
    """
    out = Path(out).resolve()
    found = [scene for item in given for scene in _scenes(Path(item), out)]
    if not found:
        raise RasterError(
            f"No scenes found in {', '.join(map(str, given)) or 'nothing'}. Give rasters "
            f"({', '.join(sorted(_SUFFIXES))}), folders of them, or a .txt file with one path a line."
        )
    first: dict[str, Path] = {}
    unique: dict[Path, ArchiveScene] = {scene.path: scene for scene in found}
    for scene in unique.values():
        other = first.setdefault(scene.mask, scene.path)
        if other != scene.path:
            raise RasterError(
                f"{other} and {scene.path} would both become {scene.mask}. Rename one, or segment them into "
                "different folders."
            )
    return tuple(unique.values())


def segment_archive(
    bundle: Bundle,
    scenes: Sequence[ArchiveScene],
    out: Path | str,
    *,
    engine: Engine | None = None,
    cluster: Cluster | None = None,
    existing: Existing = "refuse",
    progress: Progress = silent,
) -> ArchiveReport:
    """Segment many scenes on a Ray cluster, each exactly once.

    Masks appear whole or not at all. `archive.jsonl` beside them says what is done.

    Args:
        bundle: The bundle; its folder must be visible to all nodes, as scenes and masks.
        scenes: What `find_scenes` gives.
        out: Folder of the masks.
        engine: How scenes are segmented. What is "auto" in it is chosen here, once and for all nodes: they
            may have been tuned differently, and masks of two variants would lie side by side. None for all
            "auto".
        cluster: Where; None for this machine.
        existing: What happens to masks that exist: "refuse" them; "resume" keeps those of an earlier run
            whose scene, mask and bundle are as they were; "replace".
        progress: Called with bytes of scenes done, bytes in all, and the count of scenes.
    Raises:
        StorageError: there are masks already, another run works on `out`, or it cannot be written.
        BundleError: the run to resume was of another bundle or engine.
        BackendError: Ray, the bundle or the backend cannot be had on the cluster, or here where it has to
            be chosen.
        MissingExtraError: Ray is not installed.
    """
    started = time.perf_counter()
    out = Path(out).resolve()
    cluster = cluster or Cluster()
    key = bundle_key(bundle)
    _check_masks(scenes, out, existing)
    engine = _chosen(bundle, engine or Engine(), cluster)
    identity = {"bundle": key, "backend": engine.backend, "precision": engine.precision}
    identity["overlap_px"] = "default" if engine.overlap_px is None else str(engine.overlap_px)
    with Journal.open(out, identity, resume=existing == "resume") as journal, _stage(out) as stage:
        run = _Run(scenes, out, stage, journal, progress)
        workers = 0
        if run.waiting:
            write_text(stage / "probe", key)
            task = Task(
                bundle.path.resolve(), key, engine, stage / "probe", gpu=engine.backend in GPU_BACKENDS
            )
            with (
                connected(cluster) as ray,
                contextlib.closing(Pool(ray, task, cluster, most=len(run.waiting))) as pool,
            ):
                workers = pool.workers
                run.drive(pool)
    return run.report(workers=workers, seconds=time.perf_counter() - started)


@dataclass
class _Job:
    """A scene that is waiting or being segmented."""

    index: int
    scene: ArchiveScene
    stamp: Stamp
    attempts: int = 0


@dataclass
class _Tally:
    """What became of the scenes."""

    done: list[Entry] = field(default_factory=list)
    failed: list[Entry] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    bytes: int = 0
    megapixels: float = 0.0


class _Run:
    """The driver's side of a run."""

    def __init__(
        self, scenes: Sequence[ArchiveScene], out: Path, stage: Path, journal: Journal, progress: Progress
    ) -> None:
        self._out = out
        self._stage = stage
        self._journal = journal
        self._progress = progress
        self._tally = _Tally()
        self._lost = 0
        self.waiting: deque[_Job] = deque()
        for index, scene in enumerate(scenes):
            before = journal.done(scene.path)
            if before is not None:
                self._tally.kept.append(before)
                continue
            try:
                self.waiting.append(_Job(index, scene, Stamp.of(scene.path)))
            except OSError as error:
                self._fail(scene, f"{scene.path} cannot be read: {error.strerror or error}. Check the path.")
        self._scenes = len(scenes)
        self._bytes = sum(job.stamp.bytes for job in self.waiting)

    def drive(self, pool: Pool) -> None:
        """Keep the workers busy until no scene is left."""
        busy: dict[Any, _Job] = {}
        idle: list[Any] = []
        lost_starts = 0  # in a row
        for _ in range(pool.workers):
            pool.hire()
        self._tell()
        while self.waiting or busy:
            worker, answer = pool.next()
            job = busy.pop(worker, None)
            if isinstance(answer, Lost):
                lost_starts += job is None
                self._give_back(job, answer)
                if lost_starts >= _ATTEMPTS * pool.workers:
                    raise BackendError(
                        f"{lost_starts} workers were lost one after the other before they could start, the "
                        f"last one with: {answer.reason}. Check memory, and that all nodes have the same "
                        "hfd-edge and Python."
                    )
                pool.hire()
            elif job is not None:
                self._finish(job, answer)
                idle.append(worker)
            elif answer.error is not None:
                raise BackendError(f"A worker cannot start: {answer.error}")
            else:
                lost_starts = 0
                idle.append(worker)
            while idle and self.waiting:
                worker, job = idle.pop(), self.waiting.popleft()
                job.attempts += 1
                busy[worker] = job
                pool.give(worker, job.scene.path, self._staged(job))
            self._tell()

    def report(self, *, workers: int, seconds: float) -> ArchiveReport:
        """Sum up."""
        tally = self._tally
        return ArchiveReport(
            done=tuple(tally.done),
            failed=tuple(tally.failed),
            kept=tuple(tally.kept),
            lost_workers=self._lost,
            workers=workers,
            megapixels=tally.megapixels,
            seconds=seconds,
        )

    def _give_back(self, job: _Job | None, lost: Lost) -> None:
        """Let another worker do the scene of a lost one, unless it took too many with it."""
        self._lost += 1
        _log.warning("a worker was lost (%s)", lost.reason)
        if job is None:
            return
        if job.attempts < _ATTEMPTS:
            self.waiting.appendleft(job)
            return
        error = (
            f"{job.scene.path}: {job.attempts} workers were lost while they segmented it, the last one with: "
            f"{lost.reason}. Probably memory does not suffice: use fewer workers."
        )
        self._fail(job.scene, error, job)

    def _finish(self, job: _Job, answer: Answer) -> None:
        if answer.error is not None:
            self._fail(job.scene, answer.error, job)
            return
        mask = self._out / job.scene.mask
        with storage_errors(mask):
            mask.parent.mkdir(parents=True, exist_ok=True)
            self._staged(job).replace(mask)
            entry = Entry(
                scene=str(job.scene.path),
                mask=job.scene.mask,
                stamp=job.stamp,
                mask_stamp=Stamp.of(mask),
                result=answer.result,
            )
        self._journal.add(entry)
        self._tally.done.append(entry)
        self._tally.megapixels += answer.result["megapixels"]
        self._tally.bytes += job.stamp.bytes

    def _fail(self, scene: ArchiveScene, error: str, job: _Job | None = None) -> None:
        entry = Entry(str(scene.path), scene.mask, error=error, stamp=None if job is None else job.stamp)
        self._journal.add(entry)
        self._tally.failed.append(entry)
        self._tally.bytes += 0 if job is None else job.stamp.bytes

    def _staged(self, job: _Job) -> Path:
        """Where a worker writes: a name of this run, scene and attempt alone."""
        return self._stage / f"{job.index:06}-{job.attempts}.tif"

    def _tell(self) -> None:
        tally = self._tally
        count = len(tally.done) + len(tally.failed) + len(tally.kept)
        text = f"segment {count} of {self._scenes} scenes, {tally.megapixels:.0f} Mpx"
        if tally.failed:
            text += f", {len(tally.failed)} failed"
        self._progress(tally.bytes, self._bytes, text)


def _chosen(bundle: Bundle, engine: Engine, cluster: Cluster) -> Engine:
    """Put names in the place of "auto", as this machine chooses."""
    if "auto" not in (engine.backend, engine.precision):
        return engine
    try:
        opened = open_backend(
            bundle, backend=engine.backend, precision=engine.precision, threads=cluster.threads
        )
    except BackendError as error:
        raise BackendError(
            f"{error} It is chosen where the run is started; if other nodes can run it, name both --backend "
            "and --precision."
        ) from error
    with contextlib.closing(opened):
        if bundle.manifest.engines and opened.name not in GPU_BACKENDS and cluster.address != LOCAL:
            text = (
                "%s %s was chosen here for all nodes, so the bundle's engines (%s) are not used; if nodes "
                "have GPUs for them, name --backend and --precision"
            )
            _log.warning(text, opened.name, opened.precision, ", ".join(bundle.manifest.engines))
        return replace(engine, backend=opened.name, precision=opened.precision)


def _scenes(item: Path, out: Path) -> Iterator[ArchiveScene]:
    if item.is_dir():
        root = item.absolute()
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            hidden = any(part.startswith(".") for part in relative.parts)
            inside = out in path.resolve().parents
            if path.suffix.lower() in _SUFFIXES and not hidden and not inside and path.is_file():
                yield ArchiveScene(path, relative.with_suffix(".tif").as_posix())
        return
    paths: Iterable[Path] = [item]
    if item.suffix.lower() == ".txt":
        try:
            lines = [line.strip() for line in item.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise RasterError(
                f"{item} cannot be read as a list of scenes: {error}. Check the file."
            ) from error
        paths = [item.parent / line for line in lines if line and not line.startswith("#")]
    for path in paths:
        yield ArchiveScene(path.absolute(), path.with_suffix(".tif").name)


def _check_masks(scenes: Sequence[ArchiveScene], out: Path, existing: Existing) -> None:
    """Refuse to replace masks unasked, and scenes by masks."""
    for scene in scenes:
        mask = out / scene.mask
        if mask.exists() and scene.path.exists() and mask.samefile(scene.path):
            raise StorageError(
                f"{scene.path} would be replaced by its own mask. Choose another --out than the folder of "
                "scenes."
            )
    known = (out / JOURNAL).exists()
    if existing == "replace" or (existing == "resume" and known):
        return
    taken = next((out / scene.mask for scene in scenes if (out / scene.mask).exists()), None)
    taken = out / JOURNAL if known else taken
    if taken is not None:
        fix = "--resume to go on with it, --overwrite to start anew" if known else "--overwrite"
        raise StorageError(f"{taken} already exists. Pass {fix}, or choose another --out.")


@contextlib.contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """A folder beside the masks for what is not finished; what a killed run left there goes away."""
    for old in out.glob(f"{_STAGE}*"):
        shutil.rmtree(old, ignore_errors=True)
    stage = out / f"{_STAGE}{secrets.token_hex(4)}"
    with storage_errors(stage):
        stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
