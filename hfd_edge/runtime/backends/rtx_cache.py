"""What TensorRT-RTX compiles for the GPU when an engine first runs, kept for the next start.

An RTX engine holds intermediate code; its kernels are compiled on first use, which takes seconds. The cache
is a convenience: one that is damaged or of another driver or GPU is started anew, and one that cannot be
written is reported in the log.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from hfd_edge.errors import StorageError
from hfd_edge.files import user_cache, write_bytes
from hfd_edge.runtime.engines import OpenedEngine
from hfd_edge.tensorrt_api import TensorRT, member, tensorrt_version

_DIGEST_BYTES = 32
_log = logging.getLogger("hfd_edge.runtime")


class RuntimeCache:
    """An engine's runtime configuration with its cache; the GPU's context must be current.

    Attributes:
        config: IRuntimeConfig for `create_execution_context`.
        path: Where it is kept.
    """

    def __init__(self, trt: TensorRT, opened: OpenedEngine, *, graphs: bool) -> None:
        record = opened.record
        name = f"{record.sha256[:32]}-{tensorrt_version(trt)}-sm{opened.gpu.compute_capability}.cache"
        self.path = user_cache("tensorrt_rtx") / name
        engine: Any = opened.loaded.engine
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        self._known = _read(self.path)
        # TensorRT-RTX itself refuses a cache of another version, driver or GPU.
        if self._known and not self._cache.deserialize(self._known):
            _log.info("%s is of another driver or GPU; kernels are compiled again", self.path)
            self._known = b""
        self.config.set_runtime_cache(self._cache)
        strategies = member(trt, "CudaGraphStrategy")
        self.config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED

    def keep(self) -> None:
        """Write what was compiled since, if anything was."""
        try:
            content = bytes(self._cache.serialize())
            if content != self._known:
                write_bytes(self.path, hashlib.sha256(content).digest() + content)
        except (StorageError, RuntimeError, TypeError) as error:  # the latter where the GPU is lost
            _log.warning("kernels that TensorRT-RTX compiled are not kept: %s", error)


def _read(path: Path) -> bytes:
    """The cache; empty where there is none or it is damaged, which RTX's own check could miss."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    digest, cache = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(cache).digest() == digest:
        return cache
    _log.warning("%s is damaged; kernels are compiled again", path)
    return b""
