"""The TensorRT backend, with the stand-ins of every generation on the emulated driver."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hfd_edge.bundle import Bundle
from hfd_edge.errors import BackendError, EngineError, MissingExtraError
from hfd_edge.files import user_cache
from hfd_edge.runtime.backends import available_backends, choice, open_backend, tensorrt
from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from hfd_edge.runtime.backends.tensorrt import TensorRTBackend
from hfd_edge.runtime.device import Device
from hfd_edge.runtime.segmenter import Segmenter

from ..deploy.generations import World, plan, stand_in
from ..runtime.conftest import make_manifest, make_onnx
from ..runtime.engine_files import put_engine

pytestmark = pytest.mark.gpu

ALL = ("8.6.2", "10.3.0", "11.4.1", "1.7.1.116")
BATCH = ([1, 2, 64, 64], [2, 2, 64, 64], [4, 2, 64, 64])
NAME = "here-fp32"
Use = Callable[..., World]


@pytest.fixture(autouse=True)
def _emulated(softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = softcuda.live()
    yield
    assert softcuda.live() == before, "something was left on the GPU"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    model = make_onnx(bands=2, classes=4, tile=64)
    return Bundle.create(tmp_path / "small.hfd", make_manifest(tile_px=64), {"model.fp32.onnx": model})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    def install(version: str) -> World:
        module, world = stand_in(version)
        world.capability = 86
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return world

    return install


def filled(bundle: Bundle, version: str, **changes: Any) -> Bundle:
    """The bundle with an engine of a stand-in for the emulated GPU, sm_86."""
    chosen: dict[str, Any] = {"name": NAME, "profile": BATCH, "onnx": None, **changes}
    content = plan(
        version,
        chosen.pop("onnx") or bundle.model("fp32").read_bytes(),
        profile=chosen.pop("profile"),
        capability=86,
    )
    return put_engine(bundle, version, content=content, compute_capabilities=(86,), **chosen)


def tiles(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, 64, 64)).astype(np.float32)


def expected(bundle: Bundle, batch: np.ndarray) -> np.ndarray:
    return OnnxRuntimeBackend(bundle, precision="fp32", threads=1).run(batch)


@pytest.mark.parametrize("version", ALL)
def test_logits_are_those_of_the_model(use: Use, bundle: Bundle, version: str) -> None:
    world = use(version)
    backend = TensorRTBackend(filled(bundle, version), NAME)
    assert backend.name == ("tensorrt_rtx" if version.startswith("1.") else "tensorrt")
    assert (backend.precision, backend.batch, backend.least) == ("fp32", 4, 1)
    assert not backend.input_half and not backend.output_half
    assert backend.logits_bytes(3) == 3 * 4 * 16 * 16 * 4
    for count in (1, 4, 3, 3, 3):
        batch = tiles(count, seed=count)
        np.testing.assert_allclose(backend.run(batch), expected(bundle, batch), atol=1e-6)
    assert world.seen["executions"] >= 5
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="The engine was closed. Open the bundle again to run it"):
        backend.run(tiles(1))


def test_without_the_host_in_between(use: Use, bundle: Bundle) -> None:
    """Two buffers in turns, as a pipeline does: addresses change with every batch, graphs come in."""
    world = use("10.3.0")
    batches = [tiles(2, seed) for seed in range(6)]
    with Device.open() as device:
        backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME, device=device, graphs=True)
        stream = device.stream()
        slots = [(device.buffer(batches[0].nbytes), device.buffer(backend.logits_bytes(2))) for _ in range(2)]
        found = []
        for turn, batch in enumerate(batches):
            source, result = slots[turn % 2]
            found.append(np.zeros((2, 4, 16, 16), np.float32))
            stream.copy_in(source.address, batch)
            backend.enqueue(source.address, result.address, 2, stream)
            stream.copy_out(found[-1], result.address)
        stream.synchronize()
        backend.close()
        assert not stream.closed, "the device was given: it stays open"
    for batch, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, expected(bundle, batch), atol=1e-6)
    # Eager twice for each slot, the second time before its graph is recorded; the rest are replays.
    assert world.seen["executions"] == 2 * 2 + 2


def test_many_addresses_do_not_thrash(
    use: Use, bundle: Bundle, softcuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("10.3.0")
    with Device.open() as device:
        backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME, device=device)
        stream, source = device.stream(), device.buffer(tiles(1).nbytes)
        results = [device.buffer(backend.logits_bytes(1)) for _ in range(6)]
        stream.copy_in(source.address, tiles(1))
        for result in results * 3:
            backend.enqueue(source.address, result.address, 1, stream)
        stream.synchronize()
        assert softcuda.live().graphs == softcuda.calls("cuStreamBeginCapture") == 4
        monkeypatch.setattr(tensorrt, "_STRANGERS", 4)
        for result in (results[4:] * 5)[:9]:  # two strangers three times, then they are met
            backend.enqueue(source.address, result.address, 1, stream)
        stream.synchronize()
        assert softcuda.calls("cuStreamBeginCapture") == 6, "others had their turn"
        found = [np.zeros((1, 4, 16, 16), np.float32) for _ in results]
        for logits, result in zip(found, results, strict=True):
            stream.copy_out(logits, result.address)
        stream.synchronize()
        assert all(np.array_equal(logits, found[0]) for logits in found)
        backend.close()


def test_graphs_that_cannot_be_recorded(
    use: Use, bundle: Bundle, softcuda: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    use("10.3.0")
    for graphs in (True, None, False):
        softcuda.reset()
        softcuda.inject("cuStreamBeginCapture", 900)
        backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME, graphs=graphs)
        backend.run(tiles(1))
        if graphs:
            with pytest.raises(BackendError, match="cuStreamBeginCapture"):
                backend.run(tiles(1))
        else:
            for seed in (1, 2):
                np.testing.assert_allclose(
                    backend.run(tiles(1, seed)), expected(bundle, tiles(1, seed)), atol=1e-6
                )
            assert softcuda.live().graphs == 0
            assert softcuda.pending_injections() == (graphs is False)
        backend.close()
    assert "no CUDA graphs: cuStreamBeginCapture failed" in caplog.text
    softcuda.reset()


def test_graphs_without_cuda_bindings(
    use: Use, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use("10.3.0")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    for seed in range(3):
        batch = tiles(1, seed)
        np.testing.assert_allclose(backend.run(batch), expected(bundle, batch), atol=1e-6)
    assert "no CUDA graphs: running an engine as a CUDA graph needs the package" in caplog.text
    backend.close()
    insists = TensorRTBackend(filled(bundle, "10.3.0"), NAME, graphs=True)
    insists.run(tiles(1))
    with pytest.raises(MissingExtraError, match=r"hfd-edge\[cuda\]"):
        insists.run(tiles(1))
    insists.close()


def test_streams_take_turns(use: Use, bundle: Bundle) -> None:
    """An engine has one set of activations: the driver reports a race where nothing orders its use."""
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME, graphs=False)
    device, batches = backend.device, [tiles(1, seed) for seed in range(4)]
    streams = [device.stream() for _ in batches]
    sources = [device.buffer(batches[0].nbytes) for _ in batches]
    results = [device.buffer(backend.logits_bytes(1)) for _ in batches]
    found = [np.zeros((1, 4, 16, 16), np.float32) for _ in batches]
    for stream, source, result, batch in zip(streams, sources, results, batches, strict=True):
        stream.copy_in(source.address, batch)
        backend.enqueue(source.address, result.address, 1, stream)
    for stream, result, logits in reversed(list(zip(streams, results, found, strict=True))):
        stream.copy_out(logits, result.address)
        stream.synchronize()
    for batch, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, expected(bundle, batch), atol=1e-6)
    backend.close()


def test_threads_take_turns(use: Use, bundle: Bundle) -> None:
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    right: list[bool] = []

    def work(seed: int) -> None:
        for turn in range(5):
            batch = tiles(1 + turn % 3, 10 * seed + turn)
            right.append(np.allclose(backend.run(batch), expected(bundle, batch), atol=1e-6))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert right == [True] * 10
    backend.close()


def test_closing_while_another_thread_runs(use: Use, bundle: Bundle) -> None:
    """It gets an error that says so, at whatever point it was."""
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    lock = backend._lock

    class ClosesOnceFree:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            backend._lock = lock
            lock.release()
            backend.close()

    backend._lock = ClosesOnceFree()  # type: ignore[assignment]
    with pytest.raises(BackendError, match="was freed before it was used|was closed"):
        backend.run(tiles(1))


def half_model() -> bytes:
    """Average pooling to a quarter, in half precision; the logits are the bands."""
    graph = helper.make_graph(
        [helper.make_node("AveragePool", ["sar"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])],
        "pool",
        [helper.make_tensor_value_info("sar", TensorProto.FLOAT16, ["batch", 4, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["batch", 4, 16, 16])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_half_precision_and_a_fixed_batch(use: Use, tmp_path: Path) -> None:
    """A batch below the engine's least is filled up."""
    use("11.4.1")
    manifest = make_manifest(tile_px=64, bands=("hh", "hv", "vh", "vv"))
    bundle = Bundle.create(tmp_path / "half.hfd", manifest, {"model.fp32.onnx": half_model()})
    three = [3, 4, 64, 64]
    backend = TensorRTBackend(filled(bundle, "11.4.1", profile=(three, three, three)), NAME)
    assert backend.input_half and backend.output_half
    assert (backend.least, backend.batch) == (3, 3)
    batch = np.random.default_rng(0).normal(size=(2, 4, 64, 64)).astype(np.float32)
    logits = backend.run(batch)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, batch.reshape(2, 4, 16, 4, 16, 4).mean((3, 5)), atol=2e-3)
    with pytest.raises(BackendError, match=r"2 tiles were given to engine here-fp32 .*, which takes 3 to 3"):
        backend.enqueue(256, 256, 2, backend.device.stream())
    backend.close()


