from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfd_edge.errors import HfdEdgeError, StorageError
from hfd_edge.files import atomic_folder, atomic_path, resource_folder, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_whole_file_with_ordinary_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "note.txt", "sigma0")
    assert (tmp_path / "a" / "note.txt").read_text() == "sigma0"
    assert (tmp_path / "a" / "note.txt").stat().st_mode & 0o444 == 0o444


def test_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "note.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="broke"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("broke")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_temporary_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "mask.tif") as temporary:
        assert temporary.suffix == ".tif"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")


def test_full_disk_names_the_fix_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "note.txt"
    write_text(target, "old")
    with pytest.raises(StorageError, match=r"No space left.*Free some space.*nothing was half written"):
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a Linux device")
def test_real_enospc_is_translated(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Free some space") as caught, atomic_path(tmp_path / "x") as _:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"1")
    assert str(caught.value).startswith("Could not write")
    assert isinstance(caught.value, HfdEdgeError)
    assert isinstance(caught.value, OSError)


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "out") as staged:
        (staged / "half").write_text("x")
        raise ValueError("stop")
    assert names(tmp_path) == []
    with atomic_folder(tmp_path / "out") as staged:
        (staged / "whole").write_text("x")
    assert names(tmp_path / "out") == ["whole"]


def test_folder_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="already exists. Choose another --out"):
        with atomic_folder(tmp_path / "out"):
            pass


def test_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "note.txt"
    write_text(target, "old")
    script = (
        "import os, signal, sys; from pathlib import Path; from hfd_edge.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"miou": float("nan")})
    assert names(tmp_path) == []
    write_json(tmp_path / "a.json", {"miou": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"miou": 0.5}


def test_sha256_of_known_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["recipes", "targets"])
def test_resources_are_found(name: str) -> None:
    assert list(resource_folder(name).glob("*.toml"))
