"""When items appeared, on a clock that a model can hold: whole milliseconds since the epoch, int64.

A float32 of the seconds since 1970 is off by two minutes, and a model saved in half precision would lose the day.

Letters: N items, R events, K buckets of ages.
"""

from __future__ import annotations

import numpy as np

from polyrec.core.schema import Columns
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST
from polyrec.data.tables import column, seconds

NO_TIME = 1 << 62  # it never happened, or nobody knows when
_MINUTE, _LONGEST = 60_000, 20 * 365.25 * 24 * 60  # milliseconds; minutes in 20 years
_TIMESTAMPS = 100_000  # of events, about as many, at which it is counted which items are there
_PRIOR, _SMOOTHED = 0.01, 5  # events that every bucket has beside its own; buckets about each that share theirs


def milliseconds(times: np.ndarray) -> np.ndarray:
    """Seconds as int64 milliseconds; what is not finite becomes `NO_TIME`.

    Example:
        >>> milliseconds(np.array([1.5, np.inf])).tolist() == [1500, NO_TIME]
        True
    """
    known = np.isfinite(times)
    return np.where(known, np.rint(np.where(known, times, 0) * 1e3).astype(np.int64), NO_TIME)


def item_times(columns: Columns, items: EntityTable) -> np.ndarray:
    """When items appeared by the catalog (`columns.item_time`), float64 seconds [N], NaN = not known."""
    assert columns.item_time is not None
    values = column(items.table, columns.item_time, "items", "item time")
    what = f"items: column {columns.item_time!r} (item time)"
    return np.concatenate([np.full(FIRST, np.nan), seconds(values, columns.time_unit, what, columns.time_format)])


def first_times(items: np.ndarray, times: np.ndarray, num_items: int) -> np.ndarray:
    """The time of each item's first event, float64 seconds [N], inf = none.

    Example:
        >>> first_times(np.array([2, 3, 2]), np.array([9.0, 5.0, 7.0]), 5).tolist()
        [inf, inf, 7.0, 5.0, inf]
    """
    found = np.full(num_items, np.inf)
    np.minimum.at(found, items, times)
    found[:FIRST] = np.inf  # padding and the unknown item are no items
    return found


def age_edges(buckets: int) -> np.ndarray:
    """Where buckets of ages begin but the first, int64 milliseconds [K - 1]; they grow geometrically.

    Example:
        >>> (age_edges(8) // 60_000).tolist()  # minutes
        [6, 55, 428, 3242, 24474, 184707, 1393909]
    """
    return np.rint(_MINUTE * (_LONGEST ** (np.arange(1, buckets) / buckets) - 1)).astype(np.int64)


def age_start(
    appeared: np.ndarray, items: np.ndarray, times: np.ndarray, buckets: int, unseen_now: bool
) -> list[float]:
    """Log of how many times more often an item of some age is taken than any item that is there, [K + 1].

    The last entry is for items whose time is not known, or not yet: see `polyrec.modules.heads.terms.age`.

    Args:
        appeared: int64 [N], milliseconds.
        items, times: of the events, int64 [R] each.
        unseen_now: whether an item that appears at the very time of the event has not been seen yet.
    """
    edges = np.concatenate([[int(unseen_now)], age_edges(buckets)])
    age = times - appeared[items]
    hidden = age < 1 if unseen_now else appeared[items] == NO_TIME
    interactions = np.bincount(
        np.where(hidden, buckets, np.searchsorted(edges[1:], age, "right")), minlength=buckets + 1
    )
    known = np.sort(appeared[FIRST:])
    times = times[:: len(times) // _TIMESTAMPS + 1]
    at_least = np.searchsorted(known, times[:, None] - edges, "right")  # items of at least the age of each edge
    there = np.concatenate([at_least - np.pad(at_least[:, 1:], ((0, 0), (0, 1))), at_least[:, :1]], axis=1)
    there[:, -1] = len(known) - at_least[:, 0] if unseen_now else (known == NO_TIME).sum()
    # Every item that is there at an event is one chance to be taken; were ages nothing, chances would be all alike.
    chances = there.sum(axis=0)
    expected = chances * (len(items) / max(chances.sum(), 1))
    return np.log((_smoothed(interactions) + _PRIOR) / (_smoothed(expected) + _PRIOR)).tolist()


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Means over neighbouring buckets; the last entry, which is no age, stays."""
    side = _SMOOTHED // 2
    means = np.convolve(np.pad(counts[:-1].astype(float), side, mode="edge"), np.ones(_SMOOTHED) / _SMOOTHED, "valid")
    return np.append(means, counts[-1])
