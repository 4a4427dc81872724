"""The float64 speckle references against Orfeo ToolBox's Despeckle, on real SAR images.

    apt-get install otb-bin        # Debian; gives otbcli_Despeckle
    python benchmarks/speckle_otb.py --data ../shared/data

writes benchmarks/results/<machine>/speckle-otb.json; `--golden tests/sar/golden` instead runs OTB on a
simulated image and keeps input and outputs as test data.

Conventions: OTB's radius is (window - 1) / 2, its `deramp` is Frost's K, its `nblooks` is L on intensity; it
shares our n - 1 variance and replicating borders, so nothing is converted. Two things differ, both at exact
limits: OTB's Gamma-MAP takes m where Ci < Cu, ours where Ci <= Cu, and OTB gives NaN at equality (such pixels
are counted and left out); and OTB takes |mean| or |variance| below 1e-10 for 0, which none of these images
comes near but sigma0 below about 1e-5 does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np
from _results import write

from hfd_edge.sar import speckle, to_intensity

ROOT = Path(__file__).resolve().parent.parent
OTB = {"lee": "lee", "kuan": "kuan", "frost": "frost", "gamma_map": "gammamap"}
IMAGES = (  # stored KOMPSAT-5 values have the statistics of single-look intensity
    ("kompsat5_water/sar", "*.tif", "intensity", 1.0),
    ("geo_edge_cases/sar", "s1_grd*.tif", "dn", 4.4),
    ("geo_edge_cases/sar", "s1_vv_db*.tif", "sigma0_db", 4.4),
)


def otb(image: np.ndarray, name: str, window_px: int, looks: float) -> np.ndarray:
    """Run Despeckle on intensity (rows, cols)."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.tif"), Path(folder, "out.tif")
        cv2.imwrite(str(source), image.astype(np.float32))
        option = ("deramp", speckle.FROST_DAMPING) if name == "frost" else ("nblooks", looks)
        key = f"-filter.{OTB[name]}"
        command = ["otbcli_Despeckle", "-in", source, "-out", target, "float", "-filter", OTB[name]]
        command += [f"{key}.rad", window_px // 2, f"{key}.{option[0]}", option[1]]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return cv2.imread(str(target), cv2.IMREAD_UNCHANGED)


def otb_version() -> str:
    """Version that the program names in its help."""
    done = subprocess.run(["otbcli_Despeckle", "-help"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", done.stdout + done.stderr)
    return found.group(1) if found else "unknown"


def compare(image: np.ndarray, name: str, window_px: int, looks: float) -> dict[str, float]:
    """Relative differences on the interior, and the largest with the border."""
    ours = speckle.despeckle(image[None], filter=name, window_px=window_px, looks=looks)[0]
    theirs = otb(image, name, window_px, looks)
    error = np.abs(theirs - ours) / ours
    interior = error[window_px:-window_px, window_px:-window_px]
    return {
        "max_rel_error": float(np.nanmax(interior)),
        "p99_rel_error": float(np.nanquantile(interior, 0.99)),
        "median_rel_error": float(np.nanmedian(interior)),
        "max_rel_error_with_border": float(np.nanmax(error)),
        "pixels": interior.size,
        "otb_nan_pixels": int(np.isnan(theirs).sum()),
        "our_nan_pixels": int(np.isnan(ours).sum()),
    }


def rows(data: Path) -> list[dict[str, object]]:
    """Every filter and window on the central 256 x 256 of every image."""
    found: list[dict[str, object]] = []
    for folder, pattern, units, looks in IMAGES:
        for path in sorted((data / folder).glob(pattern)):
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            top, left = (max((size - 256) // 2, 0) for size in image.shape)
            crop = to_intensity(image[None, top : top + 256, left : left + 256], units=units, nodata=None)[0]
            for name in OTB:
                for window_px in (3, 7):
                    what = {"filter": name, "image": path.stem, "window_px": window_px, "looks": looks}
                    found.append({**what, **compare(crop, name, window_px, looks)})
    return found


def write_golden(folder: Path) -> None:
    """Three regions, a line and a point target under 4-look speckle, and what OTB makes of them at 7 x 7."""
    truth = np.full((48, 56), 0.02)
    truth[:, 30:], truth[30:, :20], truth[10, 50] = 0.2, 0.005, 50.0
    np.fill_diagonal(truth, 0.5)
    image = (truth * np.random.default_rng(20221019).gamma(4.0, 0.25, truth.shape)).astype(np.float32)
    cv2.imwrite(str(folder / "speckled.tif"), image)
    for name in OTB:
        cv2.imwrite(str(folder / f"otb_{name}.tif"), otb(image, name, 7, 4.0))


def main() -> None:
    """Compare, print the worst figures, keep all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--golden", type=Path, help="folder to write test data to, instead of comparing")
    arguments = parser.parse_args()
    # OpenCV warns of every GeoTIFF tag that it does not use.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    if arguments.golden:
        write_golden(arguments.golden)
    else:
        found = rows(arguments.data)
        command = f"python benchmarks/speckle_otb.py --data {arguments.data}"
        path = write("speckle-otb", found, command=command, root=ROOT, versions={"otb": otb_version()})
        print(f"{len(found)} comparisons, worst {max(row['max_rel_error'] for row in found):.1e}: {path}")


if __name__ == "__main__":
    main()
