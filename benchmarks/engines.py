"""Memory and size of TensorRT-RTX engines by precision, built ahead of time; no engine is run.

    python benchmarks/engines.py --bundle runs/int8/entropy.hfd

Weights and activation memory are what the compiler reports. Every variant of the bundle is built for one
generation and for all of desktop-rtx, for one tile and for 1 to 8 tiles a call.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _results import write

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.engine import build_engine
from hfd_edge.deploy.targets import Target, load_target
from hfd_edge.report.console import bars

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("rtx-ada", "desktop-rtx")


def measure(bundle: Bundle, name: str, largest: int) -> list[dict[str, Any]]:
    """One row a precision."""
    shape = {"batch": {"min": 1, "opt": 1, "max": largest}}
    target = Target.model_validate({**load_target(name).model_dump(), **shape})
    rows: list[dict[str, Any]] = []
    for precision in bundle.precisions:
        with bars() as progress:
            engine = build_engine(
                bundle.model(precision), target=target, progress=progress, label=f"{name} {precision}"
            )
        assert engine.weights_bytes is not None
        row = {"target": name, "largest_batch": largest, "precision": precision}
        row |= {"weights_bytes": engine.weights_bytes, "activation_bytes": engine.activation_bytes}
        rows.append({**row, "engine_bytes": len(engine.content), "seconds": round(engine.seconds, 2)})
    fp32 = next(row["weights_bytes"] for row in rows if row["precision"] == "fp32")
    return [{**row, "weights_ratio": round(row["weights_bytes"] / fp32, 4)} for row in rows]


def main() -> None:
    """Build, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    bundle = Bundle.open(parser.parse_args().bundle)
    rows = [row for name in TARGETS for largest in (1, 8) for row in measure(bundle, name, largest)]
    for row in rows:
        print(row)
    print(write("engines", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
