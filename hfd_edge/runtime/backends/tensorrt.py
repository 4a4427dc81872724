"""TensorRT and TensorRT-RTX on the GPU: one code path, from 8.6 to 11 and RTX.

They share `execute_async_v3` and tensors by name and address. RTX adds a runtime configuration: a cache of
the kernels that it compiles for the GPU when an engine first runs, and CUDA graphs of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.bundle import Bundle, Manifest
from hfd_edge.errors import BackendError, MissingExtraError
from hfd_edge.runtime.backends.rtx_cache import RuntimeCache
from hfd_edge.runtime.device import Device, Stream
from hfd_edge.runtime.engines import OpenedEngine, open_engine
from hfd_edge.runtime.graphs import MOST_GRAPHS, Batch, Replays
from hfd_edge.runtime.ports import ALIGNMENT, Ports
from hfd_edge.runtime.staging import Staging
from hfd_edge.tensorrt_api import TensorRT, load_tensorrt, member, product, tensorrt_logger

_log = logging.getLogger("hfd_edge.runtime")
_INPUT, _OUTPUT = "sar", "logits"
_AGAIN = "Export and build again."
_STRANGERS = 1000  # batches without a graph after which others may have one


class TensorRTBackend:
    """An engine of a bundle on the GPU; see `Backend`. Threads may share it: they take turns.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx".
        precision: The engine's.
        batch: Most tiles of a batch.
        least: Fewest tiles of a batch; `run` fills it up, `enqueue` does not.
        ports: Its input and output.
        device: Where it runs; closed with it unless it was given.
    """

    def __init__(
        self, bundle: Bundle, engine: str, *, device: Device | None = None, graphs: bool | None = None
    ) -> None:
        """Load an engine.

        Args:
            bundle: The bundle.
            engine: `<target>-<precision>`.
            device: Where; None opens the first GPU.
            graphs: Whether batches whose addresses come back are replayed as CUDA graphs; None does so where
                it works, and warns where it does not.
        Raises:
            BackendError: there is no room on the GPU, or the engine does not fit the manifest.
            BundleError: the bundle has no such engine, or it was changed.
            EngineError: the engine is stale, or TensorRT refuses it.
            MissingExtraError: PyCUDA or the TensorRT that built it is not installed.
        """
        self._lock = threading.Lock()
        self._owns_device = device is None
        self._staging: Staging | None = None
        self._loaded: _Loaded | None = None
        self._last: int | None = None  # handle of the stream that ran last
        self.device = device or Device.open()
        try:
            with self.device.current(f"loading engine {engine}"):
                opened = open_engine(bundle, engine)
                self._loaded = _Loaded(opened, bundle.manifest, self.device, graphs=graphs)
            self._done = self.device.event()
        except BaseException:
            self.close()
            raise
        self.name: str = self._loaded.record.flavour
        self.precision: str = self._loaded.record.precision
        self.ports = self._loaded.ports
        self.batch, self.least = self.ports.most, self.ports.least

    @property
    def input_half(self) -> bool:
        """Whether tiles are float16."""
        return self.ports.input_half

    @property
    def output_half(self) -> bool:
        """Whether logits are float16."""
        return self.ports.output_half

    def logits_bytes(self, tiles: int) -> int:
        """Size of the logits of some tiles."""
        return self.ports.logits_bytes(tiles)

    def enqueue(self, input_address: int, output_address: int, tiles: int, stream: Stream) -> None:
        """Compute logits on the device, asynchronously.

        An engine holds the activations of one batch, so work on another stream than the last waits for it.

        Args:
            input_address: Tiles (tiles, bands, tile_px, tile_px), float16 if `input_half`; a multiple of 256.
            output_address: Receives the logits, float16 if `output_half`; a multiple of 256.
            tiles: From `least` to `batch`.
            stream: Where; not the default stream.
        Raises:
            BackendError: a batch or an address that does not fit, TensorRT refuses, or it was closed.
        """
        with self._lock:
            loaded = self._open()
            self._check(loaded, input_address, output_address, tiles)
            with self.device.current(f"running {loaded.what}"):
                if self._last not in (None, stream.handle):
                    stream.wait(self._done)
                loaded.execute(Batch(input_address, output_address, tiles), stream)
                stream.record(self._done)
            self._last = stream.handle

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits from and to host memory; see `Backend.run`. Raises BackendError."""
        with self._lock:
            loaded = self._open()
            if batch.shape[1:] != self.ports.tile or not 1 <= len(batch) <= self.batch:
                raise BackendError(
                    f"A batch of {batch.shape} was given to {loaded.what}, expected 1 to {self.batch} tiles "
                    f"of {self.ports.tile}. Use the bundle's tile size, or split the batch."
                )
            if self._staging is None:
                self._staging = Staging(self.device, self.ports)
            staging = self._staging  # not read again: `close` may come meanwhile
        return staging.run(batch, self.enqueue)

    def close(self) -> None:
        """Keep what RTX compiled, and free the engine; more than once is allowed."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
            staging, self._staging = self._staging, None
        if staging is not None:
            staging.close()
        if loaded is not None:
            with self.device.current("freeing an engine"):
                try:
                    if self._last is not None:
                        self._done.synchronize()
                except BackendError as error:  # of work that failed; the engine goes all the same
                    _log.warning("%s", error)
                loaded.close()
        if self._owns_device:
            self.device.close()

    def _open(self) -> _Loaded:
        if self._loaded is None:
            raise BackendError("The engine was closed. Open the bundle again to run it.")
        return self._loaded

    def _check(self, loaded: _Loaded, input_address: int, output_address: int, tiles: int) -> None:
        if not self.least <= tiles <= self.batch:
            raise BackendError(
                f"{tiles} tiles were given to {loaded.what}, which takes {self.least} to {self.batch}. "
                "Split them, or build the engine for other batches (batch in the target's TOML)."
            )
        for name, address in ((_INPUT, input_address), (_OUTPUT, output_address)):
            if address == 0 or address % ALIGNMENT:
                raise BackendError(
                    f"Address {address:#x} of '{name}' is no multiple of {ALIGNMENT} bytes, which TensorRT "
                    "needs. Begin at the start of a buffer."
                )


class _Loaded:
    """An engine, its execution context, and graphs with contexts of their own."""

    def __init__(
        self, opened: OpenedEngine, manifest: Manifest, device: Device, *, graphs: bool | None
    ) -> None:
        self.record = opened.record
        self._trt = load_tensorrt(self.record.flavour, purpose="running an engine")
        name = f"{self.record.target}-{self.record.precision}"
        self.what = f"engine {name} with {product(self.record.flavour, self._trt)}"
        self.ports = _ports(self._trt, opened.loaded.engine, manifest, self.what)
        self._opened: OpenedEngine | None = opened
        self._cache: RuntimeCache | None = None
        self._replays: Replays | None = None
        self._insist, self._met, self._strangers = graphs is True, set[Batch](), 0
        if member(self._trt, "CudaGraphStrategy") is not None:  # RTX makes graphs itself
            self._cache = RuntimeCache(self._trt, opened, graphs=graphs is not False)
        elif graphs is not False:
            self._replays = Replays(
                device,
                self._prepare,
                logits_bytes=self.ports.logits_bytes,
                half=self.ports.output_half,
                what=self.what,
            )
        self._context: Any = self._create()
        self._shape: tuple[int, ...] = ()

    def execute(self, batch: Batch, stream: Stream) -> None:
        """Queue one batch. Raises BackendError."""
        if self._replays is not None and self._comes_back(batch):
            try:
                self._replays.enqueue(batch, stream)
                return
            except (BackendError, MissingExtraError) as error:
                if self._insist:
                    raise
                stream.synchronize()  # a fault of the GPU is not one of graphs: it comes up here again
                _log.warning("no CUDA graphs: %s", error)
                self._replays.close()
                self._replays = None
        shape = (batch.tiles, *self.ports.tile)
        if shape != self._shape:
            self._shape = ()
            self._call(self._context.set_input_shape, _INPUT, shape)
            self._shape = shape
        self._run(self._context, batch, stream.handle)

    def close(self) -> None:
        """Keep what RTX compiled; free device memory, which TensorRT does in destructors."""
        if self._replays is not None:
            self._replays.close()
        if self._cache is not None:
            self._cache.keep()
        self._context, self._replays, self._cache, self._opened = None, None, None, None

    def _comes_back(self, batch: Batch) -> bool:
        """Whether a graph pays: a batch was at the same addresses before, and those that were are not many.

        A wide scene has more addresses than there are graphs: recording them in turns would cost more than
        it saves. When others have come for long, the buffers of the first ones are gone.
        """
        if batch in self._met:
            return True
        if len(self._met) < MOST_GRAPHS:
            self._met.add(batch)
        else:
            self._strangers += 1
            if self._strangers > _STRANGERS:
                self._strangers = 0
                self._met.clear()
        return False

    def _create(self) -> Any:
        assert self._opened is not None
        options = [] if self._cache is None else [self._cache.config]
        create = self._opened.loaded.engine.create_execution_context
        return self._call(create, *options, hint="Free memory on the GPU, or use smaller batches.")

    def _prepare(self, batch: Batch) -> Callable[[int], None]:
        """Make a context for one graph."""
        context = self._create()
        self._call(context.set_input_shape, _INPUT, (batch.tiles, *self.ports.tile))
        return lambda handle: self._run(context, batch, handle)

    def _run(self, context: Any, batch: Batch, handle: int) -> None:
        # Always: a buffer of the same size may have moved.
        self._call(context.set_tensor_address, _INPUT, batch.input_address)
        self._call(context.set_tensor_address, _OUTPUT, batch.output_address)
        self._call(context.execute_async_v3, handle)

    def _call(self, function: Any, *arguments: Any, hint: str = "Check the GPU with nvidia-smi.") -> Any:
        """Call TensorRT, which says False or None where it fails, and logs why."""
        with tensorrt_logger(self._trt).recording() as log:
            try:
                result = function(*arguments)
                faults = log.faults
            except (TypeError, RuntimeError) as error:
                result, faults = None, [*log.faults, str(error)]
        if not result:
            reasons = "; ".join(fault.strip() for fault in faults[:3]) or "no reason given"
            raise BackendError(f"{function.__name__} of {self.what} failed: {reasons}. {hint}")
        return result


def _ports(trt: TensorRT, engine: Any, manifest: Manifest, what: str) -> Ports:
    """Read an engine's input and output, and compare them with the manifest."""
    modes = {
        engine.get_tensor_name(index): engine.get_tensor_mode(engine.get_tensor_name(index)).name
        for index in range(engine.num_io_tensors)
    }
    if modes != {_INPUT: "INPUT", _OUTPUT: "OUTPUT"}:
        raise BackendError(
            f"The {what} has tensors {modes}, expected input 'sar' and output 'logits'. {_AGAIN}"
        )
    side, size = manifest.tile_px, manifest.tile_px // manifest.stride
    tile, logits = (len(manifest.sar.bands), side, side), (len(manifest.classes), size, size)
    seen: list[Sequence[int]] = [tuple(engine.get_tensor_shape(name)) for name in (_INPUT, _OUTPUT)]
    for name, shape, expected in ((_INPUT, seen[0], tile), (_OUTPUT, seen[1], logits)):
        fits = len(shape) == 4 and all(
            found in (-1, wanted) for found, wanted in zip(shape[1:], expected, strict=True)
        )
        if not fits:
            raise BackendError(
                f"The {what}: '{name}' is {shape}, the manifest says (batch, {expected}). {_AGAIN}"
            )
    least = most = seen[0][0]
    if least == -1:
        low, _, high = engine.get_tensor_profile_shape(_INPUT, 0)
        least, most = low[0], high[0]
    half = [_is_half(trt, engine, name, what) for name in (_INPUT, _OUTPUT)]
    return Ports(half[0], half[1], tile, logits, int(least), int(most))


def _is_half(trt: TensorRT, engine: Any, name: str, what: str) -> bool:
    kinds = {trt.DataType.FLOAT: False, trt.DataType.HALF: True}
    kind = engine.get_tensor_dtype(name)
    if kind not in kinds:
        raise BackendError(f"The {what}: '{name}' is {kind.name}, expected FLOAT or HALF. {_AGAIN}")
    return kinds[kind]
