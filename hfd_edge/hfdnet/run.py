"""The run folder that training writes and deployment reads.

best.safetensors        weights of the epoch that is kept (training.keep), called the best, and nothing else
last.ckpt.safetensors   everything needed to go on with an interrupted training
recipe.toml             the resolved recipe
run.json                what the network is: data, preprocessing, versions
metrics.json            scores and history, after each epoch
quantizers.json         ranges of the activations, only after quantisation-aware training
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from hfd_edge.config import DatasetConfig, Recipe, Rgb, Strict, TeacherInputs, read_toml, write_toml
from hfd_edge.errors import CheckpointError
from hfd_edge.files import atomic_folder, write_bytes, write_json, write_text
from hfd_edge.hfdnet import baselines
from hfd_edge.hfdnet.network import HfdNet, from_recipe
from hfd_edge.sar.preprocessing import Preprocessing

RUN_NAME = "run.json"
RECIPE_NAME = "recipe.toml"
BEST_NAME = "best.safetensors"
_DIGEST = "sha256"
_PACKAGES = ("hfd-edge", "torch", "timm", "lightning-fabric", "numpy", "opencv-python-headless")
CHECKPOINT_NAME = "last.ckpt.safetensors"
METRICS_NAME = "metrics.json"
QUANTIZERS_NAME = "quantizers.json"


class RunInfo(Strict):
    """`run.json`: what the network is and where it comes from."""

    schema_version: Literal[1] = 1
    kind: Literal["teacher", "student", "baseline"] = Field(
        description="teacher: takes EO; student: takes SAR; baseline: another network that takes SAR."
    )
    arch: str | None = Field(
        default=None, description="Baselines only: see hfd_edge.hfdnet.baselines.ARCHITECTURES."
    )
    dataset: DatasetConfig
    preprocessing: Preprocessing | None = Field(default=None, description="SAR input, if it takes SAR.")
    inputs: TeacherInputs | None = Field(
        default=None, description="What a teacher sees; teachers only. Older runs have none: they see 'eo'."
    )
    eo_mean: tuple[float, ...] | None = Field(default=None, description="EO, values 0 to 1; teachers only.")
    eo_std: tuple[float, ...] | None = None
    data_sha256: str = Field(description="Hash of the data folder.")
    teacher_sha256: str | None = Field(default=None, description="Hash of the teacher's weights, if any.")
    unlabelled_sha256: tuple[str, ...] = Field(
        default=(), description="Hashes of the folders of unlabelled pairs that were distilled, too."
    )
    qat_sha256: str | None = Field(
        default=None,
        description="Hash of the student's weights that quantisation-aware training started from, if it did.",
    )
    versions: dict[str, str] = Field(description="Package name to version.")
    commit: str | None = Field(default=None, description="Revision of the training code, if known.")
    created: str = Field(description="ISO 8601 time at which training began.")

    @model_validator(mode="after")
    def _input_known(self) -> RunInfo:
        if self.kind != "teacher" and self.preprocessing is None:
            raise ValueError(f"a {self.kind} needs 'preprocessing'")
        if (self.kind == "baseline") != (self.arch is not None):
            raise ValueError("a baseline, and nothing else, has 'arch'")
        if self.kind == "teacher" and (
            self.eo_mean is None or self.eo_std is None or self.dataset.eo is None
        ):
            raise ValueError("a teacher needs 'eo_mean', 'eo_std' and 'dataset.eo'")
        if "sar" in self.sees and self.preprocessing is None:
            raise ValueError(f"a teacher of inputs {self.sees!r} needs 'preprocessing'")
        if self.qat_sha256 is not None and self.kind != "student":
            raise ValueError("only a student can have 'qat_sha256'")
        return self

    @property
    def kept_back(self) -> str | None:
        """Why this run is not for devices, as the rest of a sentence; None of a student."""
        if self.kind == "teacher":
            return "is a teacher: it takes optical images, which the device does not have"
        if self.kind == "baseline":
            return f"is a baseline ({self.arch}): baselines are for comparison, and are not exported"
        return None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label id is the position."""
        return self.dataset.classes

    @property
    def palette(self) -> tuple[Rgb, ...]:
        """One RGB colour per class."""
        return self.dataset.palette

    @property
    def sees(self) -> TeacherInputs:
        """What a teacher sees."""
        return self.inputs or "eo"

    @property
    def bands(self) -> int:
        """Input bands of the network."""
        sar = len(self.dataset.sar.bands)
        if self.kind != "teacher":
            return sar
        assert self.dataset.eo is not None
        eo = len(self.dataset.eo.bands)
        return eo * (2 if "before" in self.sees else 1) + (sar if "sar" in self.sees else 0)


class Quantizers(Strict):
    """`quantizers.json`: what the INT8 model must clip at."""

    amax: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="Convolution to the largest magnitude of its input that is not clipped."
    )


