"""The whole road once, on simulated pairs: what `hfd-edge demo` runs.

Every stage leaves its result in the demo's folder and is skipped when that is there, so an interrupted
demo goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfd_edge.bundle import Bundle
from hfd_edge.config import Recipe, read_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import write_dataset, write_scene
from hfd_edge.errors import StorageError
from hfd_edge.evaluation import measure
from hfd_edge.files import atomic_folder, resource_folder, write_json
from hfd_edge.progress import Progress, silent

TARGET = "desktop-rtx"
_SEED = 7


@dataclass(frozen=True)
class DemoSize:
    """How much the demo makes; the default takes two cores ten to fifteen minutes.

    Attributes:
        train, val, test: Simulated pairs of each split.
        tile_px: Side of a pair's tile, pixels.
        scene_px: Side of the scene that is segmented at the end, pixels.
        calibration_tiles: Tiles for the INT8 calibration.
    """

    train: int = 160
    val: int = 16
    test: int = 32
    tile_px: int = 256
    scene_px: int = 4096
    calibration_tiles: int = 32


def run_demo(
    out: Path,
    *,
    recipe: Recipe | None = None,
    size: DemoSize | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Simulate, train, export, quantise, build, segment and report.

    Args:
        out: Folder for all of it; report.html and summary.json are the results.
        recipe: Defaults to train/recipes/demo.toml.
        size: How much to simulate.
        fresh: Remove what an earlier demo left in `out`.
        progress: Told of every stage.
    Returns:
        The content of summary.json: `miou` of teacher, sar_only, fp32, fp16, int8 on the test split,
        `engines`, `scene` and the path of the `bundle`.
    Raises:
        StorageError: `out` holds something that is not a demo, or one of another size or recipe.
    """
    recipe = recipe or read_toml(resource_folder("recipes") / "demo.toml", Recipe)
    size = size or DemoSize()
    started = time.monotonic()
    _claim(out, recipe, size, fresh=fresh)
    folder = _data(out, size, progress)
    runs = _train(out, folder, recipe, progress)
    bundle = _deploy(out, folder, runs["student"], size, progress)
    engines = _engines(bundle, progress)
    scores = _scores(out, bundle.path, progress)
    scene = _scene(out, Bundle.open(bundle.path), progress)
    summary = {
        "miou": {name: score["miou"] for name, score in scores.items()},
        "engines": engines,
        "scene": scene,
        "bundle": str(bundle.path),
    }
    write_json(out / "summary.json", summary)
    from hfd_edge.report.demo import write_report

    write_report(out, summary, scores=scores, seconds=_spent(out, time.monotonic() - started))
    return summary


def _spent(out: Path, seconds: float) -> float:
    """Seconds of all calls together: one that finds every stage finished says nothing of what they took."""
    path = out / "seconds.json"
    before = float(json.loads(path.read_text("utf-8"))) if path.is_file() else 0.0
    write_json(path, before + seconds)
    return before + seconds


def _claim(out: Path, recipe: Recipe, size: DemoSize, *, fresh: bool) -> None:
    """Mark `out` as a demo of this recipe and size, or refuse to mix it with another."""
    marker = out / "demo.json"
    wanted = {"recipe": recipe.model_dump(mode="json"), "size": asdict(size)}
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise StorageError(f"{out} holds files that are not a demo's. Choose another --out.")
    if fresh and marker.is_file():
        shutil.rmtree(out)
    if not marker.is_file():
        write_json(marker, wanted)
    elif json.loads(marker.read_text("utf-8")) != wanted:
        raise StorageError(
            f"{out} holds a demo of another recipe or size. Start again with --fresh, or choose another "
            "--out."
        )


def _data(out: Path, size: DemoSize, progress: Progress) -> PairFolder:
    path = out / "data"
    if not path.is_dir():
        with atomic_folder(path) as staged:
            write_dataset(
                staged / "pairs",
                train=size.train,
                val=size.val,
                test=size.test,
                size_px=size.tile_px,
                seed=_SEED,
                progress=progress,
            )
            write_scene(
                staged / "scene.tif",
                rows=size.scene_px,
                cols=size.scene_px,
                seed=_SEED + 1_000_000,
                progress=progress,
            )
    return PairFolder.open(path / "pairs")


def _train(out: Path, folder: PairFolder, recipe: Recipe, progress: Progress) -> dict[str, Path]:
    """Teacher, SAR-only student and distilled student: same seed, same steps, same start."""
    from hfd_edge.report.curves import plot_run_curves
    from hfd_edge.training.fit import train_student, train_teacher

    runs = {name: out / "runs" / name for name in ("teacher", "sar_only", "student")}
    sar_only = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"method": "none"})})
    train_teacher(
        folder,
        recipe,
        runs["teacher"],
        resume=runs["teacher"].exists(),
        progress=progress,
        on_epoch=plot_run_curves,
    )
    for name, own, teacher in (("sar_only", sar_only, None), ("student", recipe, runs["teacher"])):
        train_student(
            folder,
            own,
            runs[name],
            teacher=teacher,
            resume=runs[name].exists(),
            progress=progress,
            on_epoch=plot_run_curves,
        )
    return runs


def _deploy(out: Path, folder: PairFolder, student: Path, size: DemoSize, progress: Progress) -> Bundle:
    from hfd_edge.deploy.export import export_run
    from hfd_edge.deploy.quantize import quantize

    path = out / "demo.hfd"
    bundle = (
        Bundle.open(path) if path.is_dir() else export_run(student, path, folder=folder, progress=progress)
    )
    if {"fp16", "int8"} <= set(bundle.precisions):
        return bundle
    return quantize(bundle, folder, tiles=size.calibration_tiles, progress=progress)


def _engines(bundle: Bundle, progress: Progress) -> list[dict[str, Any]]:
    """Build the FP16 and INT8 engines; what each cost is in the sidecar beside it."""
    from hfd_edge.deploy.build import build
    from hfd_edge.deploy.targets import load_target

    precisions = ("fp16", "int8")
    if not {f"{TARGET}-{precision}" for precision in precisions} <= set(bundle.manifest.engines):
        build(bundle, load_target(TARGET), precisions=precisions, progress=progress)
        bundle = Bundle.open(bundle.path)
    rows = []
    for precision in precisions:
        name = f"{TARGET}-{precision}"
        sidecar = json.loads(bundle.file(f"engines/{name}.json").read_text("utf-8"))
        rows.append({"target": TARGET, **{key: sidecar[key] for key in ("precision", "bytes", "seconds")}})
    return rows


def _scores(out: Path, bundle: Path, progress: Progress) -> dict[str, dict[str, Any]]:
    path = out / "scores.json"
    if path.is_file():
        return dict(json.loads(path.read_text("utf-8")))
    data = out / "data" / "pairs"
    scores = {name: measure(out / "runs" / name, data, progress=progress) for name in ("teacher", "sar_only")}
    for precision in ("fp32", "fp16", "int8"):
        scores[precision] = measure(bundle, data, precision=precision, progress=progress)
    write_json(path, scores)
    return scores


def _scene(out: Path, bundle: Bundle, progress: Progress) -> dict[str, float]:
    from hfd_edge.runtime.segmenter import Segmenter

    mask, record = out / "scene_mask.tif", out / "scene.json"
    if not (mask.is_file() and record.is_file()):
        with Segmenter(bundle) as segment:
            report = segment.scene(out / "data" / "scene.tif", mask, progress=progress)
        write_json(record, {"megapixels": report.megapixels, "seconds": report.seconds})
    return dict(json.loads(record.read_text("utf-8")))
