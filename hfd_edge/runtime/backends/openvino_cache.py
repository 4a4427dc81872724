"""Models that OpenVINO compiled, kept for the next start.

A cache of our own rather than OpenVINO's `CACHE_DIR`: that one keeps no hash of what it wrote, so a damaged
weight would change the masks. With it an INT8 model of preset s loads in 0.2 s instead of 0.6.

It is a convenience: a file that is damaged is replaced, and one that cannot be written is told in the log.
The newest are kept, so that bundles that come and go do not fill the disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfd_edge import __version__
from hfd_edge.files import user_cache, write_bytes

_DIGEST_BYTES = 32
_MOST_FILES = 16
_log = logging.getLogger("hfd_edge.runtime")


class CompiledCache:
    """What one OpenVINO compiled on one kind of CPU with the same options."""

    def __init__(self, openvino: Any, core: Any, options: Mapping[str, Any]) -> None:
        self._core = core
        self._options = dict(options)
        # The home may be shared by machines: each compiles for its own instructions.
        cpu = (
            core.get_property("CPU", "FULL_DEVICE_NAME"),
            core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        )
        # Ours too: how the model is prepared before it is compiled changes with it.
        self._what = (__version__, openvino.__version__, cpu, sorted(self._options.items()))

    def path(self, key: object) -> Path:
        """Where the model of this key is kept, whether it is there or not."""
        name = hashlib.sha256(repr((key, self._what)).encode()).hexdigest()[:32]
        return user_cache("openvino") / f"{name}.blob"

    def load(self, key: object) -> Any | None:
        """The compiled model; None where it is not there or not what was written."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() != digest:
            _log.warning("%s is damaged; the model is compiled again", path)
            return None
        try:
            return self._core.import_model(blob, "CPU", self._options)
        except RuntimeError as error:
            _log.info("%s is not taken, the model is compiled again: %s", path, error)
            return None

    def keep(self, key: object, compiled: Any) -> None:
        """Write a compiled model."""
        try:
            blob = compiled.export_model().getvalue()
            path = self.path(key)
            write_bytes(path, hashlib.sha256(blob).digest() + blob)
            for old in sorted(path.parent.glob("*.blob"), key=_written)[:-_MOST_FILES]:
                old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            _log.warning("what OpenVINO compiled is not kept: %s", error)


def _written(path: Path) -> float:
    """When it was; long ago for what another process has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