@dataclass(frozen=True)
class Run:
    """A run folder on disk; make one with `Run.create`, read one with `Run.open`."""

    path: Path
    recipe: Recipe
    info: RunInfo

    @classmethod
    def create(
        cls, path: Path, recipe: Recipe, info: RunInfo, *, ranges: Mapping[str, float] | None = None
    ) -> Run:
        """Make the folder with recipe.toml and run.json in it, and quantizers.json if there are `ranges`.

        Raises:
            StorageError: the folder exists, or cannot be written.
        """
        path = Path(path)
        with atomic_folder(path) as staged:
            write_toml(staged / RECIPE_NAME, recipe)
            write_text(staged / RUN_NAME, info.model_dump_json(indent=2) + "\n")
            if ranges is not None:
                write_json(staged / QUANTIZERS_NAME, {"amax": dict(ranges)})
        return cls(path, recipe, info)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Read recipe.toml and run.json.

        Raises:
            CheckpointError: the folder is no run, or run.json is damaged.
            RecipeError: recipe.toml is damaged.
        """
        path = Path(path)
        source = path / RUN_NAME
        try:
            info = RunInfo.model_validate_json(source.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(
                f"{path} is not a run: it has no {RUN_NAME}. Give the folder that 'hfd-edge train' made."
            ) from error
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"]) or "file"
            raise CheckpointError(
                f"{source} is damaged or from another version: {where}: {fault['msg']}. Train again, or "
                "restore the file."
            ) from error
        return cls(path, read_toml(path / RECIPE_NAME, Recipe), info)

    @property
    def weights_path(self) -> Path:
        """Weights of the epoch that is kept; there after the first epoch."""
        return self.path / BEST_NAME

    @property
    def checkpoint_path(self) -> Path:
        """The resumable checkpoint."""
        return self.path / CHECKPOINT_NAME

    def network(self) -> HfdNet | baselines.Baseline:
        """Build the network with the best weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: the weights are missing, damaged, or of another network.
        """
        network = self.untrained_network()
        if not self.weights_path.is_file():
            raise CheckpointError(
                f"{self.path} has no {BEST_NAME}: its training was stopped before the first epoch ended. "
                "Go on with --resume."
            )
        weights, _ = read_tensors(self.weights_path)
        load_state(network, weights, source=self.weights_path)
        return network.eval()

    def untrained_network(self, *, pretrained: bool = False) -> HfdNet | baselines.Baseline:
        """Build the recipe's network for this run's input; `pretrained` as in `network.from_recipe`."""
        recipe, bands, classes = self.recipe.network, self.info.bands, len(self.info.classes)
        if self.info.arch is None:
            return from_recipe(recipe, bands=bands, classes=classes, pretrained=pretrained)
        return baselines.from_recipe(
            recipe, arch=self.info.arch, bands=bands, classes=classes, pretrained=pretrained
        )

    def metrics(self) -> dict[str, Any]:
        """Content of metrics.json; empty before the first epoch has ended. Raises CheckpointError."""
        source = self.path / METRICS_NAME
        if not source.is_file():
            return {}
        try:
            return dict(json.loads(source.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{source} is damaged ({error}). Remove it and go on with --resume."
            ) from error

    def quantizers(self) -> dict[str, float] | None:
        """Convolution to the range of its input, of a quantisation-aware training; None of any other.

        Raises:
            CheckpointError: quantizers.json is missing or damaged.
        """
        if self.info.qat_sha256 is None:
            return None
        source = self.path / QUANTIZERS_NAME
        try:
            return dict(Quantizers.model_validate_json(source.read_bytes()).amax)
        except (OSError, ValidationError) as error:
            raise CheckpointError(
                f"{source} is missing or damaged ({type(error).__name__}), but the run was trained with "
                "quantisers. Copy the whole run folder, or train again."
            ) from error

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the best weights. Raises StorageError."""
        write_tensors(self.weights_path, weights, {"format": "pt"})

    def save_metrics(self, content: Mapping[str, Any]) -> None:
        """Replace metrics.json. Raises StorageError."""
        write_json(self.path / METRICS_NAME, dict(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all, with its own hash in the header. Raises StorageError."""
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    hashed = {**header, _DIGEST: _digest(packed, header)}
    # To memory first: the library's own file writer hides the cause (a full disk) in an error of its own.
    write_bytes(path, _in_order(safetensors_torch.save(packed, hashed)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU: tensors and header strings.

    Raises:
        CheckpointError: missing, truncated, not a safetensors file, or not what was written (files of earlier
            versions have no hash, and are believed).
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            header = dict(stored.metadata() or {})
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no file {path}. Copy the whole run folder, or train again."
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise CheckpointError(
            f"{path} ({size} bytes) is damaged: {error}. Copy it again, or train again."
        ) from error
    written = header.pop(_DIGEST, None)
    found = None if written is None else _digest(tensors, header)
    if found != written:
        raise CheckpointError(
            f"{path} is damaged: its content has the SHA-256 {str(found)[:12]}..., but {str(written)[:12]}"
            "... was written. Copy it again, or train again."
        )
    return tensors, header


def _in_order(content: bytes) -> bytes:
    """Sort the header's strings, which the library writes in random order: equal weights make equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 of all that a file says, hex: a flipped bit leaves a safetensors file valid."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_state(module: Any, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Load tensors into a module, all of them and nothing else.

    Args:
        module: `torch.nn.Module`.
        tensors: Its state dict.
        source: File that they come from, for the message.
    Raises:
        CheckpointError: names or shapes differ.
    """
    wanted = module.state_dict()
    faults = sorted(set(wanted) ^ set(tensors))
    faults += [name for name in wanted if name in tensors and wanted[name].shape != tensors[name].shape]
    if faults:
        raise CheckpointError(
            f"{source} does not fit the network of {source.parent / RECIPE_NAME}: {len(faults)} tensors "
            f"differ, first {faults[0]}. Restore the recipe that trained it, or train again."
        )
    module.load_state_dict(dict(tensors))


def package_versions(*also: str) -> dict[str, str]:
    """Versions of what shapes the numbers: the packages of every training, and `also`."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *also):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """The time, ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
