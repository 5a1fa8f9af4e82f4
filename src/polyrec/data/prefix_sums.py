"""Strictly-before sums by key, for all rows of a table in one sorted pass.

Letters: R rows of the table, M (row, key) occurrences (M > R where a row has several values of a key), G groups
(distinct keys), T targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SHIFT = 31  # a pair of keys is packed into one int64: first << 31 | second


def pack_keys(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Occurrences of a combination of keys.

    Args:
        columns: int64 [R] or [R, K] codes each, 0 = missing (the row then does not occur); at most two columns, at
            most one of them with several values per row. No column = one group of all rows.

    Returns:
        rows [M] and packed keys [M].

    Example:
        >>> rows, keys = pack_keys([np.array([1, 2]), np.array([[3, 4], [5, 0]])])
        >>> rows.tolist(), (keys & 0x7FFFFFFF).tolist()
        ([0, 0, 1], [3, 4, 5])
    """
    if len(columns) > 2 or sum(c.ndim > 1 for c in columns) > 1:
        raise ValueError("a statistic takes at most two keys, and at most one of them may be multi-valued")
    width = max((c.shape[1] for c in columns if c.ndim > 1), default=1)
    packed = np.zeros((len(columns[0]), width), dtype=np.int64)
    occurs = np.ones_like(packed, dtype=bool)
    for column in columns:
        codes = column if column.ndim > 1 else column[:, None]
        packed = (packed << _SHIFT) | codes
        occurs &= codes != 0
    rows, _ = np.nonzero(occurs)
    return rows, packed[occurs]


@dataclass(frozen=True)
class Occurrences:
    """Where each occurrence finds the earlier occurrences of its key.

    Args:
        row: int64 [M], ascending.
        group: int64 [M], index of the key among `keys`.
        keys: int64 [G], packed, ascending.
        source: int64 [S], the occurrences that may be counted, sorted by (group, time).
        begin, end: int64 [M]; the sources `begin[m]:end[m]` have the same key and lie strictly before occurrence m.
    """

    row: np.ndarray
    group: np.ndarray
    keys: np.ndarray
    source: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    @classmethod
    def find(cls, columns: list[np.ndarray], time: np.ndarray, until: np.ndarray, counted: np.ndarray) -> Occurrences:
        """Sort once.

        Args:
            columns: keys, see `pack_keys`; an empty list = one group of all rows.
            time: int64 [R], dense rank of each row's time.
            until: int64 [R]; rows with a time rank below it are visible to the row.
            counted: bool [R], rows that may be counted at all.
        """
        row, packed = pack_keys(columns) if columns else (np.arange(len(time)), np.zeros(len(time), dtype=np.int64))
        keys, group = np.unique(packed, return_inverse=True)
        span = int(time.max(initial=0)) + 2
        source = np.flatnonzero(counted[row])
        stamp = group[source] * span + time[row[source]]
        order = np.argsort(stamp, kind="stable")
        source, stamp = source[order], stamp[order]
        begin = np.searchsorted(stamp, group * span)
        end = np.searchsorted(stamp, group * span + until[row])
        return cls(row, group, keys, source, begin, np.maximum(begin, end))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` [R, T] over the earlier occurrences of the same key, float64 [M, T]."""
        total = self._running(values)
        return total[self.end] - total[self.begin]

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` [R, T] over all counted occurrences of each key, float64 [G, T]."""
        rows = self.row[self.source]
        return np.stack([np.bincount(self.group[self.source], v[rows], len(self.keys)) for v in values.T], axis=1)

    def last_before(self, time: np.ndarray) -> np.ndarray:
        """Time of the latest earlier occurrence of the same key, float64 [M], NaN = none."""
        if not len(self.source):
            return np.full(len(self.row), np.nan)
        last = time[self.row[self.source[np.maximum(self.end - 1, 0)]]]
        return np.where(self.end > self.begin, last, np.nan)

    def decayed(self, values: np.ndarray, decay: float) -> np.ndarray:
        """sum_j decay^(n - 1 - j) values_j over the n earlier occurrences of the same key, float64 [M, T]."""
        scanned = self._scan(values, decay)
        if not len(scanned):
            return np.zeros((len(self.row), values.shape[1]))
        return np.where((self.end > self.begin)[:, None], scanned[np.maximum(self.end - 1, 0)], 0.0)

    def group_decayed(self, values: np.ndarray, decay: float) -> np.ndarray:
        """The decayed sum of each key after all its counted occurrences, float64 [G, T]."""
        result = np.zeros((len(self.keys), values.shape[1]))
        result[self.group[self.source]] = self._scan(values, decay)  # ascending in time: the last one stays
        return result

    def _running(self, values: np.ndarray) -> np.ndarray:
        gathered = values[self.row[self.source]]
        return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(gathered, axis=0)])

    def _scan(self, values: np.ndarray, decay: float) -> np.ndarray:
        """Inclusive decayed sums along the sorted sources by doubling (Hillis and Steele, 1986)."""
        scanned = values[self.row[self.source]].astype(np.float64)
        group = self.group[self.source]
        step = 1
        while step < len(scanned) and decay**step > 1e-12:
            same = (group[step:] == group[:-step])[:, None]
            shifted = np.where(same, scanned[:-step], 0.0) * decay**step
            scanned[step:] += shifted
            step *= 2
        return scanned
