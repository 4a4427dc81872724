"""torch-tensorrt's path with a stand-in module that has exactly the names and arguments that are used.

The stand-in runs in PyTorch what it was given, so a program that computes something else, a file that cannot
be loaded or a half written folder shows. The real package needs a GPU; that it takes the same calls is seen
with benchmarks/torch_tensorrt_coverage.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

from hfd_edge.config import DatasetConfig, Recipe
from hfd_edge.deploy import torch_tensorrt as subject
from hfd_edge.deploy.targets import Batch, Target, load_target
from hfd_edge.deploy.torch_program import Input, count_engines, difference, exported_form, trace
from hfd_edge.deploy.torch_tensorrt import Gpu, compile_run, why_not_here
from hfd_edge.engine_record import check_engine
from hfd_edge.errors import CheckpointError, EngineError, ExportError, MissingExtraError
from hfd_edge.files import sha256
from hfd_edge.hfdnet.network import perturb_flow
from hfd_edge.hfdnet.run import Run, RunInfo, now

from .conftest import BANDS, CLASSES, PALETTE, PREPROCESSING, SAR

Snapshot = Callable[[Path], dict[str, bytes]]
TILE = 64
DESKTOP = load_target("desktop-torch-tensorrt").model_copy(update={"batch": Batch(min=1, opt=2, max=3)})
FIXED = DESKTOP.model_copy(update={"name": "fixed", "batch": Batch()})
NAMES = ("desktop-torch-tensorrt-fp16.pt2", "desktop-torch-tensorrt-fp16.json")


class TorchTensorRTModule(nn.Module):
    """Stands for an engine: runs the exported program, or a planted fault."""

    def __init__(self, program: Any, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.fault = program.module(), fault

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fault(self.inner(pixels))


class StandIn(ModuleType):
    """torch_tensorrt 2.14 as far as it is used; every other name or argument raises."""

    __version__ = "2.14.0"

    def __init__(self) -> None:
        super().__init__("torch_tensorrt")
        self.dynamo = SimpleNamespace(compile=self._compile)
        self.fault: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits
        self.left_to_torch = False
        self.given: dict[str, Any] = {}

    class Input:
        def __init__(
            self,
            *,
            shape: tuple[int, ...] | None = None,
            min_shape: tuple[int, ...] | None = None,
            opt_shape: tuple[int, ...] | None = None,
            max_shape: tuple[int, ...] | None = None,
            dtype: torch.dtype,
        ) -> None:
            assert (shape is None) != (None in (min_shape, opt_shape, max_shape))
            self.shapes, self.dtype = shape or (min_shape, opt_shape, max_shape), dtype

    def _compile(self, program: Any, *, arg_inputs: list[Any], workspace_size: int) -> fx.GraphModule:
        assert isinstance(program, torch.export.ExportedProgram)
        (given,) = arg_inputs
        self.given = {"shapes": given.shapes, "dtype": given.dtype, "workspace": workspace_size}
        self.program = program
        print("a compiler that prints")
        graph = fx.Graph()
        output = graph.placeholder("pixels")
        if self.left_to_torch:
            output = graph.call_function(torch.ops.aten.relu.default, (output,))
            root: Any = nn.Module()
        else:
            root = nn.ModuleDict({"_run_on_acc_0": TorchTensorRTModule(program, self.fault)})
            output = graph.call_module("_run_on_acc_0", (output,))
        graph.output(output)
        return fx.GraphModule(root, graph)

    def save(
        self,
        module: Any,
        file_path: str,
        *,
        output_format: str,
        arg_inputs: list[torch.Tensor],
        dynamic_shapes: Any,
    ) -> None:
        assert isinstance(module, fx.GraphModule) and output_format == "exported_program"
        assert all(isinstance(tensor, torch.Tensor) for tensor in arg_inputs)
        assert (dynamic_shapes is None) == (len(self.given["shapes"]) == 4)
        torch.export.save(self.program, file_path)

    def load(self, file_path: str) -> Any:
        return torch.export.load(file_path)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in, on a machine with an Ada GPU whose work the CPU does."""
    module = StandIn()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setattr(subject, "_gpu", lambda: Gpu("cpu", 89, "Test GPU"))
    return module


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a flow that is not zero."""
    path = tmp_path_factory.mktemp("runs") / "student"
    made = Run.create(path, _recipe(), _info())
    torch.manual_seed(0)
    network = made.untrained_network()
    perturb_flow(network, seed=1)
    made.save_best(network.state_dict())
    return path


@pytest.fixture
def run(student: Path, mini: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a smaller network, which takes a second to trace."""
    monkeypatch.setattr(Run, "network", lambda self: mini)
    return student


def _recipe() -> Recipe:
    network = {"encoder": "resnet10t", "channels": 8, "init": "random"}
    return Recipe.model_validate({"network": network, "deploy": {"tile_px": TILE}})


