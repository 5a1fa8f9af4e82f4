"""Which items are trending: how often each was taken lately, at many times of a log.

Letters: E events, S snapshots, T half-lives, N items, K items of a snapshot, J items of a pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyrec.core.progress import progress
from polyrec.data.columns import FIRST

Mixture = Sequence[Sequence[float]]  # (half-life in seconds, weight of the counts that fade by it)
SIZE = 128  # items of a snapshot
SNAPSHOTS = 32_768  # of a log, about as many: 25 MB
_BLOCK = 64  # snapshots that are sorted at a time
_ADDED = 1 << 20  # events that are counted at once
_REBASE = 512  # half-lives after which counts are measured in a new unit, far from what float64 can hold


class Snapshots(NamedTuple):
    """The hottest items at some times.

    Args:
        items: int32 [S, K], ascending, 0 = none.
        values: float16 [S, K], the logarithm of popularity, see [`RecentCounts`]; 0 where there is no item.
    """

    items: np.ndarray
    values: np.ndarray

    @classmethod
    def none(cls, size: int = SIZE) -> Snapshots:
        """One in which nothing is trending."""
        return cls(np.zeros((1, size), dtype=np.int32), np.zeros((1, size), dtype=np.float16))

    def take(self, rows: np.ndarray) -> Snapshots:
        """Some of them, int64 [U]."""
        return Snapshots(self.items[rows], self.values[rows])

    @staticmethod
    def concatenate(parts: Sequence[Snapshots]) -> Snapshots:
        """All of several."""
        return Snapshots(*(np.concatenate([part[n] for part in parts]) for n in range(2)))


class RecentCounts:
    r"""Recent interactions of items, c_tj = sum_{e of j} 2^{-(now - t_e) / h_t}, `now` being the latest event.

    An item's popularity is p_j = 1 + sum_t a_t c_tj, a mixture of several half-lives; 1 is what every item has.

    What was counted does not fade while nothing happens: all counts of one half-life fade alike, and say no more about
    which item is next. An event weighs 2^{t_e / h}, whoever reads it, so that a new one costs one addition; and as
    order changes only where something was added, the hottest items of a half-life are among those that were the
    hottest before and the new ones.

    Args:
        mixture: (h_t, a_t), half-lives in seconds and the weights of their counts.
        num_items: N, rows of the item table.
        counts: float64 [T, N], as of `time`; None: nothing was counted.
        time: of the latest event, seconds.

    Example:
        >>> recent = RecentCounts([(60.0, 10.0)], num_items=5, size=3)
        >>> recent.add(np.array([0.0, 60.0]), np.array([2, 3]))
        >>> recent.counts.tolist()
        [[0.0, 0.0, 0.5, 1.0, 0.0]]
        >>> hottest = recent.hottest()
        >>> hottest.items.tolist(), np.exp(hottest.values.astype(float)).round(1).tolist()
        ([[0, 2, 3]], [[1.0, 6.0, 11.0]])
    """

    def __init__(
        self,
        mixture: Mixture,
        num_items: int,
        counts: np.ndarray | None = None,
        time: float = -np.inf,
        size: int = SIZE,
    ) -> None:
        self.half_lives, self.weights = np.array(mixture, dtype=np.float64).T
        self.time, self.size = time, size
        self._base_T = np.full(len(self.half_lives), time)
        self._counts_TN = np.zeros((len(self.half_lives), num_items)) if counts is None else counts.copy()
        some = np.flatnonzero(self._counts_TN.any(axis=0))
        self._hot = [some[self._largest(own[some])] for own in self._counts_TN]

    @property
    def mixture(self) -> list[list[float]]:
        """(h_t, a_t)."""
        return np.column_stack([self.half_lives, self.weights]).tolist()

    @property
    def counts(self) -> np.ndarray:
        """c as of the latest event, float64 [T, N]."""
        return self._counts_TN * self._fade(self.time)[:, None]

    def _fade(self, now: float) -> np.ndarray:
        """What an event counted in the unit of the base weighs now, [T]."""
        return np.exp2(-(now - self._base_T) / self.half_lives) if np.isfinite(now) else np.zeros(len(self._base_T))

    def add(self, times: np.ndarray, items: np.ndarray) -> None:
        """Count events, seconds in ascending order and not before those counted so far; items below 2 are none."""
        for begin in range(0, len(times), _ADDED):
            self._add(times[begin : begin + _ADDED], items[begin : begin + _ADDED])

    def _add(self, times: np.ndarray, items: np.ndarray) -> None:
        self.time = float(times[-1])
        times, items = times[items >= FIRST], items[items >= FIRST]
        distinct = np.unique(items)
        for t, half_life in enumerate(self.half_lives):
            if (self.time - self._base_T[t]) / half_life > _REBASE:
                self._counts_TN[t] *= np.exp2(-(self.time - self._base_T[t]) / half_life)
                self._base_T[t] = self.time
            np.add.at(self._counts_TN[t], items, np.exp2((times - self._base_T[t]) / half_life))
            pool = np.union1d(self._hot[t], distinct)
            self._hot[t] = pool[self._largest(self._counts_TN[t, pool])]

    def _largest(self, values: np.ndarray) -> np.ndarray:
        return np.argsort(-values, kind="stable")[: self.size]

    def hottest(self, times: np.ndarray | None = None, items: np.ndarray | None = None) -> Snapshots:
        """The K most popular of the new items and those that are among the K hottest of a half-life, one snapshot.

        Args:
            times, items: further events, as of [`add`], which count here and are forgotten again.
        """
        if times is None or items is None or not len(times):
            pool_J, counts_TJ = self.pool()
        else:
            pool_J, counts_TJ = self.pool(now=float(times[-1]), also=np.unique(items[items >= FIRST]))
            _count(counts_TJ, np.searchsorted(pool_J, items[items >= FIRST]), times[items >= FIRST], self, times[-1])
        return _snapshots(pool_J, (self.weights @ counts_TJ)[None], self.size)

    def pool(self, now: float | None = None, also: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K hottest items of each half-life and some others, int64 ascending [J], and their counts, [T, J].

        Args:
            now: as of which time they are; default: the latest event.
            also: further items.
        """
        none = np.zeros(0, dtype=np.int64)
        pool_J = np.unique(np.concatenate([*self._hot, none if also is None else also]))
        return pool_J, self._counts_TN[:, pool_J] * self._fade(self.time if now is None else now)[:, None]

    def extend(self, num_items: int) -> None:
        """Add items without events."""
        self._counts_TN = np.pad(self._counts_TN, ((0, 0), (0, num_items - self._counts_TN.shape[1])))


