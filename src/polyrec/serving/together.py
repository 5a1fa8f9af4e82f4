"""What comes together is done together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_QUIET = 3  # turns of the event loop without anything new
_TURNS = 30  # with it or without


class Together:
    """Does something once the event loop has nothing more to read.

    Requests that came together, as they do when a batch is done, would otherwise be a batch of one, and one of all
    others behind it.

    Args:
        act: what is done.
        most: things that do not wait for more.
    """

    def __init__(self, act: Callable[[], None], most: int) -> None:
        self._act, self._most, self._waiting = act, most, 0

    def add(self) -> None:
        """One more has come."""
        self._waiting += 1
        if self._waiting == 1:
            self._gather(0, 0, 0)

    def _gather(self, waiting: int, quiet: int, turns: int) -> None:
        if quiet == _QUIET or turns == _TURNS or self._waiting >= self._most:
            self._waiting = 0
            self._act()
        else:
            quiet = quiet + 1 if waiting == self._waiting else 0
            asyncio.get_running_loop().call_soon(self._gather, self._waiting, quiet, turns + 1)
