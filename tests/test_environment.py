"""Cores and commit of this process."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hfd_edge import environment
from hfd_edge.environment import allowed_cores, commit


def answer(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    """Let git say this."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        found = next((text for word, text in answers.items() if word in command), None)
        if found is None:
            raise subprocess.CalledProcessError(128, command)
        return subprocess.CompletedProcess(command, 0, found + "\n", "")

    monkeypatch.setattr(environment.subprocess, "run", run)


def test_commit_of_this_checkout() -> None:
    assert commit() is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", str(commit()))


def test_commit_says_what_was_changed_and_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = str(Path(environment.__file__).resolve().parents[1])
    clean = {"--show-toplevel": ours, "status": "", "HEAD": "a" * 40}
    answer(monkeypatch, clean)
    assert commit() == "a" * 40
    answer(monkeypatch, {**clean, "status": " M hfd_edge/bundle.py"})
    assert commit() == "a" * 40 + "-dirty"
    answer(monkeypatch, {**clean, "--show-toplevel": "/somebody/elses"})
    assert commit() is None
    answer(monkeypatch, {})
    assert commit() is None


def test_cores_follow_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert allowed_cores() == {3, 5}
    monkeypatch.delattr(environment.os, "sched_getaffinity")
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 4)
    assert allowed_cores() == {0, 1, 2, 3}
