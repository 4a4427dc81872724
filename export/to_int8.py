#!/usr/bin/env python
"""Add FP16 and INT8 models to a bundle: python export/to_int8.py flood.hfd --data DIR.

The same as `hfd-edge quantize`, as a script to copy and change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.deploy.calibration import METHODS
from hfd_edge.deploy.quantize import quantize
from hfd_edge.report.console import bars


def main() -> None:
    """Read the arguments, quantise, print how close the variants are to FP32."""
    parser = argparse.ArgumentParser(description="Add FP16 and INT8 models, calibrated on training tiles.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="data folder with a train split")
    parser.add_argument("--method", choices=sorted(METHODS))
    parser.add_argument("--tiles", type=int, help="calibration tiles; default: the bundle's selection, or 64")
    parser.add_argument("--max-drop", type=float, help="mIoU points that INT8 may lose on the val split")
    arguments = parser.parse_args()

    bundle = Bundle.open(arguments.bundle)
    folder = PairFolder.open(arguments.data, scheme=bundle.manifest.provenance.recipe.get("split"))
    with bars() as progress:
        bundle = quantize(
            bundle,
            folder,
            method=arguments.method,
            tiles=arguments.tiles,
            max_drop=arguments.max_drop,
            progress=progress,
        )
    for name in ("fp16", "int8", "int8_fp16"):
        scores = bundle.manifest.metrics[name]
        print(f"{name}: labels agree with fp32 on {scores['label_agreement_with_fp32']:.2%} of positions")


if __name__ == "__main__":
    main()
