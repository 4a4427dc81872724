"""A whole scene, file to file, against the bare engine on the same tiles; and what memory it takes.

    python benchmarks/bench_scene.py --bundle runs/demo/demo.hfd

The scene is simulated: two bands, float32, GeoTIFF, deflated as `hfd-edge simulate` writes it and once
uncompressed. "Bare engine" is the same backend in the same process on the tiles that the scene's plan has,
already read, preprocessed and cut: nothing but calls of the engine is timed. Both take turns after every row
of tiles; the bare engine's turns are taken off the scene's time. Their ratio is what reading, preprocessing,
blending, labelling and writing leave of the engine's speed. Preprocessing's share is that of
one tile of the bundle's size, segmented from memory. The last row is the peak memory of `hfd-edge predict`
on a large scene, in a process of its own (see large_scene.py).
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from _measure import BUNDLE, alternate, arguments, comparison, conditions, limit, timed
from _results import write
from large_scene import measure as predict

from hfd_edge.bundle import Bundle
from hfd_edge.datasets.simulated import write_scene
from hfd_edge.raster.scene import SceneReader
from hfd_edge.report.console import bars
from hfd_edge.runtime.backends import Backend, available_backends, open_backend
from hfd_edge.runtime.segmenter import Segmenter

VARIANTS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8"))
WANTED, SHARE_PERCENT, PEAK_MB = 0.92, 5.0, 700.0


class BareEngine:
    """The engine on every tile of a scene that has a valid pixel, in the scene's pauses.

    Attributes:
        seconds: In the engine.
        paused: In all of this, reading and preprocessing included.
        tiles: That it ran.
    """

    def __init__(self, scene: Path, segment: Segmenter, engine: Backend) -> None:
        self.seconds = self.paused = 0.0
        self.tiles = 0
        self._scene, self._engine, self._tiler = scene, engine, segment.pipeline.tiler
        with SceneReader(scene) as reader:
            plan = self._tiler.plan(rows=reader.rows, cols=reader.cols)
        assert (plan.padded_rows, plan.padded_cols) == (plan.rows, plan.cols), "tiles must fit"
        assert not segment.pipeline.spare_cores, "what goes on in threads would use the pauses"
        self._rows, self._lefts = list(plan.row_origins), plan.col_origins

    def __call__(self, done: int, total: int, text: str) -> None:
        """Run the row of tiles that the scene has just run; takes the place of its progress."""
        if not done or done % len(self._lefts):
            return
        started, size = time.perf_counter(), self._tiler.tile_px
        top = self._rows[done // len(self._lefts) - 1]
        with SceneReader(self._scene) as reader:
            pixels, valid = self._tiler.preprocessing(reader.read(top, top + size))
        lefts = [left for left in self._lefts if valid[:, left : left + size].any()]
        tiles = [np.ascontiguousarray(pixels[np.newaxis, ..., left : left + size]) for left in lefts]
        self.seconds += timed(lambda: [self._engine.run(tile) for tile in tiles])
        self.tiles += len(tiles)
        self.paused += time.perf_counter() - started


def compare(bundle: Bundle, scene: Path, variant: tuple[str, str], *, repeats: int, progress: Any) -> Any:
    """Scene and bare engine, one row of tiles each in turns: this machine's speed changes within seconds."""
    backend, precision = variant
    kind = "deflated" if scene.stem == "deflate" else "uncompressed"
    mask, runs = scene.with_suffix(".mask.tif"), []
    with Segmenter(bundle, backend=backend, precision=precision) as segment:
        engine = open_backend(bundle, backend=backend, precision=precision)
        for turn in range(repeats):
            bare = BareEngine(scene, segment, engine)

            def turns(done: int, total: int, text: str, turn: int = turn, bare: BareEngine = bare) -> None:
                progress(turn * total + done, repeats * total, f"{kind} scene, {backend} {precision}")
                bare(done, total, text)

            report = segment.scene(scene, mask, progress=turns)
            assert report.tiles == bare.tiles, (report.tiles, bare.tiles)
            runs.append((report.seconds - bare.paused, bare.seconds, report))
        engine.close()
    # The run whose ratio is the median: its figures belong together.
    seconds, in_engine, report = sorted(runs, key=lambda run: run[1] / run[0])[len(runs) // 2]
    megapixels = report.megapixels
    return comparison(
        f"{kind} scene of {report.rows} x {report.cols}, {backend} {precision}",
        "bare engine, same tiles",
        unit="mpx_s",
        ours=megapixels / seconds,
        theirs=megapixels / in_engine,
        wanted=WANTED if variant == VARIANTS[0] else None,
        bands=len(bundle.manifest.sar.bands),
        tiles=report.tiles,
        tile_px=bundle.manifest.tile_px,
        speckle=bundle.manifest.preprocessing.speckle,
        **conditions(bundle.path, repeats=repeats),
        ratios=[round(bare / all_, 4) for all_, bare, _ in runs],
        seconds=seconds,
        engine_ms_a_tile=1000 * in_engine / report.tiles,
        **{f"{name}_ms": spent for name, spent in report.stages_ms.items()},
    )


def shares(bundle: Bundle, scene: Path, variant: tuple[str, str], *, repeats: int, progress: Any) -> Any:
    """Preprocessing with Lee 7x7, and with the bundle's own chain, as a share of one tile's latency."""
    own, size = bundle.manifest.preprocessing, bundle.manifest.tile_px
    lee = replace(own, speckle="lee", window_px=7)
    with SceneReader(scene) as reader:
        tile = reader.read(0, size, 0, size)
    backend, precision = variant
    with Segmenter(bundle, backend=backend, precision=precision) as segment:
        works = {
            "tile": lambda: timed(lambda: segment(tile)),
            "own": lambda: timed(lambda: own(tile)),
            "lee": lambda: timed(lambda: lee(tile)),
        }
        for work in works.values():
            work()
        text = f"tile, {backend} {precision}"
        seconds = alternate(works, repeats=repeats, progress=progress, text=text)
    latency = seconds["tile"] - seconds["own"] + seconds["lee"]
    return limit(
        f"preprocessing with Lee 7x7, share of a tile's latency, {backend} {precision}",
        unit="percent",
        ours=100 * seconds["lee"] / latency,
        at_most=SHARE_PERCENT if variant == VARIANTS[0] else None,
        tile_px=size,
        tile_ms=1000 * latency,
        preprocess_ms=1000 * seconds["lee"],
        own_preprocess_ms=1000 * seconds["own"],
        own_speckle=own.speckle,
        **conditions(bundle.path, repeats=repeats),
        in_table=variant == VARIANTS[0],
    )


def large(bundle: Path, size: int, work: Path) -> dict[str, Any]:
    """Peak memory of a scene as large as they come."""
    found = predict(bundle, size, size, work)
    return limit(
        f"peak memory, scene of {size} x {size}",
        unit="mb",
        ours=found["peak_mb"],
        at_most=PEAK_MB,
        **{key: found[key] for key in ("backend", "precision", "tiles", "seconds")},
        **conditions(bundle, repeats=1),
    )


def uncompressed(source: Path, target: Path) -> Path:
    """The same scene without compression, in the same blocks."""
    with rasterio.open(source) as scene:
        profile = {**scene.profile, "compress": None}
        with rasterio.open(target, "w", **profile) as copy:
            for _, window in scene.block_windows(1):
                copy.write(scene.read(window=window), window=window)
    return target


def main() -> None:
    """Measure, record."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--size", type=int, default=8192, help="side of the scene; a multiple of 32")
    parser.add_argument("--large", type=int, default=20000, help="side of the large scene; 0 leaves it out")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    tile = bundle.manifest.tile_px
    size, big, repeats = (2 * tile, tile, 1) if args.quick else (args.size, args.large, args.repeats)
    here, has = available_backends(), bundle.manifest.precisions
    variants = [variant for variant in VARIANTS if variant[0] in here and variant[1] in has]
    with bars() as progress, tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_scene(work / "deflate.tif", rows=size, cols=size, seed=11, progress=progress)
        scenes = (work / "deflate.tif", uncompressed(work / "deflate.tif", work / "plain.tif"))
        options = {"repeats": repeats, "progress": progress}
        rows = [compare(bundle, scenes[0], variant, **options) for variant in variants]
        rows += [compare(bundle, scenes[1], variants[-1], **options)]
        options["repeats"] = 1 if args.quick else 25
        rows += [shares(bundle, scenes[1], variant, **options) for variant in variants]
        for scene in scenes:
            scene.unlink()
        keep = {"command": " ".join(["python", *sys.argv]), "root": args.root}
        write("scene", rows, **keep)  # the large scene takes long, and may not fit on the disk
        if big:
            rows.append(large(args.bundle, big, work))
    for row in rows:
        print(row)
    print(write("scene", rows, **keep))


if __name__ == "__main__":
    main()
