#!/usr/bin/env python
"""Export a student as a bundle: python export/to_onnx.py RUN --data DIR --out flood.hfd.

The same as `hfd-edge export`, as a script to copy and change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.export import export_run
from hfd_edge.hfdnet.run import Run
from hfd_edge.report.console import bars


def main() -> None:
    """Read the arguments, export, print what was made."""
    parser = argparse.ArgumentParser(description="Export a student as a bundle with an FP32 ONNX model.")
    parser.add_argument("run", type=Path, help="run folder of a student")
    parser.add_argument("--data", type=Path, help="data folder for golden tiles")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to make")
    arguments = parser.parse_args()

    scheme = Run.open(arguments.run).recipe.split
    folder = PairFolder.open(arguments.data, scheme=scheme) if arguments.data else None
    with bars() as progress:
        bundle = export_run(arguments.run, arguments.out, folder=folder, progress=progress)
    print(f"{bundle.path}: {', '.join(bundle.manifest.files)}")


if __name__ == "__main__":
    main()
