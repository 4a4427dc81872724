"""Writing that never leaves half a file, and content hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfd_edge.errors import StorageError

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}
_UNFINISHED = ".writing-"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; rename it when the block succeeds.

    The temporary name keeps the suffix of `path`, so writers that choose a format by suffix work.
    When the block raises, or the process is killed, `path` is as it was before.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.parent / f"{_UNFINISHED}{secrets.token_hex(8)}{path.suffix}"
            new.touch(exist_ok=False)  # not by tempfile: its files are for their owner alone
            temporary = new
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_path` for a whole folder; `path` must not exist yet.

    Raises:
        StorageError: `path` exists, the disk is full, or the parent cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise StorageError(f"{path} already exists. Choose another --out, or remove it first.")
    temporary = None
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
            new.mkdir()
            temporary = new
            yield temporary
            temporary.replace(path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files that killed processes did not finish writing there; nobody may be writing now."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file whole or not at all. Raises StorageError."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON whole or not at all; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hash a file's content in bounded memory; hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the block's OSErrors into a StorageError that says what to do about writing `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is None:
            raise
        if error.errno in _OUT_OF_SPACE:
            fix = "Free some space, or choose an --out on another disk; nothing was half written."
        else:
            fix = "Check that the folder exists and that you may write there; nothing was half written."
        message = f"Could not write {path}: {error.strerror or error}. {fix}"
        raise StorageError(error.errno, message) from error


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def resource_folder(name: str) -> Path:
    """Find a folder of shipped text files: "recipes", "targets" or "kit".

    A checkout keeps them where people look for them (`train/recipes`, `export/targets`, `export/kit`); a
    wheel carries copies inside the package.
    """
    package = Path(__file__).resolve().parent
    checkout = {"recipes": "train/recipes", "targets": "export/targets", "kit": "export/kit"}[name]
    inside = package / "data" / name
    return inside if inside.is_dir() else package.parent / checkout


def user_cache(name: str) -> Path:
    """Folder of this user for what can be made again: "timing", "kernels". It may not exist yet."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no HOME, and a user that the system does not know, as in containers
        base = Path("/.cache")  # what HOME=/ means; where it cannot be written, that is said
    return Path(base) / "hfd-edge" / name