def test_what_does_not_fit(use: Use, bundle: Bundle) -> None:
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    with pytest.raises(
        BackendError, match=r"batch of \(5, 2, 64, 64\) .* TensorRT 10.3.0, expected 1 to 4 tiles"
    ):
        backend.run(tiles(5))
    with pytest.raises(BackendError, match=r"expected 1 to 4 tiles of \(2, 64, 64\)"):
        backend.run(np.zeros((1, 3, 64, 64), np.float32))
    stream, buffer = backend.device.stream(), backend.device.buffer(1 << 20)
    with pytest.raises(BackendError, match="0 tiles were given to engine here-fp32 .*, which takes 1 to 4"):
        backend.enqueue(buffer.address, buffer.address, 0, stream)
    for addresses, name in (((buffer.address + 4, buffer.address), "sar"), ((buffer.address, 0), "logits")):
        with pytest.raises(BackendError, match=rf"of '{name}' is no multiple of 256 bytes"):
            backend.enqueue(*addresses, 1, stream)
    address = buffer.address
    buffer.free()
    with pytest.raises(
        BackendError, match="execute_async_v3 of engine here-fp32 .* is not one of device memory"
    ):
        backend.enqueue(address, address, 1, stream)
    backend.close()


@pytest.mark.parametrize("version", ALL)
def test_the_stand_in_refuses_wrong_usage(use: Use, bundle: Bundle, version: str) -> None:
    """As TensorRT would; else the tests above would show little."""
    use(version)
    backend = TensorRTBackend(filled(bundle, version), NAME)
    assert backend._loaded is not None
    device = backend.device
    stream, buffer = device.stream(), device.buffer(1 << 18)
    with device.current():
        context = backend._loaded._create()
        assert not context.execute_async_v3(stream.handle), "no shape"
        assert not context.set_input_shape("sar", (5, 2, 64, 64))
        assert not context.set_input_shape("image", (1, 2, 64, 64))
        assert context.set_input_shape("sar", (1, 2, 64, 64))
        assert not context.execute_async_v3(stream.handle), "no address"
        assert not context.set_tensor_address("image", buffer.address)
        assert context.set_tensor_address("sar", np.zeros(8).ctypes.data // 256 * 256)
        assert context.set_tensor_address("logits", buffer.address + (1 << 17))
        assert not context.execute_async_v3(stream.handle), "not on the device"
        context.set_tensor_address("sar", buffer.address)
        assert not context.execute_async_v3(0), "the default stream"
        stream.fill(buffer.address, 0, buffer.nbytes)
        assert context.execute_async_v3(stream.handle)
        with pytest.raises(AttributeError):
            context.execute_async_v4(stream.handle)
        stream.synchronize()
        del context
    backend.close()


def test_the_stand_in_shows_two_streams_at_once(use: Use, bundle: Bundle, softcuda: ModuleType) -> None:
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME, graphs=False)
    device = backend.device
    streams = [device.stream(), device.stream()]
    buffers = [device.buffer(1 << 18), device.buffer(1 << 18)]
    with softcuda.expect_faults("stream-race"):
        for stream, buffer in zip(streams, buffers, strict=True):
            stream.fill(buffer.address, 0, buffer.nbytes)
            backend._last = None  # as if nothing ran before
            backend.enqueue(buffer.address, buffer.address + (1 << 17), 1, stream)
        for stream in streams:
            stream.synchronize()
    backend.close()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            make_onnx(bands=3, classes=4, tile=64),
            r"'sar' is \(-1, 3, 64, 64\), the manifest says \(batch, \(2, 64",
        ),
        (make_onnx(bands=2, classes=3, tile=64), r"'logits' is \(-1, 3, 16, 16\)"),
        (
            make_onnx(bands=2, classes=4, tile=64).replace(b"logits", b"logitz"),
            "expected input 'sar' and output",
        ),
    ],
)
def test_an_engine_of_another_model(use: Use, bundle: Bundle, model: bytes, message: str) -> None:
    use("10.3.0")
    with pytest.raises(BackendError, match=message):
        TensorRTBackend(filled(bundle, "10.3.0", onnx=model), NAME)


