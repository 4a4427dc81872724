"""A small report with known numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfd_edge.report.curves import plot_curves
from hfd_edge.report.html import DemoReport, ScenePictures
from hfd_edge.report.pictures import TilePictures, label_picture, sar_picture, tile_pictures

CLASSES = ("water", "field", "forest")
PALETTE = ((38, 96, 168), (214, 190, 92), (44, 122, 66))


@pytest.fixture
def classes() -> tuple[str, ...]:
    return CLASSES


@pytest.fixture
def palette() -> tuple[tuple[int, int, int], ...]:
    return PALETTE


@pytest.fixture
def history() -> list[dict[str, object]]:
    """Six epochs; the fourth is the best."""
    miou = (0.2, 0.4, 0.5, 0.72, 0.7, 0.71)
    return [
        {
            "epoch": epoch,
            "step": epoch * 10,
            "loss": 2.0 / epoch,
            "ce": 1.2 / epoch,
            "dice": 0.8 / epoch,
            "lr": 1e-3,
            "miou": score,
            "iou": {"water": score, "field": score - 0.1, "forest": None},
        }
        for epoch, score in enumerate(miou, start=1)
    ]


@pytest.fixture
def tile() -> TilePictures:
    """A 24 x 20 tile whose INT8 was not built; FP32 is right everywhere but in one of the 480 pixels."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (24, 20)).astype(np.uint8)
    fp32 = truth.copy()
    fp32[3, 4] = (fp32[3, 4] + 1) % 3
    return tile_pictures(
        "tile_0007",
        sar=rng.normal(-12, 3, (2, 24, 20)).astype(np.float32),
        eo=rng.random((3, 24, 20)).astype(np.float32),
        truth=truth,
        predictions={"sar_only": truth, "fp32": fp32, "fp16": fp32},
        palette=PALETTE,
    )


@pytest.fixture
def report(tmp_path: Path, tile: TilePictures, history: list[dict[str, object]]) -> DemoReport:
    """FP32 gains 4.2 points over SAR only, INT8 loses 0.6 of them again."""
    plot_curves(history, tmp_path / "curves.png")
    miou = {"teacher": 0.871, "sar_only": 0.742, "fp32": 0.784, "fp16": 0.7841, "int8": 0.778}
    labels = np.zeros((16, 16), np.uint8)
    return DemoReport(
        title="A run on three classes",
        machine="a test machine",
        seconds=725.0,
        classes=CLASSES,
        palette=PALETTE,
        summary={
            "miou": miou,
            "engines": [
                {"target": "rtx-turing-plus", "precision": "fp16", "bytes": 8_731_264, "seconds": 21.3}
            ],
            "scene": {"megapixels": 16.777216, "seconds": 12.0},
            "bundle": "runs/demo/student.hfd",
        },
        iou={
            variant: {"water": score + 0.05, "field": score - 0.05, "forest": None}
            for variant, score in miou.items()
        },
        tiles=[tile],
        scene=ScenePictures(
            sar=sar_picture(np.zeros((1, 16, 16))), mask=label_picture(labels, PALETTE), note="16 x 16 pixels"
        ),
        curves={"Distilled student": tmp_path / "curves.png"},
        built=["A bundle with three models."],
        not_verified=["No engine was run on a GPU."],
        commands={"Segment a scene": "hfd-edge predict runs/demo/student.hfd SCENE.tif --out mask.tif"},
        data="Eight simulated tiles.",
        created="2025-01-02 03:04 UTC",
    )
