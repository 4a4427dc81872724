"""The benchmarks' figures as one Markdown table, for the README.

    python benchmarks/table.py

Reads scene, preprocess, int8-cpu, coldstart, peers and training.json of this machine. A ratio above 1 means
that ours is better; "wanted" is the least ratio, or the largest figure, that is good enough. Rows with
`"in_table": false` stay in the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _measure import ROOT, comparison
from _results import machine_slug

FILES = ("scene", "preprocess", "int8-cpu", "coldstart", "peers", "training")
WANTED_INT8 = 1.3
UNITS = {"mpx_s": "Mpx/s", "img_s": "images/s", "percent": "%", "mb": "MB"}


def figure(row: Mapping[str, Any], who: str) -> str:
    """The value of "ours" or "theirs" with its unit; empty where there is none."""
    for unit in ("mpx_s", "img_s", "percent", "mb", "ms", "s"):
        if (value := row.get(f"{who}_{unit}")) is not None:
            return (
                f"{value:.3g} {UNITS.get(unit, unit)}"
                if value < 100
                else f"{value:.0f} {UNITS.get(unit, unit)}"
            )
    return ""


def verdict(row: Mapping[str, Any]) -> tuple[str, str]:
    """What was wanted, and whether it was reached."""
    if (least := row.get("wanted")) is not None:
        return f">= {least:g}", "yes" if row["ratio"] >= least else "**no**"
    if (most := row.get("at_most")) is not None:
        unit, value = next((key[5:], row[key]) for key in row if key.startswith("ours_"))
        return f"<= {most:g} {UNITS.get(unit, unit)}", "yes" if value <= most else "**no**"
    return "", ""


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| what | ours | against | theirs | ratio | wanted | reached |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        cells = (row["what"], figure(row, "ours"), row.get("against", ""), figure(row, "theirs"), ratio)
        lines.append(f"| {' | '.join((*cells, *verdict(row)))} |")
    return lines


def shown(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a file that the table has."""
    if name != "int8-cpu":
        return [row for row in rows if row.get("in_table", True)]
    (best,) = (row for row in rows if row["case"] == "best")
    against = f"FP32, {best['fp32_backend']}"
    if best["ratio"] is None:
        return [{"what": f"INT8 on the CPU: {best['why']}", "against": against, "theirs_ms": best["fp32_ms"]}]
    what = f"one tile of {best['tile_px']}, {best['precision']}, {best['backend']}"
    times = {"ours": best["latency_ms"], "theirs": best["fp32_ms"]}
    return [comparison(what, against, unit="ms", **times, wanted=WANTED_INT8)]


def main() -> None:
    """Print the table of what there is; say what there is not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with benchmarks/results")
    parser.add_argument(
        "--machine", default=machine_slug(), help="folder of results; this machine's by default"
    )
    args = parser.parse_args()
    folder, rows = args.root / "benchmarks" / "results" / args.machine, []
    for name in FILES:
        if not (path := folder / f"{name}.json").exists():
            print(f"{path} is missing: run make bench", file=sys.stderr)
            continue
        rows += shown(name, json.loads(path.read_text())["rows"])
    print(f"Machine: {args.machine}\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
