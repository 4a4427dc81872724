"""The network (encoder, alignment, classifier), distillation losses, and the run folder. Needs torch."""

from hfd_edge.errors import require

for _package in ("torch", "timm", "safetensors"):
    require(_package, extra="train", purpose="HFD-Net")
