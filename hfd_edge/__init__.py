"""SAR image segmentation on edge devices: distil from optical images, quantise, compile, run.

The names that a device needs are here; everything else is in its room (`hfd_edge.sar`,
`hfd_edge.training`, ...). Importing this package loads neither torch nor any other heavy package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hfd_edge.errors import HfdEdgeError

if TYPE_CHECKING:
    from hfd_edge.bundle import Bundle
    from hfd_edge.runtime.segmenter import Segmenter
    from hfd_edge.runtime.swath import SwathSegmenter

# ONNX Runtime from 1.29 on reports use and hardware over the network, and keeps an identifier on disk, unless
# it is told not to before anything imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["Bundle", "HfdEdgeError", "Segmenter", "SwathSegmenter", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, because both load NumPy and OpenCV: `import hfd_edge` stays below 0.2 s.
    if name == "Bundle":
        from hfd_edge.bundle import Bundle

        return Bundle
    if name == "Segmenter":
        from hfd_edge.runtime.segmenter import Segmenter

        return Segmenter
    if name == "SwathSegmenter":
        from hfd_edge.runtime.swath import SwathSegmenter

        return SwathSegmenter
    raise AttributeError(f"module 'hfd_edge' has no attribute {name!r}")
