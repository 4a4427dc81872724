"""Do the kernels compute on this GPU what NumPy computes? For `hfd-edge selftest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hfd_edge.errors import BackendError
from hfd_edge.raster.logits import labels_rows
from hfd_edge.raster.tiling import LogitsBlender, TilePlan, blend_weights, mirrored
from hfd_edge.runtime.device import Buffer, Device
from hfd_edge.runtime.kernels import Kernels
from hfd_edge.runtime.launch import Plane, Speckle
from hfd_edge.runtime.launch_logits import Blend, CutTiles, Labels
from hfd_edge.runtime.launch_stats import Stats
from hfd_edge.sar.preprocessing import Preprocessing
from hfd_edge.sar.speckle import FILTERS, REFINED_LEE_WINDOW_PX
from hfd_edge.sar.statistics import frame_statistics

Array = NDArray[Any]

# Standardised units, of which one is some 5 dB. Where a filter decides between two formulas, rounding may
# decide a pixel otherwise than NumPy does; a wrong kernel is wrong in more of them.
_TOLERANCE = 1e-3
_MOST_OTHERWISE = 1e-3
_HALF_STEP = 2.0**-11
_SIZES = ((1, 1), (37, 61), (70, 259))
_ROUNDS = 16

KernelCheck = tuple[str, Callable[[], str]]
"""Name, and what to run: it gives what was found, and raises BackendError with what is wrong."""


def kernel_checks(device: Device, kernels: Kernels, preprocessing: Preprocessing) -> Iterator[KernelCheck]:
    """List the checks of all kernels, with a bundle's own preprocessing first."""
    bench = _Bench(device, kernels)
    for dtype in _stored_types(preprocessing):
        for half in (False, True):
            name = f"preprocessing of this bundle, {dtype} to {'float16' if half else 'float32'}"
            yield name, _bound(_check_speckle, bench, preprocessing, dtype, half)
    if preprocessing.units != "stretched":
        # Two bands, since a bundle may have more than the filters that it does not use can take.
        two = {name: getattr(preprocessing, name)[:2] for name in ("clip", "mean", "std")}
        for filter_name in ("none", *FILTERS):
            other = replace(preprocessing, speckle=filter_name, window_px=REFINED_LEE_WINDOW_PX, **two)
            dtype = _stored_types(other)[0]
            yield f"speckle filter {filter_name}", _bound(_check_speckle, bench, other, dtype, False)
    yield "tiles", _bound(_check_tiles, bench)
    yield "blending", _bound(_check_blend, bench)
    for stride in (1, 4):
        yield f"labels at stride {stride}", _bound(_check_labels, bench, stride)
    yield "statistics", _bound(_check_stats, bench, preprocessing)
    yield "order of streams", _bound(_check_streams, bench)


def _stored_types(preprocessing: Preprocessing) -> tuple[str, ...]:
    if preprocessing.units == "complex":
        return ("complex64",)
    integers = preprocessing.units in ("dn", "amplitude", "stretched")
    return ("float32", "uint16", "uint8") if integers else ("float32",)


def stored_frame(preprocessing: Preprocessing, rows: int, cols: int) -> Array:
    """A speckled frame (bands, rows, cols) as a product of these units stores it, with some no-data."""
    rng = np.random.default_rng(rows * 7919 + cols)
    shape = (preprocessing.bands, rows, cols)
    if preprocessing.units == "stretched":
        low, high = preprocessing.clip[0]
        return rng.uniform(low, high, shape).astype(np.float32)
    column = np.linspace(-0.5, 0.5, cols)
    level = np.asarray(preprocessing.mean) + np.asarray(preprocessing.std)
    power = 10 ** ((level[:, None, None] - 16 * np.abs(column)) / 10)
    power = power * rng.gamma(preprocessing.looks, 1 / preprocessing.looks, shape)
    if rows > 8 and cols > 8:
        power[:, 2:6, 3:8] = np.nan
    if preprocessing.units == "complex":
        return (np.sqrt(power) * np.exp(1j * rng.uniform(0, 6, shape))).astype(np.complex64)
    if preprocessing.units == "sigma0_db":
        return (10 * np.log10(power)).astype(np.float32)
    return (power if preprocessing.units == "intensity" else np.sqrt(power)).astype(np.float32)


