"""What this process runs on and from: the cores that it may use, and the commit of its own code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def allowed_cores() -> frozenset[int]:
    """Cores that this process may use."""
    ask = getattr(os, "sched_getaffinity", None)
    return frozenset(ask(0)) if ask else frozenset(range(os.cpu_count() or 1))


def commit() -> str | None:
    """Commit of this code, "-dirty" when its files differ from it; None outside its own checkout."""

    def git(*arguments: str) -> str:
        # Without locks: asking must not disturb a commit that somebody is making meanwhile.
        command = ["git", "--no-optional-locks", "-C", str(_PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed copy may lie inside some other project's checkout: that commit is not ours.
        if Path(git("rev-parse", "--show-toplevel")) != _PACKAGE.parent:
            return None
        changed = git("status", "--porcelain", "--", str(_PACKAGE))
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
