"""The run folder: what is written comes back, damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfd_edge.config import DatasetConfig, Recipe
from hfd_edge.errors import CheckpointError, StorageError
from hfd_edge.hfdnet.run import (
    Run,
    RunInfo,
    now,
    package_versions,
    read_tensors,
    write_tensors,
)
from hfd_edge.sar.preprocessing import Preprocessing

RECIPE = Recipe.model_validate(
    {"network": {"encoder": "resnet10t", "channels": 8, "init": "random"}, "training": {"epochs": 2}}
)


def info(**changes) -> RunInfo:
    dataset = DatasetConfig.model_validate(
        {
            "name": "test",
            "classes": ["a", "b"],
            "palette": [[0, 0, 0], [1, 1, 1]],
            "sar": {"bands": ["vv", "vh"], "units": "intensity", "looks": 4.0},
        }
    )
    fields = {
        "kind": "student",
        "dataset": dataset,
        "preprocessing": Preprocessing(
            units="intensity",
            looks=4.0,
            nodata=None,
            speckle="none",
            window_px=7,
            clip=((-30.0, 0.0), (-35.0, -5.0)),
            mean=(-12.0, -18.0),
            std=(4.0, 4.5),
        ),
        "data_sha256": "0" * 64,
        "versions": package_versions(),
        "created": now(),
    }
    return RunInfo(**{**fields, **changes})


def trained(path: Path) -> Run:
    run = Run.create(path, RECIPE, info())
    torch.manual_seed(0)
    run.save_best(run.untrained_network().state_dict())
    return run


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    again = Run.open(tmp_path / "run")
    assert again == run
    torch.manual_seed(0)
    expected = run.untrained_network().eval()
    network = again.network()
    assert not network.training
    x = torch.randn(1, 2, 32, 32)
    assert torch.equal(network(x), expected(x))
    assert again.info.classes == ("a", "b")
    assert again.info.palette == ((0, 0, 0), (1, 1, 1))
    assert again.info.bands == 2


def test_a_teacher_takes_eo_bands() -> None:
    teacher = info(kind="teacher", preprocessing=None, eo_mean=(0.1,) * 3, eo_std=(0.2,) * 3)
    assert teacher.bands == 3
    with pytest.raises(ValueError, match="a teacher needs 'eo_mean'"):
        info(kind="teacher")
    with pytest.raises(ValueError, match="a student needs 'preprocessing'"):
        info(preprocessing=None)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    with pytest.raises(StorageError, match="already exists"):
        Run.create(tmp_path / "run", RECIPE, info())


def test_no_run_and_no_weights_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run: it has no run.json"):
        Run.open(tmp_path)
    run = Run.create(tmp_path / "run", RECIPE, info())
    with pytest.raises(CheckpointError, match=r"stopped before the first epoch ended.*--resume"):
        run.network()
    assert run.metrics() == {}


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind": "student"}', b"\xff\xfe"])
def test_damaged_run_json_is_named(tmp_path: Path, content: bytes) -> None:
    trained(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run.json is damaged or from another version"):
        Run.open(tmp_path / "run")


@pytest.mark.parametrize("keep", [0, 7, 2000])
def test_truncated_weights_are_named(tmp_path: Path, keep: int) -> None:
    run = trained(tmp_path / "run")
    whole = run.weights_path.read_bytes()
    run.weights_path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=rf"best.safetensors \({keep} bytes\) is damaged"):
        run.network()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    other = Recipe.model_validate({"network": {"encoder": "resnet10t", "channels": 16, "init": "random"}})
    wide = Run.create(tmp_path / "wide", other, info())
    wide.save_best(run.untrained_network().state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit the network of .*recipe.toml.*tensors\s+differ"):
        wide.network()


def test_metrics_round_trip_and_damage(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    run.save_metrics({"miou": 0.5, "iou": {"a": None}})
    assert run.metrics() == {"miou": 0.5, "iou": {"a": None}}
    (run.path / "metrics.json").write_text("{")
    with pytest.raises(CheckpointError, match="metrics.json is damaged"):
        run.metrics()


def test_tensors_of_any_layout_come_back(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensors = {"last": x, "turned": x[0, 0].T, "scalar": torch.tensor(3), "half": x.bfloat16()}
    write_tensors(tmp_path / "t.safetensors", tensors, {"note": "text"})
    back, header = read_tensors(tmp_path / "t.safetensors")
    assert header["note"] == "text"
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(CheckpointError, match="There is no file"):
        read_tensors(tmp_path / "missing.safetensors")


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    # The hash of a teacher's file is what its students are resumed by.
    contents = set()
    for turn in range(20):
        path = tmp_path / f"{turn}.safetensors"
        write_tensors(path, {"w": torch.arange(5.0)}, {"format": "pt", "note": 'says "ü"\n', "a": "b"})
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert read_tensors(path)[1] == {"format": "pt", "note": 'says "ü"\n', "a": "b"}


def test_a_failed_write_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run")
    before = run.weights_path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfd_edge.files._flush_to_disk", full)
    with pytest.raises(StorageError, match=r"best.safetensors: No space left on device. Free some space"):
        run.save_best(run.untrained_network().state_dict())
    assert run.weights_path.read_bytes() == before
    assert sorted(p.name for p in run.path.iterdir()) == ["best.safetensors", "recipe.toml", "run.json"]


def test_versions_describe_this_code() -> None:
    assert package_versions()["torch"].startswith(torch.__version__.split("+")[0])
