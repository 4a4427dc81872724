"""Workers on a Ray cluster, each with a segmenter of its own; the driver hands them one scene at a time.

Ray starts processes and says when one of them is lost; what that means for a scene is decided in `archive`.
Workers write masks to names that the driver gives them and that nobody else uses, so a worker that was
only believed lost does no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hfd_edge import __version__
from hfd_edge.bundle import Bundle
from hfd_edge.environment import allowed_cores
from hfd_edge.errors import BackendError, HfdEdgeError, require

_log = logging.getLogger("hfd_edge.runtime")

LOCAL = "local"
_CPUS = 2
"""Cores of a worker where nothing else is said: few, because scenes beside each other need no waiting for one
another, as threads within a tile do."""
_EXCERPT = 160
_STORE_BYTES = 80 << 20  # what Ray takes at the least; only paths and small reports pass through it


@dataclass(frozen=True)
class Cluster:
    """Where the workers run.

    Attributes:
        address: "local" for this machine, or what `ray.init` takes: "auto", "host:port", "ray://host:port".
        workers: How many; None for as many as there is room for.
        threads: CPU threads of each; None shares the cores out to `workers`, or takes two.
    """

    address: str = LOCAL
    workers: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Engine:
    """How scenes are segmented; see `Segmenter`. Workers are given names, never "auto"."""

    backend: str = "auto"
    precision: str = "auto"
    overlap_px: int | None = None


@dataclass(frozen=True)
class Task:
    """What every worker is told.

    Attributes:
        bundle: Its folder.
        bundle_key: `bundle_key` of it.
        engine: How scenes are segmented.
        probe: A file that the driver wrote where the masks go.
        gpu: Whether the backend needs a GPU.
        version: The driver's hfd-edge.
    """

    bundle: Path
    bundle_key: str
    engine: Engine
    probe: Path
    gpu: bool = False
    version: str = __version__


@dataclass(frozen=True)
class Answer:
    """What a worker says.

    Attributes:
        error: What went wrong; None where nothing did.
        result: `SceneReport` as values, and "backend", "precision", "node".
    """

    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """A worker that is gone: killed, out of memory, or its node was lost."""

    reason: str


class Worker:
    """Runs in a process of its own; nothing it does raises, so what comes as an exception is Ray's."""

    def __init__(self, task: Task, threads: int) -> None:
        self._task = task
        self._threads = threads
        self._segment: Any = None

    def start(self) -> Answer:
        """Check that this node sees what the driver sees, and load the model."""
        return self._answer(self._open)

    def segment(self, scene: Path, mask: Path) -> Answer:
        """Segment a scene."""
        return self._answer(lambda: self._scene(scene, mask))

    def _answer(self, work: Any) -> Answer:
        try:
            return Answer(result={**work(), "node": platform.node()})
        except HfdEdgeError as error:
            return Answer(error=str(error))
        except Exception as error:  # a fault of ours must not end the run of an archive
            _log.exception("unexpected error")
            return Answer(error=f"{type(error).__name__}: {error}")

    def _open(self) -> dict[str, Any]:
        from hfd_edge.runtime.segmenter import Segmenter

        task = self._task
        if task.version != __version__:
            raise BackendError(
                f"Node {platform.node()} has hfd-edge {__version__}, the run was started with "
                f"{task.version}. Install the same version on all nodes."
            )
        for path, folder in ((task.bundle, task.bundle), (task.probe, task.probe.parent.parent)):
            if not path.exists():
                raise BackendError(
                    f"{folder} is not visible on node {platform.node()}. Bundle, scenes and masks must have "
                    "the same paths on all nodes, for example on a shared file system."
                )
        bundle = Bundle.open(task.bundle)
        if bundle_key(bundle) != task.bundle_key:
            raise BackendError(
                f"{task.bundle} on node {platform.node()} is another bundle than where the run was started. "
                "Give a path that means the same on all nodes."
            )
        self._segment = Segmenter(bundle, threads=self._threads, **asdict(task.engine))
        return {}

    def _scene(self, scene: Path, mask: Path) -> dict[str, Any]:
        if not scene.exists():  # it was there where the run was started
            raise BackendError(
                f"{scene} is not visible on node {platform.node()}. Scenes must have the same paths on all "
                "nodes, for example on a shared file system."
            )
        report = self._segment.scene(scene, mask)
        return {**asdict(report), "backend": self._segment.backend, "precision": self._segment.precision}


