"""How much of the network torch-tensorrt would run in TensorRT, seen without a GPU.

    python -m venv coverage && coverage/bin/pip install 'hfd-edge[train]' 'torch-tensorrt-rtx==2.14.*'
    USE_TRT_RTX=1 coverage/bin/python benchmarks/torch_tensorrt_coverage.py --run runs/demo/runs/student

In an environment of its own, because torch-tensorrt-rtx 2.14 wants tensorrt-rtx below 1.7 and this project's
rtx extra wants more. Its dry run divides the graph into engines and what PyTorch keeps, and stops before
anything is compiled. Three questions about the GPU that the package asks when it is imported are answered
here in its stead. Every row says for one precision, batch and warp: operators in all, how many TensorRT
takes, engines, and which operators PyTorch would run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _results import write

from hfd_edge.deploy.targets import Batch
from hfd_edge.deploy.torch_program import Input, compiler_options, exported_form, trace
from hfd_edge.hfdnet.run import Run

ROOT = Path(__file__).resolve().parent.parent
_COUNTS = re.compile(r"consists of (\d+) Total Operators, of which (\d+) operators are supported")
_UNSUPPORTED = re.compile(r"^\s*(torch\.ops\.\S+): (\d+)$", flags=re.MULTILINE)


def without_gpu() -> Any:
    """Import torch_tensorrt with the answers of an Ada GPU of 8 GB that nothing uses."""
    torch.cuda.get_device_capability = lambda *_: (8, 9)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *_: (8 << 30, 8 << 30)
    os.environ.setdefault("USE_TRT_RTX", "1")
    import torch_tensorrt

    return torch_tensorrt


def coverage(trt: Any, network: Any, given: Input, *, precision: str, min_block: int) -> dict[str, Any]:
    """Divide a network and read the report."""
    program = trace(network, given, precision=precision)
    options = compiler_options(trt, given, workspace_mb=4096)
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.txt"
        with contextlib.redirect_stdout(io.StringIO()):
            trt.dynamo.compile(program, dryrun=str(report), min_block_size=min_block, **options)
        text = report.read_text()
    counts = _COUNTS.search(text)
    if counts is None:
        raise SystemExit(f"torch_tensorrt {trt.__version__} writes another report:\n{text}")
    unsupported = {name: int(count) for name, count in _UNSUPPORTED.findall(text)}
    return {
        "operators": int(counts[1]),
        "supported": int(counts[2]),
        "engines": len(re.findall(r"TRT Engine #\d+", text)),
        "unsupported": unsupported,
    }


def with_warp(network: Any, warp: str) -> Any:
    """Let all alignments of a network use one form of the warp."""
    for module in network.modules():
        if hasattr(module, "flow_head"):
            module.method = warp
    return network


def main() -> None:
    """Divide in all combinations and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of a student")
    parser.add_argument("--tile", type=int, default=512, help="side of the tile, pixels")
    args = parser.parse_args()
    trt = without_gpu()
    run = Run.open(args.run)
    rows = []
    for warp, precision, most in product(("grid_sample", "gather"), ("fp32", "fp16"), (1, 8)):
        network = exported_form(with_warp(run.network(), warp), head=run.recipe.deploy.head)
        given = Input(Batch(min=1, opt=1, max=most), run.info.bands, args.tile)
        row = {"warp": warp, "precision": precision, "batch_min": 1, "batch_max": most, "tile_px": args.tile}
        # 5 is torch-tensorrt's default for the smallest engine, in operators.
        rows.append({**row, **coverage(trt, network, given, precision=precision, min_block=5)})
        print(rows[-1])
    names = ("torch-tensorrt", "torch-tensorrt-rtx", "tensorrt-rtx")
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    command = " ".join(["python", *sys.argv])
    print(write("torch-tensorrt-coverage", rows, command=command, root=ROOT, versions=versions))


if __name__ == "__main__":
    main()
