"""Which training a checkpoint belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hfd_edge.config import Recipe
from hfd_edge.hfdnet.run import Run

_NEW_KEYS = (
    ("teacher", "inputs"),
    ("distill", "tolerance_px"),
    ("distill", "unlabelled"),
    ("training", "label_share"),
    ("training", "accumulate"),
    ("training", "ema"),
    ("training", "class_weights"),
    ("training", "focal_gamma"),
    ("training", "keep"),
    ("training", "patience"),
    ("training", "deterministic"),
)
"""Recipe keys, younger than the first checkpoints, whose defaults train as before there were any."""


def identity_of(run: Run) -> str:
    """Hash of what a checkpoint must agree with: recipe, data, teacher, where QAT started; hex."""
    recipe = training_keys(run.recipe, qat=run.info.qat_sha256 is not None)
    content: dict[str, Any] = {
        "kind": run.info.kind,
        "recipe": _without_new_defaults(recipe),
        "data": run.info.data_sha256,
        "teacher": run.info.teacher_sha256,
    }
    if run.info.unlabelled_sha256:
        content["unlabelled"] = run.info.unlabelled_sha256
    if run.info.qat_sha256 is not None:
        content["qat"] = run.info.qat_sha256
    if run.info.arch is not None:
        content["arch"] = run.info.arch
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def training_keys(recipe: Recipe, *, qat: bool) -> dict[str, Any]:
    """The recipe as plain values; without what only quantisation-aware training reads, unless `qat`."""
    return recipe.model_dump(mode="json", exclude=None if qat else {"qat"})


def _without_new_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """Leave out what checkpoints of earlier versions did not hash, where it changes nothing."""
    kept = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in recipe.items()}
    defaults = Recipe().model_dump(mode="json")
    for section, key in _NEW_KEYS:
        if kept[section][key] == defaults[section][key]:
            del kept[section][key]
    return {section: keys for section, keys in kept.items() if keys != {}}
