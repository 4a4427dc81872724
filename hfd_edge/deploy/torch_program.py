"""A network as torch-tensorrt takes it, and what came out: traced, counted, compared. Needs no GPU."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

from hfd_edge.deploy.onnx_export import Head
from hfd_edge.deploy.targets import Batch
from hfd_edge.errors import EngineError, ExportError

TOLERANCE = 2e-2
"""Largest difference to PyTorch's FP32 logits, relative to their range.

FP16 on a CPU differs by 3e-3 (preset s trained on OMBRIA, with its own and with a random flow), and TF32 has
FP16's 10 bits of mantissa.
"""


@dataclass(frozen=True)
class Input:
    """What a program takes: float32 (batch, bands, tile_px, tile_px), standardised.

    Attributes:
        batch: Tiles per call.
        bands: SAR bands.
        tile_px: Side of the tile.
        device: PyTorch's name of the device that the network lies on.
    """

    batch: Batch
    bands: int
    tile_px: int
    device: str = "cpu"

    @property
    def fixed(self) -> bool:
        """Whether every call has the same number of tiles."""
        return self.batch.min == self.batch.max

    def shape(self, size: int) -> tuple[int, int, int, int]:
        """The shape of a batch of `size` tiles."""
        return size, self.bands, self.tile_px, self.tile_px

    def example(self) -> tuple[Any, Any]:
        """Zeros to trace with, and the `dynamic_shapes` that belong to them."""
        import torch

        # The largest batch: torch.export takes sizes 0 and 1 of its example for constants.
        zeros = torch.zeros(self.shape(self.batch.max), device=self.device)
        if self.fixed:
            return zeros, None
        return zeros, ({0: torch.export.Dim("batch", min=self.batch.min, max=self.batch.max)},)

    def noise(self, size: int) -> Any:
        """Seeded standard normal pixels for a batch of `size` tiles."""
        import torch

        return torch.randn(self.shape(size), generator=torch.Generator().manual_seed(size)).to(self.device)


@dataclass(frozen=True)
class Coverage:
    """How much of a network runs in TensorRT.

    Attributes:
        engines: TensorRT engines that the program holds.
        torch_operators: Operators that PyTorch runs between them, by name, with their number.
    """

    engines: int
    torch_operators: dict[str, int]

    def left_to_torch(self) -> str:
        """The operators in words."""
        return (
            ", ".join(f"{count} {name}" for name, count in sorted(self.torch_operators.items())) or "nothing"
        )


def exported_form(network: Any, *, head: Head) -> Any:
    """A copy of a network in inference mode with the head that the program gets, FP32."""
    from hfd_edge.hfdnet.network import FullHead

    module = copy.deepcopy(network).float().eval()
    return FullHead(module).eval() if head == "full" else module


def trace(network: Any, given: Input, *, precision: str) -> Any:
    """Export a network for the compiler: float32 in, float32 out, whatever it computes in.

    Args:
        network: See `exported_form`; it is not changed.
        given: What it takes.
        precision: "fp32" or "fp16", the type of weights and feature maps.
    Returns:
        `torch.export.ExportedProgram`.
    Raises:
        ExportError: torch.export does not know a construct of the network.
    """
    import torch

    example, dynamic = given.example()
    module = _in_half(network) if precision == "fp16" else network
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises classes of several private modules
        raise ExportError(f"The network cannot be exported with torch.export: {error}") from error


def compiler_options(trt: Any, given: Input, *, workspace_mb: int) -> dict[str, Any]:
    """What `torch_tensorrt.dynamo.compile` is called with beside the program.

    Args:
        trt: The module torch_tensorrt.
        given: What the program takes.
        workspace_mb: Most memory for the compiler's scratch.
    """
    import torch

    batch = given.batch
    if given.fixed:
        specification = trt.Input(shape=given.shape(batch.opt), dtype=torch.float32)
    else:
        sizes = {"min_shape": batch.min, "opt_shape": batch.opt, "max_shape": batch.max}
        shapes = {name: given.shape(size) for name, size in sizes.items()}
        specification = trt.Input(**shapes, dtype=torch.float32)
    return {"arg_inputs": [specification], "workspace_size": workspace_mb << 20}


def count_engines(compiled: Any) -> Coverage:
    """Read from a compiled module which parts are engines and what PyTorch keeps.

    torch_tensorrt 2.11 to 2.14 give a `torch.fx.GraphModule` whose submodules are engines
    (`TorchTensorRTModule`, in older releases also `PythonTorchTensorRTModule`) or graphs for PyTorch.
    """
    from torch.fx import GraphModule

    engines, operators = 0, dict[str, int]()
    graphs = [compiled]
    for _, child in compiled.named_children():
        if type(child).__name__.endswith("TensorRTModule"):
            engines += 1
        elif isinstance(child, GraphModule):
            graphs.append(child)
    for graph in graphs:
        for node in graph.graph.nodes:
            if node.op == "call_function" and node.target is not operator.getitem:
                operators[str(node.target)] = operators.get(str(node.target), 0) + 1
    return Coverage(engines, operators)


def difference(module: Any, reference: Any, given: Input, *, which: str) -> float:
    """Largest difference to the FP32 network on seeded noise, over the range of its logits.

    At the smallest and at the largest batch: a program may be right for one size alone.

    Args:
        module: What was compiled.
        reference: See `exported_form`.
        given: What both take.
        which: "compiled" or "saved", for the message.
    Raises:
        EngineError: it exceeds TOLERANCE, or the logits have another shape or are not finite.
    """
    import torch

    worst = 0.0
    for size in sorted({given.batch.min, given.batch.max}):
        pixels = given.noise(size)
        with torch.no_grad():
            expected, found = reference(pixels).float(), module(pixels).float()
        spread = float(expected.max() - expected.min())
        if found.shape != expected.shape or not spread > 0:
            raise EngineError(
                f"For a batch of {size} the {which} program gives logits {tuple(found.shape)}; the weights "
                f"give {tuple(expected.shape)} with a range of {spread}. Train again if the range is not "
                "positive; otherwise try another release of torch-tensorrt."
            )
        distance = float((found - expected).abs().max()) / spread
        if not distance <= TOLERANCE:  # also when it is NaN
            raise EngineError(
                f"For a batch of {size} the {which} program differs from the weights by {distance:.2e} of "
                f"the range of the logits, allowed are {TOLERANCE:.0e}. Try warp = 'gather' in the recipe's "
                "[network], another precision, or another release of torch-tensorrt."
            )
        worst = max(worst, distance)
    return worst


def _in_half(network: Any) -> Any:
    """The network in FP16 behind a float32 input and output, as the FP16 ONNX has them."""
    from torch import Tensor, nn

    class InHalf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network).half()

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.network(pixels.half())
            return logits.float()

    return InHalf().eval()
