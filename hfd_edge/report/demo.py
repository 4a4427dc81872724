"""Collects what a demo left in its folder into the report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hfd_edge import __version__
from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.environment import allowed_cores
from hfd_edge.evaluation import open_predictor
from hfd_edge.raster.scene import SceneReader
from hfd_edge.report.html import DemoReport, ScenePictures, render
from hfd_edge.report.pictures import (
    TilePictures,
    label_picture,
    sar_picture,
    shrink_labels,
    shrink_values,
)
from hfd_edge.report.tiles import draw_tiles
from hfd_edge.sar.radiometry import intensity_to_db, to_intensity

_NOT_VERIFIED = (
    "The engines were built ahead of time without a GPU. They were not loaded or run: that needs one of the "
    "GPUs that the target names.",
    "FP16 and INT8 scores are those of the ONNX models on ONNX Runtime's CPU kernels; TensorRT rounds in "
    "another order, so labels on a GPU can differ on a few pixels.",
    "The time of the scene is this CPU's; it says nothing about a Jetson or a desktop GPU.",
    "The data are simulated: the scores show that the road works, not what real scenes give.",
)


def write_report(
    out: Path, summary: Mapping[str, Any], *, scores: Mapping[str, Mapping[str, Any]], seconds: float
) -> None:
    """Write `out`/report.html.

    Args:
        out: A finished demo's folder.
        summary: Content of summary.json.
        scores: Scores by variant, as `hfd_edge.evaluation.measure` gives them.
        seconds: Wall-clock time of the run.
    """
    bundle = Bundle.open(summary["bundle"])
    manifest = bundle.manifest
    folder = PairFolder.open(out / "data" / "pairs")
    counts = {split: len(folder.pairs(split)) for split in folder.splits}
    render(
        DemoReport(
            title="hfd-edge demo",
            machine=machine_text(),
            seconds=seconds,
            classes=manifest.classes,
            palette=manifest.palette,
            summary=summary,
            iou={name: score["iou"] for name, score in scores.items()},
            tiles=_tiles(out, folder, bundle),
            scene=_scene(out, manifest.palette),
            curves={
                caption: out / "runs" / name / "curves.png"
                for name, caption in (("teacher", "Teacher (EO)"), ("student", "Distilled student (SAR)"))
            },
            built=_built(bundle, counts),
            not_verified=_NOT_VERIFIED,
            commands=_commands(out, bundle.path),
            data=f"Simulated pairs with known truth: {counts.get('train')} for training, "
            f"{counts.get('val')} for validation, {counts.get('test')} for the scores below.",
            created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        ),
        out / "report.html",
    )


def machine_text() -> str:
    """This machine in words: processor, cores, system, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    cores = len(allowed_cores())
    python = platform.python_version()
    return f"{model}, {cores} cores, {platform.system()}, Python {python}, hfd-edge {__version__}"


def _tiles(out: Path, folder: PairFolder, bundle: Bundle) -> list[TilePictures]:
    with ExitStack() as stack:
        predict = {"sar_only": stack.enter_context(open_predictor(out / "runs" / "sar_only"))}
        for precision in ("fp32", "fp16", "int8"):
            predict[precision] = stack.enter_context(open_predictor(bundle.path, precision=precision))
        return draw_tiles(folder, predict, split="test", count=3)


def _scene(out: Path, palette: Any, *, side_px: int = 900) -> ScenePictures:
    with SceneReader(out / "data" / "scene.tif") as scene, SceneReader(out / "scene_mask.tif") as mask:
        image = scene.read(0, scene.rows)
        labels = mask.read(0, mask.rows)[0]
        size = f"{scene.rows} x {scene.cols} pixels"
    # Averaging power and then taking the logarithm is multi-looking; averaging dB would be biased.
    power = shrink_values(to_intensity(image, units="intensity", nodata=0.0), side_px=side_px)
    picture = sar_picture(np.asarray(intensity_to_db(power), np.float32))
    return ScenePictures(
        sar=picture, mask=label_picture(shrink_labels(labels, side_px=side_px), palette), note=size
    )


def _built(bundle: Bundle, counts: Mapping[str, int]) -> list[str]:
    sizes = {p: (bundle.path / f).stat().st_size / 1e6 for p, f in bundle.manifest.precisions.items()}
    models = ", ".join(f"{precision.upper()} {size:.1f} MB" for precision, size in sizes.items())
    return [
        f"Simulated {sum(counts.values())} EO/SAR/label pairs and a GeoTIFF scene.",
        "An EO teacher, a SAR-only student and a distilled SAR student, with the same seed, start and steps.",
        f"A bundle with ONNX models ({models}), preprocessing, classes, {len(bundle.golden())} golden tiles "
        "and the SHA-256 of every file.",
        f"TensorRT-RTX engines: {', '.join(bundle.manifest.engines)}.",
        "A mask of the scene with its CRS, transform, colour table, no-data and overviews.",
    ]


def _commands(out: Path, bundle: Path) -> dict[str, str]:
    return {
        "Segment a scene of your own": f"hfd-edge predict {bundle} SCENE.tif --out mask.tif",
        "See what the bundle holds": f"hfd-edge inspect {bundle}",
        "Measure a variant": f"hfd-edge evaluate {bundle} --data {out / 'data' / 'pairs'} --precision int8",
        "Train on your own pairs": "hfd-edge train teacher RECIPE.toml --data DIR --out runs/teacher",
    }
