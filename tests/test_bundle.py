"""The bundle folder: round trips, every kind of damage, and writes that fail half way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.config import SarInput
from hfd_edge.errors import BundleError, StorageError
from hfd_edge.raster.image import write_image
from hfd_edge.sar.preprocessing import Preprocessing


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "flood",
        "classes": ("dry", "flood"),
        "palette": ((10, 20, 30), (0, 0, 255)),
        "sar": SarInput(bands=("vv", "vh"), units="intensity", looks=4.0, nodata=0.0),
        "preprocessing": Preprocessing(
            units="intensity",
            looks=4.0,
            nodata=0.0,
            speckle="lee",
            window_px=5,
            clip=((-30.0, 5.0), (-35.0, 0.0)),
            mean=(-12.0, -18.0),
            std=(4.0, 5.0),
        ),
        "head": "quarter",
        "tile_px": 64,
        "precisions": {"fp32": "model.fp32.onnx"},
        "provenance": Provenance(
            recipe={"split": None}, data_sha256="ab", versions={"torch": "2"}, created="2026-01-01T00:00:00"
        ),
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.create(tmp_path / "flood.hfd", manifest(), {"model.fp32.onnx": b"weights" * 100})


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, temporary ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_round_trip(bundle: Bundle) -> None:
    opened = Bundle.open(str(bundle.path))
    assert opened.manifest == bundle.manifest
    assert opened.manifest.preprocessing == manifest().preprocessing
    assert opened.precisions == ("fp32",)
    assert opened.model("fp32").read_bytes() == b"weights" * 100
    assert opened.manifest.stride == 4
    assert manifest(head="full").stride == 1
    opened.verify()


def test_a_file_can_be_copied_in(tmp_path: Path) -> None:
    source = tmp_path / "elsewhere.onnx"
    source.write_bytes(b"model")
    made = Bundle.create(tmp_path / "b.hfd", manifest(), {"model.fp32.onnx": source})
    assert made.model("fp32").read_bytes() == b"model"


def test_an_undefined_score_becomes_null(tmp_path: Path) -> None:
    scores = {"fp32": {"iou": {"flood": float("nan")}}}
    made = Bundle.create(tmp_path / "b.hfd", manifest(metrics=scores), {"model.fp32.onnx": b"m"})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (made.path / "manifest.json").read_text("utf-8")
    assert json.loads(text, parse_constant=refuse)["metrics"]["fp32"]["iou"]["flood"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"palette": ((0, 0, 0),)}, "palette has 1 colours for 2 classes"),
        ({"nodata_label": 1}, "nodata_label 1 is the id of a class"),
        ({"tile_px": 100}, "multiple of 32"),
        ({"precisions": {"fp32": "../model.onnx"}}, "not a relative path inside the bundle"),
        ({"precisions": {"fp32": "/etc/passwd"}}, "not a relative path inside the bundle"),
        ({"precisions": {"fp8": "model.onnx"}}, "fp32"),
        ({"sar": SarInput(bands=("vv",), units="intensity")}, "preprocessing is for 2 bands, sar has 1"),
        ({"sar": SarInput(bands=("vv", "vh"), units="dn")}, "preprocessing takes intensity, sar is dn"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        manifest(**changes)


def test_a_model_that_is_not_in_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"names model\.fp32\.onnx for fp32, but the bundle holds no such"):
        Bundle.create(tmp_path / "b.hfd", manifest(), {"other.onnx": b"m"})
    assert not list(tmp_path.iterdir())


def test_creating_over_something_is_refused(bundle: Bundle) -> None:
    with pytest.raises(StorageError, match="already exists"):
        Bundle.create(bundle.path, manifest(), {"model.fp32.onnx": b"m"})


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
            Bundle.open(path)


def test_an_unreadable_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: Is a directory"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 500])
def test_a_truncated_manifest(bundle: Bundle, kept: int) -> None:
    source = bundle.path / "manifest.json"
    source.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"manifest\.json is damaged or truncated.*re-export"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 2, "has schema version 2, but this hfd-edge reads version 1"),
        ("schema_version", None, "has schema version None"),
        ("colour", "red", "not a valid manifest: colour: Extra inputs"),
        ("tile_px", "big", "not a valid manifest: tile_px"),
        ("files", {}, r"names model\.fp32\.onnx for fp32, but"),
        ("files", {"../../x": "0"}, "not a relative path inside the bundle"),
    ],
)
def test_a_manifest_that_does_not_fit(bundle: Bundle, key: str, value: Any, message: str) -> None:
    source = bundle.path / "manifest.json"
    source.write_text(json.dumps({**json.loads(source.read_text()), key: value}))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


def test_a_manifest_of_another_kind(bundle: Bundle) -> None:
    (bundle.path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(BundleError, match="has schema version None"):
        Bundle.open(bundle.path)


def test_a_missing_file(bundle: Bundle) -> None:
    (bundle.path / "model.fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"is incomplete: model\.fp32\.onnx is missing"):
        Bundle.open(bundle.path)
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx is missing"):
        bundle.model("fp32")


def test_a_changed_file(bundle: Bundle) -> None:
    path = bundle.path / "model.fp32.onnx"
    changed = bytearray(path.read_bytes())
    changed[17] ^= 1
    path.write_bytes(changed)
    for use in (lambda: bundle.model("fp32"), bundle.verify):
        with pytest.raises(BundleError, match="was changed after the bundle was made.*re-export"):
            use()


def test_what_a_bundle_lacks_is_said_with_the_command(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no int8 model; it has: fp32\. .*hfd-edge quantize .*d\.hfd"):
        bundle.model("int8")
    with pytest.raises(BundleError, match=r"has no fp8 model; it has: fp32\. Choose one of these\.$"):
        bundle.model("fp8")
    with pytest.raises(BundleError, match="has no engine orin-fp16; it has: none.*hfd-edge build"):
        bundle.engine("orin-fp16")
    with pytest.raises(BundleError, match=r"has no file x\.txt. It holds: model\.fp32\.onnx"):
        bundle.file("x.txt")


def test_add_keeps_what_is_there(bundle: Bundle) -> None:
    added = bundle.add(
        {"model.int8.onnx": b"int8", "calibration/int8.json": b"{}"},
        precisions={"int8": "model.int8.onnx"},
        metrics={"int8": {"miou": 0.7}},
    )
    assert added.precisions == ("fp32", "int8")
    assert added.manifest == Bundle.open(bundle.path).manifest
    assert added.file("calibration/int8.json").read_bytes() == b"{}"
    engine = added.add({"engines/a-fp16.engine": b"e"}, engines={"a-fp16": "engines/a-fp16.engine"})
    assert engine.engine("a-fp16").read_bytes() == b"e"
    engine.verify()
    assert not [name for name in content(bundle.path) if ".writing" in name]


def test_add_sees_what_another_object_added(bundle: Bundle) -> None:
    other = Bundle.open(bundle.path)
    bundle.add({"a.txt": b"a"})
    assert set(other.add({"b.txt": b"b"}).manifest.files) == {"model.fp32.onnx", "a.txt", "b.txt"}


def test_scores_of_a_replaced_model_are_dropped(bundle: Bundle) -> None:
    files = {"model.int8.onnx": b"first"}
    first = bundle.add(
        files, precisions={"int8": "model.int8.onnx"}, metrics={"int8": {"miou": 0.7}, "fp32": {"miou": 0.8}}
    )
    assert first.add(files).manifest.metrics == {"int8": {"miou": 0.7}, "fp32": {"miou": 0.8}}
    replaced = first.add({"model.int8.onnx": b"second"})
    assert replaced.manifest.metrics == {"fp32": {"miou": 0.8}}
    assert replaced.model("int8").read_bytes() == b"second"


def test_add_refuses_paths_outside(bundle: Bundle, tmp_path: Path) -> None:
    before = content(bundle.path)
    with pytest.raises(ValueError, match="not a relative path inside the bundle"):
        bundle.add({"../escaped.txt": b"x"})
    assert content(bundle.path) == before
    assert not (tmp_path / "escaped.txt").exists()


def test_add_refuses_an_engine_without_file(bundle: Bundle) -> None:
    before = content(bundle.path)
    with pytest.raises(BundleError, match=r"names engines/x\.engine for x, but"):
        bundle.add({"a.txt": b"a"}, engines={"x": "engines/x.engine"})
    assert content(bundle.path) == before


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6, 7])
def test_a_failed_rename_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Renames of one `add`: 3 while staging (by os.replace), then up to 5 while swapping in."""
    before = content(bundle.path)
    calls = 0
    real_replace, real_path_replace = os.replace, Path.replace

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    def replace(source: Any, target: Any) -> None:
        count()
        real_replace(source, target)

    def path_replace(self: Path, target: Path) -> Path:
        count()
        return real_path_replace(self, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "replace", path_replace)
    with pytest.raises(StorageError, match="No space left on device.*Free some space"):
        bundle.add({"model.fp32.onnx": b"new weights", "golden/new.txt": b"y"})
    monkeypatch.undo()
    assert content(bundle.path) == before
    Bundle.open(bundle.path).verify()


