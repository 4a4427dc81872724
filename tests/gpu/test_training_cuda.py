"""Training, evaluation and resuming on a CUDA device; run with: pytest -m gpu tests/gpu."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfd_edge.config import Recipe
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.datasets.simulated import write_dataset
from hfd_edge.hfdnet.alignment import warp
from hfd_edge.hfdnet.run import Run, read_tensors
from hfd_edge.training.evaluate import evaluate_run
from hfd_edge.training.fit import train_student, train_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.hardware,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    root = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(root, train=8, val=2, test=2, size_px=96, seed=1)
    return PairFolder.open(root)


def recipe(precision: str, **training: object) -> Recipe:
    settings = {"epochs": 6, "batch": 4, "crop_px": 96, "learning_rate": 2e-3, "checkpoint_every": 1}
    return Recipe.model_validate(
        {
            "network": {"encoder": "resnet10t", "channels": 32, "init": "random"},
            "training": {**settings, "precision": precision, **training},
            "distill": {"method": "hfdm+logits"},
        }
    )


@pytest.fixture(scope="module", params=["32-true", "bf16-mixed", "16-mixed"])
def trained(request, folder: PairFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run, Run]:
    out = tmp_path_factory.mktemp(request.param)
    teacher = train_teacher(folder, recipe(request.param), out / "teacher")
    student = train_student(folder, recipe(request.param), out / "student", teacher=teacher.path)
    return request.param, teacher, student


def test_the_loss_falls_on_the_gpu(trained: tuple[str, Run, Run]) -> None:
    precision, *runs = trained
    for run in runs:
        metrics = run.metrics()
        assert metrics["precision"] == precision
        assert not metrics["device"].startswith("CPU")
        assert metrics["history"][-1]["loss"] < 0.95 * metrics["history"][0]["loss"]
        weights, _ = read_tensors(run.weights_path)
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_validation_agrees_with_evaluation(trained: tuple[str, Run, Run], folder: PairFolder) -> None:
    precision, *runs = trained
    tolerance = 1e-3 if precision == "32-true" else 0.02
    for run in runs:
        scores = evaluate_run(run, folder, split="val")
        assert scores["miou"] == pytest.approx(run.metrics()["miou"], abs=tolerance)
        assert scores["tiles"] == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_an_interrupted_training_goes_on(precision: str, folder: PairFolder, tmp_path: Path) -> None:
    settings = recipe(precision, epochs=4, checkpoint_every=1)

    def stop(done: float, total: float, text: str) -> None:
        if text.startswith("teacher") and done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_teacher(folder, settings, tmp_path / "run", progress=stop)
    steps: list[float] = []
    run = train_teacher(
        folder,
        settings,
        tmp_path / "run",
        resume=True,
        progress=lambda done, total, text: steps.append(done) if text.startswith("teacher") else None,
    )
    assert steps[0] > 2
    assert steps[-1] == 8
    assert [row["epoch"] for row in run.metrics()["history"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["grid_sample", "gather"])
def test_warps_equal_those_of_the_cpu(method) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 12, 20, generator=generator)
    flow = 3 * torch.randn(2, 2, 48, 80, generator=generator)
    expected = warp(x, flow, size=(48, 80), method=method)
    got = warp(x.cuda(), flow.cuda(), size=(48, 80), method=method)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-4)


def test_logits_on_the_gpu_equal_those_on_the_cpu(trained: tuple[str, Run, Run]) -> None:
    _, _, student = trained
    network = student.network()
    x = torch.randn(2, 2, 96, 96, generator=torch.Generator().manual_seed(3))
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            expected = network(x)
            got = network.cuda()(x.cuda()).cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()
