"""The one rule for how many golden labels a variant must give."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hfd_edge.bundle import Bundle
from hfd_edge.runtime.agreement import required_agreement


@pytest.mark.parametrize(
    ("own", "share", "text"),
    [
        (None, 0.98, "at least 98.0% expected (the bound of int8)"),
        (
            0.952,
            0.932,
            "at least 93.2% expected (the lower of 98.0%, the bound of int8, and 93.2%, 2 points below the "
            "95.2% that quantisation measured)",
        ),
        (1.0, 0.98, "the lower of 98.0%, the bound of int8, and 98.0%"),
        ("high", 0.98, "(the bound of int8)"),
        (float("nan"), 0.98, "(the bound of int8)"),
    ],
)
def test_the_lower_of_the_bound_and_the_variants_own_agreement(
    make_thresholds: Callable[..., Bundle], own: object, share: float, text: str
) -> None:
    scores = {} if own is None else {"label_agreement_with_fp32": own}
    manifest = make_thresholds().manifest.model_copy(update={"metrics": {"int8": scores, "fp16": scores}})
    found = required_agreement(manifest, "int8")
    assert found.share == pytest.approx(share)
    assert text in found.text
    assert required_agreement(manifest, "fp32").share == 0.999
    assert required_agreement(manifest, "fp16").share == 0.995
