"""Every variant of a bundle on every backend of this machine, side by side, on a labelled split.

Two variants can score alike and still label different pixels, so beside accuracy this counts the pixels that
differ from FP32: how many went from right to wrong, and how many the other way.
"""

from hfd_edge.comparison.result import Comparison, Disagreement, EngineRow, NotRun, Row, disagreements
from hfd_edge.comparison.run import compare

__all__ = ["Comparison", "Disagreement", "EngineRow", "NotRun", "Row", "compare", "disagreements"]
