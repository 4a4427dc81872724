"""Whether images are like those that a network was trained on.

`portraits` describes an image in a few figures, `training` keeps how these spread over the training images,
`findings` says in words which of them a new image does not share.
"""

from hfd_edge.drift.findings import DriftReport, Finding, compare
from hfd_edge.drift.portraits import PatchSampler, Portrait, class_shares, portray, portray_image
from hfd_edge.drift.training import Figure, TrainingStatistics, training_statistics

__all__ = [
    "DriftReport",
    "Figure",
    "Finding",
    "PatchSampler",
    "Portrait",
    "TrainingStatistics",
    "class_shares",
    "compare",
    "portray",
    "portray_image",
    "training_statistics",
]
