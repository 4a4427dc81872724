"""Peak memory of choosing calibration tiles, calibrating and quantising, against that of the model alone.

    python benchmarks/calibration_memory.py                    a few tiles, about two minutes
    python benchmarks/calibration_memory.py --tiles 2000       the size that is promised; most of an hour

The model is preset s with random weights and two bands; the tiles are 512 x 512 and simulated. A few
distinct images stand behind many names: each is read, cut, hashed and run on its own. Every stage is a
process of its own, whose peak is read from the kernel.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _results import write

from hfd_edge.bundle import Bundle, Manifest, Provenance
from hfd_edge.config import DatasetConfig, NetworkRecipe, SarInput, write_toml
from hfd_edge.datasets.folder import PairFolder
from hfd_edge.raster.image import write_image
from hfd_edge.sar.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
TILE_PX, BANDS, DISTINCT = 512, ("vv", "vh"), 8
CLASSES, PALETTE = ("water", "land"), ((0, 0, 255), (0, 128, 0))
SAR = SarInput(bands=BANDS, units="intensity", looks=4.0)


def make(work: Path, tiles: int) -> None:
    """Write a data folder and a bundle."""
    import torch

    from hfd_edge.deploy.onnx_export import export_network
    from hfd_edge.hfdnet.network import from_recipe, perturb_flow

    write_toml(
        work / "data" / "dataset.toml", DatasetConfig(name="sim", classes=CLASSES, palette=PALETTE, sar=SAR)
    )
    rng = np.random.default_rng(0)
    for index in range(tiles):
        path = work / "data" / "train" / "sar" / f"tile_{index:05}.tif"
        if index < DISTINCT:
            level = np.repeat(np.repeat(rng.normal(-12, 5, (len(BANDS), 16, 16)), 32, 1), 32, 2)
            write_image(path, (10 ** (level / 10) * rng.gamma(4, 0.25, level.shape)).astype(np.float32))
        else:
            os.link(path.with_name(f"tile_{index % DISTINCT:05}.tif"), path)
    torch.manual_seed(0)
    network = from_recipe(NetworkRecipe(preset="s"), bands=len(BANDS), classes=len(CLASSES)).eval()
    perturb_flow(network, seed=0)
    export_network(network, work / "model.fp32.onnx", bands=len(BANDS), tile_px=TILE_PX, head="quarter")
    manifest = Manifest(
        name="sim",
        classes=CLASSES,
        palette=PALETTE,
        sar=SAR,
        preprocessing=Preprocessing(
            units="intensity", looks=4.0, nodata=None, speckle="none", window_px=7,
            clip=((-30.0, 5.0),) * 2, mean=(-12.0,) * 2, std=(5.0,) * 2,
        ),
        head="quarter",
        tile_px=TILE_PX,
        precisions={"fp32": "model.fp32.onnx"},
        provenance=Provenance(recipe={}, data_sha256="", versions={}, created="2026-01-01T00:00:00"),
    )  # fmt: skip
    Bundle.create(work / "sim.hfd", manifest, {"model.fp32.onnx": work / "model.fp32.onnx"})


def run_stage(stage: str, work: Path, tiles: int) -> None:
    """Do one stage in this process and print its seconds and peak."""
    from hfd_edge.deploy.calibration import METHODS, collect, float_tensors
    from hfd_edge.deploy.graph import INPUT, session
    from hfd_edge.deploy.quantize import quantize
    from hfd_edge.deploy.selection import select
    from hfd_edge.deploy.tiles import calibration_tiles

    bundle, folder = Bundle.open(work / "sim.hfd"), PairFolder.open(work / "data")
    preprocessing = bundle.manifest.preprocessing
    start = time.perf_counter()
    if stage == "model":
        pixels = np.zeros((1, len(BANDS), TILE_PX, TILE_PX), np.float32)
        session(bundle.model("fp32")).run(None, {INPUT: pixels})
    elif stage == "select":
        select(folder, preprocessing, tile_px=TILE_PX, count=min(tiles, 64))
    elif stage == "calibrate":
        model = bundle.model("fp32")
        chosen = calibration_tiles(folder, preprocessing, tile_px=TILE_PX, count=tiles)
        found = collect(model, float_tensors(model), chosen)
        for method in METHODS.values():
            [method(histogram) for histogram in found.values()]
    else:
        quantize(bundle, folder, tiles=tiles)
    seconds = time.perf_counter() - start
    # VmHWM is the peak of this process alone; ru_maxrss would start at the parent's.
    peak_kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak_kb is not None
    print(f"{seconds:.2f} {peak_kb[1]}")


def measure(stage: str, work: Path, tiles: int) -> dict[str, Any]:
    """One stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--work", str(work), "--tiles", str(tiles)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak_kb = done.stdout.split()[-2:]
    return {
        "stage": stage, "tiles": tiles, "tile_px": TILE_PX, "bands": len(BANDS),
        "seconds": float(seconds), "peak_mb": int(peak_kb) / 1000,
    }  # fmt: skip


def main() -> None:
    """Measure every stage, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=24)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        run_stage(args.stage, args.work, args.tiles)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.tiles)
        own = measure("model", Path(folder), 1)
        rows = [own]
        for stage in ("select", "calibrate", "quantize"):
            row = measure(stage, Path(folder), args.tiles)
            rows.append({**row, "above_model_mb": row["peak_mb"] - own["peak_mb"]})
            print(rows[-1])
    print(write("calibration-memory", rows, command=" ".join(["python", *sys.argv]), root=ROOT))


if __name__ == "__main__":
    main()