def _info(**changes: Any) -> RunInfo:
    dataset = DatasetConfig(name="mini", classes=CLASSES, palette=PALETTE, sar=SAR)
    values = {"kind": "student", "dataset": dataset, "preprocessing": PREPROCESSING, "data_sha256": "0" * 64}
    return RunInfo.model_validate({**values, "versions": {}, "created": now(), **changes})


def test_a_saved_program_computes_what_the_weights_compute(
    compiler: StandIn, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = compile_run(student, tmp_path, DESKTOP)
    path = tmp_path / NAMES[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(NAMES)
    checked = check_engine(path)
    assert checked["sha256"] == record.sha256 == sha256(path)
    assert record.onnx_sha256 == sha256(student / "best.safetensors")
    assert (record.flavour, record.version, record.compute_capabilities) == (
        "torch_tensorrt",
        "2.14.0",
        (89,),
    )
    assert record.precision == "fp16" and record.options["head"] == "quarter"
    assert record.options["tile_px"] == TILE and record.options["batch"] == [1, 2, 3]
    assert "TensorRT engines: 1; left to PyTorch: nothing. Differs from PyTorch FP32 by" in record.note
    shapes = tuple((size, BANDS, TILE, TILE) for size in (1, 2, 3))
    assert compiler.given == {"shapes": shapes, "dtype": torch.float32, "workspace": 4096 << 20}
    # Float32 in and out, any batch up to the largest: the interface of every other model.
    pixels = torch.randn(2, BANDS, TILE, TILE)
    with torch.no_grad():
        found = torch.export.load(path).module()(pixels)
        expected = Run.open(student).network()(pixels)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 5e-3 * float(expected.max() - expected.min())
    assert capsys.readouterr().out == "", "stdout belongs to --json"


@pytest.mark.parametrize(("precision", "type_"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_the_precision_is_that_of_the_weights(
    compiler: StandIn, run: Path, tmp_path: Path, precision: str, type_: torch.dtype
) -> None:
    compile_run(run, tmp_path, FIXED, precision=precision)
    state = compiler.program.state_dict.values()
    assert {tensor.dtype for tensor in state if tensor.is_floating_point()} == {type_}
    assert (tmp_path / f"fixed-{precision}.pt2").is_file()


def test_a_fixed_batch_and_another_tile_replace_the_first(
    compiler: StandIn, run: Path, tmp_path: Path
) -> None:
    seen: list[tuple[float, float, str]] = []
    first = compile_run(run, tmp_path, FIXED, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert seen[1][2] == "compiling with torch-tensorrt, which reports no progress"
    second = compile_run(run, tmp_path, FIXED, tile_px=96)
    assert first.engine_key != second.engine_key
    assert check_engine(tmp_path / "fixed-fp16.pt2")["engine_key"] == second.engine_key
    assert compiler.given["shapes"] == (1, BANDS, 96, 96)
    loaded = torch.export.load(tmp_path / "fixed-fp16.pt2").module()
    assert loaded(torch.zeros(1, BANDS, 96, 96)).shape == (1, len(CLASSES), 24, 24)


def test_the_full_head_gives_logits_of_the_tiles_size(mini: nn.Module) -> None:
    full = exported_form(mini, head="full")
    program = trace(full, Input(Batch(min=1, opt=1, max=2), BANDS, TILE), precision="fp16")
    assert program.module()(torch.zeros(1, BANDS, TILE, TILE)).shape == (1, len(CLASSES), TILE, TILE)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda logits: logits.flip(-1), r"batch of 1 the compiled program differs from the weights by"),
        (
            lambda logits: logits * torch.nan,
            r"differs from the weights by nan .* allowed are 2e-02. Try warp",
        ),
        (
            lambda logits: logits[..., :-1],
            r"gives logits \(1, 3, 16, 15\); the weights give \(1, 3, 16, 16\)",
        ),
        (lambda logits: logits if len(logits) == 1 else logits + 9, r"For a batch of 3 the compiled program"),
    ],
)
def test_a_miscompiled_program_is_refused(
    compiler: StandIn, run: Path, tmp_path: Path, fault: Any, message: str
) -> None:
    compiler.fault = fault
    with pytest.raises(EngineError, match=message):
        compile_run(run, tmp_path, DESKTOP)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_changes_on_disk_is_refused(
    compiler: StandIn,
    run: Path,
    mini: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Snapshot,
) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("an earlier program")
    before = snapshot(tmp_path)
    other = exported_form(mini, head="quarter")
    with torch.no_grad():
        other.classifier.bias[0] += 9
    stale = trace(other, Input(DESKTOP.batch, BANDS, TILE), precision="fp32")
    monkeypatch.setattr(StandIn, "save", lambda self, module, path, **options: torch.export.save(stale, path))
    with pytest.raises(EngineError, match="the saved program differs from the weights"):
        compile_run(run, tmp_path, DESKTOP)
    monkeypatch.setattr(StandIn, "save", lambda self, module, path, **options: Path(path).write_bytes(b"no"))
    with pytest.raises(EngineError, match="cannot load the program that it has just saved.*fixed batch"):
        compile_run(run, tmp_path, DESKTOP)
    assert snapshot(tmp_path) == before, "the earlier program stays whole"


def test_nothing_that_tensorrt_can_run(compiler: StandIn, run: Path, tmp_path: Path) -> None:
    compiler.left_to_torch = True
    with pytest.raises(EngineError, match=r"into an engine; PyTorch would run 1 aten.relu.default. Export a"):
        compile_run(run, tmp_path, DESKTOP)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("converter of aten.foo failed.")])
