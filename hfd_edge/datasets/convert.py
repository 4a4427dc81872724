"""Converters from the layouts of public data sets into the project's data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hfd_edge.datasets import ddhr, ombria, sen1floods11, sen12ms, spacenet6, whu_opt_sar
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent


class Converter(Protocol):
    """Reads a data set in its authors' layout at `src`, writes a data folder at the new path `dst`."""

    def __call__(self, src: Path, dst: Path, *, progress: Progress = ...) -> None: ...


CONVERTERS: dict[str, Converter] = {
    "ddhr": ddhr.convert,
    "dfc2020": sen12ms.convert_dfc2020,
    "ombria": ombria.convert,
    "sen1floods11": sen1floods11.convert,
    "sen12ms": sen12ms.convert,
    "spacenet6": spacenet6.convert,
    "whu_opt_sar": whu_opt_sar.convert,
}
"""By the names of `hfd_edge.datasets.public.PUBLIC`."""


def convert(name: str, src: Path, dst: Path, *, progress: Progress = silent) -> None:
    """Convert a public data set by its name.

    Raises:
        DatasetError: there is no such converter, or `src` does not have the authors' layout.
        StorageError: `dst` exists already or cannot be written.
    """
    if name not in CONVERTERS:
        raise DatasetError(
            f"There is no converter for '{name}' (there is: {', '.join(sorted(CONVERTERS))}). Choose one of "
            f"these, or write the data folder yourself: dataset.toml, sar/, eo/, label/, splits/."
        )
    CONVERTERS[name](Path(src), Path(dst), progress=progress)
