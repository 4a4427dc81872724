"""Registers, shared memory, spills and theoretical occupancy of every kernel, from the compiler; no GPU.

    python benchmarks/kernel_resources.py

A test compiles some of them again and fails where one got worse (tests/runtime/test_occupancy.py): run this
when a kernel was changed on purpose.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _results import write

from hfd_edge.runtime.compilers import Nvcc
from hfd_edge.runtime.kernels import SOURCES
from hfd_edge.runtime.occupancy import kernel_resources

ROOT = Path(__file__).resolve().parent.parent
GPUS = (75, 86, 87, 89, 110, 120)


def main() -> None:
    """Compile, record."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = kernel_resources(SOURCES, compute_capabilities=GPUS)
    command = "python benchmarks/kernel_resources.py"
    print(write("kernel-resources", rows, command=command, root=ROOT, versions={"nvcc": Nvcc.find().version}))
    for row in rows:
        print(
            f"{row['kernel']:<28}sm_{row['compute_capability']:<5}{row['registers']:>4} registers "
            f"{row['spill_bytes']:>3} B spilled {row['shared_bytes']:>7} B shared "
            f"{100 * row['occupancy']:>4.0f} % occupancy"
        )


if __name__ == "__main__":
    main()
