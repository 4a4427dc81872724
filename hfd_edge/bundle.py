"""The deployable folder: everything a device needs, described and hashed by its own manifest.

A bundle is read on devices that have no torch, so this module needs none. The manifest is written last
and names the SHA-256 of every file: what is not in the manifest is not part of the bundle.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, model_validator

from hfd_edge.config import Rgb, SarInput, Strict
from hfd_edge.drift.training import TrainingStatistics
from hfd_edge.errors import BundleError
from hfd_edge.files import atomic_folder, atomic_path, sha256, storage_errors, write_bytes, write_text
from hfd_edge.raster.image import read_image
from hfd_edge.sar.preprocessing import Preprocessing

Precision = Literal["fp32", "fp16", "int8", "int8_fp16"]
"""Arithmetic of a variant; `int8_fp16` is INT8 with FP16 instead of FP32 in what INT8 leaves out."""
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


def _inside(relpath: str) -> str:
    """Refuse paths that leave the bundle: a manifest may come from anywhere."""
    path = PurePosixPath(relpath)
    if not relpath or path.is_absolute() or ".." in path.parts or "\\" in relpath:
        raise ValueError(f"path {relpath!r} is not a relative path inside the bundle")
    return relpath


RelPath = Annotated[str, AfterValidator(_inside)]


class Provenance(Strict):
    """Where the weights come from."""

    recipe: dict[str, Any] = Field(description="The resolved recipe that trained the network.")
    data_sha256: str = Field(description="Hash of the data folder that it was trained on.")
    versions: dict[str, str] = Field(description="Package name to version, at training and export.")
    commit: str | None = Field(default=None, description="Revision of the training code, if known.")
    created: str = Field(description="ISO 8601 time of the export.")


class Manifest(Strict):
    """`manifest.json`: what the model takes, what it gives, and what the folder holds."""

    schema_version: Literal[1] = 1
    name: str
    classes: tuple[str, ...] = Field(min_length=2, description="Class names; label id is the position.")
    palette: tuple[Rgb, ...]
    nodata_label: int = Field(default=255, ge=0, le=255, description="Label of pixels without data.")
    sar: SarInput
    preprocessing: Preprocessing
    head: Literal["quarter", "full"]
    tile_px: int = Field(gt=0, multiple_of=32, description="Side of the square tile that the model takes.")
    precisions: dict[Precision, RelPath] = Field(default={}, description="Precision to its ONNX file.")
    engines: dict[str, RelPath] = Field(default={}, description="<target>-<precision> to its engine.")
    metrics: dict[Precision, dict[str, Any]] = Field(default={}, description="Scores by precision.")
    provenance: Provenance
    training: TrainingStatistics | None = Field(
        default=None, description="What the training images look like, to tell when a scene does not."
    )
    files: dict[RelPath, str] = Field(default={}, description="SHA-256 of every file but the manifest.")

    @property
    def stride(self) -> int:
        """Pixels of the tile per pixel of the logits, along each axis."""
        return 4 if self.head == "quarter" else 1

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        if self.nodata_label < len(self.classes):
            raise ValueError(f"nodata_label {self.nodata_label} is the id of a class")
        if self.preprocessing.bands != len(self.sar.bands):
            raise ValueError(
                f"preprocessing is for {self.preprocessing.bands} bands, sar has {len(self.sar.bands)}"
            )
        if self.preprocessing.units != self.sar.units:
            raise ValueError(f"preprocessing takes {self.preprocessing.units}, sar is {self.sar.units}")
        return self


@dataclass(frozen=True)
class GoldenTile:
    """A tile with the labels that the FP32 model gave when the bundle was made."""

    name: str
    image: NDArray[Any]  # (bands, rows, cols), in the units of manifest.sar
    labels: NDArray[np.uint8]  # (rows, cols)


@dataclass(frozen=True)
class Bundle:
    """A bundle folder on disk; make one with `Bundle.create`, read one with `Bundle.open`."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read the manifest and check that every file it names is there.

        Contents are hashed when a file is used (`file`, `model`, `engine`) and by `verify`.

        Raises:
            BundleError: no bundle, a damaged manifest, another schema version, or a missing file.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for relpath in manifest.files:
            if not (path / relpath).is_file():
                raise BundleError(
                    f"{path} is incomplete: {relpath} is missing, but its manifest lists it. "
                    "Copy the whole folder again, or make it again with hfd-edge export."
                )
        return cls(path, manifest)

    @classmethod
    def create(cls, path: Path | str, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Bundle:
        """Write a new bundle whole or not at all.

        Args:
            path: Folder to make; must not exist.
            manifest: All but `files`, which is filled in here.
            files: Content, or a file to copy, by path inside the bundle.
        Raises:
            StorageError: the folder exists, the disk is full, or its parent cannot be written.
            BundleError: the manifest names a model or engine that `files` does not hold.
        """
        path = Path(path)
        with atomic_folder(path) as staged:
            hashes = _stage(staged, files)
            manifest = _checked(manifest.model_copy(update={"files": hashes}))
            _write_manifest(staged, manifest)
        return cls(path, manifest)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions that have a model, in the order in which they were made."""
        return tuple(self.manifest.precisions)

    def file(self, relpath: str) -> Path:
        """Give the path of a file after checking that it is what the manifest says.

        Raises:
            BundleError: the manifest does not list it, it is gone, or it was changed.
        """
        expected = self.manifest.files.get(relpath)
        if expected is None:
            raise BundleError(
                f"{self.path} has no file {relpath}. It holds: {', '.join(sorted(self.manifest.files))}."
            )
        path = self.path / relpath
        if not path.is_file():
            raise BundleError(f"{path} is missing. Copy the whole bundle again.")
        found = sha256(path)
        if found != expected:
            raise BundleError(
                f"{path} was changed after the bundle was made: its SHA-256 is {found[:12]}..., the "
                f"manifest says {expected[:12]}.... Copy the bundle again, or re-export it."
            )
        return path

    def model(self, precision: str) -> Path:
        """Give the checked ONNX file of one precision. Raises BundleError."""
        relpath = {str(name): file for name, file in self.manifest.precisions.items()}.get(precision)
        if relpath is None:
            fix = {
                "fp32": "Make it with: hfd-edge export RUN --out BUNDLE",
                "fp16": f"Make it with: hfd-edge quantize {self.path} --data DIR",
                "int8": f"Make it with: hfd-edge quantize {self.path} --data DIR",
                "int8_fp16": f"Make it with: hfd-edge quantize {self.path} --data DIR",
            }.get(precision, "Choose one of these.")
            raise BundleError(
                f"{self.path} has no {precision} model; it has: {', '.join(self.precisions) or 'none'}. {fix}"
            )
        return self.file(relpath)

    def engine(self, name: str) -> Path:
        """Give the checked engine `<target>-<precision>`. Raises BundleError."""
        relpath = self.manifest.engines.get(name)
        if relpath is None:
            raise BundleError(
                f"{self.path} has no engine {name}; it has: "
                f"{', '.join(self.manifest.engines) or 'none'}. "
                f"Make it with: hfd-edge build {self.path} --target NAME"
            )
        return self.file(relpath)

    def verify(self) -> None:
        """Hash every file. Raises BundleError at the first that is missing or was changed."""
        for relpath in self.manifest.files:
            self.file(relpath)

    def golden(self) -> list[GoldenTile]:
        """Read the golden tiles, in name order; an empty list if the bundle has none.

        Raises:
            BundleError: a file is missing or was changed, or a tile has no labels.
        """
        names = sorted(
            relpath.removeprefix("golden/").removesuffix(".sar.tif")
            for relpath in self.manifest.files
            if relpath.startswith("golden/") and relpath.endswith(".sar.tif")
        )
        return [self._golden(name) for name in names]

    def _golden(self, name: str) -> GoldenTile:
        image = read_image(self.file(f"golden/{name}.sar.tif"))
        labels = read_image(self.file(f"golden/{name}.labels.png"))
        if labels.shape != (1, *image.shape[1:]) or labels.dtype != np.uint8:
            raise BundleError(
                f"{self.path}/golden/{name}.labels.png is {labels.dtype} {labels.shape[1:]}, but the tile "
                f"needs uint8 {image.shape[1:]}. Re-export the bundle."
            )
        return GoldenTile(name, image, labels[0])

    def add(
        self,
        files: Mapping[str, bytes | Path],
        *,
        precisions: Mapping[Precision, str] | None = None,
        engines: Mapping[str, str] | None = None,
        metrics: Mapping[Precision, Mapping[str, Any]] | None = None,
    ) -> Bundle:
        """Add files, or replace those of the same name, and describe them in the manifest.

        All contents are written to a temporary folder first and renamed at the end, the manifest last:
        when the disk fills up or the call is interrupted, the bundle is as it was.

        Args:
            files: Content, or a file to copy, by path inside the bundle.
            precisions: Entries to add to, or replace in, `manifest.precisions`.
            engines: The same for `manifest.engines`.
            metrics: The same for `manifest.metrics`. Scores of a model that `files` replaces with
                another content are dropped: they belong to the old one.
        Raises:
            StorageError: the disk is full, or the folder cannot be written.
            BundleError: an entry names a file that the bundle does not hold.
        """
        # Read again: another command may have added to the bundle since this object was opened.
        current = _read_manifest(self.path)
        with storage_errors(self.path):
            staged = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.path))
        try:
            with storage_errors(self.path):
                hashes = _stage(staged, files)
                kept_metrics = {
                    precision: scores
                    for precision, scores in current.metrics.items()
                    if _unchanged(current, hashes, current.precisions.get(precision))
                }
                manifest = current.model_copy(
                    update={
                        "precisions": {**current.precisions, **(precisions or {})},
                        "engines": {**current.engines, **(engines or {})},
                        "metrics": {**kept_metrics, **(metrics or {})},
                        "files": {**current.files, **hashes},
                    }
                )
                manifest = _checked(manifest)
                _write_manifest(staged, manifest)
                _swap_in(staged, self.path, [*hashes, MANIFEST])
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return Bundle(self.path, manifest)


def _unchanged(manifest: Manifest, hashes: Mapping[str, str], relpath: str | None) -> bool:
    return relpath is None or hashes.get(relpath, manifest.files.get(relpath)) == manifest.files.get(relpath)


def _stage(folder: Path, files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Write all files below `folder`; give their SHA-256 by relative path."""
    hashes = {}
    for relpath, content in files.items():
        target = folder / _inside(relpath)
        if isinstance(content, bytes):
            write_bytes(target, content)
        else:
            with atomic_path(target) as temporary:
                shutil.copyfile(content, temporary)
        hashes[relpath] = sha256(target)
    return hashes


def _swap_in(staged: Path, folder: Path, names: list[str]) -> None:
    """Rename staged files into place in order; if one fails, put everything back."""
    moved: list[tuple[Path, Path, bool]] = []
    try:
        for name in names:
            target, kept = folder / name, staged / ".replaced" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            moved.append((target, kept, target.exists()))
            if target.exists():
                target.replace(kept)
            (staged / name).replace(target)
    except BaseException:
        for target, kept, was_there in reversed(moved):
            if not was_there:
                target.unlink(missing_ok=True)
            elif kept.exists():
                kept.replace(target)
        raise


def _checked(manifest: Manifest) -> Manifest:
    """Validate again (copies skip validation) and check that every named file is listed."""
    try:
        manifest = Manifest.model_validate(manifest.model_dump())
    except ValidationError as error:
        raise BundleError(f"The manifest does not hold together: {_faults(error)}.") from error
    _require_listed(manifest, source="The manifest")
    return manifest


def _require_listed(manifest: Manifest, *, source: str) -> None:
    for name, relpath in [*manifest.precisions.items(), *manifest.engines.items()]:
        if relpath not in manifest.files:
            raise BundleError(
                f"{source} names {relpath} for {name}, but the bundle holds no such file. "
                "Make the bundle again with hfd-edge export."
            )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    # Pydantic writes NaN as null (a class that a split does not hold has no IoU): valid JSON.
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _read_manifest(path: Path) -> Manifest:
    source = path / MANIFEST
    try:
        content = json.loads(source.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}. Give the folder that hfd-edge export made."
        ) from error
    except OSError as error:
        raise BundleError(f"{source} cannot be read: {error.strerror}. Check who may read it.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{source} is damaged or truncated: {error}. Copy the bundle again, or re-export it."
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{source} has schema version {version!r}, but this hfd-edge reads version "
            f"{SCHEMA_VERSION}. Use the hfd-edge that made it, or re-export the run."
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(
            f"{source} is not a valid manifest: {_faults(error)}. Copy the bundle again, or re-export it."
        ) from error
    _require_listed(manifest, source=str(source))
    return manifest


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'manifest'}: {item['msg']}"
        for item in error.errors()[:5]
    )