def test_a_compilation_that_stops_leaves_nothing(
    compiler: StandIn, run: Path, tmp_path: Path, stop: BaseException
) -> None:
    def compile(*_: Any, **__: Any) -> None:
        raise stop

    compiler.dynamo.compile = compile
    wanted = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else EngineError
    with pytest.raises(wanted) as caught:
        compile_run(run, tmp_path / "out", DESKTOP)
    assert not (tmp_path / "out").exists()
    if wanted is EngineError:
        assert "torch-tensorrt 2.14.0 could not compile the network for desktop" in str(caught.value)
        assert "converter of aten.foo failed. If memory ran out, lower batch.max" in str(caught.value)


def test_without_gpu_or_package(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU, and PyTorch finds none .* desktop-rtx"):
        compile_run(run, tmp_path, DESKTOP)
    assert "needs an NVIDIA GPU" in str(why_not_here())
    monkeypatch.setattr(subject, "_gpu", lambda: Gpu("cpu", 89, "Test GPU"))
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package 'torch_tensorrt'.*hfd-edge\[torch-tensor"
    ):
        compile_run(run, tmp_path, DESKTOP)
    assert "hfd-edge[torch-tensorrt]" in str(why_not_here())


def test_a_package_that_does_not_load(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, compiler: StandIn
) -> None:
    assert why_not_here() is None
    monkeypatch.delitem(sys.modules, "torch_tensorrt")
    (tmp_path / "torch_tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        EngineError, match=r"installed but cannot be loaded: libnvinfer.so.10.*release must be"
    ):
        compile_run(run, tmp_path / "out", DESKTOP)


def test_what_a_target_does_not_take(compiler: StandIn, run: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no precision 'int8' with torch-tensorrt; it takes: fp32, fp16"):
        compile_run(run, tmp_path, DESKTOP, precision="int8")
    with pytest.raises(
        EngineError, match=r"Target rtx-ada is compiled by tensorrt_rtx, not by torch-tensorrt"
    ):
        compile_run(run, tmp_path, load_target("rtx-ada"))
    old: Target = DESKTOP.model_copy(update={"compute_capabilities": (75, 80)})
    with pytest.raises(EngineError, match=r"GPU is Test GPU \(sm_89\), but target .* is for sm_75, sm_80"):
        compile_run(run, tmp_path, old)


def test_what_is_no_student(compiler: StandIn, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run"):
        compile_run(tmp_path, tmp_path / "out", DESKTOP)
    for tile_px in (0, 100):
        with pytest.raises(ExportError, match=rf"tiles of {tile_px} pixels; tile_px must be a positive mult"):
            compile_run(run, tmp_path, DESKTOP, tile_px=tile_px)
    info = _info(kind="teacher", eo_mean=(0.5,) * 3, eo_std=(0.2,) * 3)
    Run.create(tmp_path / "teacher", _recipe(), info)
    with pytest.raises(ExportError, match="is a teacher: it takes optical images"):
        compile_run(tmp_path / "teacher", tmp_path, DESKTOP)


def test_engines_and_operators_are_counted(mini: nn.Module) -> None:
    given = Input(Batch(), BANDS, TILE)
    engine = TorchTensorRTModule(trace(mini, given, precision="fp32"), lambda logits: logits)
    inner = fx.Graph()
    inner.output(inner.call_function(torch.ops.aten.gather.default, (inner.placeholder("x"), 2)))
    outer = fx.Graph()
    pixels = outer.call_module("_run_on_acc_0", (outer.placeholder("pixels"),))
    outer.output(outer.call_module("_run_on_gpu_1", (outer.call_function(torch.relu, (pixels,)),)))
    parts = {"_run_on_acc_0": engine, "_run_on_gpu_1": fx.GraphModule(nn.Module(), inner)}
    coverage = count_engines(fx.GraphModule(nn.ModuleDict(parts), outer))
    assert coverage.engines == 1
    assert sum(coverage.torch_operators.values()) == 2 and "aten.gather.default" in coverage.torch_operators
    assert coverage.left_to_torch().startswith("1 ")


def test_the_tolerance_takes_half_precision_and_no_wrong_warp(mini: nn.Module) -> None:
    """A flow that is half a pixel off is far above what FP16 changes."""
    given = Input(Batch(), BANDS, TILE)
    half = trace(mini, given, precision="fp16").module()
    assert 0 < difference(half, mini, given, which="compiled") < 5e-3
    shifted = exported_form(mini, head="quarter")
    with torch.no_grad():
        shifted.align.flow_head.bias += 0.5
    with pytest.raises(EngineError, match="differs from the weights"):
        difference(shifted, mini, given, which="compiled")