class Trending:
    """The hottest items of a log at about `snapshots` times, and which of them an example sees.

    An example at time t reads the last snapshot that holds nothing of time >= t. Snapshots lie at most
    E / `snapshots` events apart (and one time's events).

    Args:
        mixtures: {task: (h_t, a_t)}, see [`RecentCounts`].
        times: of the events, float64 seconds [E] in any order.
        items: {task: int64 [E]}, 0 where the item is a negative.
        num_items: N.

    Example:
        >>> times, items = np.array([0.0, 60.0, 0.0]), np.array([2, 3, 2])
        >>> trending = Trending({"next": [(60.0, 1.0)]}, times, {"next": items}, num_items=5)
        >>> found = trending.read(np.array([0.0, 1.0, 60.0, 61.0]))  # at its own time nobody sees an event
        >>> found["trending"]["next"]["items"][found["candidate_trending"], -2:].tolist()
        [[0, 0], [0, 2], [0, 2], [2, 3]]
    """

    def __init__(
        self,
        mixtures: Mapping[str, Mixture],
        times: np.ndarray,
        items: Mapping[str, np.ndarray],
        num_items: int,
        size: int = SIZE,
        snapshots: int = SNAPSHOTS,
    ) -> None:
        order = np.argsort(times, kind="stable")
        times, spans = times[order], list(pieces(times[order], snapshots))
        self.ends = np.array([times[end - 1] for _, end in spans])
        self.tables: dict[str, Snapshots] = {}
        for task, mixture in mixtures.items():
            recent, own = RecentCounts(mixture, num_items, size=size), items[task][order]
            blocks = [spans[at : at + _BLOCK] for at in range(0, len(spans), _BLOCK)]
            found = [_block(recent, times, own, block) for block in progress(blocks, "Popularity", unit="block")]
            self.tables[task] = Snapshots.concatenate([Snapshots.none(size), *found])

    def read(self, times: np.ndarray) -> dict[str, Any]:
        """What examples see (float64 seconds [...]), as a window has it.

        Returns:
            "trending": {task: {"items", "values"}} of the snapshots that they read, after an empty one, and
            "candidate_trending", int64 [...], which of them each reads.
        """
        rows, row = np.unique(np.append(0, np.searchsorted(self.ends, times, side="left")), return_inverse=True)
        tables = {task: table.take(rows)._asdict() for task, table in self.tables.items()}
        return {"trending": tables, "candidate_trending": row[1:].reshape(np.shape(times))}


