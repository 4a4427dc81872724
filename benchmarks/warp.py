"""What feature alignment (HFAM) costs on a device: parameters, multiply-accumulates, CPU latency, on and off.

    python benchmarks/warp.py

Preset s, two bands, two classes, stride-4 logits, FP32 ONNX of one tile, ONNX Runtime and (where installed)
OpenVINO on the CPU, all forms in turns: `off` is plain bilinear upsampling, `grid_sample` and `gather` are
the two export forms of the same alignment. Weights are random and the flow is not zero; neither changes the
time. Multiply-accumulates are those of convolutions: the arithmetic of the warps is in the latency alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import alternate, arguments, timed
from _results import write
from numpy.typing import NDArray

from hfd_edge.config import NetworkRecipe
from hfd_edge.deploy.graph import INPUT, load, session
from hfd_edge.deploy.onnx_export import export_network
from hfd_edge.deploy.shapes import infer, macs
from hfd_edge.environment import allowed_cores
from hfd_edge.hfdnet.network import from_recipe, perturb_flow
from hfd_edge.report.console import bars

BANDS, CLASSES = 2, 2
FORMS: dict[str, dict[str, Any]] = {
    "off": {"hfam": False},
    "grid_sample": {"warp": "grid_sample"},
    "gather": {"warp": "gather"},
}


def export(recipe: NetworkRecipe, path: Path, *, tile_px: int) -> dict[str, Any]:
    """Write the ONNX model of a form, and count what it holds."""
    torch.manual_seed(0)
    network = from_recipe(recipe, bands=BANDS, classes=CLASSES).eval()
    perturb_flow(network, seed=1)
    export_network(network, path, bands=BANDS, tile_px=tile_px, head="quarter")
    model = load(path)
    work = sum(macs(model, infer(model)).values())
    return {
        "parameters": network.count_parameters(),
        "gmacs": work / 1e9,
        "onnx_mb": path.stat().st_size / 1e6,
    }


def engines(path: Path, pixels: NDArray[np.float32], *, threads: int) -> dict[str, Callable[[], object]]:
    """The model on each engine that is here, ready to run."""
    found = {"onnxruntime": partial(session(path, threads=threads).run, None, {INPUT: pixels})}
    if find_spec("openvino"):
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape(list(pixels.shape))
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(model, "CPU", options).create_infer_request()
        found["openvino"] = partial(request.infer, {INPUT: pixels})
    return found


def main() -> None:
    """Export, measure, record."""
    parser = arguments(__doc__, repeats=30)
    parser.add_argument("--tile", type=int, default=512, help="side of the tile, pixels")
    args = parser.parse_args()
    tile, repeats = (64, 1) if args.quick else (args.tile, args.repeats)
    small: dict[str, Any] = {"encoder": "test_resnet", "channels": 8} if args.quick else {}
    threads = len(allowed_cores())
    pixels = np.random.default_rng(0).normal(size=(1, BANDS, tile, tile)).astype(np.float32)
    rows: dict[str, dict[str, Any]] = {}
    works: dict[tuple[str, str], Callable[[], float]] = {}
    with bars() as progress, tempfile.TemporaryDirectory() as folder:
        for done, form in enumerate(FORMS):
            progress(done, len(FORMS), f"export {form}")
            path = Path(folder) / f"{form}.onnx"
            counts = export(NetworkRecipe(**small, **FORMS[form]), path, tile_px=tile)
            rows[form] = {"hfam": form, "tile_px": tile, "threads": threads, **counts}
            for engine, run in engines(path, pixels, threads=threads).items():
                works[form, engine] = partial(timed, run)
                run()  # warm-up
        found = alternate(works, repeats=repeats, progress=progress, text="one tile")
    for form, row in rows.items():
        row["engines"] = {
            engine: {"latency_ms": 1000 * seconds, "over_off": seconds / found["off", engine]}
            for (other, engine), seconds in found.items()
            if other == form
        }
        print(form, row)
    print(write("warp", list(rows.values()), command=" ".join(["python", *sys.argv]), root=args.root))


if __name__ == "__main__":
    main()
