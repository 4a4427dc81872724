"""One scene, file to file, on the same weights, tiles and machine: ours against what one would write instead.

    .venv/peers/bin/python benchmarks/bench_peers.py --bundle runs/demo/demo.hfd --run runs/demo/runs/student

`make peers` makes that Python. Every run is a process of its own, and they take turns; peak memory is the
whole process's. Seconds run from opening the scene to the closed mask; imports and loading the model are left
out. All peers get our preprocessing, tiles of the bundle's size that overlap as ours do, all cores, and what
was fastest for them here: one tile at a time, torch in channels-last.

- MONAI: `sliding_window_inference`, gaussian or constant weights, on logits at a quarter of the resolution
  (which spares it most of the work), then one bilinear enlargement and the argmax.
- torchgeo: `RasterDataset`, `GridGeoSampler` and a `DataLoader` without workers, because the network has all
  cores; each chip is enlarged and labelled, and its middle goes into the mask, as it has no stitching itself.
- plain loop: ONNX Runtime on tiles of an array in memory, sums and counts of logits, `cv2.resize`, argmax.

`agreement` is the share of valid pixels that have the label of our FP32 mask by ONNX Runtime, `accuracy` that
of those with the simulated scene's true label. Peers do not mark pixels without data.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Container
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from _measure import (
    BUNDLE,
    STUDENT,
    alternate,
    arguments,
    child,
    comparison,
    conditions,
    peak_mb,
    timed,
)
from _results import write
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.simulated import write_scene
from hfd_edge.environment import allowed_cores
from hfd_edge.raster.tiling import default_overlap
from hfd_edge.report.console import bars
from hfd_edge.runtime.backends import available_backends
from hfd_edge.runtime.segmenter import Segmenter

Array = NDArray[Any]
OURS = {
    "onnxruntime fp32": ("onnxruntime", "fp32"),
    "openvino fp32": ("openvino", "fp32"),
    "openvino int8": ("openvino", "int8"),
}
PEERS = {  # name: what it needs
    "plain loop": "onnxruntime",
    "monai gaussian": "monai",
    "monai constant": "monai",
    "torchgeo": "torchgeo",
}
WANTED = 1.5


def ours(name: str, bundle: Bundle, scene: Path, mask: Path) -> float:
    """The library."""
    backend, precision = OURS[name]
    with Segmenter(bundle, backend=backend, precision=precision) as segment:
        return segment.scene(scene, mask).seconds


def read(bundle: Bundle, scene: Path) -> Array:
    """The whole scene as network input (1, bands, rows, cols)."""
    with rasterio.open(scene) as source:
        return bundle.manifest.preprocessing(source.read())[0][np.newaxis]


def save(labels: Array, scene: Path, mask: Path) -> None:
    """Write labels (rows, cols) with the scene's georeference, in the format of our masks."""
    with rasterio.open(scene) as source:
        profile = {**source.profile, "count": 1, "dtype": "uint8", "compress": "deflate", "nodata": None}
    with rasterio.open(mask, "w", **profile) as target:
        target.write(labels.astype(np.uint8), 1)


def load(mask: Path) -> Array:
    """Labels (rows, cols)."""
    with rasterio.open(mask) as source:
        return source.read(1)


