"""Build hook: put compiled CUDA kernels into the wheel where an nvcc is on the building machine.

Fatbins are code for GPUs alone, the same for every operating system and CPU, so the wheel stays
py3-none-any. Without nvcc it has no fatbins, and a device compiles the sources, which are always in it.
`HATCH_BUILD_NO_HOOKS=true` builds without them on purpose.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):
    """Adds hfd_edge/data/kernels to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files are collected; an editable install uses the sources of the checkout."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)  # this tree's package, of which this part needs no dependency
        try:
            from hfd_edge.errors import BackendError
            from hfd_edge.runtime.compilers import write_fatbins
        finally:
            sys.path.remove(self.root)
        self._folder = tempfile.TemporaryDirectory(prefix="hfd-edge-kernels-")
        try:
            files = write_fatbins(Path(self.root, "hfd_edge", "sar", "kernels"), Path(self._folder.name))
        except BackendError as error:
            self.app.display_warning(f"The wheel gets no compiled CUDA kernels: {error}")
            return
        for path in files:
            build_data["force_include"][str(path)] = f"hfd_edge/data/kernels/{path.name}"
        self.app.display_info(
            f"CUDA kernels compiled into the wheel: {', '.join(path.name for path in files)}"
        )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what `initialize` compiled."""
        if version != "editable":
            self._folder.cleanup()
