"""Preprocessing (Lee 7x7 -> dB -> clipped and standardised) against what one would use instead.

    python benchmarks/bench_preprocess.py

Two bands of simulated intensity, float32, in memory, with one thread and with all. SciPy and OpenCV are the
usual composition of box means and NumPy, which stays in one thread however many there are; torchgeo is its
LeeFilter, or where the installed version has none (it came with 0.10) the same arithmetic in torch: box means
by grouped convolution. OTB's figure is that of the whole program otbcli_Despeckle, once a band: process
start, reading and writing float32 TIFF and the filter alone, without dB; `theirs_start_s` is what it takes
for an image of 16 x 16. Megapixels count every band. `max_difference` is the largest difference from our
result away from the border, in standardised units.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _measure import alternate, arguments, comparison, timed
from _results import write
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from speckle_otb import otb_version

from hfd_edge.environment import allowed_cores
from hfd_edge.report.console import bars
from hfd_edge.sar.preprocessing import Preprocessing

Array = NDArray[Any]
LOOKS, WINDOW_PX = 4.0, 7
CLIP, MEAN, STD = (-30.0, 0.0), -12.0, 5.0
OURS = Preprocessing("intensity", LOOKS, None, "lee", WINDOW_PX, (CLIP,) * 2, (MEAN,) * 2, (STD,) * 2)
WANTED = {"scipy": 4.0, "opencv": 1.3, "otb": 10.0}
"""With all cores, which is what a user gets; SciPy's and OpenCV's composition uses one of them."""


def composition(image: Array, box_mean: Callable[[Array], Array]) -> Array:
    """The chain in NumPy, band by band."""

    def chain(band: Array) -> Array:
        mean = box_mean(band)
        count = WINDOW_PX**2
        variance = np.maximum(box_mean(band * band) - mean * mean, 0) * (count / (count - 1))
        contrast = np.maximum(variance / (mean * mean), 1e-12)
        return standardised(mean + np.clip(1 - 1 / LOOKS / contrast, 0, 1) * (band - mean))

    return np.stack([chain(band) for band in image])


def standardised(intensity: Array) -> Array:
    """What follows the filter."""
    return (np.clip(10 * np.log10(intensity), *CLIP) - MEAN) / STD


def scipy_box(band: Array) -> Array:
    """Mean of the window."""
    return uniform_filter(band, WINDOW_PX, mode="nearest")


def opencv_box(band: Array) -> Array:
    """Mean of the window."""
    return cv2.boxFilter(band, -1, (WINDOW_PX, WINDOW_PX), borderType=cv2.BORDER_REPLICATE)


def torch_box(pixels: Any) -> Any:
    """Mean of the window, (batch, bands, rows, cols)."""
    import torch
    from torch.nn import functional

    bands, half = pixels.shape[1], WINDOW_PX // 2
    kernel = torch.full((bands, 1, WINDOW_PX, WINDOW_PX), 1 / WINDOW_PX**2)
    return functional.conv2d(functional.pad(pixels, (half,) * 4, mode="reflect"), kernel, groups=bands)


def torch_lee(pixels: Any) -> Any:
    """The arithmetic of torchgeo's filter."""
    mean = torch_box(pixels)
    noise = mean * mean / LOOKS
    signal = (torch_box(pixels * pixels) - mean * mean - noise).clamp(min=0)
    return mean + signal / (signal + noise + 1e-8) * (pixels - mean)


def torchgeo_lee() -> Callable[[Any], Any] | None:
    """The filter that the installed torchgeo brings, if it does."""
    try:
        module = import_module("torchgeo.transforms.sar")
    except ImportError:
        return None
    return lambda pixels: module.lee_filter(pixels, window_size=WINDOW_PX, num_looks=LOOKS)


def torch_chain(image: Array, lee: Callable[[Any], Any]) -> Array:
    """The chain in torch."""
    import torch

    with torch.inference_mode():
        decibels = 10 * torch.log10(lee(torch.from_numpy(image)[None]))
        return ((decibels.clamp(*CLIP) - MEAN) / STD)[0].numpy()