class Pool:
    """Workers, and what they are at.

    Attributes:
        workers: How many there shall be.
        threads: CPU threads of each.
    """

    def __init__(self, ray: ModuleType, task: Task, cluster: Cluster, *, most: int) -> None:
        """Decide how many workers there are; `hire` starts them.

        Args:
            ray: The connected module.
            task: What the workers are told.
            cluster: How many of what size are wanted.
            most: Workers of use: no more than there are scenes.
        Raises:
            BackendError: no node is large enough for a worker, or none has a GPU and the backend needs one.
        """
        self._ray = ray
        self._running: dict[Any, Any] = {}  # what is waited for, and the worker that does it
        self._hired: list[Any] = []
        self.threads = cluster.threads or _threads(ray, cluster.workers)
        room = _room(ray, self.threads)
        if room == 0:
            raise BackendError(
                f"No node of the Ray cluster at {cluster.address!r} has {self.threads} CPUs, which a worker "
                "wants. Give less with --threads."
            )
        seen = int(ray.cluster_resources().get("GPU", 0))
        if task.gpu and not seen:  # Ray would hide the one that there is
            raise BackendError(
                f"Backend {task.engine.backend} needs a GPU, and Ray knows of none at {cluster.address!r}. "
                "Start the nodes that have some with `ray start --num-gpus COUNT` and pass --address auto, "
                "or pass --backend onnxruntime."
            )
        gpus = seen if task.gpu else 0
        self.workers = min(cluster.workers or min(room, gpus or room), most)
        if self.workers > room:
            _log.warning(
                "the cluster has room for %d of %d workers with %d threads; the others wait for more",
                *(room, self.workers, self.threads),
            )
        options: dict[str, Any] = {"num_cpus": self.threads, "max_restarts": 0, "max_task_retries": 0}
        if task.gpu:
            options["num_gpus"] = 1 / -(-self.workers // gpus)  # Ray hides GPUs that are not asked for
        self._actor = ray.remote(**options)(Worker)
        self._task = task

    def hire(self) -> None:
        """Start a worker; `next` gives its first answer once it is ready for scenes."""
        worker = self._actor.remote(self._task, self.threads)
        self._hired.append(worker)
        self._running[worker.start.remote()] = worker

    def give(self, worker: Any, scene: Path, mask: Path) -> None:
        """Let a worker segment a scene."""
        self._running[worker.segment.remote(scene, mask)] = worker

    def next(self) -> tuple[Any, Answer | Lost]:
        """Wait until a worker answers or is lost."""
        (ready, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        worker = self._running.pop(ready)
        try:
            answer: Answer = self._ray.get(ready)
            return worker, answer
        except self._ray.exceptions.RayError as error:
            self._ray.kill(worker)  # if it was only cut off, it shall not come back
            return worker, Lost(_line(error))

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for worker in self._hired:
            self._ray.kill(worker)


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[ModuleType]:
    """Start Ray on this machine, or connect to a cluster, for the block; quiet, and telling nobody.

    A connection that the process has already is used, and kept.

    Raises:
        MissingExtraError: Ray is not installed.
        BackendError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when a cluster starts
    # Read when Ray is imported. It would print to stdout that a worker was lost, which the driver logs.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    ray = require("ray", extra="cluster", purpose="Segmenting an archive on a cluster")
    if ray.is_initialized():
        yield ray
        return
    with contextlib.ExitStack() as stack:
        usual = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if cluster.address == LOCAL:
            # A short path, because sockets are in it; a folder of our own leaves no logs behind.
            folder = tempfile.mkdtemp(prefix="hfd-ray-", dir="/tmp" if Path("/tmp").is_dir() else None)  # noqa: S108
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            cores = max(len(allowed_cores()), (cluster.workers or 1) * (cluster.threads or 1))
            options |= {"num_cpus": cores, "include_dashboard": False, "_temp_dir": folder}
            options |= {"object_store_memory": _STORE_BYTES}
        stack.callback(ray.shutdown)
        try:
            ray.init(address=cluster.address, **options)
        except Exception as error:  # ConnectionError, RuntimeError and Ray's own
            raise BackendError(
                f"Ray could not be reached at {cluster.address!r}: {_line(error)}. Start a cluster "
                "with `ray start --head` and give its address (if it wants a token, set RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN here too), or leave the address away for this machine."
            ) from error
        _keep_sigterm(usual)
        yield ray


def bundle_key(bundle: Bundle) -> str:
    """Hash what the masks depend on: not scores and origin, and not files that no segmenter reads."""
    manifest = bundle.manifest
    content = manifest.model_dump(mode="json", exclude={"metrics", "provenance", "files"})
    models = [*manifest.precisions.values(), *manifest.engines.values()]
    content["models"] = {relpath: manifest.files[relpath] for relpath in models}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _keep_sigterm(usual: Any) -> None:
    """Put a program's own handler back, which Ray replaces: the exit status would be another one."""
    if callable(usual) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, usual)


def _line(error: Exception) -> str:
    """What Ray says, without the identifiers before the reason and the general advice behind it."""
    text = " ".join(str(error).split())
    text = (text.partition(" because ")[2] or text).partition(" Some common causes")[0].rstrip(". ")
    return text if len(text) <= 2 * _EXCERPT else f"{text[:_EXCERPT]} ... {text[-_EXCERPT:]}"


def _nodes(ray: ModuleType) -> list[int]:
    """CPUs of the nodes that are alive."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def _threads(ray: ModuleType, workers: int | None) -> int:
    nodes = _nodes(ray)
    if workers is None:
        return max(1, min(_CPUS, max(nodes, default=1)))
    return max(1, min(sum(nodes) // workers, max(nodes, default=1)))


def _room(ray: ModuleType, threads: int) -> int:
    """Workers that the nodes can hold."""
    return sum(cpus // threads for cpus in _nodes(ray))
