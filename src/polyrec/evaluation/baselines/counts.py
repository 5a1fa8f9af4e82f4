"""Baselines that rank everybody's items alike: by how often they were consumed, lately, or by how new they are.

Letters: R rows, E events, N items of the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation.baselines.base import NO_ORDER, CatalogBaseline, CatalogTask, Scorer

_HOUR, _DAY = 3600.0, 86_400.0
HALF_LIVES: dict[str, float | None] = {
    "none": None,
    "1 hour": _HOUR,
    "6 hours": 6 * _HOUR,
    "1 day": _DAY,
    "7 days": 7 * _DAY,
    "30 days": 30 * _DAY,
}
_EPOCH = 256  # half-lives after which counts are measured in a new unit, far from what float64 can hold


class Popularity(CatalogBaseline):
    """How often each item occurs in training."""

    name = "popularity"

    def scorer(self, dataset: SequenceDataset, **settings: Any) -> Scorer:
        """The same for all rows."""
        counts_N = self.task.popularity().astype(np.float32)
        return lambda rows: np.tile(counts_N, (len(rows), 1))


class RecentPopularity(CatalogBaseline):
    r"""Interactions of each item strictly before the example, an event of age a counting 2^(-a / half-life)."""

    name = "recent_popularity"
    defaults = {"half_life": "none"}
    stages = ({"half_life": tuple(HALF_LIVES)},)

    @classmethod
    def misfit(cls, task: CatalogTask) -> str | None:
        """It needs times."""
        return None if task.timed else NO_ORDER

    def scorer(self, dataset: SequenceDataset, half_life: str = "none", **settings: Any) -> Scorer:
        """Counts at the time of each row."""
        counts = DecayedCounts(*self.task.countable(dataset), self.task.num_items, HALF_LIVES[half_life])
        return lambda rows: counts.at(self.task.request_times(dataset, rows))


class DecayedCounts:
    r"""Counts of items strictly before any time t, c_j(t) = sum_{e of j, t_e < t} 2^(-(t - t_e) / h).

    Each time's counts are given up to a factor, so that the largest is 1: ranks do not depend on it, and then an event
    weighs 2^(t_e / h), for every request. Counts of a block of times are one cumulative sum. An item that is 149
    half-lives older than the first is 0.

    Args:
        times: float64 [E], seconds, ascending.
        items: int64 [E], 0..N-1.
        num_items: N.
        half_life: h in seconds; None: events do not age.

    Example:
        >>> counts = DecayedCounts(np.array([0.0, 60.0]), np.array([0, 1]), num_items=2, half_life=60.0)
        >>> counts.at(np.array([120.0, 60.0, 0.0])).tolist()  # at its own time nobody sees an event
        [[0.5, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, times: np.ndarray, items: np.ndarray, num_items: int, half_life: float | None) -> None:
        self.times, self.items, self.num_items = times, items, num_items
        age_E = np.zeros(len(times)) if half_life is None else (times - times[:1]) / half_life
        self._epoch_E = np.floor(age_E / _EPOCH).astype(np.int64)
        self._weight_E = np.exp2(age_E - self._epoch_E * _EPOCH)  # in the unit of its epoch

    def at(self, times_R: np.ndarray) -> np.ndarray:
        """Counts at some times in any order, float32 [R, N]."""
        order_R = np.argsort(times_R, kind="stable")
        end_R = np.searchsorted(self.times, times_R[order_R], side="left")
        found_RN = np.zeros((len(times_R), self.num_items), dtype=np.float32)
        seen = int(np.searchsorted(end_R, 0, side="right"))  # the first rows have seen nothing
        epoch_R = self._epoch_E[end_R[seen:] - 1]
        bounds = [*(seen + np.flatnonzero(np.diff(epoch_R, prepend=-1))), len(end_R)]
        for first, last in pairwise(bounds):
            found_RN[order_R[first:last]] = self._of_one_epoch(end_R[first:last])
        return found_RN

    def _of_one_epoch(self, end_R: np.ndarray) -> np.ndarray:
        """Counts of the first events of each length, ascending lengths whose last events lie in one epoch."""
        before, last = int(end_R[0]), int(end_R[-1])
        unit = self._epoch_E[before - 1]
        weight = self._weight_E[:before] * np.exp2((self._epoch_E[:before] - unit) * float(_EPOCH))
        row = np.searchsorted(end_R, np.arange(before, last), side="right")
        later = sp.csr_array(
            (self._weight_E[before:last], (row, self.items[before:last])), (len(end_R), self.num_items)
        )
        counts_RN = later.toarray()
        counts_RN[0] += np.bincount(self.items[:before], weight, self.num_items)
        np.cumsum(counts_RN, axis=0, out=counts_RN)
        counts_RN /= counts_RN.max(axis=1, keepdims=True)
        return counts_RN


class Newest(CatalogBaseline):
    """The latest items first, of those that are there: by their first event, or by the catalog's `columns.item_time`.

    An item is there once it had an event strictly before the example; by the catalog, from its very time on. Others
    come last, tied.
    """

    name = "newest"
    defaults = {"by": "first_event"}

    @classmethod
    def misfit(cls, task: CatalogTask) -> str | None:
        """It needs times."""
        return None if task.timed else NO_ORDER

    def grids(self) -> Sequence[Mapping[str, Sequence[Any]]]:
        """The catalog's times are one choice where it has them."""
        return [] if self.task.released is None else [{"by": ("first_event", "item_time")}]

    def scorer(self, dataset: SequenceDataset, by: str = "first_event", **settings: Any) -> Scorer:
        """The rank of each item in time, -1 where it is not there."""
        if by == "first_event":
            appeared_N = np.full(self.task.num_items, np.inf)
            times, items = self.task.countable(dataset, positives=False)
            np.minimum.at(appeared_N, items, times)
        else:
            assert self.task.released is not None
            appeared_N = np.where(np.isnan(self.task.released), np.inf, self.task.released)
        timestamps, rank_N = np.unique(
            appeared_N, return_inverse=True
        )  # float32 holds a rank, and no time to the second
        side: Literal["left", "right"] = "left" if by == "first_event" else "right"

        def score(rows: np.ndarray) -> np.ndarray:
            there_R1 = np.searchsorted(timestamps, self.task.request_times(dataset, rows), side=side)[:, None]
            return np.where(rank_N < there_R1, rank_N, -1).astype(np.float32)

        return score