def test_an_interrupted_add_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(bundle.path)

    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bundle.add({"model.fp32.onnx": b"new weights"})
    assert content(bundle.path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this container may not mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    bundle = Bundle.create(small_disk / "b.hfd", manifest(), {"model.fp32.onnx": bytes(60_000)})
    before = content(small_disk)
    with pytest.raises(StorageError, match="Free some space"):
        bundle.add({"small.bin": bytes(10_000), "engines/big.engine": bytes(300_000)})
    assert content(small_disk) == before
    with pytest.raises(StorageError, match="Free some space"):
        Bundle.create(small_disk / "c.hfd", manifest(), {"model.fp32.onnx": bytes(300_000)})
    assert content(small_disk) == before
    assert [path.name for path in small_disk.iterdir()] == ["b.hfd"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "complex64"])
def test_golden_tiles(bundle: Bundle, tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(1)
    image = (rng.random((2, 5, 7)) * 200).astype(dtype)
    labels = rng.integers(0, 2, (5, 7)).astype(np.uint8)
    write_image(tmp_path / "a.tif", image)
    write_image(tmp_path / "a.png", labels[None])
    added = bundle.add(
        {"golden/000.sar.tif": tmp_path / "a.tif", "golden/000.labels.png": tmp_path / "a.png"}
    )
    (tile,) = added.golden()
    assert tile.name == "000"
    assert tile.image.dtype == dtype
    np.testing.assert_array_equal(tile.image, image)
    np.testing.assert_array_equal(tile.labels, labels)


def test_golden_tiles_may_be_absent_but_not_incomplete(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.golden() == []
    write_image(tmp_path / "a.tif", np.ones((2, 5, 7), np.float32))
    alone = bundle.add({"golden/000.sar.tif": tmp_path / "a.tif"})
    with pytest.raises(BundleError, match=r"has no file golden/000\.labels\.png"):
        alone.golden()
    write_image(tmp_path / "a.png", np.zeros((1, 4, 7), np.uint8))
    unequal = alone.add({"golden/000.labels.png": tmp_path / "a.png"})
    with pytest.raises(BundleError, match=r"is uint8 \(4, 7\), but the tile needs uint8 \(5, 7\)"):
        unequal.golden()
