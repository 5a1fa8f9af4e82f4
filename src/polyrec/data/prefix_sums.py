"""Strictly-before sums by key, for all rows of a table in one sorted pass.

Letters: R rows of the table, M occurrences of a key in a row, G groups (distinct keys), S sources (occurrences that
may be counted), V columns of values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

_NEGLIGIBLE = 2.0**-60  # a weight below float64's resolution of the sum it would be added to


@dataclass(frozen=True)
class Occurrences:
    """Where each occurrence finds the earlier occurrences of its key.

    Args:
        row: int64 [M], ascending.
        group: int64 [M], index of the key among `keys`.
        keys: int64 [G], packed, ascending; with `world`, each once per world.
        source: int64 [S], the row of each occurrence that may be counted, sorted by (group, time).
        stamp: int64 [S], ascending, group * span + time rank.
        span: more than any time rank.
        begin, end: int64 [M]; the sources `begin[m]:end[m]` have the same key and lie strictly before occurrence m.
    """

    row: np.ndarray
    group: np.ndarray
    keys: np.ndarray
    source: np.ndarray
    stamp: np.ndarray
    span: int
    begin: np.ndarray
    end: np.ndarray

    @classmethod
    def find(
        cls,
        row: np.ndarray,
        packed: np.ndarray,
        rank: np.ndarray,
        counted: np.ndarray,
        world: np.ndarray | None = None,
    ) -> Occurrences:
        """Sort once.

        Args:
            row, packed: int64 [M], see `polyrec.data.event_table.cross`.
            rank: int64 [R], dense rank of each row's time.
            counted: bool [R], rows that may be counted at all.
            world: int64 [R], from 0; rows of different worlds never count each other. None: all are of one.
        """
        keys, group = np.unique(packed, return_inverse=True)
        if world is not None:
            worlds = int(world.max(initial=0)) + 1
            both, group = np.unique(group * worlds + world[row], return_inverse=True)
            keys = keys[both // worlds]
        span = int(rank.max(initial=0)) + 2
        stamp = group * span + rank[row]
        order = np.argsort(stamp, kind="stable")
        stamp, is_source = stamp[order], counted[row[order]]
        # Two passes along the sorted occurrences are far cheaper than a binary search for each.
        sources_before = np.cumsum(is_source) - is_source
        first = changes(stamp)  # of each (group, time)
        end = np.empty_like(order)
        end[order] = np.repeat(sources_before[first], np.diff(np.append(first, len(order))))
        source, stamp = row[order[is_source]], stamp[is_source]
        begin = _bounds(stamp, len(keys), span)[group]
        return cls(row, group, keys, source, stamp, span, begin, end)

    def until(self, rank: np.ndarray) -> Occurrences:
        """The same occurrences when row r sees only time ranks below rank[r]; int64 [R]."""
        end = np.searchsorted(self.stamp, self.group * self.span + rank[self.row])
        return replace(self, end=end)

    def at(self, rows: np.ndarray) -> Occurrences:
        """Those in some rows (bool [R]) alone, which see the sources of all."""
        kept = rows[self.row]
        own = {name: getattr(self, name)[kept] for name in ("row", "group", "begin", "end")}
        return replace(self, **own)

    @property
    def bounds(self) -> np.ndarray:
        """int64 [G + 1]; the sources of group g are `bounds[g]:bounds[g + 1]`."""
        return _bounds(self.stamp, len(self.keys), self.span)

    @property
    def source_group(self) -> np.ndarray:
        """int64 [S], the group of each source."""
        return self.stamp // self.span

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` [R, V] over the earlier occurrences of the same key, float64 [M, V]."""
        total = self._running(values)
        return total[self.end] - total[self.begin]

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` [R, V] over all sources of each key, float64 [G, V]."""
        total, bounds = self._running(values), self.bounds
        return total[bounds[1:]] - total[bounds[:-1]]

    def decayed_sums(self, values: np.ndarray, clock_S: np.ndarray, now_M: np.ndarray, half_life: float) -> np.ndarray:
        """Decayed sums: sum_j 2^-((now - clock_j) / half_life) values_j over earlier occurrences j, float64 [M, V].

        Args:
            values: float64 [R, V].
            clock_S: float64 [S], ascending within a group: when each source happened.
            now_M: float64 [M], the time of each occurrence, not before the sources it sees.
            half_life: in units of the clock.
        """
        result = np.zeros((len(self.row), values.shape[1]))
        some = self.end > self.begin
        last = self.end[some] - 1
        fade = np.exp2(-(now_M[some] - clock_S[last]) / half_life)
        result[some] = fade[:, None] * self._scan(values, clock_S, half_life)[last]
        return result

    def group_decayed_sums(self, values: np.ndarray, clock_S: np.ndarray, half_life: float) -> np.ndarray:
        """The decayed sum of each key over all its sources, at the clock of the last one, float64 [G, V]."""
        result, bounds = np.zeros((len(self.keys), values.shape[1])), self.bounds
        some = bounds[1:] > bounds[:-1]
        result[some] = self._scan(values, clock_S, half_life)[bounds[1:][some] - 1]
        return result

    @property
    def position(self) -> np.ndarray:
        """int64 [S]; how many sources of the key happened up to and at a source's time: those of one time tie."""
        return np.searchsorted(self.stamp, self.stamp, side="right") - self.bounds[self.source_group]

    def last_before(self, time: np.ndarray) -> np.ndarray:
        """Time of the latest earlier occurrence of the same key, float64 [M], NaN = none."""
        result = np.full(len(self.row), np.nan)
        some = self.end > self.begin
        result[some] = time[self.source[self.end[some] - 1]]
        return result

    def last_is(self, rows: np.ndarray) -> np.ndarray:
        """Whether the latest earlier occurrence of the same key lies in one of some rows (bool [R]), bool [M]."""
        result = np.zeros(len(self.row), dtype=bool)
        some = self.end > self.begin
        result[some] = rows[self.source[self.end[some] - 1]]
        return result

    def _running(self, values: np.ndarray) -> np.ndarray:
        gathered = values[self.source]
        return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(gathered, axis=0)])

    def _scan(self, values: np.ndarray, clock_S: np.ndarray, half_life: float) -> np.ndarray:
        """Inclusive decayed sums along the sorted sources, [S, V], by doubling (Hillis and Steele, 1986).

        After the step of width w an element holds its 2w latest terms. Every factor is 2^-(a difference of clocks)
        and so at most 1: nothing overflows however long the log is, unlike cumsum(values * 2^(clock / half_life)).
        """
        scanned = values[self.source].astype(np.float64)
        group = self.source_group
        width = 1
        while width < len(scanned):
            factor = np.exp2(-(clock_S[width:] - clock_S[:-width]) / half_life, where=group[width:] == group[:-width],
                             out=np.zeros(len(scanned) - width))  # fmt: skip
            if factor.max() < _NEGLIGIBLE:
                break
            scanned[width:] += factor[:, None] * scanned[:-width]
            width *= 2
        return scanned


def changes(*values: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin; of several arrays, of rows that are equal in all of them.

    Example:
        >>> changes(np.array([3, 3, 5, 3])).tolist()
        [0, 2, 3]
    """
    begins = np.zeros(len(values[0]), dtype=bool)
    begins[:1] = True
    for own in values:
        begins[1:] |= own[1:] != own[:-1]
    return np.flatnonzero(begins)


def pieces_of_runs(first: np.ndarray, end: int, most: int) -> np.ndarray:
    """Where runs begin, and where a run of more than `most` rows goes on as another one, int64 ascending.

    Args:
        first: int64, where runs begin.
        end: of the last one.

    Example:
        >>> pieces_of_runs(np.array([0, 2]), end=7, most=2).tolist()
        [0, 2, 4, 6]
    """
    number = -(-np.diff(np.append(first, end)) // most)
    return np.repeat(first - most * (np.cumsum(number) - number), number) + most * np.arange(number.sum())


def _bounds(stamp_S: np.ndarray, groups: int, span: int) -> np.ndarray:
    """Where the sources of each group begin, and the last one's end, int64 [G + 1]."""
    return np.searchsorted(stamp_S, np.arange(groups + 1) * span)
