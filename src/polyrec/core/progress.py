"""Progress of steps that may take long, with rate and remaining time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_SHOWN: ContextVar[bool] = ContextVar("bars are shown", default=False)
_DELAY = 2.0  # seconds; what is over before then needs no bar


@contextmanager
def showing_bars(when: bool = True) -> Iterator[None]:
    """Inside, steps that take long draw a bar if this is a terminal; with False they do not.

    Commands turn bars on, and a training as its `disable_tqdm` says. Else, and in other threads, all is silent.
    """
    before = _SHOWN.set(when)
    try:
        yield
    finally:
        _SHOWN.reset(before)


def progress(things: Iterable[Any] | None = None, what: str = "", total: float | None = None, unit: str = "it") -> Any:
    """A bar as tqdm draws it, or nothing, see [`showing_bars`].

    Args:
        things: that are gone through; None: call `update` of what is returned.
        what: the step, e.g. "Baseline EASE".
        total: of things, if they have no length.

    Example:
        >>> with showing_bars():
        ...     list(progress(range(3), "Counting"))  # over too soon for a bar
        [0, 1, 2]
    """
    from huggingface_hub.utils import are_progress_bars_disabled
    from tqdm.auto import tqdm

    shown = _SHOWN.get() and not are_progress_bars_disabled()
    return tqdm(things, desc=what, total=total, unit=unit, leave=False, delay=_DELAY, disable=None if shown else True)
