"""Where benchmark figures go, and what is written beside them so that they can be judged later."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from hfd_edge.bench.machine import machine_slug

_PACKAGES = (
    *("hfd-edge", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch", "timm"),
    *("tensorrt-rtx", "segmentation-models-pytorch"),
)


def write(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    root: Path,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write `root`/benchmarks/results/<machine>/<name>.json whole or not at all.

    Args:
        name: Stem of the file.
        rows: One mapping a measurement; plain keys with units in their names.
        command: What made the rows, as one would type it.
        root: The repository.
        versions: Of programs outside Python that took part; those of Python packages are added.
    Returns:
        The file.
    """
    machine = machine_slug()
    path = Path(root) / "benchmarks" / "results" / machine / f"{name}.json"
    content = {
        "benchmark": name,
        "machine": machine,
        "versions": {**_package_versions(), **(versions or {})},
        "commit": _commit(root),
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rows": [dict(row) for row in rows],
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit(root: Path) -> str | None:
    """Commit of the code, "-dirty" when files other than results differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
