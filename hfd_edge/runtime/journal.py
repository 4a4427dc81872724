"""What an archive run has done so far: a file of JSON lines that survives a killed run.

The first line says what segments (`Journal.open` compares it), each further line is one finished or failed
scene. Lines are flushed to the disk one by one, so at most the last one can be torn; it counts as not
written. A scene counts as done only if its file and its mask are as they were.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hfd_edge.errors import BundleError, StorageError
from hfd_edge.files import storage_errors

JOURNAL = "archive.jsonl"
_FORMAT = 1


@dataclass(frozen=True)
class Stamp:
    """By what a changed file is told, without reading it.

    Attributes:
        bytes: Size.
        modified_ns: Time of the last change, nanoseconds since 1970.
    """

    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Look at a file. Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """A scene that was worked on.

    Attributes:
        scene: Absolute path.
        mask: Path of its mask below the folder of masks.
        error: Why there is no mask; None where there is one.
        stamp: Of the scene when it was begun; None where it could not be looked at.
        mask_stamp: Of the mask; None without one.
        result: What segmenting it took, as `SceneReport`, and what did it.
    """

    scene: str
    mask: str
    error: str | None = None
    stamp: Stamp | None = None
    mask_stamp: Stamp | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """An open journal; use it in a `with` statement. While it is open no other run can open it.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, stream: IO[bytes], entries: dict[str, Entry]) -> None:
        self.path = path
        self._stream = stream
        self._entries = entries

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], *, resume: bool) -> Journal:
        """Start the journal of a folder of masks, or go on with it.

        Args:
            folder: Holds the masks, and gets the journal.
            identity: What segments, as JSON values: masks of another one do not belong beside these.
            resume: Keep what an earlier run did; otherwise its journal is emptied.
        Raises:
            StorageError: another run works on the folder, it cannot be written, or the journal is damaged.
            BundleError: the journal is of another identity.
        """
        path = folder / JOURNAL
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            stream = path.open("ab+")
        try:
            _lock(stream, path)
            stream.seek(0)
            lines = _whole_lines(stream, path) if resume else []
            with storage_errors(path):
                stream.truncate(sum(len(line) for line in lines))
            journal = cls(path, stream, _read(path, lines, identity))
            if not lines:
                journal._write({"archive": _FORMAT, **identity})
        except BaseException:
            stream.close()
            raise
        return journal

    def done(self, scene: Path) -> Entry | None:
        """What was done about a scene; None if there is something left: it failed, or a file changed."""
        entry = self._entries.get(str(scene))
        if entry is None or entry.error is not None:
            return None
        try:
            same = (
                Stamp.of(scene) == entry.stamp and Stamp.of(self.path.parent / entry.mask) == entry.mask_stamp
            )
        except OSError:
            return None
        return entry if same else None

    def add(self, entry: Entry) -> None:
        """Note a scene; it is on the disk when this returns. Raises StorageError."""
        self._entries[entry.scene] = entry
        self._write(asdict(entry))

    def close(self) -> None:
        """Let go of the file, and of the lock with it. A journal in which nothing stands goes away."""
        if not self._entries:
            self.path.unlink(missing_ok=True)
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, default=_plain) + "\n"
        with storage_errors(self.path):
            self._stream.write(line.encode())
            self._stream.flush()
            os.fsync(self._stream.fileno())


def _lock(stream: IO[bytes], path: Path) -> None:
    """Keep a second run away: it would do the same scenes, and remove what the first one is writing."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a file system without locks: nothing to be done about it
        raise StorageError(
            f"Another run is segmenting into {path.parent}: it holds {path.name}. Wait for its end, or "
            "choose another --out."
        ) from error
    # A run that ended meanwhile may have removed the file that this one had opened.
    if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
        raise StorageError(f"Another run into {path.parent} ended just now. Start this one again.")


def _whole_lines(stream: IO[bytes], path: Path) -> list[bytes]:
    """Lines with their ends; without the last one where a killed run tore it."""
    with _reading(path):
        lines = stream.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return lines


def _read(path: Path, lines: list[bytes], identity: Mapping[str, Any]) -> dict[str, Entry]:
    """Entries by scene, the last of each; checks the first line."""
    if not lines:
        return {}
    with _reading(path):
        head, *rest = (json.loads(line) for line in lines)
        version = head.pop("archive")
        entries = [_entry(row) for row in rest]
    wanted = json.loads(json.dumps(identity))
    if version != _FORMAT or head != wanted:
        names = sorted(name for name in {*head, *wanted} if head.get(name) != wanted.get(name))
        raise BundleError(
            f"{path} is of a run with another {' and '.join(names) or 'format'} "
            f"({', '.join(f'{name} {_short(head.get(name))}' for name in names)}; "
            f"now {', '.join(f'{name} {_short(wanted.get(name))}' for name in names)}), and masks of both "
            "would lie side by side. Choose another --out, give what it was started with, or start anew with "
            "--overwrite."
        )
    return {entry.scene: entry for entry in entries}


def _entry(row: dict[str, Any]) -> Entry:
    stamps = {name: None if row[name] is None else Stamp(**row[name]) for name in ("stamp", "mask_stamp")}
    return Entry(**{**row, **stamps})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise StorageError(
            f"{path} cannot be read as the journal of a run ({error}), so what is done cannot be told. "
            "Start anew with --overwrite, or choose another --out."
        ) from error


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)


def _plain(value: Any) -> Any:
    """NumPy's scalars."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
