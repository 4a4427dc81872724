"""Fit the EO teacher, distil the SAR student, evaluate runs. Needs torch and Lightning Fabric."""

from hfd_edge.errors import require

for _package in ("torch", "lightning_fabric", "safetensors"):
    require(_package, extra="train", purpose="Training")