def test_an_input_of_bytes(use: Use, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    use("10.3.0")
    trt = sys.modules["tensorrt"]
    monkeypatch.setattr(trt.ICudaEngine, "get_tensor_dtype", lambda *_: trt.DataType.UINT8)
    with pytest.raises(BackendError, match="'sar' is UINT8, expected FLOAT or HALF. Export and build again"):
        TensorRTBackend(filled(bundle, "10.3.0"), NAME)


@pytest.mark.parametrize("version", ALL)
def test_no_room_for_a_context(use: Use, bundle: Bundle, version: str) -> None:
    use(version).full = True
    with pytest.raises(
        BackendError, match=r"create_execution_context of .* failed: .*OutOfMemory.* Free memory"
    ):
        TensorRTBackend(filled(bundle, version), NAME)


def test_tensorrt_raises(use: Use, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    monkeypatch.setattr(sys.modules["tensorrt"].IExecutionContext, "execute_async_v3", None)
    with pytest.raises(BackendError, match="'NoneType' object is not callable. Check the GPU"):
        backend._loaded._call(lambda: (_ for _ in ()).throw(TypeError("'NoneType' object is not callable")))  # type: ignore[union-attr]
    backend.close()


def test_a_fault_of_the_gpu(
    use: Use, bundle: Bundle, softcuda: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Cleaning up after it works, whatever the driver still says."""
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    backend.run(tiles(1))
    softcuda.inject("cuStreamSynchronize", 700, sticky=True)
    with pytest.raises(BackendError, match="cuStreamSynchronize failed: .* context is lost"):
        backend.run(tiles(1))
    backend.close()
    assert "may be of earlier work" in caplog.text
    softcuda.reset()


def test_no_room_for_the_batches(use: Use, bundle: Bundle, softcuda: ModuleType) -> None:
    """Nothing is left when one of several allocations fails; with room again it runs."""
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    before = softcuda.live()
    with pytest.raises(BackendError, match="page-locked memory of shape .* failed: cuMemHostAlloc"):
        softcuda.inject("cuMemHostAlloc", 2, after=1)
        backend.run(tiles(1))
    assert softcuda.live() == before
    with pytest.raises(BackendError, match="The GPU has no room for 131,072 bytes"):
        for _ in range(2):  # PyCUDA collects garbage and tries once more
            softcuda.inject("cuMemAlloc", 2)
        backend.run(tiles(1))
    assert softcuda.live() == before
    backend.run(tiles(1))
    backend.close()


class TestRuntimeCache:
    def test_it_is_kept_for_the_next_start(self, use: Use, bundle: Bundle) -> None:
        use("1.7.1.116")
        full = filled(bundle, "1.7.1.116")
        TensorRTBackend(full, NAME).close()
        assert not user_cache("tensorrt_rtx").exists(), "nothing ran, nothing was compiled"
        opened = TensorRTBackend(full, NAME)
        opened.run(tiles(1))
        opened.close()
        (kept,) = user_cache("tensorrt_rtx").iterdir()
        assert kept.read_bytes().endswith(b"kernels of 1.7.1.116")
        before = kept.stat().st_mtime_ns
        opened = TensorRTBackend(full, NAME)
        opened.run(tiles(1))
        opened.close()
        assert kept.stat().st_mtime_ns == before, "nothing new"

    def test_built_in_graphs(self, use: Use, bundle: Bundle) -> None:
        use("1.7.1.116")
        full = filled(bundle, "1.7.1.116")
        strategies = sys.modules["tensorrt_rtx"].CudaGraphStrategy
        for graphs, strategy in ((None, strategies.WHOLE_GRAPH_CAPTURE), (False, strategies.DISABLED)):
            backend = TensorRTBackend(full, NAME, graphs=graphs)
            assert backend._loaded is not None and backend._loaded._cache is not None
            assert backend._loaded._cache.config.cuda_graph_strategy == strategy
            assert backend._loaded._replays is None
            backend.close()

    def test_damaged_or_foreign(
        self, use: Use, bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = use("1.7.1.116")
        full = filled(bundle, "1.7.1.116")

        def run() -> None:
            backend = TensorRTBackend(full, NAME)
            backend.run(tiles(1))
            backend.close()

        run()
        (kept,) = user_cache("tensorrt_rtx").iterdir()
        good = kept.read_bytes()
        kept.write_bytes(good[:-1] + b"?")
        run()
        assert "is damaged; kernels are compiled again" in caplog.text
        assert kept.read_bytes() == good
        world.validity = "SUBOPTIMAL"  # the stand-in then refuses the cache, as another driver would
        with caplog.at_level(logging.INFO, logger="hfd_edge.runtime"):
            run()
        assert "is of another driver or GPU" in caplog.text
        kept.unlink()
        kept.mkdir()
        run()
        assert "kernels that TensorRT-RTX compiled are not kept" in caplog.text


class TestChoice:
    def test_auto_takes_the_engine_that_fits(
        self, use: Use, bundle: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        use("10.3.0")
        full = filled(put_engine(bundle, "10.3.0", name="orin-fp32"), "10.3.0")
        with caplog.at_level(logging.INFO, logger="hfd_edge.runtime"):
            backend = open_backend(full)
        assert isinstance(backend, TensorRTBackend)
        assert f"chose backend tensorrt and precision fp32 for {full.path}" in caplog.text
        backend.close()

    def test_auto_says_why_it_takes_the_cpu(
        self, use: Use, bundle: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        use("10.3.0")
        full = put_engine(bundle, "10.3.0", name="orin-fp32")
        open_backend(full).close()  # a warning: there is a GPU, and an engine
        assert "chose backend onnxruntime" in caplog.text
        assert "was built for sm_87, but this GPU is sm_86. Build it for this machine with" in caplog.text
        with caplog.at_level(logging.INFO, logger="hfd_edge.runtime"):
            open_backend(bundle).close()
        assert "The bundle has no engine; it has: none. Build one with: hfd-edge build" in caplog.text

    def test_what_is_named_is_used_or_refused(self, use: Use, bundle: Bundle) -> None:
        use("10.3.0")
        full = put_engine(bundle, "10.3.0", name="orin-fp32")
        with pytest.raises(
            BackendError, match=r"Backend tensorrt cannot run .*sm_87.* On the CPU: backend='onnx"
        ):
            open_backend(full, backend="tensorrt")
        with pytest.raises(BackendError, match="has no tensorrt_rtx engine; it has: orin-fp32"):
            open_backend(full, backend="tensorrt_rtx")
        with pytest.raises(BackendError, match="has no int8 tensorrt engine"):
            open_backend(full, backend="tensorrt", precision="int8")
        full.path.joinpath("engines/orin-fp32.json").unlink()
        with pytest.raises(BackendError, match="has no sidecar orin-fp32.json"):
            open_backend(full, backend="tensorrt")

    def test_the_order(self, use: Use, bundle: Bundle) -> None:
        use("10.3.0")
        use("1.7.1.116")
        names = []
        for version, precision in (
            ("1.7.1.116", "int8"),
            ("1.7.1.116", "fp16"),
            ("10.3.0", "fp16"),
            ("10.3.0", "int8"),
        ):
            names.append(f"{version}-{precision}")
            bundle = put_engine(bundle, version, name=names[-1], precision=precision)
        ranked, _ = choice._ranked(bundle, "auto", "auto")
        assert [name for name, _ in ranked] == [names[3], names[2], names[1], names[0]]
        assert [name for name, _ in choice._ranked(bundle, "tensorrt_rtx", "int8")[0]] == [names[0]]

    def test_what_is_here(self, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
        use("10.3.0")
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        assert available_backends() == (*choice.cpu_backends(), "tensorrt")
        monkeypatch.setattr(choice, "find_gpu", lambda: None)
        assert available_backends() == choice.cpu_backends()

    def test_a_tensorrt_that_does_not_load(
        self, use: Use, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        use("10.3.0")
        full = filled(bundle, "10.3.0")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
        monkeypatch.syspath_prepend(str(tmp_path / "broken"))
        monkeypatch.delitem(sys.modules, "tensorrt")
        assert "tensorrt" not in available_backends()
        open_backend(full).close()
        assert "chose backend onnxruntime" in caplog.text
        assert "installed but does not load: libnvinfer.so.10: cannot open" in caplog.text


def test_an_engine_runs_on_its_dla_core(use: Use, bundle: Bundle) -> None:
    """A runtime that is not told runs every engine on core 0."""
    use("10.3.0")
    backend = TensorRTBackend(filled(bundle, "10.3.0", options={"plan": {"dla_core": 1}}), NAME)
    assert backend._loaded is not None and backend._loaded._opened is not None
    assert backend._loaded._opened.loaded.runtime.DLA_core == 1
    backend.close()


def test_a_stale_engine_never_reaches_tensorrt(use: Use, bundle: Bundle) -> None:
    world = use("10.3.0")
    full = filled(bundle, "10.3.0")
    newer = full.add({"model.fp32.onnx": make_onnx(bands=2, classes=4, tile=64, stride=1)})
    with pytest.raises(EngineError, match="was built from another fp32 model.* hfd-edge build"):
        TensorRTBackend(newer, NAME)
    assert "deserialized" not in world.seen


def test_pycuda_is_missing(use: Use, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    use("10.3.0")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingExtraError, match=r"the GPU runtime needs .*hfd-edge\[cuda\]"):
        TensorRTBackend(filled(bundle, "10.3.0"), NAME)
    with pytest.raises(BackendError, match=r"cannot run .*hfd-edge\[cuda\]"):
        open_backend(filled(bundle, "10.3.0"), backend="tensorrt")


@pytest.mark.parametrize("version", ["10.3.0", "1.7.1.116"])
def test_a_segmenter(use: Use, bundle: Bundle, version: str) -> None:
    """The whole road: the same labels as on the CPU, but for ties that rounding decides."""
    use(version)
    image = np.random.default_rng(5).gamma(4, 0.01, (2, 100, 110)).astype(np.float32)
    image[:, 20:40, 30:50] = 0  # no data
    with Segmenter(bundle, backend="onnxruntime") as segment:
        expected = segment(image)
    name = "tensorrt_rtx" if version.startswith("1.") else "tensorrt"
    with Segmenter(filled(bundle, version), backend=name) as segment:
        assert np.mean(segment(image) == expected) >= 0.999
