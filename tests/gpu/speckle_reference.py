"""The speckle kernel as a call on arrays, and what it must compute by the definitions of every filter."""

from __future__ import annotations

from typing import Any

import numpy as np

from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Plane, Speckle
from hfd_edge.sar import Preprocessing, intensity_to_db, radiometry, speckle

TOLERANCE = 1e-5


class Gpu:
    """A device with its kernels, and the speckle kernel as a call on arrays."""

    def __init__(self) -> None:
        self.device = Device.open()
        self.kernels = Kernels(self.device)
        self.stream: Stream = self.device.stream()

    def speckle(
        self,
        chain: Preprocessing,
        image: np.ndarray,
        *,
        half: bool = False,
        rows: tuple[int, int] | None = None,
        offset: int = 0,
        gap: int = 0,
        faults: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Pixels, validity and fault bits.

        Args:
            offset: Elements before every array: 0 is aligned, and 1 as little as can be.
            gap: Unused elements after each row. They are checked to stay as they were in what is written.
        """
        first, stop = rows or (0, image.shape[1])
        bands, height, cols = image.shape
        pitch, out_dtype = cols + gap, np.dtype(np.float16 if half else np.float32)
        stored = np.zeros((bands, height, pitch), image.dtype)
        stored[..., :cols] = image
        raw = self._buffer(stored, offset)
        out = self._buffer(np.full((bands, stop - first, pitch), -77, out_dtype), offset)
        mask_pitch = pitch + 8  # another than that of the pixels, and aligned when that is
        valid = self._buffer(np.full((stop - first, mask_pitch), 77, np.uint8), offset)
        bits = self._buffer(np.array([faults], np.uint32), 0)
        Speckle(self.kernels, self.device.limits, chain, half=half)(
            self.stream,
            Plane(raw.address + offset * image.itemsize, pitch, height * pitch),
            dtype=image.dtype,
            shape=image.shape,
            rows=(first, stop),
            out=Plane(out.address + offset * out_dtype.itemsize, pitch, (stop - first) * pitch),
            valid=Plane(valid.address + offset, mask_pitch),
            faults=bits.address,
        )
        pixels = self._array(out, (bands, stop - first, pitch), out_dtype, offset)
        mask = self._array(valid, (stop - first, mask_pitch), np.uint8, offset)
        assert (pixels[..., cols:] == -77).all() and (mask[:, cols:] == 77).all(), "wrote between the rows"
        assert set(np.unique(mask[:, :cols])) <= {0, 1}
        return pixels[..., :cols], mask[:, :cols].astype(bool), int(self._array(bits, (1,), np.uint32, 0)[0])

    def _buffer(self, array: np.ndarray, offset: int) -> Any:
        buffer = self.device.buffer(array.nbytes + offset * array.itemsize)
        self.stream.copy_in(buffer.address + offset * array.itemsize, array)
        self.stream.synchronize()
        return buffer

    def _array(self, buffer: Any, shape: tuple[int, ...], dtype: Any, offset: int) -> np.ndarray:
        result = np.empty(shape, dtype)
        self.stream.copy_out(result, buffer.address + offset * result.itemsize)
        self.stream.synchronize()
        return result


def make_chain(bands: int = 2, **changes: Any) -> Preprocessing:
    chosen: dict[str, Any] = {"units": "intensity", "looks": 4.0, "nodata": None, "speckle": "lee"} | changes
    decibels = chosen["units"] != "stretched"
    statistics = {
        "clip": ((-90.0, 90.0) if decibels else (10.0, 200.0),) * bands,
        "mean": tuple(-11.0 - 7 * band for band in range(bands)),
        "std": tuple(4.5 + 0.25 * band for band in range(bands)),
    }
    return Preprocessing(**{"window_px": 7, **statistics, **chosen})


def scene(rows: int, cols: int, *, bands: int = 2, looks: float = 4.0, seed: int = 0) -> np.ndarray:
    """Water, land and bright points: 50 dB of range under speckle; linear power."""
    rng = np.random.default_rng(seed)
    truth = np.where(np.arange(cols) < cols // 2, 0.002, 0.2) * np.ones((bands, rows, 1))
    truth[rng.random(truth.shape) < 0.002] = 200.0
    return (truth * rng.gamma(looks, 1 / looks, truth.shape)).astype(np.float32)


def stored_as(power: np.ndarray, dtype: str, units: str) -> np.ndarray:
    """Linear power as a product stores it."""
    if units == "complex":
        phase = np.random.default_rng(9).uniform(0, 2 * np.pi, power.shape)
        return (np.sqrt(power) * np.exp(1j * phase)).astype(np.complex64)
    value = {"intensity": power, "sigma0_db": 10 * np.log10(power) + 40}.get(units, np.sqrt(power))
    if dtype == "float32":
        return value.astype(np.float32)
    scale = {"uint8": 30.0, "uint16": 3000.0}[dtype]
    if units == "sigma0_db":
        scale = 1.0
    return np.clip(np.round(value * scale), 0, np.iinfo(dtype).max).astype(dtype)


def expected(chain: Preprocessing, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Preprocessing.__call__` by the definitions, in float64."""
    wide = image.astype(np.complex128 if image.dtype.kind == "c" else np.float64)
    unfiltered_db = chain.units == "sigma0_db" and chain.speckle == "none"
    if chain.units == "stretched" or unfiltered_db:
        valid = radiometry.valid_mask(image, units=chain.units, nodata=chain.nodata)
        values = wide
    else:
        # Validity is a matter of what is stored, and of what float32 can hold.
        single = image.astype(np.complex64 if image.dtype.kind == "c" else np.float32)
        power = radiometry.to_intensity(single, units=chain.units, nodata=chain.nodata)
        valid = ~np.isnan(power).any(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            values = radiometry.to_intensity(wide, units=chain.units, nodata=chain.nodata)
        values[:, ~valid] = np.nan
        if chain.speckle != "none":
            options = {"filter": chain.speckle, "window_px": chain.window_px, "looks": chain.looks}
            values = speckle.despeckle(values, **options)
        values = intensity_to_db(values)
    low, high = np.array(chain.clip).T[..., None, None]
    mean, std = (np.array(values)[:, None, None] for values in (chain.mean, chain.std))
    return np.where(valid, (np.clip(values, low, high) - mean) / std, 0), valid


def check(
    gpu: Gpu, chain: Preprocessing, image: np.ndarray, *, tolerance: float = TOLERANCE, **options: Any
) -> np.ndarray:
    """Within the floor of the project's rule for fast paths; 4 errors of plain float32 need not be added."""
    pixels, valid, faults = gpu.speckle(chain, image, **options)
    reference, reference_valid = expected(chain, image)
    assert np.array_equal(valid, reference_valid)
    assert not pixels[:, ~valid].any()
    assert faults == 0
    allowed = tolerance * np.maximum(np.abs(reference), 1)
    if pixels.dtype == np.float16:
        allowed += np.maximum(np.abs(reference) * 2.0**-11, 2.0**-25)
    if chain.speckle == "refined_lee":
        allowed[near_ties(chain, image)] = np.inf
    assert (np.abs(pixels - reference) <= allowed).all(), np.abs(pixels - reference).max()
    return pixels


def near_ties(chain: Preprocessing, image: np.ndarray) -> np.ndarray:
    """Pixels where refined Lee's choice of half window is within the rounding of single precision."""
    power = radiometry.to_intensity(image, units=chain.units, nodata=chain.nodata).astype(np.float64)
    padded, box, centres = speckle._pad(power, 3), speckle._box(1), (-2, 0, 2)
    with np.errstate(invalid="ignore"):
        m = np.array(
            [speckle._moments(padded, 3, speckle._moved(box, y, x)).mean for y in centres for x in centres]
        )
    m = np.where(np.isnan(m), m[4], m)
    rounding = 1e-6 * m.max(axis=0)
    edges = (((0, 3, 6), (2, 5, 8)), ((0, 1, 2), (6, 7, 8)), ((0, 1, 3), (8, 7, 5)), ((2, 1, 5), (6, 7, 3)))
    gradients = np.array([abs(m[list(one)].sum(axis=0) - m[list(other)].sum(axis=0)) for one, other in edges])
    nearness = np.array([abs(abs(m[i] - m[4]) - abs(m[8 - i] - m[4])) for i in (3, 1, 0, 2)])
    second, first = np.sort(gradients, axis=0)[2:]
    chosen = np.take_along_axis(nearness, gradients.argmax(axis=0)[None], axis=0)[0]
    ties = (first - second <= rounding) | (chosen <= rounding)
    ties[np.ptp(power, axis=(1, 2)) == 0] = False  # all half windows of a constant band are the same
    assert ties.mean() < 0.2, "too many ties for a test"
    return np.asarray(ties)
