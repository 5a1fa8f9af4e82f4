"""A thread that has time gives way to requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_RUN, _REST = 1e-3, 4e-3  # seconds of work, and of rest after it while requests are served


@contextmanager
def giving_way(busy: Callable[[], bool]) -> Iterator[None]:
    """Let this thread rest most of the time while something is busy.

    Threads of Python take turns, and have no priorities: one that loads a model takes half of the time of the one that
    runs the model. Most of that work is done by libraries, so that a profile hook rests in their midst: Python calls
    it with each call that this thread makes.

    Args:
        busy: whether others work.
    """
    now = time.perf_counter
    until = now() + _RUN

    def rest(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal until
        if now() < until:
            return
        if busy():
            time.sleep(_REST)
        until = now() + _RUN

    before = sys.getprofile()
    sys.setprofile(rest)
    try:
        yield
    finally:
        sys.setprofile(before)
