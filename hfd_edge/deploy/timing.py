"""TensorRT's timing cache: what it measured in one build saves the next one most of its time.

Kept in the user's cache folder, one file per TensorRT, version and GPU: TensorRT itself refuses measurements
of another device or version. TensorRT-RTX measures nothing ahead of time and needs none.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfd_edge.errors import StorageError
from hfd_edge.files import user_cache, write_bytes

if TYPE_CHECKING:
    import tensorrt

_log = logging.getLogger("hfd_edge.deploy")


def timing_cache_path(*, flavour: str, version: str, compute_capability: int) -> Path:
    """Where the measurements of one TensorRT on one kind of GPU are kept."""
    return user_cache("timing") / f"{flavour}-{version}-sm{compute_capability}.cache"


@contextlib.contextmanager
def timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> Iterator[None]:
    """Give a build the measurements of earlier ones, and keep what it adds, also if it is cancelled or fails.

    A cache is a convenience: one that cannot be read is started anew, and one that cannot be written is
    reported in the log; neither fails a build.
    """
    cache: Any = config.create_timing_cache(_read(path))
    taken: Any = cache and config.set_timing_cache(cache, False)
    if not taken:
        _log.warning("%s is damaged or of another TensorRT; starting a new timing cache", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    try:
        write_bytes(path, bytes(config.get_timing_cache().serialize()))
    except StorageError as error:
        _log.warning("the timing cache is not kept: %s", error)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