def plain_loop(_: str, bundle: Bundle, scene: Path, mask: Path) -> float:
    """ONNX Runtime on one tile after the other."""
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    size, stride = bundle.manifest.tile_px, bundle.manifest.stride
    step, low = size - default_overlap(size), size // stride

    def work() -> None:
        pixels = read(bundle, scene)
        rows, cols = pixels.shape[2:]
        total = np.zeros((len(bundle.manifest.classes), rows // stride, cols // stride), np.float32)
        count = np.zeros(total.shape[1:], np.float32)
        for top in range(0, rows - size + 1, step):
            for left in range(0, cols - size + 1, step):
                tile = np.ascontiguousarray(pixels[:, :, top : top + size, left : left + size])
                place = np.s_[top // stride : top // stride + low, left // stride : left // stride + low]
                total[:, place[0], place[1]] += session.run(None, {"sar": tile})[0][0]
                count[place] += 1
        enlarged = [cv2.resize(one / count, (cols, rows), interpolation=cv2.INTER_LINEAR) for one in total]
        save(np.argmax(enlarged, axis=0), scene, mask)

    return timed(work)


def network(run: Path) -> Any:
    """The student in torch."""
    import torch

    from hfd_edge.hfdnet.run import Run

    torch.set_num_threads(len(allowed_cores()))
    return Run.open(run).network().eval().to(memory_format=torch.channels_last)


def enlarge(logits: Any, size: Any) -> Any:
    """Labels (batch, rows, cols) of logits at stride 4."""
    from torch.nn import functional

    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1)


def monai(name: str, bundle: Bundle, scene: Path, mask: Path, run: Path) -> float:
    """MONAI's sliding window."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    model, size = network(run), bundle.manifest.tile_px
    options = {"overlap": default_overlap(size) / size, "mode": name.split()[1]}

    def predictor(tiles: Any) -> Any:
        return model(tiles.contiguous(memory_format=torch.channels_last))

    def work() -> None:
        pixels = torch.from_numpy(read(bundle, scene))
        logits = sliding_window_inference(pixels, (size, size), 1, predictor, **options)
        save(enlarge(logits, pixels.shape[2:])[0].numpy(), scene, mask)

    with torch.inference_mode():
        return timed(work)


def torchgeo(_: str, bundle: Bundle, scene: Path, mask: Path, run: Path) -> float:
    """torchgeo's grid of chips."""
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    model, size = network(run), bundle.manifest.tile_px
    overlap = default_overlap(size)

    def preprocess(sample: dict[str, Any]) -> dict[str, Any]:
        values = bundle.manifest.preprocessing(sample["image"].numpy())[0]
        return {**sample, "image": torch.from_numpy(values)}

    def work() -> None:
        with rasterio.open(scene) as source:
            labels, inverse = np.zeros(source.shape, np.uint8), ~source.transform
        dataset = RasterDataset([scene], transforms=preprocess)
        sampler = GridGeoSampler(dataset, size=size, stride=size - overlap)
        for batch in DataLoader(dataset, sampler=sampler, collate_fn=stack_samples):
            chip = enlarge(model(batch["image"].contiguous(memory_format=torch.channels_last)), (size, size))
            x, y = (batch["bounds"][0][axis] for axis in (0, 1))
            left, top = (round(value) for value in inverse * (x.start, y.stop))
            rows, cols = (
                middle(at, size, overlap, end) for at, end in zip((top, left), labels.shape, strict=True)
            )
            labels[top + rows.start : top + rows.stop, left + cols.start : left + cols.stop] = chip[
                0, rows, cols
            ]
        save(labels, scene, mask)

    with torch.inference_mode():
        return timed(work)


def middle(start: int, size: int, overlap: int, end: int) -> slice:
    """What of a chip counts along one axis: half the overlap is left to each neighbour."""
    return slice(overlap // 2 if start else 0, size - (overlap // 2 if start + size < end else 0))


def one(name: str, args: Any) -> dict[str, float]:
    """Segment the scene in this process."""
    bundle, files = Bundle.open(args.bundle), (args.scene, args.mask)
    if name in OURS:
        seconds = ours(name, bundle, *files)
    elif name == "plain loop":
        seconds = plain_loop(name, bundle, *files)
    else:
        work: Callable[..., float] = monai if name.startswith("monai") else torchgeo
        seconds = work(name, bundle, *files, args.run)
    return {"seconds": seconds, "peak_mb": peak_mb()}


def measure(args: Any, names: list[str], *, repeats: int, progress: Any) -> list[dict[str, Any]]:
    """Run each in processes that take turns; one row for each of ours against each peer."""
    folder, peaks = args.scene.parent, dict.fromkeys(names, 0.0)

    def run(name: str) -> float:
        command = [sys.executable, Path(__file__).resolve(), "--one", name, "--bundle", args.bundle.resolve()]
        command += ["--run", args.run.resolve(), "--scene", args.scene, "--mask", folder / f"{name}.tif"]
        found = child(command, folder=folder)
        peaks[name] = max(peaks[name], found["peak_mb"])
        return float(found["seconds"])

    works = {name: (lambda name=name: run(name)) for name in names}
    seconds = alternate(works, repeats=repeats, progress=progress, text="segment")
    masks = {name: load(folder / f"{name}.tif") for name in names}
    expected, truth = masks["onnxruntime fp32"], load(args.scene.with_suffix(".label.tif"))
    rows, cols = truth.shape
    valid = expected != Bundle.open(args.bundle).manifest.nodata_label
    agreement, accuracy = (
        {name: float((mask == labels)[valid].mean()) for name, mask in masks.items()}
        for labels in (expected, truth)
    )
    return [
        comparison(
            f"scene of {rows} x {cols}, {mine}",
            peer,
            unit="s",
            ours=seconds[mine],
            theirs=seconds[peer],
            wanted=WANTED if peer.startswith("monai") and mine.endswith("fp32") else None,
            ours_peak_mb=peaks[mine],
            theirs_peak_mb=peaks[peer],
            ours_agreement=agreement[mine],
            theirs_agreement=agreement[peer],
            ours_accuracy=accuracy[mine],
            theirs_accuracy=accuracy[peer],
            **conditions(args.bundle, repeats=repeats),
        )
        for mine in names
        if mine in OURS
        for peer in names
        if peer in PEERS
    ]


def runnable(precisions: Container[str]) -> list[str]:
    """What of ours and theirs is installed; says what is not."""
    here = available_backends()
    names = [name for name, (backend, kind) in OURS.items() if backend in here and kind in precisions]
    for name, package in PEERS.items():
        if find_spec(package):
            names.append(name)
        else:
            print(f"{name} is left out: {package} is not installed. Use: make peers", file=sys.stderr)
    return names


def parse() -> Any:
    """Read the command line."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--run", type=Path, default=STUDENT, help="run folder that the bundle was made from")
    parser.add_argument("--size", type=int, default=4096, help="side of the scene; whole steps of tiles")
    internal = parser.add_argument_group("one run, in the processes that the script starts itself")
    internal.add_argument("--one", choices=(*OURS, *PEERS))
    internal.add_argument("--scene", type=Path)
    internal.add_argument("--mask", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, record."""
    args = parse()
    if args.one:
        print(json.dumps(one(args.one, args)))
        return
    manifest = Bundle.open(args.bundle).manifest
    names = runnable(manifest.precisions)
    size, repeats = (2 * manifest.tile_px, 1) if args.quick else (args.size, args.repeats)
    step = manifest.tile_px - default_overlap(manifest.tile_px)
    if size < manifest.tile_px or (size - manifest.tile_px) % step:
        raise SystemExit(f"--size is {size}, expected {manifest.tile_px} plus a multiple of {step}")
    with bars() as progress, tempfile.TemporaryDirectory() as folder:
        args.scene = Path(folder) / "scene.tif"
        write_scene(args.scene, rows=size, cols=size, seed=11, progress=progress)
        rows = measure(args, names, repeats=repeats, progress=progress)
    for row in rows:
        print(f"{row['what']}: {row['ratio']:.2f}x {row['against']}, agreement {row['theirs_agreement']:.4f}")
    versions = {package: metadata.version(package) for package in ("monai", "torchgeo") if find_spec(package)}
    command = " ".join(["python", *sys.argv])
    print(write("peers", rows, command=command, root=args.root, versions=versions))


if __name__ == "__main__":
    main()
