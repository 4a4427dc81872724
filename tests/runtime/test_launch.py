"""The argument structs of the kernels and the records of the host are the same, field by field."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hfd_edge.runtime.kernels import SOURCES
from hfd_edge.runtime.launch import MAX_BANDS, SPECKLE_ARGS
from hfd_edge.runtime.launch_logits import BLEND_ARGS, BLENDED_AT_ONCE, LABELS_ARGS, TILES_ARGS, TILES_AT_ONCE
from hfd_edge.runtime.launch_stats import LOOKS_BINS, STATS_ARGS, STEPS
from hfd_edge.sar.statistics import BINS, BLOCK_PX

_TYPES = {"int": "<i4", "unsigned": "<u4", "float": "<f4", "long long": "<i8"}
# CUDA limits the arguments of a kernel to 4 KB.
_MOST_BYTES = 4096


def struct(source: str, name: str) -> np.dtype:
    """The C struct as a NumPy type; its arrays are named constants."""
    text = (SOURCES / f"{source}.cu").read_text()
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    fields: list[Any] = []
    for line in body[1].splitlines():
        code = line.partition("//")[0].strip()
        if not code:
            continue
        found = re.fullmatch(r"(?:const )?([a-z ]+?)(\*)? (\w+(?:\[\w+\])?(?:, \w+(?:\[\w+\])?)*);", code)
        assert found is not None, code
        kind = "<u8" if found[2] else _TYPES[found[1]]
        for field in found[3].split(", "):
            label, _, size = field.rstrip("]").partition("[")
            fields.append((label, kind, (constant(text, size),)) if size else (label, kind))
    return np.dtype(fields, align=True)


def constant(text: str, name: str) -> int:
    """Value of a constexpr int."""
    found = re.search(rf"constexpr int {name} = ([^;]+);", text)
    assert found is not None, name
    value = found[1].strip()
    return int(value) if value.isdigit() else int(eval(value, {"STEP_BITS": constant(text, "STEP_BITS")}))


@pytest.mark.parametrize(
    ("source", "name", "record"),
    [
        ("speckle", "SpeckleArgs", SPECKLE_ARGS),
        ("tiles", "TilesArgs", TILES_ARGS),
        ("blend", "BlendArgs", BLEND_ARGS),
        ("labels", "LabelsArgs", LABELS_ARGS),
        ("stats", "StatsArgs", STATS_ARGS),
    ],
)
def test_records_mirror_the_structs(source: str, name: str, record: np.dtype) -> None:
    expected = struct(source, name)
    assert record == expected
    assert record.itemsize == expected.itemsize <= _MOST_BYTES


@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("tiles", "TILES", TILES_AT_ONCE),
        ("blend", "TILES", BLENDED_AT_ONCE),
        ("stats", "BANDS", MAX_BANDS),
        ("stats", "BINS", BINS),
        ("stats", "BLOCK_PX", BLOCK_PX),
        ("stats", "LOOKS_BINS", LOOKS_BINS),
        ("stats", "STEPS", STEPS),
    ],
)
def test_constants_are_the_same_on_both_sides(source: str, name: str, value: int) -> None:
    assert constant((SOURCES / f"{source}.cu").read_text(), name) == value