def otb(image: Array, folder: Path, *, threads: int) -> Array:
    """Despeckle each band with the program."""
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads)}
    source, target = folder / "in.tif", folder / "out.tif"
    bands = []
    for band in image:
        cv2.imwrite(str(source), band)
        command = ["otbcli_Despeckle", "-in", source, "-out", target, "float", "-filter", "lee"]
        command += ["-filter.lee.rad", WINDOW_PX // 2, "-filter.lee.nblooks", LOOKS]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, env=environment)
        bands.append(cv2.imread(str(target), cv2.IMREAD_UNCHANGED))
    return np.stack(bands)


def with_threads(count: int) -> None:
    """Let OpenCV, which ours follows, and torch use so many threads."""
    import torch

    cv2.setNumThreads(count)
    torch.set_num_threads(count)


def difference(result: Array, expected: Array) -> float:
    """Largest difference away from the border, where peers mirror."""
    inner = (slice(None), slice(WINDOW_PX, -WINDOW_PX), slice(WINDOW_PX, -WINDOW_PX))
    return float(np.abs(result[inner] - expected[inner]).max())


def chains(image: Array, work: Path, *, threads: int) -> dict[str, tuple[str, Callable[[], Array]]]:
    """What each is called in the rows, and what it does; ours first."""
    lee = torchgeo_lee()
    torchgeo = "torchgeo LeeFilter" if lee else "torchgeo's Lee arithmetic in torch"
    found: dict[str, tuple[str, Callable[[], Array]]] = {
        "ours": ("", lambda: OURS(image)[0]),
        "scipy": ("SciPy uniform_filter and NumPy", lambda: composition(image, scipy_box)),
        "opencv": ("OpenCV boxFilter and NumPy", lambda: composition(image, opencv_box)),
        "torchgeo": (torchgeo, lambda: torch_chain(image, lee or torch_lee)),
    }
    if shutil.which("otbcli_Despeckle"):
        against = "OTB Despeckle, whole program, filter alone"
        found["otb"] = (against, lambda: otb(image, work, threads=threads))
    return found


def measure(image: Array, work: Path, *, threads: int, repeats: int, progress: Any) -> list[dict[str, Any]]:
    """One row a peer."""
    with_threads(threads)
    peers = chains(image, work, threads=threads)
    results = {name: chain() for name, (_, chain) in peers.items()}  # and warm-up
    more: dict[str, dict[str, float]] = {name: {} for name in peers}
    if "otb" in peers:
        results["otb"] = standardised(results["otb"])
        more["otb"]["theirs_start_s"] = timed(lambda: otb(image[:, :16, :16], work, threads=threads))
    works = {name: (lambda chain=chain: timed(chain)) for name, (_, chain) in peers.items()}
    seconds = alternate(works, repeats=repeats, progress=progress, text=f"preprocess, {threads} threads")
    rate = {name: image.size / 1e6 / value for name, value in seconds.items()}
    what = f"Lee 7x7 to dB to standardised, {threads} thread{'s' * (threads > 1)}"
    shape = {"rows": image.shape[1], "cols": image.shape[2], "bands": len(image), "threads": threads}
    shape |= {"repeats": repeats}
    usual = threads == len(allowed_cores())
    return [
        comparison(
            what,
            against,
            unit="mpx_s",
            ours=rate["ours"],
            theirs=rate[name],
            wanted=WANTED.get(name) if usual else None,
            in_table=usual,
            **shape,
            max_difference=difference(results[name], results["ours"]),
            **more[name],
        )
        for name, (against, _) in peers.items()
        if name != "ours"
    ]


def main() -> None:
    """Measure, record."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--size", type=int, default=2048, help="side of the image, pixels")
    args = parser.parse_args()
    # OpenCV warns of OTB's TIFF tags, which it does not use.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    size, repeats = (64, 1) if args.quick else (args.size, args.repeats)
    rng = np.random.default_rng(0)
    image = (0.05 * rng.gamma(LOOKS, 1 / LOOKS, (2, size, size))).astype(np.float32)
    rows: list[dict[str, Any]] = []
    with bars() as progress, tempfile.TemporaryDirectory() as work:
        for threads in sorted({1, len(allowed_cores())}):
            rows += measure(image, Path(work), threads=threads, repeats=repeats, progress=progress)
    for row in rows:
        print(f"{row['what']}: {row['ratio']:.1f}x {row['against']}")
    versions = {"otb": otb_version()} if shutil.which("otbcli_Despeckle") else {}
    for package in ("scipy", "torchgeo"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    command = " ".join(["python", *sys.argv])
    print(write("preprocess", rows, command=command, root=args.root, versions=versions))


if __name__ == "__main__":
    main()