class _Bench:
    """Arrays on the device and back."""

    def __init__(self, device: Device, kernels: Kernels) -> None:
        self.device, self.kernels, self.limits = device, kernels, device.limits
        self.stream = device.stream()
        self._buffers: list[Buffer] = []

    def put(self, array: Array) -> int:
        address = self.room(array.nbytes)
        self.stream.copy_in(address, np.ascontiguousarray(array))
        self.stream.synchronize()
        return address

    def plane(self, array: Array) -> Plane:
        rows, cols = array.shape[-2:]
        return Plane(self.put(array), cols, rows * cols)

    def room(self, nbytes: int) -> int:
        self._buffers.append(self.device.buffer(nbytes))
        return self._buffers[-1].address

    def get(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        found = np.empty(shape, dtype)
        self.stream.copy_out(found, address)
        self.stream.synchronize()
        return found

    def free(self) -> None:
        self.stream.synchronize()
        while self._buffers:
            self._buffers.pop().free()


def _demand(right: bool, otherwise: str) -> None:
    if not right:
        raise BackendError(otherwise)


def _bound(check: Callable[..., str], bench: _Bench, *arguments: Any) -> Callable[[], str]:
    def run() -> str:
        try:
            return check(bench, *arguments)
        finally:
            bench.free()

    return run


def _check_speckle(bench: _Bench, preprocessing: Preprocessing, stored: str, half: bool) -> str:
    speckle = Speckle(bench.kernels, bench.limits, preprocessing, half=half)
    worst, otherwise, pixels = 0.0, 0, 0
    for rows, cols in _SIZES:
        image = stored_frame(preprocessing, rows, cols)
        if stored.startswith("uint"):  # no-data is 0 in them
            image = np.clip(np.nan_to_num(image), 0, np.iinfo(stored).max)
        image = image.astype(stored)
        expected, valid = preprocessing(image)
        dtype = np.dtype(np.float16 if half else np.float32)
        out, seen, faults = bench.room(expected.size * dtype.itemsize), bench.room(valid.size), bench.room(4)
        bench.stream.fill(faults, 0, 4)
        speckle(
            bench.stream,
            bench.plane(image),
            dtype=image.dtype,
            shape=image.shape,
            rows=(0, rows),
            out=Plane(out, cols, rows * cols),
            valid=Plane(seen, cols),
            faults=faults,
        )
        _demand(
            not bench.get(faults, (1,), np.uint32)[0], "the kernel says that valid pixels are not in units"
        )
        _demand(np.array_equal(bench.get(seen, valid.shape, np.uint8), valid), "other pixels are no-data")
        found = bench.get(out, expected.shape, dtype).astype(np.float32)
        error = np.abs(found - expected) - (_HALF_STEP * np.abs(expected) if half else 0)
        beyond = ~(error <= _TOLERANCE)
        otherwise, pixels = otherwise + int(beyond.sum()), pixels + error.size
        worst = max(worst, float(np.max(error, where=~beyond, initial=0.0)))
    _demand(
        otherwise <= _MOST_OTHERWISE * pixels, f"{otherwise} of {pixels} pixels differ by over {_TOLERANCE}"
    )
    return f"{pixels} pixels within {worst:.1e} standardised units, {otherwise} decided otherwise"


def _check_tiles(bench: _Bench) -> str:
    strip = np.random.default_rng(1).normal(size=(2, 40, 83)).astype(np.float32)
    origins, tile_px = [0, 32, 64], 64
    out = bench.room(len(origins) * 2 * tile_px * tile_px * 4)
    CutTiles(bench.kernels, bench.limits)(
        bench.stream,
        bench.plane(strip),
        half=False,
        shape=strip.shape,
        first_row=0,
        origins=origins,
        tile_px=tile_px,
        out_address=out,
    )
    right = np.concatenate((np.arange(83), mirrored(83, origins[-1] + tile_px)))
    down = np.concatenate((np.arange(40), mirrored(40, tile_px)))
    whole = strip[:, down][:, :, right]
    expected = np.stack([whole[:, :, origin : origin + tile_px] for origin in origins])
    _demand(
        np.array_equal(bench.get(out, expected.shape, np.float32), expected), "they are not those of NumPy"
    )
    return f"{len(origins)} tiles, equal bit for bit"


def _check_blend(bench: _Bench) -> str:
    plan, classes, stride = TilePlan(192, 300, tile_px=128, overlap_px=64), 3, 4
    size, width = plan.tile_px // stride, plan.padded_cols // stride
    sizes = {"tile_px": plan.tile_px, "overlap_px": plan.overlap_px, "stride": stride}
    row_weights = blend_weights(plan.row_origins, **sizes)
    col_weights = bench.put(blend_weights(plan.col_origins, **sizes))
    bands = [bench.room(classes * (1 + size) * width * 4) for _ in range(2)]
    shape = (len(plan.row_origins), len(plan.col_origins), classes, size, size)
    logits = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    blend, reference = Blend(bench.kernels, bench.limits), LogitsBlender(plan, classes=classes, stride=stride)
    distance = 0.0
    for row, tiles in enumerate(logits):
        blend(
            bench.stream,
            bands[1 - row % 2] if row else None,
            (plan.row_origins[row] - plan.row_origins[row - 1]) // stride if row else 0,
            bench.put(tiles),
            half=False,
            classes=classes,
            size=size,
            origins=[origin // stride for origin in plan.col_origins],
            columns=range(len(tiles)),
            row_weights_address=bench.put(row_weights[row]),
            col_weights_address=col_weights,
            band_address=bands[row % 2],
            band_cols=width,
        )
        for col, tile in enumerate(tiles):
            reference.add(col, tile)
        done = reference.finished()
        first = 1 + done.first - plan.row_origins[row] // stride
        found = bench.get(bands[row % 2], (classes, 1 + size, width), np.float32)
        found = found[:, first : first + done.logits.shape[1]]
        distance = max(distance, float(np.abs(found - done.logits).max()))
        reference.advance()
    _demand(distance <= 1e-5, f"blended logits differ by up to {distance:.1e}")
    return f"{shape[0] * shape[1]} tiles within {distance:.1e}"


def _check_labels(bench: _Bench, stride: int) -> str:
    classes, height, width = 7, 33, 70
    rows, cols = height * stride, width * stride - 3
    logits = np.random.default_rng(3).normal(size=(classes, height, width)).astype(np.float32)
    expected = labels_rows(logits, stride=stride, start=0, stop=rows, cols=cols)
    out = bench.room(rows * cols)
    Labels(bench.kernels, bench.limits)(
        bench.stream,
        bench.plane(logits),
        half=False,
        classes=classes,
        height=height,
        width=width,
        stride=stride,
        first=0,
        start=0,
        stop=rows,
        cols=cols,
        valid=None,
        nodata_label=255,
        out=Plane(out, cols),
    )
    differ = int(np.count_nonzero(bench.get(out, (rows, cols), np.uint8) != expected))
    _demand(differ <= _MOST_OTHERWISE * expected.size, f"{differ} of {expected.size} labels differ")
    return f"{expected.size} labels, {differ} decided otherwise"


def _check_stats(bench: _Bench, preprocessing: Preprocessing) -> str:
    image = stored_frame(preprocessing, 64, 259)
    pixels, valid = preprocessing(image)
    stats = Stats(bench.kernels, bench.limits, preprocessing, half=False)
    counters = bench.room(stats.nbytes)
    stats.reset(bench.stream, counters)
    stats(
        bench.stream,
        bench.plane(image),
        dtype=image.dtype,
        shape=image.shape,
        pixels=bench.plane(pixels),
        valid=bench.plane(valid.astype(np.uint8)),
        counters=counters,
    )
    found = stats.read(bench.get(counters, (stats.nbytes,), np.uint8))
    expected = frame_statistics(image, preprocessing)
    _demand(found.valid == expected.valid, f"{found.valid} pixels counted of {expected.valid}")
    distance = np.abs(np.subtract(found.mean, expected.mean) / preprocessing.std).max()
    _demand(distance <= _TOLERANCE, f"means differ by up to {distance:.1e} standard deviations")
    looks = np.abs(np.subtract(found.log_enl, expected.log_enl)).max()
    _demand(looks <= 0.01, f"log10 of the looks differs by up to {looks:.1e}")
    return f"{found.valid} pixels, mean within {distance:.1e} standard deviations"


def _check_streams(bench: _Bench) -> str:
    """Pass arrays through three streams that only events order, as the pipeline does."""
    device, size = bench.device, 1 << 16
    streams = [device.stream() for _ in range(3)]
    buffers = [bench.room(size * 4) for _ in range(2)]
    sent, received = (device.pinned((_ROUNDS, size), np.uint32) for _ in range(2))
    free, there, copied = (device.event() for _ in range(3))
    load, work, unload = streams
    sent.array[:] = np.arange(_ROUNDS, dtype=np.uint32)[:, None] + 1
    received.array[:] = 0
    try:
        for turn in range(_ROUNDS):
            load.copy_in(buffers[0], sent.array[turn])
            load.record(there)
            work.wait(there)
            work.copy(buffers[1], buffers[0], size * 4)
            work.record(copied)
            unload.wait(copied)
            unload.copy_out(received.array[turn], buffers[1])
            unload.record(free)
            load.wait(free)
            work.wait(free)
        for stream in streams:
            stream.synchronize()
        wrong = np.flatnonzero((received.array != sent.array).any(axis=1)).tolist()
        _demand(not wrong, f"rounds {wrong} of {_ROUNDS} came back with other content")
    finally:
        for item in (*streams, sent, received, free, there, copied):
            item.close()
    return f"{_ROUNDS} rounds of {size * 4} bytes through three streams"
