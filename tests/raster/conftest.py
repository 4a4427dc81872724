"""A disk that is full, without needing one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

resource = pytest.importorskip("resource", reason="POSIX limits stand in for a full disk")


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Give a function that lets every file of this process end at so many bytes; undone after the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so writing beyond the limit fails with EFBIG, as ENOSPC would.
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
