"""What a table of trainings says: mean and spread over seeds, and each row's gain over SAR alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.comparison.bootstrap import gain_interval, iou_of

REFERENCE = "sar_only"
"""Method that the others are compared with: its row without variant, aligned as the recipe says."""


@dataclass(frozen=True)
class Line:
    """One configuration over its seeds. Scores are 0 to 1, gains are points.

    Attributes:
        split: Split of the table, of one scheme or of several folds.
        method: "teacher", "sar_only", a method of distillation, or "baseline:" and an architecture.
        teacher: What its teacher sees; None without one.
        hfam: Feature alignment; None of a baseline.
        variant: What else was changed; may be empty.
        seeds: Seeds that were run.
        miou: Mean IoU of each seed.
        iou: Mean over the seeds by class; None for a class that never occurs.
        parameters: Trainable weights.
        gain: Mean over `paired` of the mIoU gained over the reference of the same seed; None for the
            reference itself, where no seed is shared, and where the test tiles differ.
        low: Lower bound of the gain; see `hfd_edge.comparison.bootstrap.gain_interval`. None with few tiles.
        high: Upper bound.
        paired: Seeds that both have.
        is_reference: The others of its split are compared with it.
    """

    split: str
    method: str
    teacher: str | None
    hfam: bool | None
    variant: str
    seeds: tuple[int, ...]
    miou: tuple[float, ...]
    iou: dict[str, float | None]
    parameters: int
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    paired: tuple[int, ...] = ()
    is_reference: bool = False

    @property
    def mean(self) -> float:
        """Mean mIoU over the seeds."""
        return float(np.mean(self.miou))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the mIoU over the seeds (n - 1); None with a single one."""
        return float(np.std(self.miou, ddof=1)) if len(self.miou) > 1 else None

    @property
    def label(self) -> str:
        """The configuration in words, without the split."""
        parts = [self.method]
        if self.teacher is not None:
            parts.append(f"({self.teacher})" if self.method == "teacher" else f"by {self.teacher}")
        if self.hfam is False:
            parts.append("without HFAM")
        return " ".join([*parts, *([f"[{self.variant}]"] if self.variant else [])])


Counts = Mapping[str, Any]
"""Confusion counts of each test tile, by name."""


@dataclass
class _Group:
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    counts: dict[int, Counts] = field(default_factory=dict)


