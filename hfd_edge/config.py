"""What people write by hand: recipes (how to train) and dataset.toml (what the data are).

Config objects stop at the door: the command line and the scripts read them, the library takes the
plain values inside. Unknown keys are refused, so a misspelt switch never trains the wrong thing.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hfd_edge.errors import RecipeError
from hfd_edge.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Units = Literal["dn", "amplitude", "complex", "intensity", "sigma0_db", "stretched"]
"""Radiometry of stored SAR pixels.

`dn`: digital numbers proportional to amplitude (intensity = dn^2); `amplitude`; `complex`: single-look
complex; `intensity`: linear power (sigma0, gamma0 or uncalibrated); `sigma0_db`: decibels (sigma0 or
gamma0; files may say `gamma0_db`, which is kept as `sigma0_db`); `stretched`: contrast-stretched 8-bit
products that have no radiometry left: no dB, no speckle filter, only clip and standardise.
"""

TeacherInputs = Literal["eo", "eo+sar", "eo before+after", "eo before+after+sar"]
"""What a teacher sees of a pair: `eo/` alone (the paper's teacher), the SAR image beside it, `eo/` and the EO
image of an earlier date in `eo_before/`, or all three. All but the first are this project's extension of the
paper."""

ClassWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Rgb = tuple[
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SarInput(Strict):
    """What the SAR pixels are."""

    bands: tuple[str, ...] = Field(min_length=1, description="Band names in file order, e.g. vv, vh.")
    units: Units
    looks: float = Field(default=1.0, gt=0, description="Equivalent number of looks; 1 is single-look.")
    nodata: float | None = Field(
        default=None,
        description="Stored value that marks no-data; NaN always does, and so does zero amplitude.",
    )

    @field_validator("units", mode="before")
    @classmethod
    def _one_name(cls, units: object) -> object:
        # Nothing here depends on which area the power is divided by, only on the scale. One stored name keeps
        # bundles and data comparable; which of both a model was trained on is for 'source' to say.
        return "sigma0_db" if units == "gamma0_db" else units

    @field_validator("nodata")
    @classmethod
    def _a_number(cls, nodata: float | None) -> float | None:
        # NaN and infinity are no-data anyway; NaN differs from itself, and JSON has neither.
        return nodata if nodata is not None and math.isfinite(nodata) else None


class EoInput(Strict):
    """What the optical pixels are."""

    bands: tuple[str, ...] = Field(default=("red", "green", "blue"), min_length=1)
    scale: float = Field(default=255.0, gt=0, description="Stored value that stands for reflectance 1.")


class DatasetConfig(Strict):
    """`dataset.toml`: classes, palette and what the pixels are."""

    name: str
    classes: tuple[str, ...] = Field(min_length=2, description="Class names; label id is the position.")
    palette: tuple[Rgb, ...] = Field(description="One RGB colour per class.")
    ignore_index: int = Field(default=255, ge=0, le=255, description="Label id of unknown pixels.")
    sar: SarInput
    eo: EoInput | None = EoInput()
    source: str = Field(default="", description="Where the data come from, licence, citation.")

    @model_validator(mode="after")
    def _palette_fits(self) -> DatasetConfig:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        if self.ignore_index < len(self.classes):
            raise ValueError(f"ignore_index {self.ignore_index} is the id of a class")
        return self


class PreprocessingRecipe(Strict):
    """How SAR pixels become network input; the statistics come from the training split."""

    speckle: Literal["none", "boxcar", "lee", "kuan", "frost", "gamma_map", "refined_lee"] = "none"
    window_px: int = Field(default=7, ge=3, le=11, description="Odd side of the speckle window.")
    clip_percentile: float = Field(
        default=0.1, ge=0, lt=50, description="Values beyond this percentile at either end are clipped."
    )

    @model_validator(mode="after")
    def _odd(self) -> PreprocessingRecipe:
        if self.window_px % 2 == 0:
            raise ValueError(f"window_px is {self.window_px}, but must be odd")
        return self


class NetworkRecipe(Strict):
    """The network, the same for teacher and student."""

    preset: Literal["s", "m", "l"] = "s"
    encoder: str | None = Field(default=None, description="Any timm encoder; overrides the preset's.")
    channels: int | None = Field(default=None, gt=0, description="Decoder width C; overrides the preset's.")
    hfam: bool = Field(default=True, description="Feature alignment; off is plain bilinear upsampling.")
    warp: Literal["grid_sample", "gather"] = Field(
        default="grid_sample", description="How training computes warps: grid_sample is faster there."
    )
    init: Literal["imagenet", "teacher", "random"] = "imagenet"


class TeacherRecipe(Strict):
    """What `train teacher` trains; a student takes its teacher as that was trained."""

    inputs: TeacherInputs = Field(
        default="eo",
        description="'eo', 'eo+sar', 'eo before+after' or 'eo before+after+sar'; 'before' needs eo_before/.",
    )


class DistillRecipe(Strict):
    """What the student learns from the teacher, beside the labels."""

    method: Literal["none", "logits", "fitnet", "cwd", "hfdm", "hfdm+logits"] = "hfdm"
    feature_weight: float = Field(default=1.0, ge=0, description="l1: standardised feature distance.")
    cwd_weight: float = Field(default=1.0, ge=0, description="l2: channel-wise distillation.")
    logits_weight: float = Field(default=1.0, ge=0, description="l3: logits; used by methods with logits.")
    cwd_temperature: float = Field(default=4.0, gt=0)
    logits_temperature: float = Field(default=1.0, gt=0)
    ramp: float = Field(default=0.1, ge=0, le=1, description="Share of steps over which weights rise.")
    pool: bool = Field(default=False, description="3x3 average before comparing, for misregistered pairs.")
    tolerance_px: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Misregistration to search: maps are compared at the shift, up to this, that fits best. "
        "At most an eighth of training.crop_px.",
    )
    correct_only: bool = Field(default=False, description="Only pixels that the teacher gets right.")
    unlabelled: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="Share of a batch, on top of training.batch, that pairs without label have, if there "
        "are any: of train, of the list unlabelled.txt, of --unlabelled folders; 0 leaves them out.",
    )


class TrainingRecipe(Strict):
    """Optimiser, schedule and sampling."""

    epochs: int = Field(default=100, gt=0)
    batch: int = Field(default=16, gt=0)
    crop_px: int = Field(default=256, gt=0, description="Side of the training crop; a multiple of 32.")
    label_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the labelled training pairs whose labels are used, evenly spaced by name; the "
        "others are pairs without label. Epochs stay as long. For asking what labels are worth.",
    )
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of steps of linear warm-up.")
    power: float = Field(default=0.9, gt=0, description="Exponent of the polynomial decay.")
    flip: Literal["none", "vertical", "both"] = Field(
        default="both",
        description="Mirror axes. 'vertical' keeps the range (left-right) direction of the radar look.",
    )
    sar_gain_db: float = Field(default=1.0, ge=0, description="Random gain, +- this many dB.")
    eo_jitter: float = Field(default=0.2, ge=0, lt=1, description="Random EO brightness and contrast.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = Field(
        default=1,
        gt=0,
        description="Pieces that a batch is computed in, to save memory. Gradients are those of the whole "
        "batch, at a third more computation; batch normalisation sees a piece at a time.",
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights that is validated and kept, e.g. 0.999; "
        "0 keeps the weights themselves.",
    )
    class_weights: Literal["none", "balanced"] | tuple[ClassWeight, ...] = Field(
        default="none",
        description="Weights of the cross-entropy by true class: one number a class, or 'balanced', the "
        "median frequency of a class over its own in the training split.",
    )
    focal_gamma: float = Field(
        default=0.0, ge=0, le=10, description="Focal loss: pixels that are right count less; 0 is off."
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="Epoch whose weights are kept: that of the best validation mIoU, or the last one, where "
        "val is too small, or too unlike the scenes to come, to choose by. QAT keeps the best.",
    )
    patience: int = Field(
        default=0, ge=0, description="Epochs without a better validation mIoU after which it stops; 0: never."
    )
    deterministic: bool = Field(
        default=False, description="Equal bits on a GPU too, by slower algorithms; a CPU gives them anyway."
    )
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, gt=0, description="Steps between resumable checkpoints.")
    cache_mb: int = Field(default=4096, ge=0, description="Memory for preprocessed tiles.")

    @model_validator(mode="after")
    def _crop(self) -> TrainingRecipe:
        if self.crop_px % 32:
            raise ValueError(f"crop_px is {self.crop_px}, but must be a multiple of 32 (encoder stride)")
        return self

    @model_validator(mode="after")
    def _pieces(self) -> TrainingRecipe:
        if self.accumulate > self.batch:
            raise ValueError(
                f"accumulate is {self.accumulate}, but a batch of {self.batch} cannot have more pieces"
            )
        return self

    @model_validator(mode="after")
    def _stops(self) -> TrainingRecipe:
        if self.patience and self.keep == "last":
            raise ValueError(
                'patience stops some epochs after the best one, which keep = "last" does not look for; set '
                'patience = 0, or keep = "best"'
            )
        return self

    @field_validator("class_weights")
    @classmethod
    def _something_counts(cls, weights: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(weights, str) and not any(weights):
            raise ValueError("class_weights are all 0, so nothing would be learnt")
        return weights


class QatRecipe(Strict):
    """How `train student --qat` fine-tunes a finished student with INT8 in the loop.

    All else, such as batch, crops, losses and teacher, is as in the student's own training.
    """

    epochs: int = Field(default=10, gt=0)
    learning_rate: float = Field(
        default=5e-6,
        gt=0,
        description="Peak; takes training.learning_rate's place. About 1 % of it, or the student drifts.",
    )
    ramp: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of steps over which distillation weights rise; the projectors start anew.",
    )
    calibration_tiles: int = Field(
        default=64, gt=0, description="Training tiles on which the ranges of activations are measured."
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="Share of a tile's values that are not clipped; 100 is all."
    )


class DeployRecipe(Strict):
    """What the exported model looks like."""

    head: Literal["quarter", "full"] = Field(
        default="quarter", description="'quarter' stops at stride 4; the runtime upsamples and takes argmax."
    )
    tile_px: int = Field(default=512, gt=0, description="Side of the tile the device runs; multiple of 32.")

    @model_validator(mode="after")
    def _tile(self) -> DeployRecipe:
        if self.tile_px % 32:
            raise ValueError(f"tile_px is {self.tile_px}, but must be a multiple of 32 (encoder stride)")
        return self


class Recipe(Strict):
    """One TOML file that says how to train and deploy."""

    split: str | None = Field(default=None, description="Split scheme under splits/, if there are several.")
    preprocessing: PreprocessingRecipe = PreprocessingRecipe()
    network: NetworkRecipe = NetworkRecipe()
    training: TrainingRecipe = TrainingRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    distill: DistillRecipe = DistillRecipe()
    qat: QatRecipe = QatRecipe()
    deploy: DeployRecipe = DeployRecipe()

    @model_validator(mode="after")
    def _searched(self) -> Recipe:
        # No map is shifted by more than an eighth of its side (hfd_edge.hfdnet.distillation.Comparison).
        most, asked = self.training.crop_px // 8, self.distill.tolerance_px
        if asked > most:
            raise ValueError(
                f"distill.tolerance_px is {asked}, but crops of {self.training.crop_px} pixels can be "
                f"searched for shifts up to {most} only; lower it, or raise training.crop_px"
            )
        return self


Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path, model: type[Model], *, overrides: tuple[str, ...] = ()) -> Model:
    """Read and check a TOML file.

    Args:
        path: File to read.
        model: `Recipe` or `DatasetConfig`.
        overrides: "section.key=value" strings, values in TOML syntax (a bare word is a string).
    Raises:
        RecipeError: the file is missing or unreadable, is not TOML, or a key is unknown or out of range.
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"There is no file {path}. Check the path.") from error
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read: {error.strerror}. Name a TOML file that you may read."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}. Correct that line.") from error
    for override in overrides:
        _apply(content, override)
    return parse(content, model, source=str(path))


def parse(content: dict[str, Any], model: type[Model], *, source: str) -> Model:
    """Check plain values against a model; `source` names them in the error. Raises RecipeError."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(_fault(item) for item in error.errors())
        raise RecipeError(f"{source}: {faults}. Correct these keys.") from error


def write_toml(path: Path, model: BaseModel) -> None:
    """Write a model as TOML; keys that are None are left out (TOML has no null). Raises StorageError."""
    write_text(path, tomli_w.dumps(model.model_dump(mode="json", exclude_none=True)))


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r} is not KEY=VALUE. Write, for example, training.epochs=50.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, leaf = key.strip().split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"--set {override!r}: {section} is a value, not a section.")
    content[leaf] = value


def _fault(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "file"
    return f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"[:300]
