"""The data folder: SAR, EO and label tiles that belong together by name.

Two layouts, told apart by what is there:

- `{train,val,test}/{sar,eo,label}/<name>.{png,tif}`;
- one pool `{sar,eo,label}/<name>.{png,tif}` and `splits/<scheme>/{train,val,test}.txt`, one name a line.

`eo_before/` beside `eo/` may hold EO images of an earlier date, with the same names, bands and scale.
`dataset.toml` beside them says what classes and pixels are (`hfd_edge.config.DatasetConfig`). EO may be
missing where only the SAR network looks (test), and for training pairs that have a label; labels may be
missing for pairs that only distil. A list `unlabelled.txt` beside train.txt names further pairs that distil
and whose labels, should they have any, are not looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfd_edge.config import DatasetConfig, EoInput, SarInput, read_toml
from hfd_edge.datasets.layout import (
    CONFIG_NAME,
    EO_BEFORE,
    LISTS,
    SPLITS,
    UNLABELLED,
    Pair,
    Pool,
    find_leak,
    find_schemes,
    index_pool,
    read_list,
)
from hfd_edge.errors import DatasetError, RadiometryError, RasterError
from hfd_edge.files import sha256
from hfd_edge.raster.image import read_image, read_sar
from hfd_edge.sar.radiometry import check_units, valid_mask

Array = NDArray[Any]


@dataclass(frozen=True)
class PairFolder:
    """A data folder on disk; nothing but names is kept in memory.

    Attributes:
        root: The folder that holds dataset.toml.
        config: Its content.
        scheme: Split scheme in use, for a pool with several; None otherwise.
        schemes: Split schemes that the folder has; empty for the layout with split folders.
    """

    root: Path
    config: DatasetConfig
    scheme: str | None
    schemes: tuple[str, ...]
    _pools: dict[Path, Pool] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sizes: dict[Path, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, root: Path, *, scheme: str | None = None) -> PairFolder:
        """Read dataset.toml and find out the layout.

        Args:
            root: Folder that holds dataset.toml.
            scheme: Split scheme under `splits/`. May stay None when there is only one; with several,
                asking for a split then raises.
        Raises:
            DatasetError: no data folder, an unknown scheme, or both layouts at once.
            RecipeError: dataset.toml has an unknown key or a value out of range.
        """
        root = Path(root)
        if not (root / CONFIG_NAME).is_file():
            raise DatasetError(
                f"{root} is not a data folder: it has no {CONFIG_NAME}. Point --data at the folder that "
                f"holds {CONFIG_NAME} and train/, val/, test/ (or sar/, eo/, label/ and splits/); "
                f"'hfd-edge simulate DIR' writes an example."
            )
        config = read_toml(root / CONFIG_NAME, DatasetConfig)
        schemes = find_schemes(root)
        if schemes and any((root / split).is_dir() for split in SPLITS):
            raise DatasetError(
                f"{root} has both splits/ and split folders ({', '.join(SPLITS)}). Keep one of the layouts."
            )
        if scheme is not None and scheme not in schemes:
            have = ", ".join(schemes) if schemes else "none: its splits are the folders train/, val/, test/"
            raise DatasetError(
                f"{root} has no split scheme '{scheme}' (it has {have}). Correct 'split' in the recipe."
            )
        only = schemes[0] if scheme is None and len(schemes) == 1 else scheme
        return cls(root=root, config=config, scheme=only, schemes=schemes)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that exist, in the order train, val, test. Raises DatasetError when no scheme is chosen."""
        if not self.schemes:
            return tuple(split for split in SPLITS if (self.root / split).is_dir())
        return tuple(split for split in SPLITS if self._list_file(split).is_file())

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """The pairs of a split, sorted by name.

        Raises:
            DatasetError: no such split, no SAR files in it, a listed name without SAR file, EO and label
                files that no SAR file has the name of, or a list that shares pairs with train's.
        """
        if split not in self.splits:
            have = ", ".join(self.splits) or "none"
            raise DatasetError(
                f"{self.root} has no split '{split}' (it has {have}). Add it, or choose one of these."
            )
        pool = self._pool(self.root if self.schemes else self.root / split)
        if pool.faults:
            raise DatasetError(pool.faults[0])
        if not self.schemes:
            return tuple(pool.pairs[name] for name in sorted(pool.pairs))
        return self._listed(split, [other for other in self.splits if "train" in (other, split)])

    @property
    def unlabelled(self) -> tuple[Pair, ...]:
        """Pairs of the list unlabelled.txt without their labels, sorted by name; empty without such a list.

        Raises:
            DatasetError: as `pairs`, or another list names one of them.
        """
        if self.scheme is None or not self._list_file(UNLABELLED).is_file():
            return ()
        return tuple(replace(pair, label=None) for pair in self._listed(UNLABELLED, self.splits))

    @property
    def lists(self) -> Mapping[str, tuple[Pair, ...]]:
        """The pairs of every split and, last and where there are any, `unlabelled`. Raises as they do."""
        splits = {split: self.pairs(split) for split in self.splits}
        return {**splits, UNLABELLED: pairs} if (pairs := self.unlabelled) else splits

    def _listed(self, split: str, others: Sequence[str]) -> tuple[Pair, ...]:
        """The pairs that a list names and that the lists of `others` do not."""
        pool = self._pool(self.root)
        names, faults = read_list(self._list_file(split), pool)
        for other in others:
            if other != split:
                first, second = sorted((other, split), key=LISTS.index)
                faults += find_leak(self._list_file(first), self._list_file(second), pool)
        if faults:
            raise DatasetError(faults[0])
        return tuple(pool.pairs[name] for name in names)

    def load_sar(self, pair: Pair) -> Array:
        """Read the SAR image as it is stored: (bands, rows, cols) in the units of dataset.toml.

        Raises:
            DatasetError: unreadable, not the bands or units of dataset.toml, or no valid pixel at all.
        """
        sar = self.config.sar
        image = _read(pair.sar, lambda path: read_sar(path, nodata=sar.nodata))
        if image.shape[0] != len(sar.bands):
            raise DatasetError(
                f"{pair.sar} has {image.shape[0]} bands, but {CONFIG_NAME} declares {len(sar.bands)} SAR "
                f"bands ({', '.join(sar.bands)}). Correct sar.bands, or replace the file."
            )
        try:
            check_units(image, units=sar.units, bands=len(sar.bands), nodata=sar.nodata)
        except RadiometryError as error:
            raise DatasetError(f"{pair.sar}: {error}") from error
        if not valid_mask(image, units=sar.units, nodata=sar.nodata).any():
            raise DatasetError(
                f"{pair.sar} has no valid pixel: all {image.shape[1]}x{image.shape[2]} are NaN, zero or "
                f"no-data (nodata = {sar.nodata}). Remove the pair, or correct sar.nodata in {CONFIG_NAME}."
            )
        self._sizes[pair.sar] = (image.shape[1], image.shape[2])
        return image

    def load_eo(self, pair: Pair) -> NDArray[np.float32]:
        """Read the EO image as float32 (bands, rows, cols), stored values over eo.scale, limited to 0..1.

        NaN comes out as 0.

        Raises:
            DatasetError: there is none, unreadable, another band count or size than declared, or most
                values lie above eo.scale.
        """
        return self._load_eo(pair, pair.eo, kind="eo")

    def load_eo_before(self, pair: Pair) -> NDArray[np.float32]:
        """Read the EO image of the earlier date, as `load_eo` reads the other. Raises DatasetError."""
        return self._load_eo(pair, pair.eo_before, kind=EO_BEFORE)

    def _load_eo(self, pair: Pair, path: Path | None, *, kind: str) -> NDArray[np.float32]:
        eo = self.config.eo
        if eo is None or path is None:
            image = "EO image" if kind == "eo" else "EO image of the earlier date"
            raise DatasetError(
                f"Pair '{pair.name}' has no {image}, which is needed here. Add {kind}/{pair.name}.png or "
                f".tif beside {pair.sar.parent.name}/, or leave the pair out of the split."
            )
        stored = _read(path)
        if stored.shape[0] != len(eo.bands):
            raise DatasetError(
                f"{path} has {stored.shape[0]} bands, but {CONFIG_NAME} declares {len(eo.bands)} EO bands "
                f"({', '.join(eo.bands)}). Correct eo.bands, or replace the file."
            )
        self._check_size(pair, path, stored)
        if np.iscomplexobj(stored):
            raise DatasetError(f"{path} is {stored.dtype}, but EO must be real. Was SAR put into {kind}/?")
        image = np.nan_to_num(
            stored.astype(np.float32) / np.float32(eo.scale), nan=0.0, posinf=1.0, neginf=0.0
        )
        if float(np.mean(image > 1)) > 0.5:
            raise DatasetError(
                f"{path}: most values lie above eo.scale = {eo.scale:g} (max {np.nanmax(stored):g}), "
                f"which stands for reflectance 1. Set eo.scale in {CONFIG_NAME}; Sentinel-2 has 10000."
            )
        return np.clip(image, 0.0, 1.0, out=image)

    def load_label(self, pair: Pair) -> NDArray[np.uint8]:
        """Read the label map (rows, cols).

        Raises:
            DatasetError: there is none, unreadable, not one integer band, another size than the SAR
                image, or an id that is neither a class nor ignore_index.
        """
        if pair.label is None:
            raise DatasetError(
                f"Pair '{pair.name}' has no label, which is needed here. Add label/{pair.name}.png or .tif, "
                f"or leave the pair out of the split."
            )
        stored = _read(pair.label)
        if stored.shape[0] != 1 or stored.dtype.kind not in "iu":
            raise DatasetError(
                f"{pair.label} has {stored.shape[0]} bands of {stored.dtype}, but a label map has one "
                f"integer band of class ids. Convert colours to ids (position in 'classes' of {CONFIG_NAME})."
            )
        self._check_size(pair, pair.label, stored)
        self._check_ids(pair.label, stored)
        return stored[0].astype(np.uint8)

    def require_fit(
        self,
        model: str,
        *,
        classes: tuple[str, ...] | None = None,
        sar: SarInput | None = None,
        eo: EoInput | None = None,
    ) -> None:
        """Refuse to serve a model that takes something else; what stays None is not compared.

        Args:
            model: What the error calls it, for example "the bundle".
            classes: Classes that it was trained for, in order.
            sar: SAR input that it takes.
            eo: EO input that it takes.
        Raises:
            DatasetError: classes or pixels are not what the model takes.
        """
        own = self.config
        if classes is not None and own.classes != classes:
            raise DatasetError(
                f"{self.root} has classes {list(own.classes)}, but {model} was trained for {list(classes)}. "
                "Use data with the same classes in the same order."
            )
        for kind, found, wanted in (("SAR", own.sar, sar), ("EO", own.eo, eo)):
            if wanted is not None and found != wanted:
                raise DatasetError(
                    f"{self.root} declares {kind} input {found!r}, but {model} takes {wanted!r}. Use data "
                    f"like those it was trained on, or correct [{kind.lower()}] in {CONFIG_NAME}."
                )

    def pools(self) -> tuple[Pool, ...]:
        """What lies on disk, whether a split names it or not: one pool, or one for each split folder."""
        if self.schemes:
            return (self._pool(self.root),)
        return tuple(self._pool(self.root / split) for split in self.splits)

    @cached_property
    def sha256(self) -> str:
        """Hash of dataset.toml, the split lists in use, and names, sizes and content of all files; hex."""
        digest = hashlib.sha256((self.root / CONFIG_NAME).read_bytes())
        if self.schemes and self.scheme is not None:
            for name, pairs in self.lists.items():
                digest.update(f"\n{name}:{','.join(pair.name for pair in pairs)}".encode())
        for pair in (pool.pairs[name] for pool in self.pools() for name in sorted(pool.pairs)):
            for path in (pair.sar, pair.eo, pair.label, pair.eo_before):
                if path is not None:
                    name = path.relative_to(self.root).as_posix()
                    digest.update(f"\n{name} {path.stat().st_size} {sha256(path)}".encode())
        return digest.hexdigest()

    def _check_size(self, pair: Pair, path: Path, stored: Array) -> None:
        if pair.sar not in self._sizes:
            image = _read(pair.sar)
            self._sizes[pair.sar] = (image.shape[1], image.shape[2])
        rows, cols = self._sizes[pair.sar]
        if stored.shape[1:] != (rows, cols):
            raise DatasetError(
                f"{path} is {stored.shape[1]}x{stored.shape[2]} pixels (rows x cols), but {pair.sar} is "
                f"{rows}x{cols}. Co-register and resample both to one grid."
            )

    def _check_ids(self, path: Path, stored: Array) -> None:
        classes, ignore = len(self.config.classes), self.config.ignore_index
        wrong = stored[((stored < 0) | (stored >= classes)) & (stored != ignore)]
        if wrong.size:
            ids = ", ".join(str(value) for value in np.unique(wrong)[:5])
            raise DatasetError(
                f"{path} holds label id {ids} on {wrong.size} pixels, but {CONFIG_NAME} has {classes} "
                f"classes (0 to {classes - 1}) and ignore_index {ignore}. Add the class, or map these pixels "
                f"to {ignore}."
            )

    def _pool(self, base: Path) -> Pool:
        if base not in self._pools:
            self._pools[base] = index_pool(base)
        return self._pools[base]

    def _list_file(self, split: str) -> Path:
        if self.scheme is None:
            raise DatasetError(
                f"{self.root} has several split schemes ({', '.join(self.schemes)}). "
                f"Choose one: set 'split' in the recipe, or --set split={self.schemes[0]}."
            )
        return self.root / "splits" / self.scheme / f"{split}.txt"


def _read(path: Path, read: Callable[[Path], Array] = read_image) -> Array:
    try:
        return read(path)
    except RasterError as error:
        raise DatasetError(f"{error} (while reading {path}; replace the file, or remove the pair)") from error
