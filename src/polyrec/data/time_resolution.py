"""How fine timestamps are."""

from __future__ import annotations

import numpy as np

_FINE = "below a second"
_RESOLUTIONS = (("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0), ("second", 1.0))


def iso(seconds: float) -> str:
    """A time as ISO writes it, to the second.

    Example:
        >>> iso(86_400.0)
        '1970-01-02T00:00:00'
    """
    return str(np.datetime64(int(np.floor(seconds)), "s"))


def resolution(times: np.ndarray) -> str:
    """The coarsest of day, hour, minute and second of which all times are multiples.

    Example:
        >>> resolution(np.array([0.0, 120.0])), resolution(np.array([0.5]))
        ('minute', 'below a second')
    """
    return next((name for name, size in _RESOLUTIONS if are_whole(times[:100], size) and are_whole(times, size)), _FINE)


def are_whole(times: np.ndarray, size: float) -> bool:
    """Whether all times are multiples of a size."""
    count = times / size  # of a multiple nothing is lost
    return bool((count == np.floor(count)).all())


def distinct(values: np.ndarray) -> np.ndarray:
    """As `np.unique`; of numbers that are nearly all different, sorting is several times faster than its hashing."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