def request_trending(
    recent: Mapping[str, RecentCounts], times: np.ndarray, items: Mapping[str, np.ndarray], candidates: int
) -> dict[str, Any]:
    """What all candidates of a request see, as [`Trending.read`] has it.

    Args:
        recent: {task: what was counted so far}.
        times, items: of the request's own later events, float64 seconds [E] and {task: int64 [E]}, see
            [`RecentCounts.add`].
    """
    tables = {}
    for task, own in recent.items():
        tables[task] = Snapshots.concatenate([Snapshots.none(own.size), own.hottest(times, items[task])])._asdict()
    return {"trending": tables, "candidate_trending": np.ones(candidates, dtype=np.int64)}


def _count(counts_TJ: np.ndarray, column: np.ndarray, times: np.ndarray, recent: RecentCounts, now: float) -> None:
    """Add events at some places to counts as of `now`."""
    for own_J, half_life in zip(counts_TJ, recent.half_lives, strict=True):
        np.add.at(own_J, column, np.exp2((times - now) / half_life))


def _block(recent: RecentCounts, times: np.ndarray, items: np.ndarray, spans: Sequence[tuple[int, int]]) -> Snapshots:
    """Snapshots after each of some pieces of events, which are counted."""
    begin, end = spans[0][0], spans[-1][1]
    own, ends = items[begin:end], np.array([last for _, last in spans])
    pool_J, counts_TJ = recent.pool(also=np.unique(own[own >= FIRST]))
    now_S = times[ends - 1]
    event = np.flatnonzero(own >= FIRST)
    piece, column = np.searchsorted(ends, begin + event, side="right"), np.searchsorted(pool_J, own[event])
    age = times[begin + event] - now_S[piece]  # when the snapshot is taken
    added_TSJ = np.zeros((len(recent.half_lives), len(spans), len(pool_J)))
    for added_SJ, half_life in zip(added_TSJ, recent.half_lives, strict=True):
        np.add.at(added_SJ, (piece, column), np.exp2(age / half_life))
    before = recent.time if np.isfinite(recent.time) else now_S[0]
    fade_TS = np.exp2(-np.diff(now_S, prepend=before) / recent.half_lives[:, None])
    for s in range(len(spans)):
        counts_TJ *= fade_TS[:, s, None]
        counts_TJ += added_TSJ[:, s]
        added_TSJ[:, s] = counts_TJ
    recent.add(times[begin:end], own)
    return _snapshots(pool_J, np.tensordot(recent.weights, added_TSJ, 1), recent.size)


def _snapshots(pool_J: np.ndarray, popularity_SJ: np.ndarray, size: int) -> Snapshots:
    """The most popular items of a pool, int64 ascending, by popularities less 1."""
    if len(pool_J) > size:
        kept_SK = np.argpartition(-popularity_SJ, size - 1, axis=1)[:, :size]
    else:
        kept_SK = np.broadcast_to(np.arange(len(pool_J)), popularity_SJ.shape)
    values_SK = np.take_along_axis(popularity_SJ, kept_SK, axis=1)
    items_SK = np.where(values_SK > 0, pool_J[kept_SK], 0)
    order_SK = np.argsort(items_SK, axis=1, kind="stable")  # ascending: what is missing is item 0, on the left
    items, values = np.zeros((len(items_SK), size), np.int32), np.zeros((len(items_SK), size), np.float16)
    if width := items_SK.shape[1]:
        items[:, -width:] = np.take_along_axis(items_SK, order_SK, axis=1)
        values[:, -width:] = np.log1p(np.take_along_axis(values_SK, order_SK, axis=1))
    return Snapshots(items, values)


def pieces(times: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Events begin:end of about `most` pieces, none of which ends between equal times."""
    begin, step = 0, max(len(times) // most, 1)
    while begin < len(times):
        end = int(np.searchsorted(times, times[min(begin + step, len(times)) - 1], side="right"))
        yield begin, end
        begin = end
