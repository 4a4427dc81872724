"""Ask a program on PATH, which may be missing, fail, hang or answer nonsense."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass

TIMEOUT_S = 10.0
_ERROR_CHARS = 200


@dataclass(frozen=True)
class Answer:
    """What a program said.

    Attributes:
        text: Its stdout; bytes that are no UTF-8 are replaced.
        fault: Why that cannot be relied on: its exit status and last words, or that it hung; "" when it can.
    """

    text: str
    fault: str = ""


def ask(*command: str, timeout_s: float | None = None) -> Answer | None:
    """Run a program without a shell and without input; None where it is not on PATH.

    Args:
        command: Its name and arguments.
        timeout_s: After so many seconds, by default TIMEOUT_S, it is killed with all that it started: a child
            that keeps the pipe open would hold us up as well.
    """
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer("", f"{command[0]} cannot be started: {error.strerror or error}")
    try:
        text, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Answer("", f"{command[0]} gave no answer within {timeout_s:g} s")
    if process.returncode:
        words = " ".join((errors.strip() or text.strip()).split())[-_ERROR_CHARS:]
        return Answer(text, f"{command[0]} failed with status {process.returncode}: {words or 'no message'}")
    return Answer(text)
