"""How many golden labels a variant must give: one rule for selftest, bench and tuning."""

from __future__ import annotations

from dataclasses import dataclass

from hfd_edge.bundle import Manifest

FIXED = {"fp32": 0.999, "fp16": 0.995, "int8": 0.98, "int8_fp16": 0.98}
"""Least share of the golden labels, which are the FP32 model's, by precision."""
ALLOWANCE = 0.02
"""What a variant may lose here beyond what quantisation measured: other tiles, other kernels."""


@dataclass(frozen=True)
class Required:
    """Least agreement of a variant with the golden labels.

    Attributes:
        share: 0 to 1.
        text: Where it comes from, for messages: "at least 93.2% expected (...)".
    """

    share: float
    text: str


def required_agreement(manifest: Manifest, precision: str) -> Required:
    """Find what is asked of a variant.

    A network that is often in doubt loses more labels to 8 bits than another, and is as good for it. Where
    quantisation recorded an 8-bit variant's agreement with FP32, that less `ALLOWANCE` is enough.

    Args:
        manifest: Of the bundle.
        precision: Of the variant.
    """
    fixed = FIXED[precision]
    metrics = {str(name): found for name, found in manifest.metrics.items()}.get(precision, {})
    own = metrics.get("label_agreement_with_fp32")
    if "int8" not in precision or not isinstance(own, float) or not 0 <= own <= 1:
        return Required(fixed, f"at least {fixed:.1%} expected (the bound of {precision})")
    share = min(fixed, own - ALLOWANCE)
    return Required(
        share,
        f"at least {share:.1%} expected (the lower of {fixed:.1%}, the bound of {precision}, and "
        f"{own - ALLOWANCE:.1%}, 2 points below the {own:.1%} that quantisation measured)",
    )