def summarise(rows: Sequence[tuple[Mapping[str, Any], Counts]]) -> tuple[Line, ...]:
    """Gather the seeds of each configuration.

    Args:
        rows: Scores and facts of each run ("split", "method", "teacher", "hfam", "variant", "seed", "miou",
            "iou", "parameters"; where its split has several folds, their number "folds"), and its counts. The
            folds of a seed are scored together; a seed that lacks one is left out.
    Returns:
        Splits, and configurations in them, in the order in which they first occur.
    """
    groups: dict[tuple[Any, ...], _Group] = {}
    for row, counts in _pool(rows):
        key = _key(row)
        group = groups.setdefault(key, _Group())
        group.rows.append(row)
        group.counts[row["seed"]] = counts
    references: dict[str, tuple[Any, _Group]] = {}
    for key, group in groups.items():
        # The first one is that of the recipe; one without alignment is an ablation of it.
        if key[1] == REFERENCE and not key[4] and (key[0] not in references or key[3]):
            references[key[0]] = (key, group)
    splits = list(dict.fromkeys(key[0] for key in groups))
    return tuple(
        _line(key, groups[key], references.get(split))
        for split in splits
        for key in groups
        if key[0] == split
    )


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a configuration is told by."""
    return tuple(row[name] for name in ("split", "method", "teacher", "hfam", "variant"))


def _pool(rows: Sequence[tuple[Mapping[str, Any], Counts]]) -> list[tuple[Mapping[str, Any], Counts]]:
    """One row a seed, its folds together; seeds that lack a fold are left out."""
    seeds: dict[tuple[Any, ...], list[tuple[Mapping[str, Any], Counts]]] = {}
    for row, counts in rows:
        seeds.setdefault((*_key(row), row["seed"]), []).append((row, counts))
    return [_together(folds) for folds in seeds.values() if len(folds) == folds[0][0].get("folds", 1)]


def _together(folds: Sequence[tuple[Mapping[str, Any], Counts]]) -> tuple[Mapping[str, Any], Counts]:
    row, _ = folds[0]
    if len(folds) == 1:
        return folds[0]
    counts = {name: count for _, own in folds for name, count in own.items()}
    total = np.sum([np.asarray(count, np.int64) for count in counts.values()], axis=0)
    (values,), (present,) = iou_of(total[None])
    known = zip(row["iou"], values, present, strict=True)
    iou = {name: float(value) if occurs else None for name, value, occurs in known}
    return {**row, "iou": iou, "miou": _mean(list(iou.values()))}, counts


def _line(key: tuple[Any, ...], group: _Group, reference: tuple[Any, _Group] | None) -> Line:
    rows = sorted(group.rows, key=lambda row: int(row["seed"]))
    facts: dict[str, Any] = {}
    if reference is not None:
        facts = {"is_reference": True} if reference[0] == key else _gain(group, reference[1])
    split, method, teacher, hfam, variant = key
    return Line(
        split=split,
        method=method,
        teacher=teacher,
        hfam=hfam,
        variant=variant,
        seeds=tuple(row["seed"] for row in rows),
        miou=tuple(row["miou"] for row in rows),
        iou={name: _mean([row["iou"][name] for row in rows]) for name in rows[0]["iou"]},
        parameters=rows[0]["parameters"],
        **facts,
    )


def _gain(group: _Group, reference: _Group) -> dict[str, Any]:
    paired = tuple(seed for seed in sorted(group.counts) if seed in reference.counts)
    if not paired:
        return {}
    names = sorted(reference.counts[paired[0]])
    if any(sorted(side.counts[seed]) != names for side in (group, reference) for seed in paired):
        return {}  # a teacher may leave out tiles without EO: scores on other tiles are no pairs
    mine, theirs = ({row["seed"]: row["miou"] for row in side.rows} for side in (group, reference))
    gain = 100 * float(np.mean([mine[seed] - theirs[seed] for seed in paired]))
    bounds = gain_interval(
        [_arrays(reference.counts[seed], names) for seed in paired],
        [_arrays(group.counts[seed], names) for seed in paired],
    )
    low, high = bounds or (None, None)
    return {"gain": gain, "low": low, "high": high, "paired": paired}


def _arrays(counts: Counts, names: Sequence[str]) -> list[NDArray[np.int64]]:
    return [np.asarray(counts[name], np.int64) for name in names]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def result_rows(rows: Sequence[Mapping[str, Any]], lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The rows of the result file: each run, with the gain of its configuration over all its seeds.

    Returns:
        `rows` with "split_miou", the score of the seed over all folds of its split, "gain_points",
        "gain_low_points", "gain_high_points" and "gain_seeds" added; None and empty where folds are missing.
    """
    found = {(line.split, line.method, line.teacher, line.hfam, line.variant): line for line in lines}
    complete = []
    for row in rows:
        line = found.get(_key(row))
        own = {} if line is None else dict(zip(line.seeds, line.miou, strict=True))
        gain, low, high = (None, None, None) if line is None else (line.gain, line.low, line.high)
        gains = {"gain_points": gain, "gain_low_points": low, "gain_high_points": high}
        seeds = [] if line is None else list(line.paired)
        complete.append({**row, "split_miou": own.get(row["seed"]), **gains, "gain_seeds": seeds})
    return complete


def markdown(lines: Sequence[Line], *, title: str, missing: int = 0) -> str:
    """The table as Markdown, one for each split.

    Args:
        lines: From `summarise`.
        title: Heading.
        missing: Runs of the plan that are not finished yet; said above the table.
    """
    text = [f"# {title}", ""]
    if missing:
        text += [
            f"**{missing} runs of the plan are not finished yet; they are missing below, and so are seeds "
            "that lack a fold.**",
            "",
        ]
    for split in dict.fromkeys(line.split for line in lines):
        text += [f"## Split {split}", "", *_table([line for line in lines if line.split == split]), ""]
    text += [
        "mIoU: mean over the seeds, and standard deviation where there are several. Gain: mIoU minus that of "
        f"`{REFERENCE}` with the same seed on the same tiles, mean over the seeds that both have, with the "
        "95 % interval of a paired bootstrap over test tiles and seeds; with one seed, over tiles alone.",
        "",
    ]
    return "\n".join(text)


def _table(lines: Sequence[Line]) -> list[str]:
    classes = list(lines[0].iou)
    heads = ["method", "teacher sees", "HFAM", "variant", "seeds", "mIoU %"]
    heads += [f"IoU % {name}" for name in classes] + ["gain, points", "parameters, M"]
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        spread = "" if line.spread is None else f" ± {100 * line.spread:.2f}"
        cells = [line.method, line.teacher or "", {True: "on", False: "off", None: ""}[line.hfam]]
        cells += [line.variant, ", ".join(map(str, line.seeds)), f"{100 * line.mean:.2f}{spread}"]
        values = [line.iou.get(name) for name in classes]
        cells += ["" if value is None else f"{100 * value:.2f}" for value in values]
        cells += [_gain_text(line), f"{line.parameters / 1e6:.2f}"]
        table.append("| " + " | ".join(cells) + " |")
    return table


def _gain_text(line: Line) -> str:
    if line.gain is None:
        return ""
    if line.low is None or line.high is None:
        return f"{line.gain:+.2f}"
    return f"{line.gain:+.2f} [{line.low:+.2f}, {line.high:+.2f}]"
