"""Target profiles: what engines and device kits are built for. They are TOML files in export/targets."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hfd_edge.bundle import Precision
from hfd_edge.config import Strict, read_toml
from hfd_edge.errors import EngineError
from hfd_edge.files import resource_folder

Flavour = Literal["tensorrt_rtx", "tensorrt", "torch_tensorrt"]
"""Compiler, by its Python module."""
Int8Path = Literal["qdq", "cache", "none"]
"""How INT8 reaches the compiler: Q/DQ nodes in the ONNX, a calibration cache beside it, or not at all."""
GRID_SAMPLE_SINCE = (8, 5, 0)
"""First TensorRT whose ONNX parser knows GridSample (onnx-tensorrt's changelog, 8.5 GA)."""
STRONGLY_TYPED_SINCE = (10, 0, 0)
"""First TensorRT that JetPack ships that takes the precision from the ONNX; older ones need build flags."""
IMPLICIT_INT8_UNTIL = (11, 0, 0)
"""First TensorRT without calibration caches."""
_VERSION = r"^\d+\.\d+\.\d+$"
_SHORT_VERSION = r"^\d+\.\d+$"


class Batch(Strict):
    """Tiles per call that an engine accepts; it is fastest at `opt`."""

    min: int = Field(default=1, ge=1)
    opt: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Batch:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"batch needs min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class Target(Strict):
    """One kind of device with the software that it runs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    flavour: Flavour = Field(description="Compiler, by its Python module.")
    compute_capabilities: tuple[int, ...] = Field(min_length=1, description="sm_75 is 75.")
    tensorrt: str | None = Field(
        default=None,
        pattern=_VERSION,
        description="TensorRT on the device, 10.3.0; None where the builder is the one installed here.",
    )
    jetpack: str | None = Field(default=None, pattern=_SHORT_VERSION, description="Jetson only, 6.2.")
    cuda: str | None = Field(default=None, pattern=_SHORT_VERSION, description="CUDA on the device, 12.6.")
    python: str | None = Field(
        default=None, pattern=_SHORT_VERSION, description="Python on the device, 3.10."
    )
    opset_max: int = Field(default=20, ge=13, description="Newest ONNX opset that its parser reads.")
    int8: Int8Path = Field(default="qdq", description="How INT8 reaches the compiler.")
    precisions: tuple[Precision, ...] = Field(min_length=1, description="Variants that can be built.")
    default_precision: Precision
    batch: Batch = Batch()
    dla_cores: int = Field(default=0, ge=0, le=2, description="Deep learning accelerators beside the GPU.")
    memory_mb: int = Field(
        default=4096,
        gt=0,
        description="Memory of the GPU, or of the whole board where CPU and GPU share it; the smallest sold.",
    )
    shared_memory: bool = Field(default=False, description="CPU and GPU share the memory, as on Jetson.")
    workspace_mb: int = Field(default=4096, gt=0, description="Most memory for activations and scratch.")
    source: str = Field(default="", description="Where the facts come from.")

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        if self.default_precision not in self.precisions:
            raise ValueError(f"default_precision {self.default_precision} is not one of precisions")
        if len(set(self.compute_capabilities)) != len(self.compute_capabilities):
            raise ValueError(f"compute_capabilities names one twice: {list(self.compute_capabilities)}")
        if (self.flavour == "tensorrt") != (self.tensorrt is not None):
            needed = "needs" if self.flavour == "tensorrt" else "takes no"
            raise ValueError(f"flavour {self.flavour} {needed} key 'tensorrt', the version on the device")
        if self.workspace_mb > self.memory_mb:
            raise ValueError(f"workspace_mb {self.workspace_mb} exceeds memory_mb {self.memory_mb}")
        if self.dla_cores and not self.batch.min == self.batch.opt == self.batch.max:
            raise ValueError("a DLA takes no dynamic shapes: batch needs min = opt = max, or dla_cores = 0")
        self._check_int8()
        return self

    def _check_int8(self) -> None:
        quantised = [name for name in self.precisions if name.startswith("int8")]
        if (self.int8 == "none") == bool(quantised):
            raise ValueError(f'int8 is "{self.int8}", but precisions are {list(self.precisions)}')
        version = self.tensorrt_version
        if self.int8 == "cache" and (version is None or version >= IMPLICIT_INT8_UNTIL):
            raise ValueError(
                f'int8 = "cache" needs a TensorRT before 11, got {self.tensorrt or self.flavour}; use "qdq"'
            )
        if self.dla_cores and self.int8 == "qdq" and version is not None and version < IMPLICIT_INT8_UNTIL:
            raise ValueError(f'a DLA takes no Q/DQ nodes with TensorRT {self.tensorrt}; use int8 = "cache"')

    @property
    def tensorrt_version(self) -> tuple[int, int, int] | None:
        """The version on the device as numbers; None where the builder is the one installed here."""
        if self.tensorrt is None:
            return None
        major, minor, patch = (int(part) for part in self.tensorrt.split("."))
        return major, minor, patch

    @property
    def grid_sample(self) -> bool:
        """Whether its parser knows GridSample; otherwise it needs the form "gather", the default."""
        return self.tensorrt_version is None or self.tensorrt_version >= GRID_SAMPLE_SINCE

    @property
    def strongly_typed(self) -> bool:
        """Whether its TensorRT can take precision from the ONNX alone; older ones need build flags, as does
        every INT8 by a cache."""
        return self.tensorrt_version is None or self.tensorrt_version >= STRONGLY_TYPED_SINCE

    @property
    def jetson(self) -> bool:
        """Whether it is a Jetson board, which builds its own engines."""
        return self.jetpack is not None


def list_targets() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in resource_folder("targets").glob("*.toml")))


def load_target(name: str) -> Target:
    """Read a shipped profile by name, or any profile by the path of its TOML file.

    Raises:
        EngineError: there is no such profile.
        RecipeError: the file has an unknown key or a value out of range.
    """
    if name.endswith(".toml"):
        return read_toml(Path(name), Target)
    path = resource_folder("targets") / f"{name}.toml"
    names = list_targets()
    if name not in names:
        # A part of a name ("orin") finds all of its kind, a typing error the nearest.
        near = [known for known in names if name and name in known]
        near = near or difflib.get_close_matches(name, names, n=3)
        raise EngineError(
            f"There is no target {name!r}. Choose one of: {', '.join(near or names)}; or give the path of "
            "a TOML file with the same keys."
        )
    return read_toml(path, Target)
