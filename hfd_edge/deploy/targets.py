"""Target profiles: what engines are built for. They are TOML files in export/targets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hfd_edge.bundle import Precision
from hfd_edge.config import Strict, read_toml
from hfd_edge.errors import EngineError
from hfd_edge.files import resource_folder


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
    """One kind of device."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    flavour: Literal["tensorrt_rtx"] = Field(description="Compiler, by its Python module.")
    compute_capabilities: tuple[int, ...] = Field(min_length=1, description="sm_75 is 75.")
    precisions: tuple[Precision, ...] = Field(min_length=1, description="Variants that can be built.")
    default_precision: Precision
    batch: Batch = Batch()
    workspace_mb: int = Field(default=4096, gt=0, description="Most memory for activations and scratch.")
    source: str = Field(default="", description="Where the facts come from.")

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        if self.default_precision not in self.precisions:
            raise ValueError(f"default_precision {self.default_precision} is not one of precisions")
        if len(set(self.compute_capabilities)) != len(self.compute_capabilities):
            raise ValueError(f"compute_capabilities names one twice: {list(self.compute_capabilities)}")
        return self


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
    if name not in list_targets():
        raise EngineError(
            f"There is no target {name!r}. Choose one of: {', '.join(list_targets())}; or give the path of a "
            "TOML file with the same keys."
        )
    return read_toml(path, Target)
