"""Ctrl-C and SIGTERM as exceptions that say what has become of the work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal ended a command.

    Args:
        number: of the signal.
        said: one line.
    """

    def __init__(self, number: int, said: str = "interrupted") -> None:
        super().__init__(said)
        self.number = number


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """A handler that ends whatever goes on."""
    raise Interrupted(number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call a handler; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
