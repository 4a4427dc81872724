"""How long work reports on itself, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work advances; the command line draws a bar from it.

    `done` and `total` count in any unit (steps, tiles, megapixels); `text` names the work and may
    carry a figure, for example "student epoch 3/20 mIoU 0.71". A new `total` or a smaller `done`
    starts a new bar. Raising from it (KeyboardInterrupt, for example) stops the work cleanly.
    """

    def __call__(self, done: float, total: float, text: str, /) -> None: ...


def silent(done: float, total: float, text: str, /) -> None:
    """Report to nobody."""
