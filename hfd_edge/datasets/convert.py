"""Converters from the layouts of public data sets into the project's data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hfd_edge.datasets import ombria
from hfd_edge.errors import DatasetError
from hfd_edge.progress import Progress, silent


class Converter(Protocol):
    """Reads a data set in its authors' layout at `src`, writes a data folder at the new path `dst`."""

    def __call__(self, src: Path, dst: Path, *, progress: Progress = ...) -> None: ...


CONVERTERS: dict[str, Converter] = {"ombria": ombria.convert}


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
