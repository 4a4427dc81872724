"""Every error that hfd-edge raises on purpose.

Each message says what happened, the value seen, the value expected and what to do. Each class inherits
`HfdEdgeError` and the built-in that a caller would expect, so both `except HfdEdgeError` and
`except ValueError` work.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class HfdEdgeError(Exception):
    """Base of the family; the command line turns it into one line and exit code 1."""


class RadiometryError(HfdEdgeError, ValueError):
    """Pixel values, units, looks or bands do not fit what was declared."""


class RecipeError(HfdEdgeError, ValueError):
    """A recipe or dataset.toml has an unknown key, a wrong type or a value out of range."""


class DatasetError(HfdEdgeError, ValueError):
    """A file of a data folder is missing, unreadable or does not fit its pair."""


class RasterError(HfdEdgeError, ValueError):
    """A scene cannot be read, or does not fit the bundle."""


class BundleError(HfdEdgeError, ValueError):
    """A bundle is incomplete, was changed after it was made, or is from another schema."""


class CheckpointError(HfdEdgeError, ValueError):
    """A checkpoint or run folder is damaged, or belongs to another recipe."""


class ExportError(HfdEdgeError, RuntimeError):
    """An exported or quantised model does not compute what the weights compute."""


class EngineError(HfdEdgeError, RuntimeError):
    """An engine could not be built, or does not fit the model or the device."""


class BackendError(HfdEdgeError, RuntimeError):
    """A runtime backend is not available, or failed to run."""


class BenchError(HfdEdgeError, ValueError):
    """A benchmark cannot be run as asked, or two of them cannot be compared."""


class StorageError(HfdEdgeError, OSError):
    """A file could not be written; what was there before is untouched."""

    def __str__(self) -> str:
        return str(self.args[-1])  # the message alone, without OSError's "[Errno 28]"


class MissingExtraError(HfdEdgeError, ImportError):
    """An optional package is needed that the base install does not bring."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or name the extra that brings it.

    Args:
        module: Import name, for example "torch".
        extra: Extra of this distribution that installs it.
        purpose: What needs it; the subject of the message.
    Raises:
        MissingExtraError: the package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module}', which cannot be imported ({error}). "
            f"Install it with: pip install 'hfd-edge[{extra}]'"
        ) from error
