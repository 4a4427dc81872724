"""Keep what a finished `make demo` measured.

python benchmarks/demo.py --demo runs/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _results import write

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Turn scores.json, seconds.json and summary.json of a demo into one result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    scores = json.loads((args.demo / "scores.json").read_text())
    summary = json.loads((args.demo / "summary.json").read_text())
    rows = [{"variant": name, **score} for name, score in scores.items()]
    rows += [{"engine": f"{row['target']}-{row['precision']}", **row} for row in summary["engines"]]
    rows += [{"scene_px": 4096, **summary["scene"]}]
    rows += [{"seconds_without_setup": json.loads((args.demo / "seconds.json").read_text())}]
    print(write("demo", rows, command="make demo", root=ROOT))


if __name__ == "__main__":
    main()
