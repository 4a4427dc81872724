#!/usr/bin/env python
"""Build TensorRT engines into a bundle: python export/to_engine.py flood.hfd --target desktop-rtx.

The same as `hfd-edge build`, as a script to copy and change. Targets are the TOML files beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.build import build
from hfd_edge.deploy.targets import list_targets, load_target
from hfd_edge.report.console import bars


def main() -> None:
    """Read the arguments, build, print size and time of every engine."""
    parser = argparse.ArgumentParser(description="Build engines for a target; no GPU is needed.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--target", default="desktop-rtx", help=f"{', '.join(list_targets())}, or a TOML file"
    )
    parser.add_argument("--precision", action="append", help="may be repeated; default: all in the bundle")
    arguments = parser.parse_args()

    target = load_target(arguments.target)
    with bars() as progress:
        records = build(
            Bundle.open(arguments.bundle), target, precisions=arguments.precision, progress=progress
        )
    for record in records:
        print(f"{record.target}-{record.precision}: {record.bytes} bytes in {record.seconds:.1f} s")


if __name__ == "__main__":
    main()
